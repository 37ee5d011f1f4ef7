package worker

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// An inbox is one queue that a life reads, and what it holds of it.
type inbox struct {
	queue.Queue
	name string
	pg   *pgqueue.Queue  // the same, where it is one in the ledger's database
	fifo bool            // the next of a group follows when the one before is acknowledged
	room chan struct{}   // something held has ended
	wide chan struct{}   // more types may be asked for than the Receive that goes on does
	acks *group[*parcel] // what is complete. Each queue has its own: one that hangs holds up no other

	brings map[*kind]bool // owned by receive; what is meant for it, and what it has brought besides

	mu    sync.Mutex
	held  map[*parcel]struct{} // owned by mu; extended together, unless lost
	items int                  // in what is held, without those that have ended; of a message that waits for its acknowledgement, one
	size  float64              // items in a message: at first many, so that little is asked for until it is known
}

// openInboxes lists what a life reads: every queue of the configuration, and the
// database's own.
func (l *life) openInboxes() []*inbox {
	seen := map[queue.Queue]*inbox{}
	add := func(name string, q queue.Queue) {
		b := seen[q]
		if b == nil {
			pg, _ := q.(*pgqueue.Queue)
			fifo, ok := q.(queue.FIFO)
			b = &inbox{Queue: q, name: name, pg: pg, fifo: ok && fifo.FIFO(), room: make(chan struct{}, 1), wide: make(chan struct{}, 1),
				brings: map[*kind]bool{}, held: map[*parcel]struct{}{}, size: 100}
			b.acks = newGroup(1, maxGroup, func(ps []*parcel) { l.ackAll(b, ps) })
			seen[q], l.inboxes = b, append(l.inboxes, b)
		}
		for _, k := range l.kinds {
			if k.Queue == name && k.rerunOf == nil {
				b.brings[k] = true
			}
		}
	}
	for name, q := range l.queues {
		add(name, q)
	}
	add("", l.pg)
	return l.inboxes
}

// most is how many items may be held: those that run, some times as many that wait for a
// slot or for being settled, so that receives and settlements are large, and a pack on the
// way.
func (l *life) most() int { return held(l.config.Slots) }

func held(running int) int { return 6*running + 100 }

// receive reads b until ctx ends. It asks for as much as there is room for, and for
// nothing while there is none.
func (l *life) receive(ctx context.Context, b *inbox) {
	all := slices.Sorted(maps.Keys(l.kinds))
	open := len(all) // types that were asked for last
	var delivering sync.WaitGroup
	defer delivering.Wait()
	if b.pg != nil {
		delivering.Go(func() { b.pg.Listen(ctx) })
	}
	wait := 100 * time.Millisecond
	for ctx.Err() == nil {
		drained(b.wide)
		full, lined := l.slots.full()
		types := l.except(all, full)
		if b.pg == nil && !b.useful(full) {
			types = nil
		}
		n := b.space(l.most()+lined, l.slots.hungry())
		if n == 0 || len(types) == 0 || l.clogged.Load() {
			select {
			case <-ctx.Done():
			case <-b.room:
			case <-b.wide:
			}
			continue
		}
		if len(types) > open && b.pg != nil {
			b.pg.Hint() // what was left lying lies behind the queue's mark
		}
		open = len(types)
		ds, err := b.receiveNarrow(ctx, n, types, len(types) < len(all))
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			if errors.Is(err, errWidened) {
				continue
			}
			l.log.Warn("receiving failed", "queue", b.name, "again_in", wait, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, 5*time.Second)
			continue
		}
		wait = 100 * time.Millisecond
		if len(ds) == 0 {
			continue
		}
		if ds = l.turnAway(b, ds, full); len(ds) == 0 {
			continue
		}
		for k, ps := range l.accept(b, ds) {
			b.brings[k] = true
			// Beside the next Receive, so that looking and receiving overlap.
			delivering.Go(func() { l.deliver(ctx, k, ps) })
		}
	}
}

var errWidened = errors.New("more types may be asked for")

