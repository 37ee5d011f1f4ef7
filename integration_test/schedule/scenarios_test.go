package schedule_test

import (
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A scenario is what some actors do beside each other, and what was before.
type scenario struct {
	name     string
	effect   string // one of the classes
	entities int    // 0: one
	rare     bool   // what it is about happens in few of its orders: a sample would miss it
	set      func(*tale) ([]program, error)
}

type program = func(*player) error

// deliver is a worker that gets a message.
func deliver(change ...func(*item)) program {
	return func(p *player) error { return p.deliver(p.item(change...)) }
}

// simply is a scenario where nothing was before.
func simply(programs ...program) func(*tale) ([]program, error) {
	return func(*tale) ([]program, error) { return programs, nil }
}

// held is a scenario in which the first player's worker holds a claim, and is about to end it.
func held(dead bool, change []func(*item), others ...program) func(*tale) ([]program, error) {
	return func(ta *tale) ([]program, error) {
		it := ta.players[0].item(slices.Concat(change, []func(*item){again})...)
		if err := ta.holds(it, ta.workers[0]); err != nil {
			return nil, err
		}
		if dead {
			if err := ta.dead(0); err != nil {
				return nil, err
			}
		}
		return append([]program{func(p *player) error { return p.work(it) }}, others...), nil
	}
}

// takeover is a worker that declares the first player's dead, and gets its message.
func takeover(change ...func(*item)) program {
	return func(p *player) error {
		it := p.item(append(change, again)...)
		if err := p.declare(0); err != nil {
			return err
		}
		return p.deliver(it)
	}
}

func operator(done bool) program { return func(p *player) error { return p.resolve(done) } }
func adopter(change ...func(*item)) program {
	return func(p *player) error { return p.record(p.task(change...)) }
}

// The epochs that forced deliveries carry; none is ever drawn for stale work in these
// databases before they are over.
const lowEpoch, highEpoch = 1 << 40, 1<<40 + 1

func with(change ...func(*item)) []func(*item) { return change }

// done is a scenario in which the work was done before, under no epoch.
func done(change []func(*item), programs ...program) func(*tale) ([]program, error) {
	return func(ta *tale) ([]program, error) {
		it := ta.players[0].item(change...)
		it.acked = true
		if err := ta.holds(it, ta.workers[0]); err != nil {
			return nil, err
		}
		return programs, ta.ended(it, ta.workers[0], ledger.Completed)
	}
}

// swept is a scenario in which the work was done, and a claim that nobody holds lies beside the fact.
func swept(programs ...program) func(*tale) ([]program, error) {
	return func(ta *tale) ([]program, error) {
		first, second := ta.players[0].item(), ta.players[1].item()
		first.acked, second.acked = true, true
		if err := ta.ended(first, ta.workers[0], ledger.Completed); err != nil {
			return nil, err
		}
		return programs, ta.ended(second, ta.workers[1], ledger.GaveUp)
	}
}

// waiting is a scenario in which an earlier attempt had its effect, failed, and is due again.
func waiting(programs ...program) func(*tale) ([]program, error) {
	return func(ta *tale) ([]program, error) {
		it := ta.players[0].item(again)
		it.acked = true
		if err := ta.holds(it, ta.workers[0]); err != nil {
			return nil, err
		}
		ta.effects = append(ta.effects, effect{who: "before"})
		return programs, ta.ended(it, ta.workers[0], ledger.ToRetry)
	}
}

// stranded is a scenario in which somebody claimed the work and died.
func stranded(programs ...program) func(*tale) ([]program, error) {
	return func(ta *tale) ([]program, error) {
		n := maxActors - 1
		if err := ta.holds(ta.players[n].item(again), ta.workers[n]); err != nil {
			return nil, err
		}
		return programs, ta.dead(n)
	}
}

// forgets is a worker whose done-check cannot tell.
func forgets(next program) program {
	return func(p *player) error { p.forgetful[p.n] = true; return next(p) }
}

func impatient(next program) program {
	return func(p *player) error { p.impatient = true; return next(p) }
}

// pairs are the scenarios of two actors: each of them is played in all of its orders.
var pairs = []*scenario{
	{name: "claim | claim", effect: "once", set: simply(deliver(), deliver())},
	{name: "claim, fails | claim", effect: "keyed", set: simply(deliver(ends(halfway)), deliver())},
	{name: "claim | first delivery", effect: "repeatable", set: simply(deliver(again), deliver())},
	{name: "first delivery | first delivery", effect: "repeatable", set: simply(deliver(), deliver())},
	{name: "first delivery, fails | first delivery", effect: "repeatable", set: simply(deliver(ends(badly)), deliver())},
	{name: "first delivery, fails | claim", effect: "repeatable", set: simply(deliver(ends(given)), deliver(again))},
	{name: "done-check | done-check", effect: "verifiable", set: waiting(deliver(again), deliver(again))},
	{name: "done-check | cannot tell", effect: "verifiable", set: waiting(deliver(again), forgets(deliver(again)))},
	{name: "complete | redelivery", effect: "once", set: held(false, nil, deliver(again))},
	{name: "fail | redelivery", effect: "verifiable", set: held(false, with(ends(halfway)), deliver(again))},
	{name: "give up | redelivery", effect: "once", set: held(false, with(ends(given)), deliver(again))},
	{name: "give back | redelivery", effect: "once", set: held(false, with(ends(before)), deliver(again))},
	{name: "late give back | takeover", effect: "keyed", set: held(false, with(ends(before)), takeover())},
	{name: "complete | resolve: done", effect: "once", set: held(true, nil, operator(true))},
	{name: "complete | resolve: not done", effect: "once", set: held(true, nil, operator(false))},
	{name: "fail | resolve: done", effect: "once", set: held(true, with(ends(halfway)), operator(true))},
	{name: "fail | resolve: not done", effect: "keyed", set: held(true, with(ends(halfway)), operator(false))},
	{name: "resolve: done | resolve: not done", effect: "once", set: waiting(operator(true), operator(false))},
	{name: "late complete | takeover", effect: "repeatable", set: held(false, nil, takeover())},
	{name: "late complete | takeover, keyed", effect: "keyed", set: held(false, nil, takeover())},
	{name: "late complete | takeover, verifiable", effect: "verifiable", set: held(false, nil, takeover())},
	{name: "late complete | takeover, once", effect: "once", set: held(false, nil, takeover())},
	{name: "late fail | takeover", effect: "repeatable", set: held(false, with(ends(halfway)), takeover())},
	{name: "takeover | takeover", effect: "keyed", set: waiting(deliver(again), deliver(again))},
	{name: "takeover of the dead | takeover of the dead", effect: "repeatable", set: stranded(deliver(again), deliver(again))},
	{name: "complete | forced", effect: "once", set: held(false, nil, deliver(epoch(lowEpoch)))},
	{name: "late complete | forced takeover", effect: "repeatable", set: held(false, nil, takeover(epoch(lowEpoch)))},
	{name: "forced | forced", effect: "once", set: simply(deliver(epoch(lowEpoch)), deliver(epoch(highEpoch)))},
	{name: "forced | forced, done before", effect: "once", set: done(nil, deliver(epoch(lowEpoch)), deliver(epoch(highEpoch)))},
	{name: "forced | same epoch, done before", effect: "repeatable", set: done(nil, deliver(epoch(lowEpoch)), deliver(epoch(lowEpoch)))},
	{name: "complete | stale source", effect: "once", set: held(false, with(source(5)), deliver(source(9)))},
	{name: "stale source | stale source", effect: "once", set: done(with(source(5)), deliver(source(9)), deliver(source(9)))},
	{name: "newer source | older source", effect: "repeatable", set: simply(deliver(source(9)), deliver(source(5)))},
	{name: "newer source | older source, keyed", effect: "keyed", set: simply(deliver(source(9)), deliver(source(5)))},
	{name: "late older source | takeover by a newer one", effect: "repeatable", set: held(false, with(source(5)), takeover(source(9)))},
	{name: "late newer source | takeover by an older one", effect: "repeatable", set: held(false, with(source(9)), takeover(source(5)))},
	{name: "tx | tx", effect: "tx", set: simply(deliver(), deliver())},
	{name: "tx, fails | tx", effect: "tx", set: simply(deliver(ends(halfway)), deliver())},
	{name: "tx | impatient tx", effect: "tx", set: simply(deliver(), impatient(deliver()))},
	{name: "tx | claim, tx", effect: "tx", set: simply(deliver(), deliver(again))},
	{name: "late tx | takeover, tx", effect: "tx", set: held(false, nil, takeover())},
	{name: "late tx, fails | takeover, tx", effect: "tx", set: held(false, with(ends(halfway)), takeover())},
	{name: "tx | forced tx", effect: "tx", set: simply(deliver(), deliver(epoch(lowEpoch)))},
	{name: "tx of a newer source | tx of an older source", effect: "tx", set: simply(deliver(source(9)), deliver(source(5)))},
	{name: "adopt | complete", effect: "once", set: held(false, nil, adopter())},
	{name: "adopt | claim", effect: "once", set: simply(adopter(), deliver())},
	{name: "adopt | first delivery", effect: "repeatable", set: simply(adopter(), deliver())},
	{name: "adopt | tx", effect: "tx", set: simply(adopter(), deliver())},
	{name: "sweep | forced", effect: "repeatable", set: swept(deliver(), deliver(epoch(lowEpoch)))},
	{name: "sweep | sweep", effect: "repeatable", set: swept(deliver(), deliver())},
	{name: "sweep | resolve", effect: "repeatable", set: swept(deliver(), operator(false))},
	{name: "pack | pack", effect: "verifiable", entities: 2, rare: true, set: packs},
}

// triples are the scenarios of three.
var triples = []*scenario{
	{name: "claim | claim | claim", effect: "once", set: simply(deliver(), deliver(), deliver())},
	{name: "claim | first delivery | first delivery", effect: "repeatable", set: simply(deliver(again), deliver(), deliver())},
	{name: "first delivery, fails | first delivery | claim", effect: "repeatable", set: simply(deliver(ends(badly)), deliver(), deliver(again))},
	{name: "late complete | takeover | redelivery", effect: "keyed", set: held(false, nil, takeover(), deliver(again))},
	{name: "late complete | takeover | resolve", effect: "once", set: held(false, nil, takeover(), operator(false))},
	{name: "late complete | resolve: done | resolve: not done", effect: "once", set: held(true, nil, operator(true), operator(false))},
	{name: "late complete | takeover | forced", effect: "repeatable", set: held(false, nil, takeover(), deliver(epoch(lowEpoch)))},
	{name: "late fail | takeover | redelivery", effect: "verifiable", set: held(false, with(ends(halfway)), takeover(), deliver(again))},
	{name: "complete | forced | forced", effect: "once", set: held(false, nil, deliver(epoch(lowEpoch)), deliver(epoch(highEpoch)))},
	{name: "source 5 | source 7 | source 9", effect: "repeatable", set: simply(deliver(source(5)), deliver(source(7)), deliver(source(9)))},
	{name: "late source 5 | takeover by 9 | redelivery of 7", effect: "repeatable", set: held(false, with(source(5)), takeover(source(9)), deliver(again, source(7)))},
	{name: "adopt | claim | first delivery", effect: "repeatable", set: simply(adopter(), deliver(again), deliver())},
	{name: "tx | tx | claim, tx", effect: "tx", set: simply(deliver(), deliver(), deliver(again))},
	{name: "tx, fails | tx | tx", effect: "tx", set: simply(deliver(ends(halfway)), deliver(), deliver())},
	{name: "late tx | takeover, tx | forced tx", effect: "tx", set: held(false, nil, takeover(), deliver(epoch(lowEpoch)))},
	{name: "sweep | forced | resolve", effect: "repeatable", set: swept(deliver(), deliver(epoch(lowEpoch)), operator(true))},
}

// packs are two workers whose messages name two entities, which are due again. Each has
// learned what became of one of them and gives up the other, the other way round: so their
// settlements lock the same claims, in what would be opposite orders if they were not sorted.
func packs(ta *tale) ([]program, error) {
	var its []*item
	for i := range ta.entities {
		it := ta.players[0].item(again, func(it *item) { it.want.Entity = ta.entities[i] })
		it.acked = true
		if err := ta.holds(it, ta.workers[0]); err != nil {
			return nil, err
		}
		if err := ta.ended(it, ta.workers[0], ledger.ToRetry); err != nil {
			return nil, err
		}
		its = append(its, it)
	}
	pack := func(gives int) program {
		return func(p *player) error {
			wants := []ledger.Want{its[0].want, its[1].want}
			var sts []ledger.Standing
			if err := p.call("look", schedule.Read, func() (answer string, err error) {
				sts, err = p.seat.ledger.Look(p.Context(), p.kind, wants)
				return "", err
			}); err != nil {
				return err
			}
			var outs []*ledger.Outcome
			for i, st := range sts {
				if st.Open == nil || !st.Reason.Run() {
					continue
				}
				it := &item{want: wants[i], standing: st}
				o := p.outcome(it, ledger.Completed)
				o.Evidence = ledger.DoneCheck
				if i == gives {
					o = p.outcome(it, ledger.GaveUp)
					o.Error = "it will never work"
				}
				outs = append(outs, o)
			}
			if len(outs) == 0 {
				return nil
			}
			if err := p.call("settle", schedule.Commit, func() (string, error) {
				return "", p.seat.ledger.RunBatch(p.Context(), func(b *pgx.Batch) {
					for _, o := range outs {
						o.Refused = false
					}
					ledger.Settle(b, p.kind, p.worker, outs)
				})
			}); err != nil {
				return err
			}
			for _, o := range outs {
				if o.State == ledger.Completed {
					p.completed = append(p.completed, o)
				}
			}
			return p.call("dispute", schedule.Read, func() (string, error) {
				return "", p.seat.ledger.RecordDisputes(p.Context(), p.kind, p.worker, outs)
			})
		}
	}
	return []program{pack(0), pack(1)}, nil
}
