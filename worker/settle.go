package worker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// settle records how items ended, in one transaction: their outcomes, the messages that
// carry retries, the input that is kept aside, and the acknowledgement of every message
// whose last item this is, where the queue is in this database.
//
// It tries until it has succeeded or the worker gives up its life. When the answer to a
// commit is lost it tries again: every statement compares fences or keys, and the ledger
// recognizes its own facts.
func (l *life) settle(k *kind, items []*item) {
	if !l.settled(k, items, patiently) {
		l.blocked[k].add(items)
	}
}

// settleBlocked settles what somebody's locks are in the way of: those of an app's transaction that
// records the same work, say, and that may never end. A batch is halved, and its halves wait behind
// what came meanwhile, until what is locked is found; that is tried together from then on.
func (l *life) settleBlocked(k *kind, batches [][]*item) {
	var locked []*item
	hurry := l.stopping.Load() // there are others who may have only seconds left, or who wait for us in vain
	for _, its := range batches {
		switch half := len(its) / 2; {
		case its[0].blocked:
			locked = append(locked, its...)
		case l.settled(k, its, shortly):
		case half > 0:
			l.blocked[k].add(its[:half], its[half:])
			hurry = true
		default:
			its[0].blocked = true
			l.log.Warn("what came of it cannot be recorded: another transaction has it locked, and is waited for", "type", k.name, "entity", its[0].Entity)
			locked = append(locked, its[0])
		}
	}
	if len(locked) == 0 || l.settled(k, locked, shortly) {
		return
	}
	if locked = l.settleFreed(k, locked); len(locked) == 0 {
		return
	}
	if !hurry {
		pause(l.settling, time.Second)
	}
	l.blocked[k].add(locked)
}

// settleFreed settles what is not locked any more, from the front, in growing steps up to the first
// that still is, and returns the others with that behind them. A step is small, since where all of it
// is locked it takes two tries for each.
func (l *life) settleFreed(k *kind, items []*item) []*item {
	for n := 4; len(items) > 0; n = min(2*n, 32) {
		step := items[:min(n, len(items))]
		items = items[len(step):]
		if locked := l.settleAround(k, step); len(locked) > 0 {
			return append(items, locked...)
		}
	}
	return nil
}

// settleAround settles what is not locked of some items, and returns what is.
func (l *life) settleAround(k *kind, items []*item) (locked []*item) {
	if l.settled(k, items, shortly) {
		return nil
	}
	half := len(items) / 2
	if half == 0 {
		return items
	}
	return append(l.settleAround(k, items[:half]), l.settleAround(k, items[half:])...)
}

// How long settlements wait for locks: with others behind them, and where some have waited in vain.
const (
	patiently = 2 * time.Second
	shortly   = 100 * time.Millisecond
)

// settled is false, and nothing is written, where a lock is in the way for so long.
func (l *life) settled(k *kind, items []*item, patience time.Duration) bool {
	l.sweep(k, items)
	acks := finished(items)
	outs, err := l.persist(k, items, acks, patience)
	if errors.Is(err, errBlocked) {
		return false
	}
	if err != nil {
		// As if the process had died here: the claims will be found with a dead owner, the
		// messages come again. Nothing is lost, and nothing is acknowledged.
		l.log.Error("outcomes not recorded: their messages come again", "type", k.name, "items", len(items), "error", err)
		for _, it := range items {
			it.keep.Store(true)
		}
	}
	ctx, cancel := l.recording()
	defer cancel()
	if err := l.ledger.RecordDisputes(ctx, &k.Type, l.lease.ID, outs); err != nil {
		l.log.Error("late outcomes not recorded", "type", k.name, "error", err)
	}
	for _, it := range items {
		if it.onSeen() && it.end.outcome.Refused {
			it.keep.Store(true) // its message comes again, and looks again
		}
	}
	l.redo(k, items)
	for _, it := range items {
		ledger.Hint(k.name, it.Entity)
	}
	l.tell(items)
	if err == nil {
		l.letGo(items)
	}
	l.leave(items, acks)
	return true
}

// letGo takes out of our hands what has been recorded.
func (l *life) letGo(items []*item) {
	for _, it := range items {
		if it.claim.Won {
			l.hands.drop(it.kind, it.Entity)
		}
	}
}

// onSeen tells whether it ends under the fence of a claim that was only seen, or fails where no
// claim was seen, and nothing else carries it on. The claim may change, or appear, before that is
// recorded, and then wait for this very message, or stand for other work: so it is acknowledged
// when it is known that the outcome is in the table, and not before.
func (it *item) onSeen() bool {
	o := &it.end.outcome
	return o.State != "" && (o.Fence != 0 || o.State != ledger.Completed) && !it.claim.Won && it.end.send == nil
}

