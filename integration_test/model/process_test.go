package model_test

import (
	"encoding/json"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

const someArgs = 1<<56 | 42 // the fingerprint of all arguments

// A process is a worker, without its goroutines: the story says what it does next. It
// makes the same calls as package worker, in the same order, on the same answers.
type process struct {
	*machine
	lease  *ledger.Lease
	pg     *pgqueue.Queue
	frozen bool
	dead   bool // as everybody can see in its row; it knows when it looks at its clocks
	died   time.Duration
	gone   bool
	items  []*item
}

func (p *process) GoString() string {
	return fmt.Sprintf("worker %d (frozen %t, dead %t, gone %t)", p.lease.ID, p.frozen, p.dead, p.gone)
}

func (p *process) runs() bool { return !p.gone && !p.frozen }

// begun counts the attempts that it is in.
func (p *process) begun() (n int) {
	for _, it := range p.items {
		if it.stage != looked {
			n++
		}
	}
	return n
}

// A parcel is one delivery in work.
type parcel struct {
	queue.Delivery
	left int
	keep bool // it must come again
}

// An item is the work on one entity.
type item struct {
	*parcel
	e        *entity
	raw      json.RawMessage
	want     ledger.Want
	standing ledger.Standing
	claim    ledger.Claim
	stage    stage
	seen     time.Duration // when it was looked at
	started  time.Duration
	end      ending
}

func (it *item) GoString() string {
	return fmt.Sprintf("%s (%s) of message %s, source %d, epoch %d, under %+v", it.e.name, []string{"looked", "begun", "acted"}[it.stage], it.Receipt, it.want.SourceVersion, it.want.Epoch, it.claim)
}

type stage int

const (
	looked stage = iota // it is to run
	begun               // claimed, or without need of one
	acted               // the effect was had
)

type ending struct {
	outcome *ledger.Outcome
	send    *queue.Message
	keep    bool
}

func (m *machine) entity(t *rapid.T, name string) *entity {
	for _, e := range m.entities {
		if e.name == name {
			return e
		}
	}
	t.Fatalf("there is no %q", name)
	return nil
}

// read decodes an item of a message.
func (m *machine) read(t *rapid.T, epoch int64, it queue.Item) (*entity, ledger.Want) {
	var args struct {
		Source int64 `json:"source_version"`
	}
	m.ok(t, json.Unmarshal(it.Args, &args))
	return m.entity(t, it.Entity), ledger.Want{Entity: it.Entity, Fingerprint: someArgs, SourceVersion: args.Source, Epoch: epoch}
}

const dueSQL = `SELECT EXISTS (SELECT FROM oncemore.message WHERE queue = $1 AND (lock IS NULL OR visible_at <= clock_timestamp()))`

// receive takes messages, looks at their items, and ends those that are not to run.
func (m *machine) receive(t *rapid.T) bool {
	p := m.pick(t, func(p *process) bool { return p.runs() && !p.dead })
	if p == nil {
		return false
	}
	if !value[bool](m, t, dueSQL, m.queue) {
		return false
	}
	m.receiveAs(t, p)
	return true
}

func (m *machine) receiveAs(t *rapid.T, p *process) {
	ds, err := m.pg().Receive(m.ctx, rapid.IntRange(1, 3).Draw(t, "messages"), nil)
	m.ok(t, err)
	if len(ds) == 0 {
		t.Fatal("a message was due, and none was received")
	}
	var idle []*item
	for _, d := range ds {
		pc := &parcel{Delivery: d, left: len(d.Items)}
		for _, raw := range d.Items {
			it := &item{parcel: pc, raw: raw.Args}
			it.e, it.want = m.read(t, d.Epoch, raw)
			p.items = append(p.items, it)
			m.look(t, it)
			it.raise()
			if !it.standing.Reason.Run() {
				p.idle(it)
				idle = append(idle, it)
			}
		}
	}
	p.finish(t, idle...)
}

func (m *machine) look(t *rapid.T, it *item) {
	sts, err := m.ledger.Look(m.ctx, &it.e.Type, []ledger.Want{it.want})
	m.ok(t, err)
	it.standing, it.seen = sts[0], m.now
	m.justify(t, it)
	if it.standing.Reason == ledger.Done && it.standing.Sweep {
		m.ok(t, m.ledger.Sweep(m.ctx, &it.e.Type, []*ledger.Open{it.standing.Open}))
		it.e.open = nil
	}
}

// raise brings work up to the newest source that the ledger knows of.
func (it *item) raise() {
	newest := it.standing.Newest(it.want)
	if newest == it.want.SourceVersion || !it.standing.Reason.Run() {
		return
	}
	it.raw, it.want.SourceVersion = fmt.Appendf(nil, `{"source_version":%d}`, newest), newest
}

// idle says how an item ends that is not to run.
func (p *process) idle(it *item) {
	st := &it.standing
	it.end = ending{}
	o := st.Open
	if st.Carry {
		it.end.send = &queue.Message{Type: it.e.Name, Items: []queue.Item{{Entity: o.Entity, Args: json.RawMessage(o.Args)}}, Epoch: o.Epoch, Delay: time.Minute}
	}
	if st.Reason == ledger.Done {
		return
	}
	news := st.Reason == ledger.InDoubt && o.Trouble != ledger.Doubtful
	if news {
		it.end.outcome = it.outcome(ledger.Unclear)
		it.end.outcome.Error = "an attempt ended without an answer"
	}
	if o.Covers(it.want) && (o.Owner == 0 || news) && st.Settling == 0 {
		return
	}
	it.end.send = it.later()
}

func (it *item) later() *queue.Message {
	return &queue.Message{Type: it.e.Name, Items: []queue.Item{{Entity: it.e.name, Args: it.raw}}, Epoch: it.Epoch, Delay: time.Minute, Deferred: it.Deferred + 1}
}

func (it *item) outcome(s ledger.State) *ledger.Outcome {
	o := &ledger.Outcome{Want: it.want, State: s, Evidence: ledger.Reported, Attempts: 1, Args: string(it.raw)}
	switch {
	case it.claim.Won:
		o.Fence, o.Epoch, o.Attempts = it.claim.Fence, it.claim.Epoch, it.claim.Attempts
	case it.standing.Open != nil:
		o.Fence, o.Epoch, o.Attempts = it.standing.Open.Fence, max(o.Epoch, it.standing.Open.Epoch), it.standing.Open.Attempts
	}
	return o
}

// anyItem draws an item of a process that runs.
func (m *machine) anyItem(t *rapid.T, is func(*process, *item) bool) (*process, *item) {
	var all []*item
	of := map[*item]*process{}
	for _, p := range m.processes {
		for _, it := range p.items {
			if p.runs() && is(p, it) {
				all, of[it] = append(all, it), p
			}
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	it := rapid.SampledFrom(all).Draw(t, "item")
	return of[it], it
}

// goOn takes an item one step further.
func (m *machine) goOn(t *rapid.T) bool {
	p, it := m.anyItem(t, func(*process, *item) bool { return true })
	if it == nil {
		return false
	}
	p.step(t, it)
	return true
}

func (p *process) step(t *rapid.T, it *item) {
	switch it.stage {
	case looked:
		p.start(t, it)
	case begun:
		if p.dead && rapid.Bool().Draw(t, "it looks at its clocks before it begins") {
			p.giveBack(t, it)
			return
		}
		if it.e.tx {
			p.transact(t, it, true)
			return
		}
		p.act(it)
	case acted:
		it.end = ending{outcome: it.outcome(ledger.Completed)}
		p.finish(t, it)
	}
}

// start brings an item from a free slot to its body.
func (p *process) start(t *rapid.T, it *item) {
	if p.dead { // it looks at its clocks
		p.giveBack(t, it)
		return
	}
	if p.now > it.seen { // it has waited for its slot: a provider may have forgotten the key meanwhile
		if p.look(t, it); !it.standing.Reason.Run() {
			p.idle(it)
			p.finish(t, it)
			return
		}
	}
	if it.e.Checked && !p.ask(t, it) {
		return
	}
	if o := it.standing.Open; o != nil && o.Abandoned() && o.Attempts >= it.e.attempts {
		it.end = ending{outcome: it.outcome(ledger.GaveUp)}
		it.end.outcome.Error = "its worker died over each of its last attempts"
		p.finish(t, it)
		return
	}
	if !p.claimOne(t, it) {
		return
	}
	it.stage, it.started = begun, p.now
}

// ask asks the done-check, which cannot always tell. It returns true when there is
// something left to do.
func (p *process) ask(t *rapid.T, it *item) bool {
	epoch := it.want.Epoch
	if o := it.standing.Open; o != nil {
		epoch = max(epoch, o.Epoch)
	}
	switch {
	case rapid.IntRange(0, 4).Draw(t, "the check") == 0: // cannot tell
		if it.standing.Verify {
			it.end = ending{outcome: it.outcome(ledger.Unclear)}
			it.end.outcome.Error = "the done-check cannot tell"
			p.finish(t, it)
		} else {
			p.judge(t, it, true, false)
		}
	case it.e.shows(epoch, it.want.SourceVersion, p.now):
		// A fact is in the way, or an epoch is asked for: only a claim can end in one.
		if (it.standing.Fact != nil || it.want.Epoch != 0) && !p.claimOne(t, it) {
			return false
		}
		it.end = ending{outcome: it.outcome(ledger.Completed)}
		it.end.outcome.Evidence = ledger.DoneCheck
		p.finish(t, it)
	default:
		return true
	}
	return false
}

// claimOne claims the item, if it needs a claim. Where it is outrun, the item has ended.
func (p *process) claimOne(t *rapid.T, it *item) bool {
	st := &it.standing
	if it.e.Effect.MayRepeat() && it.Received == 1 && it.Epoch == 0 && (it.want.SourceVersion == 0 || it.e.tx) && st.Reason == ledger.Missing && st.Open == nil {
		return true
	}
	cs, err := p.ledger.Claim(p.ctx, &it.e.Type, p.lease.ID, []ledger.Candidate{{Want: it.want, Standing: *st, Args: string(it.raw)}})
	p.ok(t, err)
	it.claim = cs[0]
	p.claimed(t, it)
	if it.claim.Won {
		return true
	}
	p.outrun(t, it)
	return false
}

func (p *process) outrun(t *rapid.T, it *item) {
	p.look(t, it)
	o := it.standing.Open
	switch held := it.claim.Won && o != nil && o.Fence == it.claim.Fence; {
	case held && it.standing.Reason == ledger.Done && !it.standing.Carry: // somebody without a claim was faster
		p.ok(t, p.ledger.Sweep(p.ctx, &it.e.Type, []*ledger.Open{o}))
		it.e.open = nil
		it.end = ending{}
	case held:
		p.giveBack(t, it)
		return
	case it.standing.Reason.Run():
		it.end = ending{send: it.later()}
	default:
		p.idle(it)
	}
	p.finish(t, it)
}

// giveBack ends what did not begin after all: its message comes again.
func (p *process) giveBack(t *rapid.T, it *item) {
	it.end = ending{keep: true}
	if it.claim.Won {
		it.end.outcome = it.outcome(ledger.Returned)
		it.end.outcome.Attempts--
		it.end.outcome.Absent = true
	}
	p.finish(t, it)
}

// act has the effect, in the world outside.
func (p *process) act(it *item) {
	it.stage = acted
	ef := effect{epoch: it.claim.Epoch, source: it.want.SourceVersion, at: p.now, zombie: p.dead || p.now-it.started > timeout}
	for _, before := range it.e.effects {
		if before.epoch == ef.epoch && !before.again && p.now-before.at < horizon {
			ef.again = it.e.kind.Effect == ledger.Keyed(horizon)
		}
	}
	it.e.effects = append(it.e.effects, ef)
}

// transact has the effect in the transaction of its fact, which is committed, or not.
func (p *process) transact(t *rapid.T, it *item, commit bool) {
	tx, err := p.pool.Begin(p.ctx)
	p.ok(t, err)
	defer func() { _ = tx.Rollback(p.ctx) }()
	o := it.outcome(ledger.Completed)
	o.Evidence = ledger.SameTx
	mine, err := ledger.Hold(p.ctx, tx, &it.e.Type, time.Second, []*ledger.Outcome{o})
	p.ok(t, err)
	f := fact{o.Epoch, o.SourceVersion}
	free := o.Fence == 0 && it.e.fact == nil || o.Fence != 0 && it.e.holds(o.Fence) && (it.e.fact == nil || it.e.fact.epoch < f.epoch)
	if mine[0] != free {
		t.Fatalf("%s: Hold says mine=%t under fence %d and epoch %d; the claim is %+v, the fact %+v", it.e.name, mine[0], o.Fence, o.Epoch, it.e.open, it.e.fact)
	}
	switch {
	case !mine[0]:
		p.ok(t, tx.Rollback(p.ctx))
		p.outrun(t, it)
		return
	case !commit:
		return
	}
	_, err = tx.Exec(p.ctx, `INSERT INTO effect (entity, epoch) VALUES ($1, $2)`, it.e.name, o.Epoch)
	p.ok(t, err)
	p.ok(t, tx.Commit(p.ctx))
	it.e.become(f)
	if o.Fence != 0 {
		it.e.open = nil
	}
	it.e.effects = append(it.e.effects, effect{epoch: o.Epoch, source: it.want.SourceVersion, at: p.now})
	p.count["completed"]++
	it.end = ending{}
	p.finish(t, it)
}

// fail ends an attempt with an error: before its effect or after it, which the error says
// or not.
func (m *machine) fail(t *rapid.T) bool {
	p, it := m.anyItem(t, func(p *process, it *item) bool { return it.stage != looked })
	if it == nil {
		return false
	}
	if it.e.tx && rapid.Bool().Draw(t, "in the transaction") {
		before := len(p.items)
		p.transact(t, it, false)
		if len(p.items) < before {
			return true
		}
	}
	absent := it.stage == begun && rapid.Bool().Draw(t, "not applied")
	p.judge(t, it, absent, rapid.IntRange(0, 3).Draw(t, "permanent") == 0)
	return true
}
