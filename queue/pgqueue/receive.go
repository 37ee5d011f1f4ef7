package pgqueue

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/queue"
)

const (
	maxReceive     = 1000             // messages of one claim: keeps its transaction and its row short
	longestWait    = 20 * time.Second // of a Receive that finds nothing
	connectTimeout = 30 * time.Second
	claimTimeout   = 10 * time.Second

	pollEvery = time.Second          // when nothing has come for a while, less up to a quarter
	pollSoon  = 5 * time.Millisecond // the first wait after something came; then it doubles

	sweepEvery    = time.Second           // from the start of the index, whatever the mark says
	wakeAfter     = 50 * time.Millisecond // the next wake comes no earlier,
	wakeEvery     = time.Second           // and no later than this
	fullWakeEvery = 30 * time.Second      // without the lower bounds
	shareOfTime   = 10                    // sweeps and wakes take at most one part in so many of the time
)

// Receive takes up to max ready messages, at most 1,000. When there are none it
// waits for a hint or the next poll, up to 20 seconds in all, and then returns none.
// A canceled ctx ends the wait with ctx's error; a claim that is under way then is
// finished first, so that what it took is not lost to a visibility timeout. It is an error
// when the pool gives no connection for half a minute.
//
// Where types is not empty, messages of other types stay as they are.
func (q *Queue) Receive(ctx context.Context, max int, types []string) ([]queue.Delivery, error) {
	if max < 1 {
		return nil, nil
	}
	max = min(max, maxReceive)
	end := time.Now().Add(longestWait)
	for pause := pollSoon; ; pause = min(2*pause, pollEvery) {
		ds, err := q.receiveNow(ctx, max, types)
		if err != nil {
			return nil, fmt.Errorf("receive from queue %q: %w", q.name, err)
		}
		if len(ds) == max {
			q.hintOne() // there may be more, for a receiver beside this one
		}
		if len(ds) > 0 {
			return ds, nil
		}
		now := time.Now()
		wait := min(pause-rand.N(pause/4+1), end.Sub(now))
		if wait <= 0 {
			return nil, nil
		}
		if due := q.pace.untilWake(now); due < wait {
			wait = due
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-q.hint:
			timer.Stop()
			pause = pollSoon / 2
		case <-timer.C:
		}
	}
}

// Hint says that there may be something to receive, ahead of the next poll.
func (q *Queue) Hint() {
	q.pace.sweepSoon()
	q.hintOne()
}

func (q *Queue) hintOne() {
	select {
	case q.hint <- struct{}{}:
	default:
	}
}

// receiveNow makes one attempt, without waiting.
func (q *Queue) receiveNow(ctx context.Context, max int, types []string) ([]queue.Delivery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	conn, err := q.connection(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	// From here on the end of ctx changes nothing: see Receive.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()

	if from, ok := q.pace.beginWake(time.Now()); ok {
		start := time.Now()
		w, err := q.wake(ctx, conn, from)
		end := time.Now()
		q.pace.endWake(charged(start, end, err), end, w, err)
		if err != nil {
			return nil, err
		}
	}
	from := q.pace.begin(time.Now(), false)
	ds, err := q.claimFrom(ctx, conn, from, max, types)
	if err != nil || len(ds) > 0 || from == first {
		return ds, err
	}
	if from = q.pace.begin(time.Now(), true); from != first {
		return nil, nil
	}
	return q.claimFrom(ctx, conn, from, max, types)
}

// connection waits for one of the pool's, which may be asking one that was cut off without a word: so
// it gives up in time, and the next Receive tries another.
func (q *Queue) connection(ctx context.Context) (*pgxpool.Conn, error) {
	limit, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("no connection of the pool was free, or answered, within %v", connectTimeout))
	defer cancel()
	conn, err := q.pool.Acquire(limit)
	if err != nil && ctx.Err() == nil && limit.Err() != nil {
		err = context.Cause(limit)
	}
	return conn, err
}

func (q *Queue) claimFrom(ctx context.Context, db batcher, from position, max int, types []string) ([]queue.Delivery, error) {
	start := time.Now()
	c, err := q.claim(ctx, db, from, max, types)
	end := time.Now()
	q.pace.end(charged(start, end, err), end, from, c.at)
	return c.ds, err
}

// charged is when that began whose share of the time is counted. What failed, because the database was
// away for a moment, say, must not keep everybody from looking for minutes; nor may what fails each
// time, after long work, leave no time for anything else.
func charged(start, end time.Time, err error) time.Time {
	if least := end.Add(-time.Second); err != nil && start.Before(least) {
		return least
	}
	return start
}

// A position is a place in the index message_ready. The order is that in which
// messages are taken.
type position struct {
	rank int16 // the negated priority
	id   int64
}

var first = position{rank: -32768}

func (p position) compare(o position) int {
	return cmp.Or(cmp.Compare(p.rank, o.rank), cmp.Compare(p.id, o.id))
}

// pace remembers where to look and when. Its zero value looks everywhere at once.
type pace struct {
	mu sync.Mutex

	mark  position // claims begin here
	swept time.Time
	sweep time.Duration // how long the last sweep took
	soon  bool          // a hint came after the last sweep

	waking    bool // one wake at a time is enough
	wakeAt    time.Time
	notBefore time.Time // wakeAt is never earlier
	fullWake  time.Time // when the last one without lower bounds was
	lower     bounds
}

// begin returns where a claim should begin: at the mark, or at the start when a
// sweep is due. empty says that nothing was found from the mark on.
func (p *pace) begin(now time.Time, empty bool) position {
	p.mu.Lock()
	defer p.mu.Unlock()
	since := now.Sub(p.swept)
	if since < shareOfTime*p.sweep || !empty && !p.soon && since < sweepEvery {
		return p.mark
	}
	p.swept, p.soon = now, false
	return first
}

// end notes a claim of the messages at these positions, in order.
func (p *pace) end(start, end time.Time, from position, at []position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if from == first {
		p.swept, p.sweep = end, end.Sub(start)
	}
	if len(at) == 0 {
		return
	}
	// Strays that a sweep found do not draw the mark back over what is dead behind it,
	// unless they were all it found.
	i, _ := slices.BinarySearchFunc(at, p.mark, position.compare)
	p.mark = at[i%len(at)]
}

func (p *pace) sweepSoon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.soon = true
}

// expect makes the next wake no later than a message that was just delayed.
func (p *pace) expect(delay time.Duration) {
	if delay <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at := time.Now().Add(delay)
	if at.Before(p.notBefore) {
		at = p.notBefore
	}
	if at.Before(p.wakeAt) {
		p.wakeAt = at
	}
}

func (p *pace) untilWake(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.wakeAt.Sub(now), time.Millisecond)
}

// beginWake tells whether a wake is due, and from which lower bounds.
func (p *pace) beginWake(now time.Time) (bounds, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waking || now.Before(p.wakeAt) {
		return bounds{}, false
	}
	p.waking = true
	if now.Sub(p.fullWake) >= fullWakeEvery {
		p.fullWake = now
		return bounds{}, true
	}
	return p.lower, true
}

func (p *pace) endWake(start, end time.Time, w woken, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waking = false
	gap := max(wakeAfter, shareOfTime*end.Sub(start))
	if w.full {
		gap, w.next = 0, 0 // there is more that is due
	}
	p.notBefore = end.Add(gap)
	p.wakeAt = end.Add(max(gap, min(w.next, wakeEvery)))
	if err == nil {
		p.lower = w.lower
		p.soon = p.soon || w.messages > 0
	}
}
