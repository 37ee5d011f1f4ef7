package schedule

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// A Stage makes scenes, each as if no other had been before. It is asked for one at a time,
// and the next one when the last has been played.
type Stage func() (*Scene, error)

// Options say which orders are played. The zero value: all of them, each.
type Options struct {
	Reduce bool   // of orders that differ only in neighbouring steps that commute, play one
	Sample int    // play so many orders, chosen at random, instead of all
	Seed   uint64 // of the sample
	Only   string // play this order alone: Choices of an [Order], or its beginning
	Most   int    // stop after so many orders; 0: never
	Broken int    // stop after so many orders with problems; 0: after 3

	// Each sees every order that was played, from several goroutines, one at a time.
	Each func(*Order)
}

// A Report is what an exploration came to.
type Report struct {
	Orders    int // that were played
	Redundant int // of these, found to show what another one shows
	Diverged  int // of these, took another way than the order that they were to repeat
	Left      int // known and not played: Most or Broken was reached
	Broken    []*Order
	Took      time.Duration
}

func (r *Report) String() string {
	s := fmt.Sprintf("%d orders in %s", r.Orders, r.Took.Round(time.Millisecond))
	if r.Redundant > 0 {
		s += fmt.Sprintf(", %d of them redundant", r.Redundant)
	}
	if r.Diverged > 0 {
		s += fmt.Sprintf(", %d diverged", r.Diverged)
	}
	if r.Left > 0 {
		s += fmt.Sprintf(", at least %d left out", r.Left)
	}
	if n := len(r.Broken); n > 0 {
		s += fmt.Sprintf(", %d BROKEN", n)
	}
	return s
}

// A branch is the beginning of orders that have not been played: the choices, as positions
// of actors, and who sleeps after them.
type branch struct {
	choices []int
	asleep  uint64 // a set of positions
}

// Explore plays orders, on all stages at once. The error is one of making a scene; orders
// that broke are in the report.
func Explore(name string, stages []Stage, o Options) (*Report, error) {
	began := time.Now()
	x := &explorer{name: name, Options: o, report: &Report{}, random: rand.New(rand.NewPCG(o.Seed, 0))}
	x.idle = sync.NewCond(&x.mu)
	if x.Broken == 0 {
		x.Broken = 3
	}
	switch {
	case o.Only != "":
		x.todo = []branch{{choices: positions(o.Only)}}
	case o.Sample == 0:
		x.todo = []branch{{}}
	}
	var all sync.WaitGroup
	for _, stage := range stages {
		all.Go(func() { x.work(stage) })
	}
	all.Wait()
	x.report.Left = len(x.todo)
	x.report.Took = time.Since(began)
	return x.report, x.err
}

func positions(names string) (ns []int) {
	for _, c := range names {
		ns = append(ns, int(c-'a'))
	}
	return ns
}

type explorer struct {
	name string
	Options

	mu     sync.Mutex // owns what follows
	idle   *sync.Cond // todo has grown, or nobody works any more
	todo   []branch   // last in, first out: so that it stays short
	busy   int
	begun  int
	report *Report
	random *rand.Rand
	err    error
}

// work plays orders until there are none left.
func (x *explorer) work(stage Stage) {
	for {
		b, random := x.take()
		if b == nil && random == nil {
			return
		}
		scene, err := stage()
		if err != nil {
			x.finish(nil, nil, fmt.Errorf("make a scene for %s: %w", x.name, err))
			return
		}
		if random != nil {
			x.finish(play(x.name, scene, func(_ *Order, enabled []*Actor) *Actor { return enabled[random.IntN(len(enabled))] }), nil, nil)
			continue
		}
		w := &walk{branch: b, branching: x.Only == "", reduce: x.Reduce}
		order := play(x.name, scene, w.choose)
		x.finish(order, w.found, nil)
	}
}

// take returns what to play next: a branch, or the dice of a sample; neither: it is over.
func (x *explorer) take() (*branch, *rand.Rand) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		over := x.err != nil || len(x.report.Broken) >= x.Broken || x.Most > 0 && x.begun >= x.Most
		switch {
		case over:
			return nil, nil
		case x.Sample > 0 && x.Only == "":
			if x.begun == x.Sample {
				return nil, nil
			}
			x.begun, x.busy = x.begun+1, x.busy+1
			return nil, rand.New(rand.NewPCG(x.random.Uint64(), x.random.Uint64()))
		case len(x.todo) > 0:
			b := x.todo[len(x.todo)-1]
			x.todo = x.todo[:len(x.todo)-1]
			x.begun, x.busy = x.begun+1, x.busy+1
			return &b, nil
		case x.busy == 0:
			return nil, nil
		}
		x.idle.Wait()
	}
}

// finish counts an order that was played, and keeps the branches found on its way.
func (x *explorer) finish(o *Order, found []branch, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	defer x.idle.Broadcast()
	x.busy--
	if err != nil {
		if x.err == nil {
			x.err = err
		}
		return
	}
	x.todo = append(x.todo, found...)
	x.report.Orders++
	if o.redundant {
		x.report.Redundant++
	}
	if o.Diverged > 0 {
		x.report.Diverged++
	}
	if len(o.Problems) > 0 {
		x.report.Broken = append(x.report.Broken, o)
	}
	if x.Each != nil {
		x.Each(o)
	}
}

// A walk follows a branch to its end, then takes the first actor that is awake, and notes
// the branches that it leaves aside.
type walk struct {
	*branch
	branching bool
	reduce    bool
	taken     []int
	found     []branch
}

func (w *walk) choose(o *Order, enabled []*Actor) *Actor {
	a := w.pick(o, enabled)
	w.taken = append(w.taken, a.N)
	return a
}

func (w *walk) pick(o *Order, enabled []*Actor) *Actor {
	if n := len(w.taken); n < len(w.choices) {
		for _, a := range enabled {
			if a.N == w.choices[n] {
				return a
			}
		}
		if o.Diverged == 0 {
			o.Diverged = n + 1
		}
		w.branching = false // what would branch here may have been played
	}
	if o.Diverged > 0 || !w.branching {
		return enabled[0]
	}
	var awake []*Actor
	for _, a := range enabled {
		if w.asleep&(1<<a.N) == 0 {
			awake = append(awake, a)
		}
	}
	if len(awake) == 0 {
		o.redundant, w.branching = true, false
		return enabled[0]
	}
	tried := w.asleep
	for i, a := range awake {
		asleep := uint64(0)
		if w.reduce {
			for _, s := range enabled {
				if tried&(1<<s.N) != 0 && s.next.Kind.commutes(a.next.Kind) {
					asleep |= 1 << s.N
				}
			}
			tried |= 1 << a.N
		}
		if i == 0 {
			w.asleep = asleep
			continue
		}
		w.found = append(w.found, branch{choices: append(append([]int{}, w.taken...), a.N), asleep: asleep})
	}
	return awake[0]
}
