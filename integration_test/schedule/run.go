package schedule

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"
)

// A Kind says what a step can touch, and so which neighbours it can change places with.
type Kind uint8

const (
	Any    Kind = iota // whatever there is
	Read               // reads what is committed; changes nothing, waits for nobody
	Write              // changes or locks rows, which nobody sees before the commit
	Commit             // ends a transaction, or is a whole one: what was changed is seen, and who waited goes on
	Local              // what the actors share outside of the database
)

// commutes tells whether it makes no difference which of two neighbouring steps is first.
func (k Kind) commutes(with Kind) bool {
	if k > with {
		k, with = with, k
	}
	switch {
	case k == Any:
		return false
	case with == Local:
		return k != Local
	}
	return k == Read && with != Commit
}

// A Step is what an actor is about to do.
type Step struct {
	What string
	Kind Kind
}

// An Actor is one of those whose steps are put into an order. Its methods may be called
// from any goroutine that acts for it, one at a time.
type Actor struct {
	Name string // a, b, c…
	N    int    // its position in the scene, from 0

	run    *run
	resume chan struct{}

	// Owned by the scheduler.
	state state
	next  Step
	last  int // its latest step in the order; -1: none
}

type state uint8

const (
	running state = iota
	parked        // before its next step
	waiting       // for a lock of another actor
	finished
)

// Park waits until it is the actor's turn to do s.
func (a *Actor) Park(s Step) {
	a.run.events <- event{actor: a, step: s}
	select {
	case <-a.resume:
	case <-a.run.ctx.Done(): // the order is given up; let it end
	}
}

// Answer notes what the actor's latest step brought, for the table.
func (a *Actor) Answer(format string, args ...any) {
	a.run.mu.Lock()
	defer a.run.mu.Unlock()
	if a.last < 0 {
		return
	}
	t := &a.run.order.Steps[a.last]
	if t.Answer != "" {
		t.Answer += "; "
	}
	t.Answer += fmt.Sprintf(format, args...)
}

// Context ends when the order is given up.
func (a *Actor) Context() context.Context { return a.run.ctx }

// An Order is one sequence of steps that was played.
type Order struct {
	Name     string // of what was explored
	Choices  string // one actor's name for each choice
	Steps    []Taken
	Problems []string // empty: all was as promised

	// Diverged is the first of its choices, from 1, that was asked for and not there. From
	// then on another order was played than was meant, and what the one meant shows may
	// never be seen. 0: it is what it was to be.
	Diverged int

	redundant bool // another order shows the same
}

// A Taken step is one that was played.
type Taken struct {
	Actor  *Actor
	Step   Step
	Answer string
	Waited bool     // for a lock, at first
	Woke   []string // the actors whose waiting it ended
	Raced  bool     // of several who waited it let some go on: who was the first was not the scheduler's choice
}

// Replay is what plays this order again, as the value of ONCEMORE_ORDER.
func (o *Order) Replay() string { return o.Name + ": " + o.Choices }

// String is the order as a table: who did what, and what was the answer.
func (o *Order) String() string {
	var b strings.Builder
	wide := 0
	for _, t := range o.Steps {
		wide = max(wide, 2*t.Actor.N+len(t.Step.What))
	}
	for i, t := range o.Steps {
		answer := t.Answer
		if t.Waited {
			answer = strings.TrimSuffix("waits; "+answer, "; ")
		}
		if len(t.Woke) > 0 {
			answer += " (" + strings.Join(t.Woke, ", ") + " goes on)"
		}
		indent := strings.Repeat("  ", t.Actor.N) // a column for each actor
		fmt.Fprintf(&b, "%4d  %s%s  %-*s  %s\n", i+1, indent, t.Actor.Name, wide-len(indent), t.Step.What, answer)
	}
	for _, p := range o.Problems {
		fmt.Fprintf(&b, "  ✗ %s\n", p)
	}
	fmt.Fprintf(&b, "  again: ONCEMORE_ORDER='%s'\n", o.Replay())
	return b.String()
}

// A Scene is what one order is played on. A new one is made for every order.
type Scene struct {
	// Actors are the programs. An error of one is a problem of the order.
	Actors []func(*Actor) error

	// Waits tells which of these actors wait for a lock that another actor of the scene
	// has. It is asked while they take long. nil: nobody ever waits.
	Waits func(actors []int) ([]bool, error)

	// After looks at the world after each step, when everybody has stopped again, and
	// returns what is wrong with it. nil: nobody looks.
	After func(Taken) []string

	// Check looks at the whole, when all have finished.
	Check func() []string
}

// patience is how long a step may take that waits for nobody. Past it the order hangs.
const patience = 30 * time.Second

// askAfter is how long the scheduler waits for a step before it asks whether it is blocked.
const askAfter = time.Millisecond

type event struct {
	actor *Actor
	step  Step
	done  bool
	err   error
}

type run struct {
	ctx    context.Context
	cancel context.CancelFunc
	scene  *Scene
	actors []*Actor
	events chan event

	mu    sync.Mutex // owns order.Steps while actors run
	order *Order
}

