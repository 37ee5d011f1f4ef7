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

	// must is what it is about: each of these happens in at least one of its orders, else
	// they say nothing of it. "b claim: outrun" is an answer that b's claim gets, or how
	// it begins; "b claim: waits" is a lock that b's claim waits for; "b sweep" is a step.
	must     []string
	mustFine []string // besides, where steps are statements

	// shown are orders of calls that show all of that, for where not all of them are played.
	shown []string
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

// taken is a first completion that finds a fact of somebody else's.
const taken = "error: a fact is there already"

// pairs are the scenarios of two actors: each of them is played in all of its orders.
var pairs = []*scenario{
	{name: "claim | claim", effect: "once", set: simply(deliver(), deliver()),
		must: []string{"a claim: outrun", "b claim: outrun", "b look: done"}},
	{name: "claim, fails | claim", effect: "keyed", set: simply(deliver(ends(halfway)), deliver()),
		must: []string{"b claim: outrun", "b claim: took over"}},
	{name: "claim | first delivery", effect: "repeatable", set: simply(deliver(again), deliver()),
		must: []string{"a claim: outrun", "a settle: " + taken, "b settle: " + taken}},
	{name: "first delivery | first delivery", effect: "repeatable", set: simply(deliver(), deliver()),
		must: []string{"a settle: " + taken, "b settle: " + taken}},
	{name: "first delivery, fails | first delivery", effect: "repeatable", set: simply(deliver(ends(badly)), deliver()),
		must: []string{"a look: done", "b claim: took over"}},
	{name: "first delivery, fails | claim", effect: "repeatable", set: simply(deliver(ends(given)), deliver(again)),
		must: []string{"a settle: failed: refused", "b claim: outrun", "b look: failed"}},
	{name: "done-check | done-check", effect: "verifiable", set: waiting(deliver(again), deliver(again)),
		must: []string{"a settle: completed: refused", "b settle: completed: refused"}},
	{name: "done-check | cannot tell", effect: "verifiable", set: waiting(deliver(again), forgets(deliver(again))),
		must: []string{"a settle: completed: refused", "a look: in_doubt", "b settle: in_doubt: refused"}},
	{name: "complete | redelivery", effect: "once", set: held(false, nil, deliver(again)),
		must: []string{"b look: ongoing", "b look: done"}},
	{name: "fail | redelivery", effect: "verifiable", set: held(false, with(ends(halfway)), deliver(again)),
		must: []string{"b look: ongoing", "b done-check: true"}},
	{name: "give up | redelivery", effect: "once", set: held(false, with(ends(given)), deliver(again)),
		must: []string{"b look: ongoing", "b look: in_doubt"}},
	{name: "give back | redelivery", effect: "once", set: held(false, with(ends(before)), deliver(again)),
		must: []string{"b look: ongoing", "b claim: took over"}},
	{name: "late give back | takeover", effect: "keyed", set: held(false, with(ends(before)), takeover()),
		must: []string{"a settle: returned: refused", "b claim: outrun", "b claim: took over"}},
	{name: "complete | resolve: done", effect: "once", set: held(true, nil, operator(true)),
		must: []string{"a settle: completed: refused", "b resolve: it has changed", "b resolve: done"}},
	{name: "complete | resolve: not done", effect: "once", set: held(true, nil, operator(false)),
		must: []string{"a settle: completed: refused", "b resolve: it has changed", "b resolve: not done"}},
	{name: "fail | resolve: done", effect: "once", set: held(true, with(ends(halfway)), operator(true)),
		must: []string{"a settle: in_doubt: refused", "b resolve: it has changed", "b resolve: done"}},
	{name: "fail | resolve: not done", effect: "keyed", set: held(true, with(ends(halfway)), operator(false)),
		must: []string{"a settle: retrying: refused", "b resolve: it has changed", "b resolve: not done"}},
	{name: "resolve: done | resolve: not done", effect: "once", set: waiting(operator(true), operator(false)),
		must: []string{"a resolve: it has changed", "b resolve: it has changed", "b list: nothing is open"}},
	{name: "late complete | takeover", effect: "repeatable", set: held(false, nil, takeover()),
		must: []string{"a settle: completed: refused", "b claim: took over", "b claim: outrun"}},
	{name: "late complete | takeover, keyed", effect: "keyed", set: held(false, nil, takeover()),
		must: []string{"a settle: completed: refused", "b claim: took over", "b claim: outrun"}},
	{name: "late complete | takeover, verifiable", effect: "verifiable", set: held(false, nil, takeover()),
		must: []string{"a effect: not begun", "a settle: completed: refused", "b claim: took over", "b settle: completed: refused"}},
	{name: "late complete | takeover, once", effect: "once", set: held(false, nil, takeover()),
		must: []string{"a settle: completed: refused", "b look: in_doubt", "b settle: in_doubt: refused"}},
	{name: "late fail | takeover", effect: "repeatable", set: held(false, with(ends(halfway)), takeover()),
		must: []string{"a settle: retrying: refused", "b claim: took over", "b claim: outrun"}},
	{name: "takeover | takeover", effect: "keyed", set: waiting(deliver(again), deliver(again)),
		must: []string{"a claim: took over", "a claim: outrun", "b claim: took over", "b claim: outrun"}},
	{name: "takeover of the dead | takeover of the dead", effect: "repeatable", set: stranded(deliver(again), deliver(again)),
		must: []string{"a claim: took over", "a claim: outrun", "b claim: took over", "b claim: outrun"}},
	{name: "complete | forced", effect: "once", set: held(false, nil, deliver(epoch(lowEpoch))),
		must: []string{"b look: ongoing", "b look: forced"}},
	{name: "late complete | forced takeover", effect: "repeatable", set: held(false, nil, takeover(epoch(lowEpoch))),
		must: []string{"a settle: completed: refused", "b claim: took over", "b claim: won"}},
	{name: "forced | forced", effect: "once", set: simply(deliver(epoch(lowEpoch)), deliver(epoch(highEpoch))),
		must: []string{"a look: done", "a claim: outrun", "b look: forced"}},
	{name: "forced | forced, done before", effect: "once", set: done(nil, deliver(epoch(lowEpoch)), deliver(epoch(highEpoch))),
		must: []string{"a look: done", "a claim: outrun", "b claim: outrun"}},
	{name: "forced | same epoch, done before", effect: "repeatable", set: done(nil, deliver(epoch(lowEpoch)), deliver(epoch(lowEpoch))),
		must: []string{"a claim: outrun", "b claim: outrun", "b look: done"}},
	{name: "complete | stale source", effect: "once", set: held(false, with(source(5)), deliver(source(9))),
		must: []string{"b look: ongoing", "b look: stale_source"}},
	{name: "stale source | stale source", effect: "once", set: done(with(source(5)), deliver(source(9)), deliver(source(9))),
		must: []string{"a claim: outrun", "b look: stale_source", "b look: done"}},
	{name: "newer source | older source", effect: "repeatable", set: simply(deliver(source(9)), deliver(source(5))),
		must: []string{"a look: stale_source", "a claim: outrun", "b look: done"}},
	{name: "newer source | older source, keyed", effect: "keyed", set: simply(deliver(source(9)), deliver(source(5))),
		must: []string{"a look: stale_source", "a claim: outrun", "b look: done"}},
	{name: "late older source | takeover by a newer one", effect: "repeatable", set: held(false, with(source(5)), takeover(source(9))),
		must: []string{"a redo: sent", "b look: stale_source", "b claim: took over"}},
	{name: "late newer source | takeover by an older one", effect: "repeatable", set: held(false, with(source(9)), takeover(source(5))),
		must: []string{"a redo: sent", "b look: done", "b claim: took over"}},
	{name: "tx | tx", effect: "tx", set: simply(deliver(), deliver()),
		must: []string{"a hold: waits", "a hold: not mine", "b hold: waits", "b hold: not mine"}},
	{name: "tx, fails | tx", effect: "tx", set: simply(deliver(ends(halfway)), deliver()),
		must: []string{"b hold: waits", "a hold: not mine", "b claim: took over"}},
	{name: "tx | impatient tx", effect: "tx", set: simply(deliver(), impatient(deliver())),
		must: []string{"a hold: waits", "b hold: busy"}},
	{name: "tx | claim, tx", effect: "tx", set: simply(deliver(), deliver(again)),
		must: []string{"a hold: waits", "b claim: outrun", "b hold: not mine"}},
	{name: "late tx | takeover, tx", effect: "tx", set: held(false, nil, takeover()),
		must: []string{"a hold: not mine", "b claim: took over", "b claim: outrun"}},
	{name: "late tx, fails | takeover, tx", effect: "tx", set: held(false, with(ends(halfway)), takeover()),
		must: []string{"a settle: retrying: refused", "b claim: took over", "b claim: outrun"}},
	{name: "tx | forced tx", effect: "tx", set: simply(deliver(), deliver(epoch(lowEpoch))),
		must: []string{"a hold: not mine", "b hold: waits", "b look: forced"}},
	{name: "tx of a newer source | tx of an older source", effect: "tx", set: simply(deliver(source(9)), deliver(source(5))),
		must: []string{"a look: stale_source", "a hold: not mine", "b look: done"}},
	{name: "adopt | complete", effect: "once", set: held(false, nil, adopter()),
		must: []string{"a settle: " + taken, "b record: done by somebody else"}},
	{name: "adopt | claim", effect: "once", set: simply(adopter(), deliver()),
		must: []string{"a record: done by somebody else", "b claim: outrun", "b settle: " + taken}},
	{name: "adopt | first delivery", effect: "repeatable", set: simply(adopter(), deliver()),
		must: []string{"a record: done by somebody else", "b settle: " + taken}},
	{name: "adopt | tx", effect: "tx", set: simply(adopter(), deliver()),
		must: []string{"a record: waits", "a record: done by somebody else", "b hold: not mine"}},
	{name: "sweep | forced", effect: "repeatable", set: swept(deliver(), deliver(epoch(lowEpoch))),
		must: []string{"a sweep", "b claim: took over", "b claim: outrun"}},
	{name: "sweep | sweep", effect: "repeatable", set: swept(deliver(), deliver()),
		must: []string{"a sweep", "b sweep"}},
	{name: "sweep | resolve", effect: "repeatable", set: swept(deliver(), operator(false)),
		must: []string{"a sweep", "b resolve: it has changed", "b resolve: not done"}},
	{name: "pack | pack", effect: "verifiable", entities: 2, rare: true, set: packs,
		must: []string{"a settle: refused", "b settle: refused"}, mustFine: []string{"a settle: waits", "b settle: waits"}},
}

