package schedule_test

import (
	"fmt"
	"math/rand/v2"
	"os"
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
				t.Run(sc.name, func(t *testing.T) { count += orders(t, name, stages[set.size], sc, o) })
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

func orders(t *testing.T, name string, ss []*stage, sc *scenario, o schedule.Options) int {
	if o.Only != "" {
		o.Each = func(o *schedule.Order) { fmt.Print(o) }
		ss = ss[:1]
	}
	r, err := schedule.Explore(name, on(ss, sc), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
	for _, order := range r.Broken {
		t.Errorf("this order broke:\n%s", order)
	}
	return r.Orders
}
