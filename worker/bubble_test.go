package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
)

// The worker's own times, in bubbles: hours pass in no time, and to the nanosecond.

type ping struct {
	N int `json:"n"`
}

func (ping) JobType() string  { return "ping" }
func (p ping) Entity() string { return jobs.Key(p.N) }

// bubble is a life without a database: what needs none of it can be tried.
func bubble(t *testing.T, slots int, q queue.Queue, work func(l *life, task []*item)) (*life, *kind) {
	set, err := jobs.NewSet(jobs.Job[ping]{Effect: jobs.Repeatable, Do: func(context.Context, ping) error { return nil }, Policy: jobs.Policy{Timeout: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	e, _ := set.Lookup("ping")
	k := &kind{Erased: e, name: "ping", Type: ledger.Type{Name: "ping", Effect: e.Effect, Timeout: e.Timeout}}
	w := &Worker{set: set, config: Config{Slots: slots, Log: quietly}, log: quietly, kinds: map[string]*kind{"ping": k}, stuckGrace: 5 * time.Second}
	l := &life{Worker: w, jobs: t.Context(), record: t.Context(), settles: map[*kind]*group[*item]{}}
	l.slots = newSlots(slots, func(task []*item) { work(l, task) }, func() {})
	if q != nil {
		l.inboxes = []*inbox{{Queue: q, room: make(chan struct{}, 1), wide: make(chan struct{}, 1), held: map[*parcel]struct{}{}, size: 1}}
	}
	return l, k
}

var quietly = slog.New(slog.DiscardHandler)

// tasks are n tasks of one item each.
func tasks(k *kind, n int) (ts [][]*item) {
	for i := range n {
		ts = append(ts, []*item{{parcel: &parcel{kind: k, inbox: &inbox{}}, Entity: fmt.Sprint(i)}})
	}
	return ts
}

func TestABodysContextEndsAtItsDeadlineHoweverItIsAsked(t *testing.T) {
	why := errors.New("the grace is over")
	for name, ask := range map[string]func(ctx context.Context){
		"nothing was asked of it":   func(context.Context) {},
		"its end was waited for":    func(ctx context.Context) { _ = ctx.Done() },
		"it has a child":            func(ctx context.Context) { context.AfterFunc(ctx, func() {}) },
		"its error was asked early": func(ctx context.Context) { _ = ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, k := bubble(t, 1, nil, nil)
				parent, cancel := context.WithCancelCause(t.Context())
				l.jobs = parent
				it := &item{parcel: &parcel{kind: k, inbox: &inbox{}}, Entity: "7"}
				ctx := l.begin(it)
				defer ctx.end()
				ask(ctx)
				if at, ok := ctx.Deadline(); !ok || !at.Equal(time.Now().Add(time.Minute)) {
					t.Errorf("its deadline is %v", at)
				}
				if a := jobs.Current(ctx); a.Entity != "7" || a.Number != 1 {
					t.Errorf("it is of the attempt %+v", a)
				}
				time.Sleep(time.Minute - 1)
				if err := ctx.Err(); err != nil {
					t.Errorf("a nanosecond before: %v", err)
				}
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				select {
				case <-ctx.Done():
				default:
					t.Error("it goes on")
				}
				if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
					t.Errorf("it ended with %v, because of %v", err, context.Cause(ctx))
				}
				cancel(why) // later ends change nothing
				if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("after that: %v", err)
				}

				// And when its parent ends first, it says why.
				parent, cancel = context.WithCancelCause(t.Context())
				l.jobs = parent
				early := l.begin(it)
				defer early.end()
				ask(early)
				time.Sleep(time.Second)
				cancel(why)
				if <-early.Done(); early.Err() != context.Canceled || context.Cause(early) != why {
					t.Errorf("it ended with %v, because of %v", early.Err(), context.Cause(early))
				}
			})
		})
	}
}

func TestAStatementTakesWhateverHasGatheredWhileTheLastOneRan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs []string
		start := time.Now()
		g := newGroup(1, 4, func(ns []int) {
			runs = append(runs, fmt.Sprint(time.Since(start), ns))
			time.Sleep(time.Second)
		})
		g.add(1) // nobody waits for a timer
		synctest.Wait()
		g.add(2, 3)
		time.Sleep(time.Second / 2)
		g.add(4, 5, 6) // one more than fits
		g.wait()
		if want := []string{"0s [1]", "1s [2 3 4 5]", "2s [6]"}; !slices.Equal(runs, want) {
			t.Errorf("it ran %q, want %q", runs, want)
		}
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("waiting for all of it took %v", took)
		}
	})
}

