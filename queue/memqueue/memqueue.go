// Package memqueue is a [queue.Queue] in memory, for tests and examples. It forgets
// everything when the process ends.
//
// It is strict: it keeps copies, so that nobody changes a message that was sent or
// that others will receive, and it refuses receipts that it never gave out. It takes
// its time from package time alone and so works inside a [testing/synctest] bubble.
package memqueue

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

const (
	defaultVisibility = 10 * time.Second
	longestWait       = 20 * time.Second // of a Receive that finds nothing
)

// ErrReceipt is wrapped by the errors for receipts that the queue never gave out.
var ErrReceipt = errors.New("not a receipt of this queue")

// A Queue is a queue in memory. It is safe for concurrent use.
type Queue struct {
	visibility time.Duration

	mu      sync.Mutex
	lastID  int64
	entries map[int64]*entry // by id
	ready   readyHeap        // those that can be received
	later   laterHeap        // those that are delayed or held
	issued  []int64          // the id that delivery number i+1 was of
	changed chan struct{}    // closed, and replaced, when something may have become ready
}

var _ queue.Queue = (*Queue)(nil)

// An entry is a message that is not acknowledged. It is in one of the two heaps.
type entry struct {
	queue.Message
	id       int64
	received int
	lock     int64     // the number of the delivery that holds it; 0: nobody does
	at       time.Time // held or delayed until then
	index    int       // in its heap
	later    bool      // which heap that is
}

// New returns an empty queue with a visibility timeout of 10 seconds.
func New() *Queue {
	return &Queue{visibility: defaultVisibility, entries: map[int64]*entry{}, changed: make(chan struct{})}
}

// WithVisibility sets how long q's receives hold a message, and returns q. It must
// be called before q is used.
func (q *Queue) WithVisibility(d time.Duration) *Queue {
	q.visibility = d
	return q
}

// Visibility is how long a delivery is held before it is handed out again.
func (q *Queue) Visibility() time.Duration { return q.visibility }

// Len is the number of messages that are not acknowledged: ready, delayed or held.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.entries)
}

// Send adds the messages to the queue.
func (q *Queue) Send(ctx context.Context, ms ...queue.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for i := range ms {
		if err := ms[i].Check(); err != nil {
			return err
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for _, m := range ms {
		q.lastID++
		e := &entry{Message: clone(m), id: q.lastID, at: now.Add(max(m.Delay, 0))}
		e.Delay = 0
		q.entries[e.id] = e
		q.push(e, m.Delay > 0)
	}
	q.wake()
	return nil
}

// Receive returns up to max ready messages. Without any it waits, up to 20 seconds.
func (q *Queue) Receive(ctx context.Context, max int, types []string) ([]queue.Delivery, error) {
	if max < 1 {
		return nil, nil
	}
	for end := time.Now().Add(longestWait); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		now := time.Now()
		ds, changed, next := q.receiveNoWait(now, max, types)
		if len(ds) > 0 || !now.Before(end) {
			return ds, nil
		}
		if next.IsZero() || next.After(end) {
			next = end
		}
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// receiveNoWait is Receive at one moment. Besides the deliveries it returns what
// will be closed at the next change, and when the next message becomes ready by
// itself (the zero time: none will).
func (q *Queue) receiveNoWait(now time.Time, max int, types []string) (ds []queue.Delivery, changed <-chan struct{}, next time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.later.Len() > 0 && !q.later.entries[0].at.After(now) {
		e := q.later.entries[0]
		q.remove(e)
		e.lock = 0
		q.push(e, false)
	}
	var strangers []*entry
	for q.ready.Len() > 0 && len(ds) < max {
		e := q.ready.entries[0]
		q.remove(e)
		if len(types) > 0 && !slices.Contains(types, e.Type) {
			strangers = append(strangers, e)
			continue
		}
		q.issued = append(q.issued, e.id)
		e.received++
		e.lock, e.at = int64(len(q.issued)), now.Add(q.visibility)
		q.push(e, true)
		ds = append(ds, queue.Delivery{Message: clone(e.Message), Receipt: strconv.FormatInt(e.lock, 10), Received: e.received})
	}
	for _, e := range strangers {
		q.push(e, false)
	}
	if len(ds) > 0 {
		q.wake() // who waits must know when these lapse
	}
	if q.later.Len() > 0 {
		next = q.later.entries[0].at
	}
	return ds, q.changed, next
}

// Extend begins the visibility timeout anew for each delivery.
func (q *Queue) Extend(ctx context.Context, ds ...queue.Delivery) (lost []string, err error) {
	err = q.each(ctx, ds, func(d queue.Delivery, e *entry) {
		if e == nil {
			lost = append(lost, d.Receipt)
			return
		}
		q.remove(e)
		e.at = time.Now().Add(q.visibility)
		q.push(e, true)
	})
	return lost, err
}

// Ack removes the messages for good.
func (q *Queue) Ack(ctx context.Context, ds ...queue.Delivery) error {
	return q.each(ctx, ds, func(_ queue.Delivery, e *entry) {
		if e != nil {
			q.remove(e)
			delete(q.entries, e.id)
		}
	})
}

// Release makes the messages visible again after a delay.
func (q *Queue) Release(ctx context.Context, after time.Duration, ds ...queue.Delivery) error {
	return q.each(ctx, ds, func(_ queue.Delivery, e *entry) {
		if e != nil {
			q.remove(e)
			e.lock, e.at = 0, time.Now().Add(max(after, 0))
			q.push(e, after > 0)
			q.wake()
		}
	})
}

// each calls f, under the lock, with each delivery and the entry that it holds, nil
// where it holds none. Before that it looks at all receipts, so that an error means
// that nothing was changed.
func (q *Queue) each(ctx context.Context, ds []queue.Delivery, f func(queue.Delivery, *entry)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	locks := make([]int64, len(ds))
	for i, d := range ds {
		lock, err := strconv.ParseInt(d.Receipt, 10, 64)
		if err != nil || lock < 1 || lock > int64(len(q.issued)) {
			return fmt.Errorf("%w: %.40q", ErrReceipt, d.Receipt)
		}
		locks[i] = lock
	}
	for i, d := range ds {
		e := q.entries[q.issued[locks[i]-1]]
		if e != nil && e.lock != locks[i] {
			e = nil
		}
		f(d, e)
	}
	return nil
}

func (q *Queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *Queue) push(e *entry, later bool) {
	e.later = later
	if later {
		heap.Push(&q.later, e)
	} else {
		heap.Push(&q.ready, e)
	}
}

func (q *Queue) remove(e *entry) {
	if e.later {
		heap.Remove(&q.later, e.index)
	} else {
		heap.Remove(&q.ready, e.index)
	}
}

func clone(m queue.Message) queue.Message {
	items := make([]queue.Item, len(m.Items))
	for i, it := range m.Items {
		items[i] = queue.Item{Entity: it.Entity, Args: append(json.RawMessage{}, it.Args...)}
	}
	m.Items = items
	return m
}

// entries is what the two heaps share.
type entries []*entry

func (h entries) Len() int { return len(h) }
func (h entries) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *entries) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *entries) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}

type readyHeap struct{ entries }

func (h readyHeap) Less(i, j int) bool {
	a, b := h.entries[i], h.entries[j]
	if a.Priority != b.Priority {
		return a.Priority > b.Priority
	}
	return a.id < b.id
}

type laterHeap struct{ entries }

func (h laterHeap) Less(i, j int) bool { return h.entries[i].at.Before(h.entries[j].at) }
