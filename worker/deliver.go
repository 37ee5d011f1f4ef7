package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// A parcel is one delivery in work. It is acknowledged when each of its items is a fact,
// or open with all that another attempt needs, or gone into another message; if one is
// not, the message comes again, and what was done is then skipped.
type parcel struct {
	queue.Delivery
	inbox *inbox
	kind  *kind
	left  atomic.Int32 // items that have not ended
	keep  atomic.Bool  // the message must come again
	after atomic.Int64 // and not before so many nanoseconds
	lost  atomic.Bool  // it is no longer held, so it does
}

// An item is the work on one entity, on its way through deliver.
type item struct {
	*parcel
	Entity   string
	raw      []byte // the arguments as they came
	args     jobs.Args
	want     ledger.Want
	standing ledger.Standing
	looked   time.Time // when that was read
	claim    ledger.Claim
	slot     *slot
	began    time.Time
	asking   atomic.Bool                    // a check runs: nothing has been tried
	attempt  atomic.Pointer[attemptContext] // of what runs without a claim
	blocked  bool                           // somebody's lock is in the way of recording its end; of settleBlocked
	recorded chan struct{}                  // closed when its end is recorded; nil: nobody waits for that
	ended    atomic.Bool                    // decided once, by the body's end or by the watch

	end ending
}

// An ending is what is to be recorded of an item, in one transaction.
type ending struct {
	outcome ledger.Outcome // with an empty State the ledger has nothing to record
	send    *queue.Message // carries the work on
	park    string         // keep the input aside, for this reason
	note    string         // of the body
	result  []byte         // that it returned
	err     error
	reason  ledger.Reason // why it was not run; empty: it was
	keep    bool          // nothing of the above: the message itself must come again
	hold    time.Duration // not 0: the message itself carries the work on, after so long
}

// deliver takes what one Receive brought, all of one job type, from the queue to where
// its items can run, or need not.
//
// This is the first half of the way; [life.work] is the second. Until an item ends, a
// crash costs nothing but time: the messages are still in the queue, and come again when
// their visibility ends.
func (l *life) deliver(ctx context.Context, k *kind, ps []*parcel) {
	items := l.decode(ps)
	if len(items) == 0 {
		return
	}

	// Look: one read of facts and claims for all of it. What is done ends here, and
	// nothing was written for it. A crash costs the read.
	wants := make([]ledger.Want, len(items))
	for i, it := range items {
		wants[i] = it.want
	}
	began := time.Now()
	limit, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	standings, err := l.ledger.Look(limit, &k.Type, wants)
	if err != nil {
		if ctx.Err() == nil {
			l.log.Error("look failed: the messages come again", "type", k.name, "items", len(items), "error", err)
		}
		l.giveBack(items, err)
		return
	}

	// Decide. What is to run waits for a free slot; all else ends.
	var tasks [][]*item
	var idle []*item
	for i, it := range items {
		it.standing, it.looked = standings[i], began
		if k.Erased.FanOut != nil && it.standing.Reason == ledger.Failed {
			it.standing.Reason = ledger.Retry // whoever calls a fan-out again asks for another visit
		}
		it.raise()
		switch {
		case l.orphaned(it):
			l.returnOrphan(it)
			idle = append(idle, it)
		case !it.standing.Reason.Run():
			l.decideIdle(it)
			idle = append(idle, it)
		case k.Erased.DoMany != nil:
			tasks = appendMany(tasks, it)
		default:
			tasks = append(tasks, items[i:i+1:i+1])
		}
	}
	if len(idle) > 0 {
		l.settles[k].add(idle...)
	}
	l.slots.add(k, tasks)
}

// raise brings work up to the newest source that the ledger knows of. Forced work, and a
// retry, may have been named when the source was older, and must neither write that over
// the newer nor say in the fact that it did. The arguments differ in nothing else, else it
// were a conflict.
func (it *item) raise() {
	newest := it.standing.Newest(it.want)
	if newest == it.want.SourceVersion || !it.standing.Reason.Run() {
		return
	}
	raw, err := jobs.AtSource(it.raw, newest)
	if err != nil {
		return
	}
	in, err := it.kind.Decode(it.Entity, raw)
	if err == nil && in.SourceVersion == newest && in.Fingerprint == it.want.Fingerprint {
		it.raw, it.args, it.want.SourceVersion = raw, in.Args, newest
	}
}

