package model_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// --- what the model learns from each call, and holds against it

// justify checks that the reason of a look is so.
func (m *machine) justify(t *rapid.T, it *item) {
	e, o, r := it.e, it.e.open, it.standing.Reason
	satisfied := e.fact.satisfies(want{it.want.Epoch, it.want.SourceVersion})
	held := o != nil && o.owner != 0 && !m.isDead(o.owner)
	is := false
	switch r {
	case ledger.Done:
		is = satisfied
	case ledger.Ongoing:
		is = held
	case ledger.Waiting:
		is = o != nil && !held && (o.trouble == ledger.Retrying || e.Effect == ledger.Verifiable(settling) && o.evidence)
	case ledger.Failed:
		is = o != nil && o.trouble == ledger.FailedFor
	case ledger.InDoubt:
		is = o != nil && (o.trouble == ledger.Doubtful || o.evidence && (e.Effect == ledger.Once || e.Effect == ledger.Keyed(horizon)))
	default:
		is = r.Run() && !satisfied && (o == nil || !held && o.trouble != ledger.Doubtful && !(o.evidence && e.Effect == ledger.Once) &&
			!(o.evidence && e.Effect == ledger.Keyed(horizon) && m.now-e.since > horizon-timeout+time.Minute) && // a story's minute is a few ms long
			!(o.owner != 0 && e.Effect == ledger.Verifiable(settling) && m.now-m.died(o.owner) < settling) &&
			!(o.owner == 0 && o.evidence && e.Effect == ledger.Verifiable(settling) && m.now-e.ended < settling))
	}
	if !is {
		t.Fatalf("%s %s: a look for %+v says %q; the fact is %+v, the claim %v", e.Name, e.name, it.want, r, e.fact, o)
	}
}

func (m *machine) isDead(worker int64) bool {
	return slices.ContainsFunc(m.processes, func(p *process) bool { return p.lease.ID == worker && p.dead })
}

// died is when a worker was declared dead.
func (m *machine) died(worker int64) time.Duration {
	for _, p := range m.processes {
		if p.lease.ID == worker {
			return p.died
		}
	}
	return 0
}

// claimed checks that a claim was won by who could, and for what.
func (p *process) claimed(t *rapid.T, it *item) {
	e, c, st := it.e, it.claim, &it.standing
	asked, drawn := it.want.Epoch, false
	if o := st.Open; o != nil {
		asked = max(asked, o.Epoch)
		// Other work than the attempt before, which may have had its effect.
		drawn = it.want.SourceVersion > o.SourceVersion && !o.FirstClaimedAt.IsZero() && it.want.Epoch <= o.Epoch
	}
	drawn = drawn || st.Fact != nil && asked <= st.Fact.Epoch // a stale fact can only be replaced by a higher epoch
	free := st.Open == nil && e.open == nil || st.Open != nil && e.holds(st.Open.Fence)
	moot := e.fact != nil && e.fact.epoch >= asked && (!drawn || e.fact.satisfies(want{it.want.Epoch, it.want.SourceVersion}))
	// One that was to replace the fact that was seen is given back when that was replaced.
	moot = moot || st.Open == nil && st.Fact != nil && e.fact.epoch > st.Fact.Epoch
	if c.Won != (free && !moot) {
		t.Fatalf("%s %s: the claim for %+v on %+v says won=%t; the fact is %+v, the claim %v", e.Name, e.name, it.want, st, c.Won, e.fact, e.open)
	}
	if !c.Won {
		if free {
			e.open = nil // found to be done, and given back
		}
		return
	}
	before := open{}
	if e.open != nil {
		before = *e.open
		if before.owner != 0 {
			p.count["took over"]++
		}
	}
	if c.Attempts != before.attempts+1 || !drawn && c.Epoch != asked || drawn && p.epochs[c.Epoch] || e.fact != nil && c.Epoch <= e.fact.epoch {
		t.Fatalf("%s %s: the claim for %+v (epoch drawn: %t) is %+v; the fact is %+v, the claim was %v", e.Name, e.name, it.want, drawn, c, e.fact, before)
	}
	if drawn {
		p.count["stale"]++
		p.epochs[c.Epoch] = true
	}
	if !before.evidence {
		e.since = p.now
	}
	e.open = &open{fence: c.Fence, owner: p.lease.ID, epoch: c.Epoch, source: it.want.SourceVersion, attempts: c.Attempts, evidence: true, own: !before.evidence}
	p.newFence(t, e)
}