// sweep removes claims that a fact outranks, before the messages that showed them are
// acknowledged: after a crash here, or an error, those come again.
func (l *life) sweep(k *kind, items []*item) {
	var done []*item
	var opens []*ledger.Open
	for _, it := range items {
		if it.end.reason == ledger.Done && it.standing.Sweep && !it.end.keep {
			done, opens = append(done, it), append(opens, it.standing.Open)
		}
	}
	if len(done) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(l.settling, recordTime)
	defer cancel()
	if err := l.ledger.Sweep(ctx, &k.Type, opens); err != nil {
		l.log.Warn("claims of done work stay until their messages come again", "type", k.name, "error", err)
		for _, it := range done {
			it.end.keep = true
		}
	}
}

// gather reads from the endings of items what is to be written together.
func gather(items []*item) (outs []*ledger.Outcome, sends []queue.Message, parked []*item) {
	outs = make([]*ledger.Outcome, 0, len(items))
	for _, it := range items {
		e := &it.end
		if e.outcome.State != "" {
			if e.err != nil {
				e.outcome.Error, e.outcome.Class = e.err.Error(), errorClass(e.err)
			}
			if e.outcome.State == ledger.Completed {
				e.outcome.Result = e.result
			} else {
				e.outcome.Args = string(it.raw) // what stays open keeps all that another attempt needs
				// A claim that was only seen keeps what it stands for; where more is wanted (a
				// higher epoch, a newer source), the message carries that on.
				if o := it.standing.Open; e.send == nil && e.hold == 0 && o != nil && !it.claim.Won && !o.Covers(it.want) {
					e.send = it.later(0)
				}
			}
			outs = append(outs, &e.outcome)
		}
		if e.send != nil {
			sends = append(sends, *e.send)
		}
		if e.park != "" {
			parked = append(parked, it)
		}
	}
	return outs, sends, parked
}

// taken looks at first completions of which some were recorded by somebody else, or by us when
// the answer was lost, and takes those back: the same work may have been done twice side by side, since it may be
// repeated; with other arguments that must be seen. It tells whether there were any.
func (l *life) taken(k *kind, items []*item) (found bool, err error) {
	var first []*item
	var wants []ledger.Want
	for _, it := range items {
		if o := &it.end.outcome; o.State == ledger.Completed && o.Fence == 0 {
			first, wants = append(first, it), append(wants, it.want)
		}
	}
	ctx, cancel := l.recording()
	defer cancel()
	standings, err := l.ledger.Look(ctx, &k.Type, wants)
	if err != nil {
		return false, err
	}
	ours := map[string]int64{} // of this very settlement: the fingerprint by entity
	for i, it := range first {
		st := &standings[i]
		other := st.Reason == ledger.Conflict // with the fact: Decide knows which fingerprints say nothing
		if st.Fact == nil {
			twin, there := ours[it.Entity]
			if !there {
				ours[it.Entity] = it.want.Fingerprint
				continue
			}
			other = twin != it.want.Fingerprint
		}
		found = true
		switch {
		case st.Fact != nil && st.Reason.Run(): // done by older code
			it.end = ending{reason: ledger.Ongoing, send: it.later(0)}
		case other:
			it.end.outcome, it.end.park = ledger.Outcome{}, string(ledger.Conflict)
			it.end.err = errors.New("it was done with other arguments at the same time, which the ledger has")
		default:
			it.end.outcome = ledger.Outcome{}
		}
	}
	return found, nil
}

// redo has repeatable work done once more that was reported after its claim was lost: an
// older version of the source may just have overwritten the output of a newer one. Under a
// new epoch the last write is of the newest source: see raise. A crash before it costs just that; the
// attempt is listed as disputed.
//
// It is work of its own, and none of a run: the run's plan has what it wants, so it would not send
// this again where it is not ready yet.
func (l *life) redo(k *kind, items []*item) {
	if k.Effect() != ledger.Repeatable {
		return
	}
	ctx, cancel := l.recording()
	defer cancel()
	for _, it := range items {
		// One that failed halfway may have overwritten as much as one that succeeded.
		if o := &it.end.outcome; !o.Refused || o.Absent || !it.claim.Won || it.want.SourceVersion == 0 {
			continue
		}
		m := it.retry(0)
		m.Run, m.Pack = 0, 0
		err := l.pool.QueryRow(ctx, `/* epoch: draw */ SELECT nextval('oncemore.epoch')`).Scan(&m.Epoch)
		if err == nil {
			b := &pgx.Batch{}
			l.pg.SendBatch(b, *m)
			err = l.pool.SendBatch(ctx, b).Close()
		}
		if err != nil {
			l.log.Error("late work not done again: its output may be of an older source", "type", k.name, "entity", it.Entity, "error", err)
		}
	}
}