// appendMany groups the items of one parcel for DoMany: all of them at first; after a
// redelivery ten at a time, then singly, so that an item that kills the process is found.
func appendMany(tasks [][]*item, it *item) [][]*item {
	most := queue.MaxItems
	switch {
	case it.Received == 2:
		most = 10
	case it.Received > 2:
		most = 1
	}
	if n := len(tasks); n > 0 && tasks[n-1][0].parcel == it.parcel && len(tasks[n-1]) < most {
		tasks[n-1] = append(tasks[n-1], it)
		return tasks
	}
	return append(tasks, []*item{it})
}

// decode reads the items of ps. Input that is undecodable or breaks a limit, which not every
// queue's producers are held to, and other arguments for an entity that is in the same parcel
// already are kept aside; the other items of their message are not touched by that.
func (l *life) decode(ps []*parcel) []*item {
	n := 0
	for _, p := range ps {
		n += len(p.Items)
	}
	items := make([]*item, 0, n)
	storage := make([]item, n)
	var bad []*item
	for _, p := range ps {
		var seen map[string]*item
		if len(p.Items) > 1 {
			seen = make(map[string]*item, len(p.Items))
		}
		for _, raw := range p.Items {
			it := &storage[0]
			storage = storage[1:]
			it.parcel, it.Entity, it.raw = p, raw.Entity, raw.Args
			// What came through our Postgres was checked when it was sent, or is of a source in SQL and of
			// claims, which nothing may keep out.
			err := queue.CheckName("entity", raw.Entity)
			if p.inbox.pg == nil {
				err = raw.Check()
			}
			var in jobs.Input
			if err == nil {
				in, err = p.kind.Decode(raw.Entity, raw.Args)
			}
			if err != nil {
				it.end = ending{park: "undecodable", err: err}
				bad = append(bad, it)
				continue
			}
			it.args = in.Args
			it.want = ledger.Want{Entity: raw.Entity, Fingerprint: in.Fingerprint, SourceVersion: in.SourceVersion, Run: p.Run, Epoch: p.Epoch}
			if first := seen[raw.Entity]; first != nil {
				it.end = ending{reason: ledger.Ongoing}
				switch {
				case first.want.Fingerprint != in.Fingerprint:
					it.end = ending{park: string(ledger.Conflict), err: errors.New("the message names the entity twice, with different arguments")}
				case in.SourceVersion > first.want.SourceVersion:
					// One stands for both, and that is the one of the newest source.
					first.raw, first.args, first.want.SourceVersion = raw.Args, in.Args, in.SourceVersion
				}
				bad = append(bad, it)
				continue
			}
			if seen != nil {
				seen[raw.Entity] = it
			}
			items = append(items, it)
		}
	}
	for _, it := range bad {
		l.settles[it.kind].add(it)
	}
	return items
}

// decideIdle says how an item ends that the ledger does not let run.
func (l *life) decideIdle(it *item) {
	st := &it.standing
	it.end = ending{reason: st.Reason}
	if st.Carry {
		m := it.kind.carrier(st.Open)
		m.Delay = max(time.Second, st.Open.NotBefore.Sub(st.Now)) // before that it would be no more than a duplicate
		it.end.send = &m
	}
	switch st.Reason {
	case ledger.Done:
		return
	case ledger.Conflict:
		it.end.park = string(ledger.Conflict)
		it.end.err = errors.New("the ledger has the entity with other arguments; force a run to have it done with these")
		return
	}
	o := st.Open
	news := st.Reason == ledger.InDoubt && o.Trouble != ledger.Doubtful
	if news {
		// Nobody has said so in the table yet: its worker died, or its provider has forgotten
		// the key. Say it, by the fence that was seen.
		it.end.err = errors.New("an attempt ended without an answer, and may not be repeated")
		it.end.outcome = it.outcome(ledger.Unclear)
	}
	if it.inbox.fifo && (st.Reason == ledger.Ongoing || st.Reason == ledger.Waiting) {
		// The next of its group is not to overtake it.
		it.end.hold = max(heldFor, min(o.NotBefore.Sub(st.Now), time.Minute))
		return
	}
	covered := o.Covers(it.want)
	if covered && (o.Owner == 0 || news) && st.Settling == 0 {
		return // the claim has the arguments; a message, or who resolves the doubt, carries it on
	}
	if it.parcel.lost.Load() {
		it.end = ending{keep: true} // its message is somebody else's, or will be: it must not leave two behind
		return
	}
	// Somebody has it, and may be dead or die over it: this may be the very message that
	// brings it back then, so it must not end here. Or more is wanted than the claim stands
	// for (a newer source, a higher epoch). Later.
	it.end.send = it.later(min(st.Settling, mostLater))
	if st.Settling > 0 {
		it.end.send.Deferred = it.Deferred // it was not put off: what is to be done with it is not known yet
	}
	if !covered && it.Deferred >= maxDeferred {
		it.end.park = string(st.Reason)
		it.end.err = fmt.Errorf("still %s after %d postponements", st.Reason, it.Deferred)
		it.end.send = nil
	}
}