// settled checks that a settlement was refused who had lost the fence, and nobody else.
func (p *process) settled(t *rapid.T, o *ledger.Outcome) {
	e := p.entity(t, o.Entity)
	if o.State == ledger.Completed && o.Evidence == ledger.Reported && !o.Refused && !e.happened(o.Epoch) {
		t.Fatalf("%s %s: epoch %d is completed, and its effect was not had: %+v", e.Name, e.name, o.Epoch, e.effects)
	}
	if o.Fence == 0 {
		if there := e.open != nil; o.State != ledger.Completed && o.Refused != there {
			t.Fatalf("%s %s: %s without a claim is refused=%t; the claim is %v", e.Name, e.name, o.State, o.Refused, e.open)
		}
		switch {
		case o.State != ledger.Completed && e.open == nil:
			e.open = &open{trouble: troubleOf(o.State), epoch: o.Epoch, source: o.SourceVersion, attempts: o.Attempts}
		case o.State == ledger.Completed && e.fact == nil:
			e.become(fact{0, o.SourceVersion})
			p.count["completed"]++
		}
		return
	}
	current := e.holds(o.Fence)
	if o.Refused == current {
		t.Fatalf("%s %s: %s under fence %d is refused=%t; the claim is %v", e.Name, e.name, o.State, o.Fence, o.Refused, e.open)
	}
	if o.State != ledger.Completed {
		if current {
			if e.open.owner == p.lease.ID && o.Absent {
				e.ended = e.since
			} else if e.open.owner == p.lease.ID {
				e.ended = p.now
			}
			e.open.left(p.lease.ID, o)
			if o.State == ledger.Unclear {
				p.count["in doubt"]++
			} else if o.State == ledger.GaveUp {
				p.count["gave up"]++
			}
		}
		return
	}
	if !current {
		if o.Evidence != ledger.DoneCheck { // which is no attempt
			e.disputed++
			p.count["disputed"]++
		}
		return
	}
	if p.dead {
		p.count["late completion that stands"]++
	}
	p.count["completed"]++
	e.become(fact{o.Epoch, o.SourceVersion})
	e.open = nil
}

// left is what a claim is after an attempt of worker that did not complete it.
func (o *open) left(worker int64, out *ledger.Outcome) {
	if out.Absent && o.owner == worker && o.own {
		o.evidence = false
	}
	o.fence, o.owner, o.trouble, o.attempts = 0, 0, troubleOf(out.State), out.Attempts
}

func troubleOf(s ledger.State) ledger.Trouble {
	if s == ledger.Returned {
		return ledger.Retrying
	}
	return ledger.Trouble(s)
}

// newFence notes the fence of a claim that has changed: higher than all before.
func (m *machine) newFence(t *rapid.T, e *entity) {
	for f := range m.fences {
		if f >= e.open.fence {
			t.Fatalf("%s %s: the new fence is %d, after %d", e.Name, e.name, e.open.fence, f)
		}
	}
	m.fences[e.open.fence] = true
}

// --- what must be true after every step

// rows are what the database has of one entity.
type rows struct {
	open     *open
	args     string
	fact     *fact
	past     []fact
	disputed int
	messages []want
	effects  []int64
}

func (m *machine) check(t *rapid.T) {
	all := m.readRows(t)
	for _, e := range m.entities {
		r := all[e.name]
		m.checkPlace(t, e, r)
		m.checkCarriers(t, e, r)
		m.checkEffects(t, e, r)
	}
}

