package ledger

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A room is where all wait whose work is in one database. One goroutine looks for all of
// them; it is there as long as somebody waits.
type room struct {
	find func(context.Context, []waitKey) ([]finding, error)
	wake chan struct{} // holds one sign: somebody is due earlier than was known

	mu      sync.Mutex // owns what follows, and the waiters
	waiters map[waitKey]map[*waiter]bool
	stop    context.CancelFunc // of the goroutine; nil: it is not there
}

// A waiter waits for one entity.
type waiter struct {
	key    waitKey
	want   Want
	due    time.Time     // when it is to be looked at
	pause  time.Duration // from the look before to that; 0: there was none
	last   *finding      // nil: not looked at yet
	err    error         // of the last look
	silent time.Time     // since when looks fail; zero: they do not
	ended  chan struct{} // closed when last is final, or the silence has been too long
}

const (
	firstPause = 20 * time.Millisecond // doubles
	lastPause  = time.Second
	lookMost   = 1000             // entities in one look
	lookTime   = 10 * time.Second // that a look may take
	patient    = time.Minute      // with a database that does not answer
)

// rooms are those in which somebody waits.
var (
	roomsMu  sync.Mutex // owns rooms
	rooms    = map[*pgxpool.Pool]*room{}
	awaiting atomic.Int64 // how many wait, in all of them
)

func newRoom(find func(context.Context, []waitKey) ([]finding, error)) *room {
	return &room{find: find, wake: make(chan struct{}, 1), waiters: map[waitKey]map[*waiter]bool{}}
}

// wait waits in the room of l's pool. It returns what was seen last, nil if nothing was, and
// with an error where that is not final.
func (l *Ledger) wait(ctx context.Context, k waitKey, w Want) (*finding, error) {
	roomsMu.Lock()
	r := rooms[l.pool]
	if r == nil {
		r = newRoom(l.findAll)
		rooms[l.pool] = r
	}
	me := r.enter(k, w)
	roomsMu.Unlock()
	defer func() {
		roomsMu.Lock()
		defer roomsMu.Unlock()
		if r.leave(me) {
			delete(rooms, l.pool)
		}
	}()
	return r.stay(ctx, me)
}

func (r *room) enter(k waitKey, w Want) *waiter {
	me := &waiter{key: k, want: w, due: time.Now(), ended: make(chan struct{})}
	awaiting.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiters[k] == nil {
		r.waiters[k] = map[*waiter]bool{}
	}
	r.waiters[k][me] = true
	if r.stop == nil {
		var ctx context.Context
		ctx, r.stop = context.WithCancel(context.Background())
		go r.watch(ctx)
	}
	r.sign()
	return me
}

// leave tells whether the room is empty now.
func (r *room) leave(me *waiter) bool {
	awaiting.Add(-1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if delete(r.waiters[me.key], me); len(r.waiters[me.key]) == 0 {
		delete(r.waiters, me.key)
	}
	if len(r.waiters) > 0 {
		return false
	}
	r.stop()
	r.stop = nil
	return true
}

func (r *room) stay(ctx context.Context, me *waiter) (*finding, error) {
	var err error
	select {
	case <-me.ended:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if me.last != nil && me.last.final(me.want) {
		return me.last, nil // it may have come together with the end of ctx
	}
	return me.last, errors.Join(err, me.err)
}

func (r *room) sign() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Hint says that the work on an entity has just ended, in a transaction that is committed:
// who waits for it in this process looks at once. A worker says so by itself; of what an app
// records with [Record] it may say so too. It is no more than a hint, and costs nothing where
// nobody waits.
func Hint(jobType, entity string) {
	if awaiting.Load() == 0 {
		return
	}
	roomsMu.Lock()
	defer roomsMu.Unlock()
	for _, r := range rooms {
		r.hint(waitKey{jobType, entity})
	}
}

func (r *room) hint(k waitKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.waiters[k] {
		w.due = time.Time{}
		r.sign()
	}
}

// watch looks for all who are due, until nobody waits.
func (r *room) watch(ctx context.Context) {
	for ctx.Err() == nil {
		due, wait := r.due(time.Now())
		if len(due) > 0 {
			r.look(ctx, due)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// due returns who is to be looked at now, with those whose pause is half over, so that all
// come to be looked at together; or how long until there is somebody.
func (r *room) due(now time.Time) (due []*waiter, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wait = time.Hour
	for w := range r.all() {
		wait = min(wait, w.due.Sub(now))
	}
	if wait > 0 {
		return nil, wait
	}
	for w := range r.all() {
		if w.due.Sub(now) > w.pause/2 || len(due) == lookMost {
			continue
		}
		due = append(due, w)
		// Before the look: a hint that comes while it is on its way asks for another one.
		w.pause = min(max(firstPause, 2*w.pause), lastPause)
		w.due = now.Add(w.pause)
	}
	return due, 0
}

// all are those who wait still.
func (r *room) all() iter.Seq[*waiter] {
	return func(yield func(*waiter) bool) {
		for _, ws := range r.waiters {
			for w := range ws {
				if !w.over() && !yield(w) {
					return
				}
			}
		}
	}
}

func (w *waiter) over() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

func (r *room) look(ctx context.Context, due []*waiter) {
	keys := make([]waitKey, len(due))
	for i, w := range due {
		keys[i] = w.key
	}
	limit, cancel := context.WithTimeout(ctx, lookTime)
	found, err := r.find(limit, keys)
	cancel()
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, w := range due {
		switch {
		case err == nil:
			w.last, w.err, w.silent = &found[i], nil, time.Time{}
			if w.last.final(w.want) {
				close(w.ended)
			}
		case w.silent.IsZero():
			w.err, w.silent = err, now
		case now.Sub(w.silent) < patient:
			w.err = err
		default:
			w.err = fmt.Errorf("the ledger has not answered for %s: %w", patient, err)
			close(w.ended)
		}
	}
}