// work is the second half: it brings one task from a free slot to its end.
func (l *life) work(task []*item) {
	k := task[0].kind
	if k.Erased.DoMany != nil {
		l.workMany(task)
		return
	}
	it := task[0]
	if it.suspicious() {
		_, next := l.alone(k)
		// Until its end is recorded, by us or by who fences it off: the next one may kill us, and
		// would charge it once more.
		it.recorded = make(chan struct{})
		go func() { <-it.recorded; next() }()
	}
	if !l.mayStart(it) || !l.stillRuns(it) {
		return
	}

	// Ready? Done? Asked before anything is claimed: a durable claim would be evidence of
	// an attempt. A crash here costs the questions.
	if !l.ask(it) {
		return
	}

	// It may be what kills its workers: then there is an end to that as well.
	if l.exhausted(it) {
		return
	}

	// Claim what starts now. A first delivery of work that may repeat needs none: there the
	// fact itself is the lock. A crash before the commit costs nothing; after it, the claim
	// is found with a dead owner, the attempt counts, and the effect class decides.
	if !l.claimOne(it) {
		return
	}

	// The process may have been frozen until now: only a lease that surely runs may act. The
	// ready-check took its time, and a provider may know our key no more: its message comes again,
	// and the look at it says so. And a shutdown may have run out of grace.
	if !l.lease.Alive() {
		l.finish(it, ledger.Returned, ledger.ErrLeaseLost)
		return
	}
	if it.forgotten() {
		l.finish(it, ledger.Returned, errForgotten)
		return
	}
	if l.jobs.Err() != nil {
		l.finish(it, ledger.Returned, context.Cause(l.jobs))
		return
	}

	// Do. A crash here is what effect classes are for. In a transaction it left nothing.
	switch {
	case k.Erased.DoTx != nil:
		l.doTx(it)
	case k.Erased.FanOut != nil:
		l.fanOut(it)
	default:
		l.judge(it, l.do(it))
	}

	// Settle comes next, in settle.go: facts, claims, retries and (on Postgres) the
	// acknowledgement are one transaction. A crash before its commit costs one redelivery,
	// of work that the claim or the class answers for; a crash after it, on another queue,
	// costs one redelivery that ends at "done".
}

// suspicious tells whether workers died over it again and again. It may be what killed
// them, so such items run one at a time, and a crash charges no innocent neighbour with an
// attempt. Once is not enough: most of what a dead worker leaves behind did not kill it,
// and must not wait in line.
func (it *item) suspicious() bool {
	o := it.standing.Open
	return o != nil && o.Abandoned() && o.Attempts >= 2
}

// alone waits until no other suspect runs. The next one may begin when next is called, or when this
// one has had all its time and does not end: then it has not killed us, and is not to stop the rest.
// Of a pack each item, and each transaction, has that time anew by more.
func (l *life) alone(k *kind) (more, next func()) {
	select {
	case l.suspects <- struct{}{}:
	case <-l.jobs.Done():
		return func() {}, func() {}
	}
	over := sync.OnceFunc(func() { <-l.suspects })
	limit := 3*k.Erased.Timeout + l.stuckGrace // two checks and a body
	timer := time.AfterFunc(limit, over)
	return func() { timer.Reset(limit) }, func() { timer.Stop(); over() }
}