// errBlocked says that a settlement waited for the lock of somebody else, who may have it for long:
// all that is settled together must not.
var errBlocked = errors.New("another transaction has a lock on something that is to be written")

// persist settles items until that is committed, or blocked, and returns their outcomes. A shutdown
// ends it a little before the rest, so that what is not recorded is let go of in time.
func (l *life) persist(k *kind, items []*item, acks map[*pgqueue.Queue][]queue.Delivery, patience time.Duration) ([]*ledger.Outcome, error) {
	outs, sends, parked := gather(items)
	if len(outs)+len(sends)+len(parked)+len(acks) == 0 {
		return nil, nil
	}
	wait := 50 * time.Millisecond
	for {
		ctx, cancel := context.WithTimeout(l.settling, 30*time.Second)
		err := l.ledger.RunBatch(ctx, func(b *pgx.Batch) {
			for _, o := range outs {
				o.Refused = false
			}
			ledger.BoundLocks(b, patience)
			ledger.Settle(b, &k.Type, l.lease.ID, outs)
			l.pg.SendBatch(b, sends...)
			holdSent(b, sends)
			queueParked(b, parked)
			for pg, ds := range acks {
				pg.AckBatch(b, ds...)
			}
		})
		cancel()
		if err == nil {
			return outs, nil
		}
		// Our lease is over, so others may act; or the shutdown has waited long enough.
		if l.settling.Err() != nil || l.lease.Context().Err() != nil {
			return outs, err
		}
		if ledger.IsBusy(err) {
			return outs, errBlocked // nothing was written
		}
		taken := ledger.IsTaken(err)
		if taken {
			var found bool
			if found, err = l.taken(k, items); found {
				outs, sends, parked = gather(items)
				continue
			}
		}
		// A completion without a claim fails where a fact is by then: that may be somebody else's,
		// with other arguments, and must not swallow it. Where it is our own, because only the
		// answer was lost, taken is told so as well.
		for _, o := range outs {
			o.Again = true
		}
		if taken && err == nil {
			continue
		}
		l.log.Warn("settling failed, trying again", "type", k.name, "items", len(items), "in", wait, "error", err)
		select {
		case <-l.settling.Done():
			return outs, err
		case <-l.lease.Context().Done():
			return outs, err
		case <-time.After(wait):
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// finished returns the deliveries that these items are the rest of, where the queue can
// acknowledge in the same transaction, and that may be.
func finished(items []*item) map[*pgqueue.Queue][]queue.Delivery {
	in, unsure := map[*parcel]int32{}, map[*parcel]bool{}
	for _, it := range items {
		if it.end.keep || it.end.hold > 0 {
			it.keep.Store(true)
			it.after.Store(max(it.after.Load(), int64(it.end.hold)))
		}
		if it.onSeen() {
			unsure[it.parcel] = true
		}
		in[it.parcel]++
	}
	var acks map[*pgqueue.Queue][]queue.Delivery
	for p, n := range in {
		if p.inbox.pg != nil && p.left.Load() == n && !p.keep.Load() && !unsure[p] {
			if acks == nil {
				acks = map[*pgqueue.Queue][]queue.Delivery{}
			}
			acks[p.inbox.pg] = append(acks[p.inbox.pg], p.Delivery)
		}
	}
	return acks
}

// leave counts the items off their parcels, and sees to those that are complete and were
// not acknowledged with them.
func (l *life) leave(items []*item, acked map[*pgqueue.Queue][]queue.Delivery) {
	gone := map[string]bool{}
	for _, ds := range acked {
		for _, d := range ds {
			gone[d.Receipt] = true
		}
	}
	ended := map[*inbox]int{}
	for _, it := range items {
		if it.recorded != nil {
			close(it.recorded)
		}
		p := it.parcel
		if p.left.Add(-1) > 0 {
			ended[p.inbox]++ // the last one is counted off when its message is
			continue
		}
		if p.inbox.pg != nil && gone[p.Receipt] && !p.keep.Load() {
			p.inbox.drop(p)
			continue
		}
		p.inbox.acks.add(p)
	}
	for b, n := range ended {
		b.over(n)
	}
	if len(items) > 0 {
		for _, b := range l.inboxes {
			b.freed() // a slot may be free
		}
	}
}

// ackAll acknowledges, or releases, parcels of one queue that are complete. A crash before it costs one
// redelivery, which ends at "done".
func (l *life) ackAll(b *inbox, ps []*parcel) {
	var acks []queue.Delivery
	releases := map[time.Duration][]queue.Delivery{}
	for _, p := range ps {
		if p.keep.Load() {
			after := time.Duration(p.after.Load())
			if after == 0 && !l.stopping.Load() {
				after = time.Second // it was an error that kept it: not at once
			}
			releases[after] = append(releases[after], p.Delivery)
		} else {
			acks = append(acks, p.Delivery)
		}
	}
	ctx, cancel := context.WithTimeout(l.record, 10*time.Second)
	defer cancel()
	if len(acks) > 0 {
		if err := b.Ack(ctx, acks...); err != nil {
			l.log.Warn("acknowledging failed: the messages come again, to be skipped", "queue", b.name, "messages", len(acks), "error", err)
		}
	}
	for after, ds := range releases {
		l.release(ctx, b, after, ds)
	}
	for _, p := range ps {
		b.drop(p)
	}
}

// tell logs one line per item that ran, and one for all that did not.
func (l *life) tell(items []*item) {
	ctx := l.record
	skipped := map[ledger.Reason]int{}
	for _, it := range items {
		e := &it.end
		if e.reason != "" && e.park == "" {
			skipped[e.reason]++
			continue
		}
		if e.keep {
			continue
		}
		level, what := slog.LevelInfo, string(e.outcome.State)
		switch {
		case e.park != "":
			level, what = slog.LevelError, "parked"
		case e.outcome.Refused:
			level, what = slog.LevelWarn, "refused"
		case e.outcome.State == ledger.ToRetry:
			level = slog.LevelWarn
		case e.outcome.State == ledger.GaveUp, e.outcome.State == ledger.Unclear:
			level = slog.LevelError
		case e.outcome.State == "" || e.outcome.State == ledger.Completed:
			what = "done"
		}
		if !l.log.Enabled(ctx, level) {
			continue
		}
		msg := it.kind.name + " " + what
		if e.note != "" {
			msg = e.note
		}
		attrs := []slog.Attr{slog.String("type", it.kind.name), slog.String("entity", it.Entity), slog.String("outcome", what)}
		if n := e.outcome.Attempts; n > 1 {
			attrs = append(attrs, slog.Int("attempt", n))
		}
		if it.Run != 0 {
			attrs = append(attrs, slog.Int64("run", it.Run))
		}
		if !it.began.IsZero() {
			attrs = append(attrs, slog.Duration("took", time.Since(it.began).Round(time.Microsecond)))
		}
		if e.outcome.State == ledger.ToRetry {
			attrs = append(attrs, slog.Duration("again_in", e.outcome.Delay.Round(time.Millisecond)))
		}
		if e.err != nil {
			attrs = append(attrs, slog.String("error", firstLine(e.err.Error())))
		}
		l.log.LogAttrs(ctx, level, msg, attrs...)
	}
	for reason, n := range skipped {
		l.log.LogAttrs(ctx, slog.LevelDebug, "skipped", slog.String("type", items[0].kind.name), slog.String("reason", string(reason)), slog.Int("items", n))
	}
}

func firstLine(s string) string {
	for i, r := range s {
		if r == '\n' || i > 300 {
			return s[:i] + " …"
		}
	}
	return s
}

// queueParked keeps input aside that cannot be worked. The same content is one row,
// however often it comes.
func queueParked(b *pgx.Batch, items []*item) {
	for _, it := range items {
		park(b, it.end.park, it.kind.name, it.Entity, string(it.raw), it.Epoch, it.end.err)
	}
}

// mostParked is how many bytes of input are kept: all of a message of SQS, which is gone from
// there when it is set aside. A message of Postgres has less.
const mostParked = 1 << 20

func park(b *pgx.Batch, reason, jobType, entity, body string, epoch int64, err error) {
	digest := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s\x00%s", reason, jobType, entity, body))
	text := "unknown"
	if err != nil {
		text = err.Error()
	}
	b.Queue(parkSQL, reason, ledger.Sanitize(jobType, queue.MaxEntity), ledger.Sanitize(entity, queue.MaxEntity),
		ledger.Sanitize(body, mostParked), ledger.Sanitize(text, 2000), digest[:], epoch)
}

const parkSQL = `
/* input: park */
INSERT INTO oncemore.parked AS p (reason, type, entity, body, error, digest, epoch) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (digest) DO UPDATE SET last_at = greatest(p.last_at, now()), times = p.times + 1, epoch = greatest(p.epoch, excluded.epoch)`