func TestSlotsDrainGiveBackAndWaitForWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := bubble(t, 3, nil, func(_ *life, task []*item) {
			if task[0].Entity == "2" {
				runtime.Goexit() // as t.FailNow in a body does
			}
			time.Sleep(time.Minute)
		})
		l.slots.add(k, tasks(k, 8))
		synctest.Wait()
		time.Sleep(10 * time.Second)
		var back []string
		l.slots.drain(func(its []*item) { back = append(back, its[0].Entity) })
		// 0, 1 and 3 run: the slot of 2 went on with the next.
		if want := []string{"4", "5", "6", "7"}; !slices.Equal(back, want) {
			t.Errorf("given back are %v, want %v", back, want)
		}
		begun := time.Now()
		if l.slots.wait(20*time.Second) || time.Since(begun) != 20*time.Second {
			t.Errorf("the grace ended after %v", time.Since(begun))
		}
		if !l.slots.wait(time.Hour) || time.Since(begun) != 50*time.Second {
			t.Errorf("all slots had ended after %v, want 50s", time.Since(begun))
		}
		l.slots.add(k, tasks(k, 1))
		synctest.Wait()
		if n := l.slots.count(); n != 0 {
			t.Errorf("%d slots began after the end", n)
		}
	})
}

// A body that ignores the end of its context is fenced off at the first look after its
// timeout and the grace; when it has the only slot, what waits is given back until it ends.
func TestADeafBodyIsFencedOffWhenItsGraceIsOverAndClogsItsSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, k := bubble(t, 1, memqueue.New(), func(l *life, task []*item) {
			_ = l.guard(task, func() error { time.Sleep(3 * time.Minute); return nil })
		})
		start := time.Now()
		var mu sync.Mutex
		ended := map[string]string{}
		l.settles[k] = newGroup(1, maxGroup, func(its []*item) {
			mu.Lock()
			defer mu.Unlock()
			for _, it := range its {
				ended[it.Entity] = fmt.Sprint(it.end.outcome.State, " ", it.end.keep, " ", time.Since(start).Round(watchEvery))
			}
		})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var loops sync.WaitGroup
		loops.Go(func() { l.watch(ctx) })
		ts := tasks(k, 2)
		ts[0][0].began = start
		l.slots.add(k, ts)
		time.Sleep(65 * time.Second)
		if mu.Lock(); len(ended) != 0 {
			t.Errorf("within timeout and grace: %v", ended)
		}
		mu.Unlock()
		time.Sleep(2 * time.Second)
		if mu.Lock(); ended["0"] != "retrying false 1m6s" || ended["1"] != " true 1m6s" {
			t.Errorf("past them: %q", ended)
		}
		mu.Unlock()
		if !l.clogged.Load() {
			t.Error("its only slot is taken, and it would receive more")
		}
		time.Sleep(2 * time.Minute)
		if l.clogged.Load() {
			t.Error("the body has returned, and nothing is received")
		}
		stop()
		loops.Wait()
	})
}

func TestHeldMessagesAreExtendedForAsLongAsTheyAreHeldAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := memqueue.New().WithVisibility(30 * time.Second)
		l, k := bubble(t, 1, q, nil)
		b := l.inboxes[0]
		if err := jobs.Enqueue(t.Context(), q, ping{1}); err != nil {
			t.Fatal(err)
		}
		ds, err := q.Receive(t.Context(), 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		p := l.accept(b, ds)[k][0]
		ctx, stop := context.WithCancel(t.Context())
		var loops sync.WaitGroup
		loops.Go(func() { l.heartbeats(ctx) })
		for range 20 { // Receive waits 20 seconds
			if ds, err := q.Receive(t.Context(), 1, nil); err != nil || len(ds) > 0 {
				t.Fatalf("somebody else got it: %v, %v", ds, err)
			}
		}
		dropped := time.Now()
		b.drop(p)
		for ds = nil; len(ds) == 0; {
			if ds, err = q.Receive(t.Context(), 1, nil); err != nil {
				t.Fatal(err)
			}
		}
		if after := time.Since(dropped); after > 30*time.Second || after < 20*time.Second || ds[0].Received != 2 {
			t.Errorf("it came again after %v, received %d times", after, ds[0].Received)
		}
		stop()
		loops.Wait()
	})
}

