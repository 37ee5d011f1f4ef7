package schedule_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
)

// These scenes have no database: they show that the scheduler does what it says.

// steps is an actor of n steps of a kind.
func steps(n int, kind schedule.Kind) func(*schedule.Actor) error {
	return func(a *schedule.Actor) error {
		for i := range n {
			a.Park(schedule.Step{What: fmt.Sprint("step ", i+1), Kind: kind})
		}
		return nil
	}
}

func stages(n int, scene func() *schedule.Scene) (ss []schedule.Stage) {
	for range n {
		ss = append(ss, func() (*schedule.Scene, error) { return scene(), nil })
	}
	return ss
}

func explore(t *testing.T, ss []schedule.Stage, o schedule.Options) *schedule.Report {
	t.Helper()
	r, err := schedule.Explore(t.Name(), ss, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEveryOrderIsPlayedOnce(t *testing.T) {
	for _, c := range []struct{ actors, steps, orders int }{
		{1, 3, 1}, {2, 1, 2}, {2, 3, 20}, {2, 5, 252}, {3, 2, 90}, {3, 3, 1680},
	} {
		for _, lanes := range []int{1, 4} {
			seen := map[string]int{}
			r := explore(t, stages(lanes, func() *schedule.Scene {
				s := &schedule.Scene{}
				for range c.actors {
					s.Actors = append(s.Actors, steps(c.steps, schedule.Any))
				}
				return s
			}), schedule.Options{Each: func(o *schedule.Order) { seen[o.Choices]++ }})
			if r.Orders != c.orders || len(seen) != c.orders {
				t.Errorf("%d actors of %d steps, %d at once: %d orders, %d of them different; want %d", c.actors, c.steps, lanes, r.Orders, len(seen), c.orders)
			}
		}
	}
}

// Two who add one without a lock lose an addition, and only in some orders.
func counters(state *int) []func(*schedule.Actor) error {
	add := func(a *schedule.Actor) error {
		a.Park(schedule.Step{What: "load"})
		n := *state
		a.Answer("%d", n)
		a.Park(schedule.Step{What: "store"})
		*state = n + 1
		return nil
	}
	return []func(*schedule.Actor) error{add, add}
}

func lostUpdate() *schedule.Scene {
	n := new(int)
	return &schedule.Scene{Actors: counters(n), Check: func() []string {
		if *n != 2 {
			return []string{fmt.Sprintf("two added one, and there is %d", *n)}
		}
		return nil
	}}
}

func TestALostUpdateIsFoundPrintedAndPlayedAgain(t *testing.T) {
	var broken []string
	r := explore(t, stages(1, lostUpdate), schedule.Options{Broken: 100, Each: func(o *schedule.Order) {
		if len(o.Problems) > 0 {
			broken = append(broken, o.Choices)
		}
	}})
	slices.Sort(broken)
	if want := []string{"abab", "abba", "baab", "baba"}; !slices.Equal(broken, want) || r.Orders != 6 {
		t.Errorf("of %d orders these are broken: %v; want %v", r.Orders, broken, want)
	}
	for _, o := range r.Broken {
		again := explore(t, stages(1, lostUpdate), schedule.Options{Only: o.Choices})
		if again.Orders != 1 || len(again.Broken) != 1 || again.Broken[0].String() != o.String() {
			t.Errorf("played again, this order:\n%s\nwas %s", o, again)
		}
		for _, want := range []string{"load", "store", "✗ two added one, and there is 1", "ONCEMORE_ORDER='" + t.Name() + ": " + o.Choices + "'"} {
			if !strings.Contains(o.String(), want) {
				t.Errorf("the table does not say %q:\n%s", want, o)
			}
		}
	}
}

// Whoever waits for a lock is passed over, and comes back.
func TestWhoWaitsIsPassedOver(t *testing.T) {
	scene := func() *schedule.Scene {
		var mu sync.Mutex // of what follows
		held := -1        // by whom
		waits := map[int]bool{}
		free := sync.NewCond(&mu)
		n := 0
		locked := func(a *schedule.Actor) error {
			a.Park(schedule.Step{What: "lock"})
			mu.Lock()
			for held >= 0 {
				waits[a.N] = true
				free.Wait()
			}
			delete(waits, a.N)
			held = a.N
			mu.Unlock()
			a.Park(schedule.Step{What: "load"})
			was := n
			a.Park(schedule.Step{What: "store"})
			n = was + 1
			a.Park(schedule.Step{What: "unlock"})
			mu.Lock()
			held = -1
			clear(waits)
			free.Broadcast()
			mu.Unlock()
			return nil
		}
		return &schedule.Scene{
			Actors: []func(*schedule.Actor) error{locked, locked},
			Waits: func(actors []int) ([]bool, error) {
				mu.Lock()
				defer mu.Unlock()
				out := make([]bool, len(actors))
				for i, a := range actors {
					out[i] = waits[a] && held >= 0 && held != a
				}
				return out, nil
			},
			Check: func() []string {
				if n != 2 {
					return []string{fmt.Sprint("there is ", n)}
				}
				return nil
			},
		}
	}
	waited := 0
	r := explore(t, stages(2, scene), schedule.Options{Each: func(o *schedule.Order) {
		for _, s := range o.Steps {
			if s.Waited {
				waited++
			}
		}
	}})
	// Who is second may ask for the lock before any of the other's four steps, or after them.
	if len(r.Broken) != 0 || r.Diverged != 0 || waited == 0 || r.Orders != 8 {
		t.Errorf("%s; %d waited; broken: %v", r, waited, r.Broken)
	}
}

// Reduced, fewer orders are played, and everything that can come out comes out.
func TestReductionLosesNoOutcome(t *testing.T) {
	scene := func(note func(string)) func() *schedule.Scene {
		return func() *schedule.Scene {
			shown, mine, log := 0, make([]int, 3), ""
			saw := make([]int, 3)
			see := func(a *schedule.Actor) { saw[a.N] = 10*saw[a.N] + shown }
			var program [3]func(*schedule.Actor) error
			for i, kinds := range [][]schedule.Kind{
				{schedule.Read, schedule.Write, schedule.Commit, schedule.Read},
				{schedule.Write, schedule.Read, schedule.Commit},
				{schedule.Read, schedule.Local, schedule.Any, schedule.Read},
			} {
				program[i] = func(a *schedule.Actor) error {
					for _, kind := range kinds {
						a.Park(schedule.Step{What: "step", Kind: kind})
						switch kind {
						case schedule.Read:
							see(a)
						case schedule.Write:
							mine[a.N] = 1 << a.N
						case schedule.Commit:
							shown += mine[a.N]
						case schedule.Local, schedule.Any:
							log += a.Name
						}
					}
					return nil
				}
			}
			return &schedule.Scene{Actors: program[:], Check: func() []string { note(fmt.Sprint(saw, shown, log)); return nil }}
		}
	}
	outcomes := func(o schedule.Options) (map[string]bool, *schedule.Report) {
		var mu sync.Mutex
		out := map[string]bool{}
		r := explore(t, stages(2, scene(func(s string) { mu.Lock(); defer mu.Unlock(); out[s] = true })), o)
		return out, r
	}
	some, reduced := outcomes(schedule.Options{Reduce: true})
	most := 1_000_000
	if !full {
		most = 3000 // of 11,550
	}
	all, every := outcomes(schedule.Options{Most: most})
	for outcome := range all {
		if !some[outcome] {
			t.Errorf("%s came out, and not when reduced", outcome)
		}
	}
	if full && (len(some) != len(all) || every.Orders != 11550) || len(all) < 5 || reduced.Orders > 11550/10 {
		t.Errorf("all: %s, %d outcomes; reduced: %s, %d outcomes", every, len(all), reduced, len(some))
	}
}

func TestASampleIsOfItsSeed(t *testing.T) {
	sample := func(seed uint64) (orders []string) {
		explore(t, stages(1, func() *schedule.Scene {
			return &schedule.Scene{Actors: []func(*schedule.Actor) error{steps(4, schedule.Any), steps(4, schedule.Any), steps(4, schedule.Any)}}
		}), schedule.Options{Sample: 20, Seed: seed, Each: func(o *schedule.Order) { orders = append(orders, o.Choices) }})
		return orders
	}
	if a, b, c := sample(1), sample(1), sample(2); len(a) != 20 || !slices.Equal(a, b) || slices.Equal(a, c) {
		t.Errorf("got %v, then %v; with another seed %v", a, b, c)
	}
}

func TestAnErrorAndAPanicOfAnActorAreProblems(t *testing.T) {
	r := explore(t, stages(1, func() *schedule.Scene {
		return &schedule.Scene{Actors: []func(*schedule.Actor) error{
			func(a *schedule.Actor) error { return errors.New("no") },
			func(a *schedule.Actor) error { panic("yes") },
		}}
	}), schedule.Options{})
	if len(r.Broken) != 1 || len(r.Broken[0].Problems) != 2 {
		t.Errorf("got %v", r.Broken)
	}
}

// An order that cannot be repeated says where it left the way; what was not the scheduler's
// choice is told apart.
func TestAnOrderThatCannotBeRepeatedSaysSo(t *testing.T) {
	scenes := 0
	fickle := func() *schedule.Scene {
		scenes++
		n := 3
		if scenes > 1 {
			n = 1 // it has fewer steps than when the orders were found
		}
		return &schedule.Scene{Actors: []func(*schedule.Actor) error{steps(n, schedule.Any), steps(2, schedule.Any)}}
	}
	var left []*schedule.Order
	r := explore(t, stages(1, fickle), schedule.Options{Each: func(o *schedule.Order) {
		if o.Diverged > 0 {
			left = append(left, o)
		}
	}})
	if r.Diverged == 0 || len(left) != r.Diverged {
		t.Fatalf("%s, and of %d it is said where", r, len(left))
	}
	for _, o := range left {
		if !strayed(o) {
			t.Errorf("at choice %d it was led astray by nothing, and is excused:\n%s", o.Diverged, o)
		}
		o.Steps[0].Raced = true
		if strayed(o) {
			t.Errorf("who was the first of those who waited was not the scheduler's choice, and it is blamed:\n%s", o)
		}
	}
}
