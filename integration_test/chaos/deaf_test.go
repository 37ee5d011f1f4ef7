//go:build linux

package chaos_test

import (
	"strings"
	"testing"
	"time"
)

// One of a process's slots has a body that takes no notice of its timeout. It is fenced
// off: Health says so, another attempt is made, and the rest of the process goes on. What
// the body reports in the end is refused and listed.
func TestAJobThatIgnoresItsContextIsFencedOffAndItsProcessGoesOn(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	w := newWorld(t)
	told := service{Database: dsn, World: w, Timeout: 500 * time.Millisecond, Slots: 3, Lease: 15 * time.Second, Types: []string{"keyed"}}
	l := load{}
	thing := id{"keyed", "1"}
	l.send(t, pool, "keyed", work{N: 1, How: "hold"})
	p := told.start(t)
	isHealth := func(e event) bool { return e.Verb == "health" && e.Pid == p.pid() }
	health := func() string {
		es := w.events(t, isHealth)
		if len(es) == 0 {
			return "?"
		}
		return es[len(es)-1].Said
	}
	await(t, "the body holds", func() bool { return len(w.events(t, func(e event) bool { return e.Verb == "held" })) == 1 })
	// What was said last may be of the moment before the worker had a lease.
	if h := health(); h != "" && !strings.Contains(h, "no lease yet") {
		t.Errorf("before the timeout the health is %q, want none to complain of", h)
	}
	await(t, "its health says who is stuck", func() bool { return strings.Contains(health(), `keyed "1"`) })
	await(t, "another attempt has done it", func() bool { return standing(t, pool, thing) == "done r 2" })
	// The others in the process go on beside it: more of them than there are slots.
	l.send(t, pool, "keyed", numbers(2, 31)...)
	awaitRow(t, pool, "the others are done", `SELECT count(*) = 31 FROM oncemore.ledger`)
	if health() == "" {
		t.Error("it is healthy, and one of its bodies is stuck")
	}
	if n := ask[int](t, pool, `SELECT count(*) FROM oncemore.worker`); n != 1 {
		t.Errorf("%d lives, want one: a stuck body does not end it", n)
	}
	before := ask[string](t, pool, factsSum)
	w.mark("open")
	await(t, "its late success is disputed", func() bool { return attempts(t, pool, "keyed", "disputed") == 1 })
	await(t, "it is healthy again", func() bool { return health() == "" })
	awaitSettled(t, pool)
	if ask[string](t, pool, factsSum) != before {
		t.Error("what was fenced off changed a fact")
	}
	p.stop(t)
	checkEnd(t, pool, w, l)
}

// The same inside a transaction: the transaction is the fence. The server ends it, and the
// next attempt is the only one that leaves anything.
func TestI3InTransactionEffectsHappenOnceWhenABodyIgnoresItsContext(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	w := newWorld(t)
	told := service{Database: dsn, World: w, Timeout: 500 * time.Millisecond, Slots: 3, Lease: 15 * time.Second, Types: []string{"in_tx"}, Visibility: 3 * time.Second}
	l := load{}
	l.send(t, pool, "in_tx", work{N: 1, How: "hold"})
	p := told.start(t)
	await(t, "the body holds", func() bool { return len(w.events(t, func(e event) bool { return e.Verb == "held" })) == 1 })
	l.send(t, pool, "in_tx", numbers(2, 31)...)
	awaitRow(t, pool, "the others are done", `SELECT count(*) = 30 FROM oncemore.ledger`)
	awaitRow(t, pool, "the server has ended its transaction", `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction')`)
	w.mark("open")
	awaitSettled(t, pool)
	p.stop(t)
	checkEnd(t, pool, w, l)
}