// mayStart tells whether it may still begin; else it ends here.
func (l *life) mayStart(it *item) bool {
	if l.stopping.Load() || l.jobs.Err() != nil || !l.lease.Alive() {
		l.giveBack([]*item{it}, ErrStopping)
		return false
	}
	if it.parcel.lost.Load() {
		l.giveBack([]*item{it}, ErrMessageLost)
		return false
	}
	return true
}

// stillRuns looks again at an interrupted item that waited for its slot. Another claim its
// fence would tell; but time has passed, and a provider may know our key no more.
func (l *life) stillRuns(it *item) bool {
	if o := it.standing.Open; o == nil || o.FirstClaimedAt.IsZero() || it.kind.Effect().MayRepeat() || time.Since(it.looked) < time.Second {
		return true
	}
	it.looked = time.Now()
	ctx, cancel := l.recording()
	defer cancel()
	standings, err := l.ledger.Look(ctx, &it.kind.Type, []ledger.Want{it.want})
	if err != nil {
		l.giveBack([]*item{it}, err)
		return false
	}
	it.standing = standings[0]
	it.raise()
	switch {
	case it.standing.Reason.Run():
		return true
	case l.orphaned(it):
		l.returnOrphan(it)
	default:
		l.decideIdle(it)
	}
	l.endItem(it)
	return false
}

var errForgotten = errors.New("the provider may have forgotten the key while the attempt was prepared")

// forgotten tells whether an attempt that begins now would be a repeat that the provider may take
// for new work. A done-check that was asked has told the two apart.
func (it *item) forgotten() bool {
	return it.kind.Erased.Done == nil && ledger.MustVerify(&it.kind.Type, it.standing.Open, it.standing.Now.Add(time.Since(it.looked)))
}

// ask asks whether the work is ready and whether it is done already. It returns true when
// there is something left to do.
func (l *life) ask(it *item) bool {
	k := it.kind
	if k.Erased.Ready == nil && k.Erased.Done == nil {
		return true
	}
	if k.Erased.Ready != nil {
		ready, _, err := l.check(it, "ready", k.Erased.Ready)
		if it.ended.Load() {
			return false // it was fenced off meanwhile
		}
		if err != nil {
			l.judge(it, notTried{err})
			return false
		}
		if !ready {
			l.notReady(it)
			return false
		}
	}
	if k.Erased.Done == nil {
		return true
	}
	done, result, err := l.check(it, "done", k.Erased.Done)
	switch {
	case it.ended.Load():
	case err != nil && l.interrupted(it, err):
		l.giveBack([]*item{it}, err) // no answer, and no doubt yet: the next one asks
	case err != nil && it.standing.Verify:
		it.end = ending{err: fmt.Errorf("an earlier attempt may have had its effect, and the done-check cannot tell: %w", err)}
		it.end.outcome = it.outcome(ledger.Unclear)
		if !it.standing.Open.Covers(it.want) {
			it.end.send = it.later(0) // the doubt is about less than is wanted
		}
		l.endItem(it)
	case err != nil:
		l.judge(it, notTried{fmt.Errorf("the done-check cannot tell: %w", err)})
	case done:
		// Where a fact is in the way, or an epoch is asked for, only a claim can become the
		// fact that is wanted.
		if (it.standing.Fact != nil || it.want.Epoch != 0) && !l.claimOne(it) {
			return false
		}
		it.end = ending{note: "found done", result: result}
		it.end.outcome = it.outcome(ledger.Completed)
		it.end.outcome.Evidence = ledger.DoneCheck
		l.endItem(it)
	default:
		return true
	}
	return false
}

// exhausted ends an item whose workers died over it as often as it may be attempted.
func (l *life) exhausted(it *item) bool {
	o := it.standing.Open
	if o == nil || !o.Abandoned() || o.Attempts < it.kind.Erased.Attempts {
		return false
	}
	it.end = ending{err: fmt.Errorf("its worker died over each of its last attempts, %d in all", o.Attempts)}
	it.end.outcome = it.outcome(ledger.GaveUp)
	l.endItem(it)
	return true
}

