package sqsqueue

import (
	"sync"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// groups keep the message groups of a FIFO queue serial: one receive may bring several
// messages of a group, and only the first of them, its head, is handed out. The others wait
// here, extended with the head.
type groups struct {
	mu    sync.Mutex
	of    map[string]*group
	sweep time.Time // when groups whose head was abandoned are next looked for
}

type group struct {
	head    string    // the receipt of what is handed out
	until   time.Time // it is held; nobody holds anything of the group afterwards
	waiting []queue.Delivery
}

func (g *groups) init() { g.of = map[string]*group{} }

// admit returns those of ds that may be handed out now, and keeps the others.
func (g *groups) admit(ds []queue.Delivery, now time.Time, visibility time.Duration) (heads []queue.Delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.After(g.sweep) {
		for name, gr := range g.of {
			if now.After(gr.until) {
				delete(g.of, name)
			}
		}
		g.sweep = now.Add(visibility)
	}
	for _, d := range ds {
		r, _ := parseReceipt(d.Receipt)
		gr := g.of[r.group]
		if gr == nil || now.After(gr.until) {
			g.of[r.group] = &group{head: d.Receipt, until: now.Add(visibility)}
			heads = append(heads, d)
		} else {
			gr.waiting = append(gr.waiting, d)
		}
	}
	return heads
}

// next makes the next of the group the head, since the one with this receipt is
// acknowledged. It returns that one, if there is any.
func (g *groups) next(r held) []queue.Delivery {
	g.mu.Lock()
	defer g.mu.Unlock()
	gr := g.of[r.group]
	if gr == nil || gr.head != r.Receipt {
		return nil
	}
	if len(gr.waiting) == 0 {
		delete(g.of, r.group)
		return nil
	}
	d := gr.waiting[0]
	gr.head, gr.waiting = d.Receipt, gr.waiting[1:]
	return []queue.Delivery{d}
}

// stop ends the group, since its head is released or lost, and returns what waited.
func (g *groups) stop(r held) []queue.Delivery {
	g.mu.Lock()
	defer g.mu.Unlock()
	gr := g.of[r.group]
	if gr == nil || gr.head != r.Receipt {
		return nil
	}
	delete(g.of, r.group)
	return gr.waiting
}

// mates are those that wait behind the head.
func (g *groups) mates(r held) []queue.Delivery {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gr := g.of[r.group]; gr != nil && gr.head == r.Receipt {
		return append([]queue.Delivery(nil), gr.waiting...)
	}
	return nil
}

// extended says that the head is held anew.
func (g *groups) extended(r held, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gr := g.of[r.group]; gr != nil && gr.head == r.Receipt {
		gr.until = until
	}
}