// A chooser picks one of the actors that can move.
type chooser func(o *Order, enabled []*Actor) *Actor

// play plays one order on scene.
func play(name string, scene *Scene, choose chooser) *Order {
	r := &run{scene: scene, events: make(chan event, len(scene.Actors)), order: &Order{Name: name}}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	defer r.cancel()
	for i := range scene.Actors {
		r.actors = append(r.actors, &Actor{Name: string(rune('a' + i)), N: i, run: r, resume: make(chan struct{}), last: -1, state: finished})
	}
	if err := r.schedule(choose); err != nil {
		r.problem("%v", err)
		r.giveUp()
		return r.order
	}
	if scene.Check != nil {
		r.order.Problems = append(r.order.Problems, scene.Check()...)
	}
	return r.order
}

func protect(program func(*Actor) error, a *Actor) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return program(a)
}

func (r *run) problem(format string, args ...any) {
	r.order.Problems = append(r.order.Problems, fmt.Sprintf(format, args...))
}

// schedule lets one actor move at a time until all have finished.
func (r *run) schedule(choose chooser) error {
	for _, a := range r.actors { // one after the other, up to the first step of each
		a.state = running
		go func() { r.events <- event{actor: a, done: true, err: protect(r.scene.Actors[a.N], a)} }()
		if err := r.settle(nil); err != nil {
			return err
		}
	}
	var enabled []*Actor
	for {
		enabled = enabled[:0]
		for _, a := range r.actors {
			if a.state == parked {
				enabled = append(enabled, a)
			}
		}
		if len(enabled) == 0 {
			return nil
		}
		a := choose(r.order, enabled)
		var before []*Actor // who waited
		for _, w := range r.actors {
			if w.state == waiting {
				before, w.state = append(before, w), running
			}
		}
		r.mu.Lock()
		a.state, a.last = running, len(r.order.Steps)
		r.order.Choices += a.Name
		r.order.Steps = append(r.order.Steps, Taken{Actor: a, Step: a.next})
		r.mu.Unlock()
		a.resume <- struct{}{}
		if err := r.settle(before); err != nil {
			return err
		}
		t := &r.order.Steps[a.last]
		t.Waited = a.state == waiting
		for _, w := range before {
			if w.state != waiting {
				t.Woke = append(t.Woke, w.Name)
			}
		}
		t.Raced = len(before) > 1 && len(t.Woke) > 0
		if r.scene.After != nil {
			r.order.Problems = append(r.order.Problems, r.scene.After(*t)...)
		}
	}
}

// settle waits until nobody moves: each actor is parked, has finished, or waits for a lock
// of one that is parked or waits itself. Where all that are left wait for each other it
// waits on, for the database breaks deadlocks.
func (r *run) settle(rechecked []*Actor) error {
	giveUp := time.NewTimer(patience)
	defer giveUp.Stop()
	wait := askAfter
	ask := time.NewTimer(wait)
	defer ask.Stop()
	for {
		moving, stopped := r.moving()
		if len(moving) == 0 {
			return nil
		}
		if len(moving) == len(rechecked) {
			ask.Reset(0) // only those move that waited: most likely they still do
			rechecked = nil
		}
		select {
		case e := <-r.events:
			r.take(e)
		case <-ask.C:
			wait = min(2*wait, 20*time.Millisecond)
			ask.Reset(wait)
			if r.scene.Waits == nil {
				continue
			}
			waits, err := r.scene.Waits(moving)
			if err != nil {
				return fmt.Errorf("ask who waits for whom: %w", err)
			}
			all := stopped
			for _, w := range waits {
				all = all && w
			}
			if all {
				for _, n := range moving {
					r.actors[n].state = waiting
				}
			}
		case <-giveUp.C:
			var names []string
			for _, n := range moving {
				names = append(names, r.actors[n].Name)
			}
			return fmt.Errorf("it hangs: %s did not stop within %s", strings.Join(names, ", "), patience)
		}
	}
}

// moving returns the actors that move, and whether another one could.
func (r *run) moving() (moving []int, stopped bool) {
	for _, a := range r.actors {
		switch a.state {
		case running:
			moving = append(moving, a.N)
		case parked:
			stopped = true
		}
	}
	return moving, stopped
}

func (r *run) take(e event) {
	if !e.done {
		e.actor.state, e.actor.next = parked, e.step
		return
	}
	e.actor.state = finished
	if e.err != nil {
		r.problem("%s: %v", e.actor.Name, e.err)
	}
}

// giveUp lets the actors run to their ends, unordered.
func (r *run) giveUp() {
	r.cancel()
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		left := 0
		for _, a := range r.actors {
			if a.state != finished {
				left++
			}
		}
		if left == 0 {
			return
		}
		select {
		case e := <-r.events:
			r.take(e)
		case <-end.C:
			r.problem("%d actors did not even end when they were told to", left)
			return
		}
	}
}