// notReady ends an item that cannot be done yet. With a source it is missing there, and a
// later call finds it; without one, or where it is open and therefore not missing, or forced
// though the source may find it done, only this message brings it back. A run has a plan, and
// sends again what is missing of it.
func (l *life) notReady(it *item) {
	it.end = ending{reason: "not_ready"}
	switch {
	case it.standing.Open == nil && (it.Run != 0 || it.Epoch == 0 && !it.kind.Erased.Source.IsZero()):
	case it.Deferred >= maxDeferred:
		it.end.err = fmt.Errorf("still not ready after %d postponements", it.Deferred)
		if it.standing.Open == nil {
			it.end.park = "not_ready"
		} else {
			it.end.reason, it.end.outcome = "", it.outcome(ledger.GaveUp)
		}
	case it.parcel.lost.Load():
		it.end = ending{keep: true} // as in decideIdle
	default:
		it.end.send = it.later(0)
	}
	l.endItem(it)
}

// maxDeferred bounds how often work without a source is sent on for later: with waits that
// double up to an hour and a half, a little more than a day.
const maxDeferred = 30

// mostLater is how long a message may wait at once: what it waits for may end sooner.
const mostLater = 90 * time.Minute

// later is the message that carries an item on, unchanged, to another time. d 0 waits the
// longer the more often it was sent on.
func (it *item) later(d time.Duration) *queue.Message {
	if d == 0 {
		d = min(time.Second<<min(it.Deferred, 13), mostLater)
		d -= rand.N(d / 8) // not all that wait for the same at once: one would have it, and the rest wait doubly
	}
	return &queue.Message{Type: it.kind.name, Items: []queue.Item{{Entity: it.Entity, Args: it.raw}},
		Run: it.Run, Pack: it.Pack, Epoch: it.Epoch, Priority: it.Priority, Trace: it.Trace, Delay: d, Deferred: it.Deferred + 1}
}

// heldFor is when a message comes again whose work is in other hands, or not due yet. A
// queue lets it wait longer each time.
const heldFor = time.Second

// carrier is a message that asks for all that o stands for.
func (k *kind) carrier(o *ledger.Open) queue.Message {
	return queue.Message{Type: k.name, Items: []queue.Item{{Entity: o.Entity, Args: []byte(o.Args)}}, Run: o.Run, Epoch: o.Epoch, Priority: k.Priority}
}

// carryOn has the work tried again d later, by a message of its own. Of a FIFO queue the
// message stays what it is, so that the rest of its group waits behind it until the work is
// done or has failed for good.
func (it *item) carryOn(d time.Duration) {
	if it.inbox.fifo {
		it.end.hold = max(d, time.Millisecond)
		return
	}
	it.end.send = it.retry(d)
}

// outcome begins an outcome of it under the fence that it has or has seen.
func (it *item) outcome(s ledger.State) ledger.Outcome {
	o := ledger.Outcome{Want: it.want, State: s, Evidence: ledger.Reported, Attempts: 1}
	switch {
	case it.claim.Won:
		o.Fence, o.Epoch, o.Attempts = it.claim.Fence, it.claim.Epoch, it.claim.Attempts
	case it.standing.Open != nil:
		o.Fence, o.Epoch, o.Attempts = it.standing.Open.Fence, max(o.Epoch, it.standing.Open.Epoch), it.standing.Open.Attempts
	}
	return o
}

// endItem hands an item, whose ending is written, to its kind's settling.
func (l *life) endItem(it *item) {
	if it.ended.CompareAndSwap(false, true) {
		l.settles[it.kind].add(it)
		return
	}
	// It was fenced off before its body returned.
	if o := it.end.outcome; o.State == ledger.Completed {
		o.Refused = true
		ctx, cancel := l.recording()
		defer cancel()
		if err := l.ledger.RecordDisputes(ctx, &it.kind.Type, l.lease.ID, []*ledger.Outcome{&o}); err != nil {
			l.log.Error("late success not recorded", "type", it.kind.name, "entity", it.Entity, "error", err)
		}
		l.log.Warn("late success after it was fenced off: disputed", "type", it.kind.name, "entity", it.Entity)
	}
}

// giveBack ends items that have not started: their messages come again, and before them, if
// they were claimed, adopt.
func (l *life) giveBack(items []*item, why error) {
	for _, it := range items {
		if it.claim.Won {
			l.hands.lose()
		}
		it.end = ending{keep: true, err: why}
		l.endItem(it)
	}
}