// A failingQueue fails at each Receive until it is told not to.
type failingQueue struct {
	queue.Queue
	tries []time.Time
	fails func(try int) bool
}

func (q *failingQueue) Receive(ctx context.Context, _ int, _ []string) ([]queue.Delivery, error) {
	q.tries = append(q.tries, time.Now())
	if q.fails(len(q.tries)) {
		return nil, errors.New("the queue is away")
	}
	return nil, nil
}

func TestAQueueThatFailsIsAskedAgainAfterGrowingPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := &failingQueue{Queue: memqueue.New(), fails: func(try int) bool { return try != 10 }}
		l, _ := bubble(t, 1, q, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		l.receive(ctx, l.inboxes[0])
		var pauses []time.Duration
		for i := 1; i < 13; i++ {
			pauses = append(pauses, q.tries[i].Sub(q.tries[i-1]).Round(time.Millisecond))
		}
		want := "[100ms 200ms 400ms 800ms 1.6s 3.2s 5s 5s 5s 0s 100ms 200ms]" // the tenth succeeded
		if fmt.Sprint(pauses) != want {
			t.Errorf("it was asked again after %v, want %s", pauses, want)
		}
	})
}

func TestAWorkerWithoutADatabaseBeginsAnewAfterGrowingPausesAndStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg, err := pgxpool.ParseConfig("postgres://nobody@127.0.0.1/nothing?sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		var tries []time.Time
		cfg.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
		cfg.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			tries = append(tries, time.Now())
			return nil, errors.New("nobody is there")
		}
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		l, _ := bubble(t, 1, nil, nil)
		w := l.Worker
		w.pool, w.ledger = pool, ledger.New(pool)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start := time.Now()
		if err := w.Run(ctx); err != nil || time.Since(start) != 20*time.Second {
			t.Errorf("Run returned %v after %v", err, time.Since(start))
		}
		var pauses []time.Duration
		for i := 1; i < len(tries); i++ {
			pauses = append(pauses, tries[i].Sub(tries[i-1]))
		}
		if want := "[100ms 200ms 400ms 800ms 1.6s 3.2s 5s 5s]"; fmt.Sprint(pauses) != want {
			t.Errorf("it began anew after %v, want %s", pauses, want)
		}
	})
}

func TestPostponedWorkWaitsLongerEachTimeAndALittleMoreThanADayInAll(t *testing.T) {
	_, k := bubble(t, 1, nil, nil)
	var last, total time.Duration
	for n := range maxDeferred {
		it := &item{parcel: &parcel{kind: k, inbox: &inbox{}, Delivery: queue.Delivery{Message: queue.Message{Deferred: n}}}, Entity: "7"}
		m := it.later(0)
		if m.Deferred != n+1 || m.Delay < last*7/8 || m.Delay > 90*time.Minute {
			t.Errorf("postponement %d is of %v, after %v", m.Deferred, m.Delay, last)
		}
		last, total = m.Delay, total+m.Delay
	}
	if total < 24*time.Hour || total > 30*time.Hour {
		t.Errorf("work that never gets ready is postponed for %v", total)
	}
	it := &item{parcel: &parcel{kind: k, inbox: &inbox{}, Delivery: queue.Delivery{Message: queue.Message{Deferred: 1 << 20}}}, Entity: "7"}
	if d := it.later(0).Delay; d > 90*time.Minute || d < 78*time.Minute {
		t.Errorf("a counter from elsewhere makes it wait %v", d)
	}
	delays := map[time.Duration]bool{}
	for range 20 {
		it.Deferred = 3
		delays[it.later(0).Delay] = true
	}
	if len(delays) < 10 {
		t.Errorf("twenty that wait for the same come again at %d times: in each round all but one are put off", len(delays))
	}
	if m := it.retry(time.Second); m.Delay != time.Second || m.Deferred != 0 {
		t.Errorf("a retry is %+v", m)
	}
}