func (m *machine) readRows(t *rapid.T) map[string]*rows {
	all, names := map[string]*rows{}, []string{}
	for _, e := range m.entities {
		all[e.name] = &rows{}
		names = append(names, e.name)
	}
	id := m.entities[0].ID
	b := &pgx.Batch{}
	each := func(sql string, into []any, f func(), args ...any) {
		b.Queue(sql, args...).Query(func(rs pgx.Rows) error {
			_, err := pgx.ForEachRow(rs, into, func() error { f(); return nil })
			return err
		})
	}
	var (
		name, args string
		names2     []string
		args2      []string
		o          open
		f          fact
		n          int
		epoch      int64
	)
	each(`SELECT entity, fence, coalesce(owner, 0), coalesce(trouble, ''), epoch, source_version, attempts, first_claimed_at IS NOT NULL, coalesce(first_claimed_at = claimed_at, false), args
		FROM oncemore.claim WHERE job_type = $1 AND entity = ANY ($2)`,
		[]any{&name, &o.fence, &o.owner, &o.trouble, &o.epoch, &o.source, &o.attempts, &o.evidence, &o.own, &args}, func() {
			seen := o
			all[name].open, all[name].args = &seen, args
		}, id, names)
	each(`SELECT entity, coalesce(epoch, 0), coalesce(source_version, 0) FROM oncemore.ledger WHERE job_type = $1 AND entity = ANY ($2)`,
		[]any{&name, &f.epoch, &f.source}, func() { seen := f; all[name].fact = &seen }, id, names)
	each(`SELECT entity, coalesce(epoch, 0), coalesce(source_version, 0) FROM oncemore.ledger_history WHERE job_type = $1 AND entity = ANY ($2) ORDER BY archived_at`,
		[]any{&name, &f.epoch, &f.source}, func() { all[name].past = append(all[name].past, f) }, id, names)
	each(`SELECT entity, count(*) FROM oncemore.attempt WHERE job_type = $1 AND entity = ANY ($2) AND outcome = 'disputed' GROUP BY entity`,
		[]any{&name, &n}, func() { all[name].disputed = n }, id, names)
	each(`SELECT entities, args, coalesce(epoch, 0) FROM oncemore.message WHERE queue = $1`, []any{&names2, &args2, &epoch}, func() {
		for i, name := range names2 {
			var a struct {
				Source int64 `json:"source_version"`
			}
			m.ok(t, json.Unmarshal([]byte(args2[i]), &a))
			all[name].messages = append(all[name].messages, want{epoch, a.Source})
		}
	}, m.queue)
	each(`SELECT entity, epoch FROM effect WHERE entity = ANY ($1)`, []any{&name, &epoch}, func() { all[name].effects = append(all[name].effects, epoch) }, names)
	m.ok(t, m.pool.SendBatch(m.ctx, b).Close())
	return all
}

// checkPlace: the rows are those of the model, and so an entity is in one of three places,
// or is done again; facts only rise, and what they replaced is kept.
func (m *machine) checkPlace(t *rapid.T, e *entity, r *rows) {
	if e.open != nil && e.open.fence == 0 && r.open != nil {
		e.open.fence = r.open.fence
		m.newFence(t, e)
	}
	own := e.open != nil && e.open.own // means nothing without evidence, and where nobody holds it
	if r.open != nil && (!r.open.evidence || r.open.owner == 0) {
		r.open.own = own
	}
	if fmt.Sprint(r.open) != fmt.Sprint(e.open) {
		t.Fatalf("%s %s: the claim is %v, want %v", e.Name, e.name, r.open, e.open)
	}
	if r.open != nil && r.args == "" {
		t.Fatalf("%s %s: the claim %v has no arguments for another attempt", e.Name, e.name, r.open)
	}
	if fmt.Sprintf("%+v", r.fact) != fmt.Sprintf("%+v", e.fact) || !slices.Equal(r.past, e.past) {
		t.Fatalf("%s %s: the fact is %+v after %+v, want %+v after %+v", e.Name, e.name, r.fact, r.past, e.fact, e.past)
	}
	for i, f := range e.past {
		if i+1 < len(e.past) && f.epoch >= e.past[i+1].epoch || i+1 == len(e.past) && f.epoch >= e.fact.epoch {
			t.Fatalf("%s %s: epochs fall: %+v, then %+v", e.Name, e.name, e.past, e.fact)
		}
	}
	if r.disputed != e.disputed {
		t.Fatalf("%s %s: %d completions are disputed, want %d", e.Name, e.name, r.disputed, e.disputed)
	}
}

