package worker

import "sync"

// A group runs f on whatever has gathered while f ran before. So statements grow with the
// load by themselves: one at a time while there is little to do, hundreds when there is
// much, and nobody ever waits for a timer.
type group[T any] struct {
	f    func([]T)
	most int // given to f at once
	at   int // calls of f that may run side by side

	mu      sync.Mutex
	waiting []T
	running int
	idle    sync.Cond // running became 0
}

// maxGroup bounds one statement: large enough to spread its cost, small enough that
// others do not wait long for the rows it locks.
const maxGroup = 4000

func newGroup[T any](at, most int, f func([]T)) *group[T] {
	g := &group[T]{f: f, at: at, most: most}
	g.idle.L = &g.mu
	return g
}

// add hands xs over; it does not wait for f.
func (g *group[T]) add(xs ...T) {
	g.mu.Lock()
	g.waiting = append(g.waiting, xs...)
	start := g.running < g.at && len(g.waiting) > 0
	if start {
		g.running++
	}
	g.mu.Unlock()
	if start {
		go g.run()
	}
}

func (g *group[T]) run() {
	for {
		g.mu.Lock()
		n := min(len(g.waiting), g.most)
		if n == 0 {
			g.running--
			if g.running == 0 {
				g.idle.Broadcast()
			}
			g.mu.Unlock()
			return
		}
		xs := g.waiting[:n:n]
		g.waiting = g.waiting[n:]
		if len(g.waiting) == 0 {
			g.waiting = nil // f may keep xs
		}
		g.mu.Unlock()
		g.f(xs)
	}
}

// wait returns when nothing is waiting or running. Nobody may add meanwhile.
func (g *group[T]) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.running > 0 {
		g.idle.Wait()
	}
}