// receiveNarrow is Receive. Where not all types are asked for, its wait ends when there is
// room for one of the others. Only the Postgres queue loses nothing by that.
func (b *inbox) receiveNarrow(ctx context.Context, n int, types []string, narrow bool) ([]queue.Delivery, error) {
	if !narrow || b.pg == nil {
		return b.Receive(ctx, n, types)
	}
	waiting, end := context.WithCancelCause(ctx)
	defer end(nil)
	received := make(chan struct{})
	defer close(received)
	go func() {
		select {
		case <-b.wide:
			end(errWidened)
		case <-received:
		}
	}()
	ds, err := b.Receive(waiting, n, types)
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		err = errWidened
	}
	return ds, err
}

// except are the names without those of the kinds of which enough waits.
func (l *life) except(names []string, full map[*kind]int) []string {
	if len(full) == 0 {
		return names
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { _, is := full[l.kinds[name]]; return is })
}

// useful tells whether a queue that cannot tell types apart may bring anything that could
// start: each delivery of what cannot counts towards its dead-letter queue.
func (b *inbox) useful(full map[*kind]int) bool {
	for k := range b.brings {
		if _, is := full[k]; !is {
			return true
		}
	}
	return len(b.brings) == 0
}

// defaultAwayFor is how long a message of a full kind stays away that such a queue brings all
// the same, among others. It doubles with each delivery, up to sixteen times.
const defaultAwayFor = 30 * time.Second

// turnAway sees to what was not asked for: not every queue can tell types apart. Where the
// other types of such a queue are to flow, somebody must take these. They are held, up to
// as much again as a worker ever holds, and past that given back for a while.
func (l *life) turnAway(b *inbox, ds []queue.Delivery, unasked map[*kind]int) []queue.Delivery {
	if len(unasked) == 0 {
		return ds
	}
	waiting, _ := l.slots.full() // by now
	back := map[time.Duration][]queue.Delivery{}
	ds = slices.DeleteFunc(ds, func(d queue.Delivery) bool {
		k := l.kinds[d.Type]
		if _, is := unasked[k]; !is {
			return false
		}
		n, still := waiting[k]
		if still && n > l.most() {
			after := l.awayFor << min(d.Received-1, 4)
			back[after] = append(back[after], d)
			return true
		}
		if still {
			waiting[k] = n + len(d.Items)
		}
		return false
	})
	for after, ds := range back {
		ctx, cancel := context.WithTimeout(l.record, 10*time.Second)
		defer cancel()
		l.release(ctx, b, after+rand.N(after/4), ds)
	}
	return ds
}

// space is how many messages may be asked for. While the slots have work waiting it
// lets room gather, because a few large receives cost much less than many small ones.
func (b *inbox) space(most int, hungry bool) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := most - b.items
	if free <= 0 || !hungry && free < most/4 {
		return 0
	}
	return min(1000, max(1, int(float64(free)/b.size)))
}

// accept makes parcels of deliveries, by kind. What no worker could ever read is kept
// aside at once, and acknowledged in the same transaction where the queue can.
func (l *life) accept(b *inbox, ds []queue.Delivery) map[*kind][]*parcel {
	out := map[*kind][]*parcel{}
	total := 0
	b.mu.Lock()
	for _, d := range ds {
		k := l.kinds[d.Type]
		if k == nil || d.Bad != nil || len(d.Items) == 0 {
			continue
		}
		p := &parcel{Delivery: d, inbox: b, kind: k}
		p.left.Store(int32(len(d.Items)))
		b.held[p] = struct{}{}
		total += len(d.Items)
		out[k] = append(out[k], p)
	}
	b.items += total
	b.size = max(1, b.size/2, float64(total)/float64(len(ds)))
	b.mu.Unlock()
	for _, d := range ds {
		if l.kinds[d.Type] == nil || d.Bad != nil || len(d.Items) == 0 {
			l.setAside(b, d)
		}
	}
	return out
}

var (
	errUnknownType = errors.New("no job of this type is registered")
	errUndecodable = errors.New("the message's body could not be decoded")
)

// setAside keeps a message that cannot be delivered, then acknowledges it. A crash
// between the two costs one redelivery, of the same content, which is the same row.
func (l *life) setAside(b *inbox, d queue.Delivery) {
	reason, err := "unknown_type", errUnknownType
	if d.Bad != nil || len(d.Items) == 0 {
		reason, err = "undecodable", errUndecodable
		d.Items = []queue.Item{{Args: d.Bad}}
	}
	ctx, cancel := context.WithTimeout(l.record, 10*time.Second)
	defer cancel()
	e := l.ledger.RunBatch(ctx, func(batch *pgx.Batch) {
		for _, it := range d.Items {
			park(batch, reason, d.Type, it.Entity, string(it.Args), d.Epoch, err)
		}
	})
	if e == nil {
		e = b.Ack(ctx, d)
	}
	if e != nil {
		l.log.Error("message not set aside: it comes again", "queue", b.name, "type", d.Type, "reason", reason, "error", e)
		return
	}
	l.log.Error("message parked", "queue", b.name, "type", d.Type, "items", len(d.Items), "reason", reason)
}

