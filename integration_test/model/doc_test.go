// Package model_test runs random stories of a few entities against a model of what should
// be true, on a real PostgreSQL.
//
// The stories are made of the calls that a worker makes of ledger and queue, one at a time:
// enqueue, receive, look, claim, have the effect, settle; beside duplicates, crashes,
// processes that freeze and wake up too late, deaths that are declared, operators who
// resolve, forced runs, sources that change, and time that passes. What happens at the same
// moment is the business of other tests (histories in package ledger); here it is the order
// that is random, and the model knows what must come of it.
//
//	machine_test.go   the story: its actions
//	process_test.go   a worker's process: what it does with a delivery, as package worker does
//	settle_test.go    how it ends, and what is recorded of that
//	entity_test.go    the model: what one entity's rows should be, and what the world has seen
//	check_test.go     what must be true after every step, and in the end
//
// Every run prints its ONCEMORE_SEED; the same seed tells the same stories:
//
//	ONCEMORE_SEED=42 go test -count=1 ./integration_test/model
//
// When a story fails, rapid prints the shortest one it finds that fails the same way.
// ONCEMORE_FULL=1 tells many more, -rapid.checks=N as many as you like.
package model_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// checks sets how many stories are told, and from which seed.
func checks(t *testing.T, short, full int) {
	t.Helper()
	n, seed := short, strconv.FormatUint(rand.Uint64()>>1, 10)
	if os.Getenv("ONCEMORE_FULL") == "1" {
		n = full
	}
	if env := os.Getenv("ONCEMORE_SEED"); env != "" {
		seed = env
	}
	given := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(n), "rapid.seed": seed, "rapid.steps": "100", "rapid.nofailfile": "true"} {
		if given[name] {
			continue
		}
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ONCEMORE_SEED=%s", flag.Lookup("rapid.seed").Value)
}

func TestI1NoLossI4NoBlindRepeatInAnyStory(t *testing.T) {
	checks(t, 10, 1000)
	w := newWorld(t)
	rapid.Check(t, func(t *rapid.T) {
		m := w.begin(t)
		t.Repeat(map[string]func(*rapid.T){"": m.check, "next": m.next([]action{
			{20, "go on", m.goOn}, {7, "receive", m.receive}, {6, "fail", m.fail}, {2, "time passes", m.pass},
			{3, "enqueue", m.enqueue}, {1, "duplicate", m.duplicate}, {3, "force", m.force}, {3, "change the source", m.change}, {1, "adopt", m.adopt},
			{4, "freeze", m.freeze}, {2, "thaw", m.thaw}, {3, "expire", m.expire}, {2, "join", m.join}, {2, "crash", m.crash}, {1, "stop", m.stop},
			{2, "show", m.show}, {1, "resolve", m.resolve}, {1, "recheck", m.recheck},
		})})
		m.settleDown(t)
	})
	w.told(t)
}

type action struct {
	weight int
	name   string
	do     func(*rapid.T) bool // false: it cannot be, and has drawn nothing
}

// next does one action, drawn by weight, that can be done. (rapid's own drawing prefers the
// ends of a list so much that few stories would get anywhere.)
func (m *machine) next(actions []action) func(*rapid.T) {
	var table []action
	for _, a := range actions {
		for range a.weight {
			table = append(table, a)
		}
	}
	evenly := rapid.Custom(func(t *rapid.T) (n int) {
		for range 6 {
			n *= 2
			if rapid.Bool().Draw(t, "bit") {
				n++
			}
		}
		return n
	})
	if len(table) != 64 {
		panic(fmt.Sprintf("the weights are %d in all, want 64", len(table)))
	}
	return func(t *rapid.T) {
		for {
			if a := table[evenly.Draw(t, "next")]; a.do(t) {
				t.Log(a.name)
				m.count[a.name]++
				return
			}
		}
	}
}