// triples are the scenarios of three.
var triples = []*scenario{
	{name: "claim | claim | claim", effect: "once", set: simply(deliver(), deliver(), deliver()),
		must: []string{"a claim: outrun", "b claim: outrun", "c claim: outrun", "c look: done"}, shown: []string{"abcaaabbcc", "abbaaabbc"}},
	{name: "claim | first delivery | first delivery", effect: "repeatable", set: simply(deliver(again), deliver(), deliver()),
		must: []string{"a claim: outrun", "a settle: " + taken, "b settle: " + taken}, shown: []string{"abbcaaccaabb", "abbbaac"}},
	{name: "first delivery, fails | first delivery | claim", effect: "repeatable", set: simply(deliver(ends(badly)), deliver(), deliver(again)),
		must: []string{"a settle: retrying: refused", "b claim: took over", "b settle: " + taken, "c claim: took over"}, shown: []string{"ababccccbb", "aabbbbc", "abbccabccc"}},
	{name: "late complete | takeover | redelivery", effect: "keyed", set: held(false, nil, takeover(), deliver(again)),
		must: []string{"a settle: completed: refused", "b claim: took over", "b claim: outrun", "c claim: took over", "c claim: outrun"}, shown: []string{"abbbcbaabbcc", "abbbccaabbbcc"}},
	{name: "late complete | takeover | resolve", effect: "once", set: held(false, nil, takeover(), operator(false)),
		must: []string{"a settle: completed: refused", "b claim: took over", "b settle: in_doubt: refused", "c resolve: it has changed", "c resolve: not done"}, shown: []string{"abbbccaab", "abbbcabc", "abbccaabbbb"}},
	{name: "late complete | resolve: done | resolve: not done", effect: "once", set: held(true, nil, operator(true), operator(false)),
		must: []string{"a settle: completed: refused", "b resolve: it has changed", "c resolve: it has changed"}, shown: []string{"abcabc", "abbaac"}},
	{name: "late complete | takeover | forced", effect: "repeatable", set: held(false, nil, takeover(), deliver(epoch(lowEpoch))),
		must: []string{"a settle: completed: refused", "b claim: took over", "b claim: outrun", "c claim: took over", "c claim: outrun"}, shown: []string{"abbbcbaabbccc", "abbbccaabbbcc"}},
	{name: "late fail | takeover | redelivery", effect: "verifiable", set: held(false, with(ends(halfway)), takeover(), deliver(again)),
		must: []string{"a settle: retrying: refused", "b claim: took over", "b settle: completed: refused", "c claim: took over", "c settle: completed: refused"}, shown: []string{"babbbcbabbccc", "baabbccccbbbc"}},
	{name: "complete | forced | forced", effect: "once", set: held(false, nil, deliver(epoch(lowEpoch)), deliver(epoch(highEpoch))),
		must: []string{"b claim: outrun", "c claim: outrun", "b look: done"}, shown: []string{"aabccbccb", "aabcbbbccc"}},
	{name: "source 5 | source 7 | source 9", effect: "repeatable", set: simply(deliver(source(5)), deliver(source(7)), deliver(source(9))),
		must: []string{"a look: done", "a claim: outrun", "b look: stale_source", "c look: stale_source"}, shown: []string{"abbabbacccc", "aaaabbbbcccc"}},
	{name: "late source 5 | takeover by 9 | redelivery of 7", effect: "repeatable", set: held(false, with(source(5)), takeover(source(9)), deliver(again, source(7))),
		must: []string{"a redo: sent", "b claim: took over", "b look: stale_source", "c claim: took over", "c look: done"}, shown: []string{"abbbbaaabbc", "abbbccaaabccbb"}},
	{name: "adopt | claim | first delivery", effect: "repeatable", set: simply(adopter(), deliver(again), deliver()),
		must: []string{"a record: done by somebody else", "b claim: outrun", "b settle: " + taken, "c settle: " + taken}, shown: []string{"bcabbccc", "bcbbccabb"}},
	{name: "tx | tx | claim, tx", effect: "tx", set: simply(deliver(), deliver(), deliver(again)),
		must: []string{"a hold: not mine", "b hold: waits", "c hold: not mine", "c claim: outrun"}, shown: []string{"aaabbcabbcc", "abbabccbaacccc"}},
	{name: "tx, fails | tx | tx", effect: "tx", set: simply(deliver(ends(halfway)), deliver(), deliver()),
		must: []string{"b hold: waits", "b claim: took over", "c hold: not mine"}, shown: []string{"aaaacabbbbbccc", "aaaabacccbccbb"}},
	{name: "late tx | takeover, tx | forced tx", effect: "tx", set: held(false, nil, takeover(), deliver(epoch(lowEpoch))),
		must: []string{"a hold: not mine", "b claim: took over", "b claim: outrun", "c claim: outrun"}, shown: []string{"bbbcbaaaabbbccc", "aabbbabbccccc"}},
	{name: "sweep | forced | resolve", effect: "repeatable", set: swept(deliver(), deliver(epoch(lowEpoch)), operator(true)),
		must: []string{"a sweep", "b claim: took over", "b claim: outrun", "c resolve: it has changed"}, shown: []string{"abcabbbc", "abbabbc"}},
}

// packs are two workers whose messages name two entities, which are due again. Each has
// learned what became of one of them and gives up the other, the other way round: so their
// settlements lock the same claims. Each statement does so in the order of keys; but one completes
// and another gives up, so two settlements can still wait for each other. The database ends that,
// and who is its victim settles once more.
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
				err := p.seat.ledger.RunBatch(p.Context(), func(b *pgx.Batch) {
					for _, o := range outs {
						o.Refused = false
					}
					ledger.Settle(b, p.kind, p.worker, outs)
				})
				if slices.ContainsFunc(outs, func(o *ledger.Outcome) bool { return o.Refused }) {
					return "refused", err
				}
				return "settled", err
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