// drop forgets a parcel that is acknowledged or released.
func (b *inbox) drop(p *parcel) {
	b.mu.Lock()
	if _, ok := b.held[p]; ok {
		delete(b.held, p)
		b.items--
	}
	b.mu.Unlock()
	b.freed()
}

// widened tells all inboxes that more types may be asked for.
func (l *life) widened() {
	for _, b := range l.inboxes {
		b.widened()
	}
}

// over counts off items that have ended. What of a message waits for its limit must not take the
// room of what could start, as its first items would that have ended long ago.
func (b *inbox) over(items int) {
	b.mu.Lock()
	b.items -= items
	b.mu.Unlock()
}

// freed tells receive that there may be room again, widened that it may be for more types.
func (b *inbox) freed()   { signal(b.room) }
func (b *inbox) widened() { signal(b.wide) }

// signal leaves one sign in c, which holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func drained(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

func (b *inbox) holding() []queue.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	ds := make([]queue.Delivery, 0, len(b.held))
	for p := range b.held {
		if !p.lost.Load() {
			ds = append(ds, p.Delivery)
		}
	}
	return ds
}

// ErrMessageLost is the cause of a body's context when the message that brought its work is
// no longer held, because it could not be extended in time, or not any more, and the work
// has no claim. Somebody else has the message by now, or will have it.
var ErrMessageLost = errors.New("the message is no longer held")

// lose notes that messages are lost. What of them has not begun does not begin here, since
// they come again. A body that the ledger has no claim for runs on the message alone, so its
// context ends; where somebody has a claim nobody else may begin, so that one goes on, and
// is not made a doubt for nothing. What is done by then stays done: the ledger decides.
func (l *life) lose(b *inbox, receipts []string) {
	gone := make(map[string]bool, len(receipts))
	for _, r := range receipts {
		gone[r] = true
	}
	n := 0
	b.mu.Lock()
	for p := range b.held {
		if gone[p.Receipt] && p.left.Load() > 0 { // else it has just been acknowledged
			p.lost.Store(true)
			n++
		}
	}
	b.mu.Unlock()
	if n == 0 {
		return
	}
	l.slots.running(func(it *item) {
		if ctx := it.attempt.Load(); ctx != nil && it.parcel.lost.Load() {
			ctx.lose(ErrMessageLost)
		}
	})
	l.log.Warn("messages no longer held: they come again", "queue", b.name, "messages", n)
}

// heartbeats extends everything held, at a third of the visibility timeout.
func (l *life) heartbeats(ctx context.Context) {
	var beats sync.WaitGroup
	defer beats.Wait()
	for _, b := range l.inboxes {
		beats.Go(func() {
			tick := time.NewTicker(b.Visibility() / 3)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				ds := b.holding()
				if len(ds) == 0 {
					continue
				}
				limit, cancel := context.WithTimeout(ctx, b.Visibility()/3)
				lost, err := b.Extend(limit, ds...)
				cancel()
				switch {
				case ctx.Err() != nil:
				case err != nil:
					l.log.Warn("extending failed", "queue", b.name, "messages", len(ds), "error", err)
				}
				if len(lost) > 0 && ctx.Err() == nil {
					l.lose(b, lost)
				}
			}
		})
	}
}

// releaseHeld lets go of what is left at the end of a life: bodies that ignore their
// context still have it, and their claims answer for it.
func (l *life) releaseHeld(b *inbox) {
	if ds := b.holding(); len(ds) > 0 {
		l.release(l.record, b, 0, ds)
	}
}

func (l *life) release(ctx context.Context, b *inbox, after time.Duration, ds []queue.Delivery) {
	if err := b.Release(ctx, after, ds...); err != nil {
		l.log.Warn("releasing failed: the messages come again when their visibility ends", "queue", b.name, "messages", len(ds), "error", err)
	}
}
