package schedule_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
)

// A size is of steps.
type size bool

const coarse, fine size = false, true

func (s size) String() string {
	if s == fine {
		return "fine"
	}
	return "coarse"
}

// full is all of it; else a slice that every run of the tests can afford.
var full = os.Getenv("ONCEMORE_FULL") != ""

// seed is of the samples.
var seed = func() uint64 {
	if s, err := strconv.ParseUint(os.Getenv("ONCEMORE_SEED"), 10, 64); err == nil {
		return s
	}
	return rand.Uint64() >> 32
}()

// atOnce is how many orders are played beside each other.
const atOnce = 3

// TestOrders plays the scenarios and says of every order that broke how it went.
func TestOrders(t *testing.T) {
	only := os.Getenv("ONCEMORE_ORDER")
	w := newWorld(t)
	stages := map[size][]*stage{coarse: stagesFor(t, w, false, atOnce), fine: stagesFor(t, w, true, atOnce)}
	total := 0
	for _, set := range []struct {
		name      string
		size      size
		scenarios []*scenario
		slice     *schedule.Options // of a short run; nil: nothing of it
		full      schedule.Options
	}{
		{"pairs in coarse steps", coarse, pairs, &schedule.Options{Reduce: true}, schedule.Options{}},
		{"pairs in fine steps", fine, pairs, &schedule.Options{Sample: 2}, schedule.Options{Reduce: true}},
		{"triples in coarse steps", coarse, triples, &schedule.Options{Sample: 5}, schedule.Options{Reduce: true}},
		{"triples in fine steps", fine, triples, &schedule.Options{Sample: 2}, schedule.Options{Sample: 150}},
		// Not reduced, should the reduction be wrong about some statement.
		{"pairs in fine steps, at random", fine, pairs, nil, schedule.Options{Sample: 20}},
	} {
		o := set.full
		if !full {
			if set.slice == nil {
				continue
			}
			o = *set.slice
		}
		t.Run(set.name, func(t *testing.T) {
			count := 0
			o.Seed = seed
			for _, sc := range set.scenarios {
				name := set.size.String() + ": " + sc.name
				if only != "" {
					choices, ok := strings.CutPrefix(only, name+": ")
					if !ok {
						continue
					}
					o.Only = choices
				}
				o := o
				if sc.rare && set.size == fine && o.Sample < 10 {
					o.Sample, o.Reduce = 0, true
				}
				t.Run(sc.name, func(t *testing.T) { count += orders(t, name, stages[set.size], sc, set.size, o) })
			}
			t.Logf("%d orders", count)
			total += count
		})
	}
	t.Logf("%d orders in all, in which %d deadlocks were tried again; ONCEMORE_SEED=%d", total, w.deadlocks.Load(), seed)
	if only != "" && total == 0 {
		t.Errorf("there is no scenario for ONCEMORE_ORDER=%q", only)
	}
}

// orders plays a scenario. Where it plays all of its orders, or those that are known to show
// what the scenario is about, each of these things must have happened in one of them: a
// scenario whose actors no longer meet would hold whatever the code does.
func orders(t *testing.T, name string, ss []*stage, sc *scenario, size size, o schedule.Options) int {
	seen := sights{}
	o.Each = func(order *schedule.Order) {
		seen.add(order)
		if strayed(order) {
			t.Errorf("choice %d of this order was to be another one, and nothing but the scheduler had a say in it:\n%s", order.Diverged, order)
		}
		if o.Only != "" {
			fmt.Print(order)
		}
	}
	if o.Only != "" {
		ss = ss[:1]
	}
	count := 0
	play := func(o schedule.Options) {
		r, err := schedule.Explore(name, on(ss, sc), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(r)
		for _, order := range r.Broken {
			t.Errorf("this order broke:\n%s", order)
		}
		count += r.Orders
	}
	play(o)
	if o.Only != "" || size == fine && o.Sample > 0 {
		return count // what a sample has shown is a matter of luck
	}
	must := sc.must
	if size == fine {
		must = slices.Concat(must, sc.mustFine)
	}
	if o.Sample > 0 {
		each := o.Each
		for _, choices := range sc.shown {
			play(schedule.Options{Only: choices, Each: each})
		}
	}
	for _, m := range must {
		if !seen.have(m, size) {
			t.Errorf("in none of %d orders did it happen that %q, and that is what they are about", count, m)
		}
	}
	return count
}

// strayed tells whether an order took another way than it was to repeat although the
// scheduler alone decides on the way. What it does not decide on is whom the database
// lets go on first of several who wait for the same lock, and whom it picks in a deadlock.
func strayed(o *schedule.Order) bool {
	return o.Diverged > 0 && !slices.ContainsFunc(o.Steps[:o.Diverged-1], func(t schedule.Taken) bool {
		return t.Raced || strings.Contains(t.Answer, "ERROR 40P01")
	})
}

// sights are what happened in some orders.
type sights map[sight]bool

type sight struct{ who, what, answer string }

func (s sights) add(o *schedule.Order) {
	for _, t := range o.Steps {
		what, _, _ := strings.Cut(t.Step.What, ": ") // the call, also where the step is a statement of it
		for answer := range strings.SplitSeq(t.Answer, "; ") {
			s[sight{t.Actor.Name, what, answer}] = true
		}
		if t.Waited {
			s[sight{t.Actor.Name, what, "waits"}] = true
		}
	}
}

// have tells whether what a scenario must show was seen. Where steps are statements the
// answer to a call stands with the last of them, and that may be of the call before.
func (s sights) have(must string, size size) bool {
	call, answer, _ := strings.Cut(must, ": ")
	who, what, _ := strings.Cut(call, " ")
	for is := range s {
		same := is.what == what || size == fine && answer != "" && answer != "waits"
		if is.who == who && same && strings.HasPrefix(is.answer, answer) {
			return true
		}
	}
	return false
}