// checkCarriers: what was enqueued is a fact, or open with what another attempt needs, or
// in a message; and what is open and waits for nobody's word has a message that brings it
// back.
func (m *machine) checkCarriers(t *rapid.T, e *entity, r *rows) {
	covers := func(w, by want) bool { return by.epoch >= w.epoch && by.source >= w.source }
	// What is newer than the fact gets an epoch that is drawn when it is claimed, above all there were.
	outranks := func(w, by want) bool { return by.source >= w.source && e.fact != nil && by.source > e.fact.source }
	for _, w := range e.asked {
		if slices.Contains(e.answered, w) || e.open != nil && covers(w, want{e.open.epoch, e.open.source}) ||
			slices.ContainsFunc(r.messages, func(by want) bool { return covers(w, by) || outranks(w, by) }) {
			continue
		}
		t.Fatalf("%s %s: %+v was enqueued and is lost; the fact is %+v, the claim %v, messages are %+v", e.Name, e.name, w, e.fact, e.open, r.messages)
	}
	if o := e.open; o != nil && (e.fact == nil || e.fact.epoch < o.epoch) && (o.trouble == ledger.NoTrouble || o.trouble == ledger.Retrying) && len(r.messages) == 0 {
		t.Fatalf("%s %s: nothing brings back the claim %v", e.Name, e.name, o)
	}
}

// checkEffects: per epoch, an effect was had as often as its class allows. A process that
// was frozen just before it cannot be held back by anybody; what it reports is disputed.
func (m *machine) checkEffects(t *rapid.T, e *entity, r *rows) {
	if e.tx {
		var had []int64
		for _, f := range e.effects {
			had = append(had, f.epoch)
		}
		if !slices.Equal(had, r.effects) {
			t.Fatalf("%s: effects of epochs %v are in the database, want %v", e.name, r.effects, had)
		}
	}
	if e.Effect == ledger.Repeatable {
		return
	}
	had := map[int64]int{}
	for _, f := range e.effects {
		if f.again || f.zombie {
			continue
		}
		if had[f.epoch]++; had[f.epoch] > 1 {
			t.Fatalf("%s %s: its effect was had twice in epoch %d: %+v", e.Name, e.name, f.epoch, e.effects)
		}
	}
}

// --- and in the end

// settleDown has everybody who is away come back or be declared dead, resolves what is in
// doubt, and works until no message is left. Then all that was enqueued is done, or listed
// as failed.
func (m *machine) settleDown(t *rapid.T) {
	for _, p := range m.processes {
		p.frozen = false
		for p.runs() && len(p.items) > 0 {
			p.step(t, p.items[0])
			m.check(t)
		}
		if p.gone && !p.dead {
			m.declare(t, p)
		}
	}
	p := m.newProcess(t)
	// A doubt may have come without a message: its operator is asked all the same.
	for round := 0; value[bool](m, t, `SELECT EXISTS (SELECT FROM oncemore.message WHERE queue = $1)`, m.queue) || len(m.opens(t, ledger.Doubtful)) > 0; round++ {
		if round == 60 {
			t.Fatalf("there is no end: after %d rounds messages are left: %s", round,
				value[string](m, t, `SELECT string_agg(format('%s epoch %s deferred %s', entities, epoch, deferred), '; ') FROM oncemore.message WHERE queue = $1`, m.queue))
		}
		m.later(t, settling+timeout)
		for value[bool](m, t, dueSQL, m.queue) {
			m.receiveAs(t, p)
			m.check(t)
			for len(p.items) > 0 {
				p.step(t, p.items[0])
				m.check(t)
			}
		}
		for _, o := range m.opens(t, ledger.Doubtful) {
			m.judgeOpen(t, o, ledger.ByOperator)
		}
		m.check(t)
	}
	for _, e := range m.entities {
		for _, w := range e.asked {
			if !slices.Contains(e.answered, w) && (e.open == nil || e.open.trouble != ledger.FailedFor) {
				t.Fatalf("%s %s: in the end %+v is neither done nor listed; the fact is %+v, the claim %v", e.Name, e.name, w, e.fact, e.open)
			}
		}
	}
}
