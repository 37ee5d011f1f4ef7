package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A fakeLedger answers looks without a database, so that time can be told.
type fakeLedger struct {
	mu    sync.Mutex
	done  map[waitKey]string // results
	err   error
	looks []time.Duration // when, since the beginning
	keys  []int           // how many entities each was for
	began time.Time
	takes time.Duration
}

func (f *fakeLedger) find(ctx context.Context, keys []waitKey) ([]finding, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks, f.keys = append(f.looks, time.Since(f.began)), append(f.keys, len(keys))
	found := make([]finding, len(keys))
	for i, k := range keys {
		if v, is := f.done[k]; is {
			found[i] = finding{fact: &Fact{}, value: []byte(v)}
		}
	}
	err := f.err
	f.mu.Unlock()
	time.Sleep(f.takes)
	f.mu.Lock()
	return found, err
}

func (f *fakeLedger) finish(k waitKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done[k] = "7"
}

func newFake() (*fakeLedger, *room) {
	f := &fakeLedger{done: map[waitKey]string{}, began: time.Now()}
	return f, newRoom(f.find)
}

func (r *room) await(ctx context.Context, k waitKey) (*finding, error) {
	me := r.enter(k, Want{Entity: k.entity})
	defer r.leave(me)
	return r.stay(ctx, me)
}

func TestWhoWaitsLooksEverMoreRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake()
		k := waitKey{"letter", "1"}
		time.AfterFunc(4*time.Second, func() { f.finish(k) })
		if _, err := r.await(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		want := "[0s 20ms 60ms 140ms 300ms 620ms 1.26s 2.26s 3.26s 4.26s]"
		if got := fmt.Sprint(f.looks); got != want {
			t.Errorf("it looked at %s, want %s", got, want)
		}
	})
}

func TestAHintWakesAtOnceAlsoDuringALook(t *testing.T) {
	for _, takes := range []time.Duration{0, 30 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			f, r := newFake()
			f.takes = takes
			k := waitKey{"letter", "1"}
			pool := &pgxpool.Pool{} // nobody asks it anything
			roomsMu.Lock()
			rooms[pool] = r
			roomsMu.Unlock()
			defer func() { roomsMu.Lock(); delete(rooms, pool); roomsMu.Unlock() }()
			time.AfterFunc(2270*time.Millisecond, func() { // with takes, a look is on its way, and has seen nothing
				f.finish(k)
				Hint(k.jobType, k.entity)
				Hint(k.jobType, "another")
			})
			if _, err := r.await(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(f.began); d > 2400*time.Millisecond {
				t.Errorf("looks that take %s: it was told after %s", takes, d)
			}
		})
	}
}

func TestAllWhoWaitShareTheirLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake()
		var wg sync.WaitGroup
		const n = 1500
		for i := range n {
			time.Sleep(time.Millisecond)
			wg.Go(func() {
				if _, err := r.await(t.Context(), waitKey{"letter", fmt.Sprint(i)}); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(10 * time.Second)
		before := len(f.looks)
		time.Sleep(10 * time.Second)
		looks := len(f.looks) - before
		for i := range n {
			f.finish(waitKey{"letter", fmt.Sprint(i)})
		}
		wg.Wait()
		// Each is looked at once in a second.
		if looks > 45 {
			t.Errorf("%d looks in ten seconds", looks)
		}
		t.Logf("%d looks in ten seconds, of up to %d entities", looks, f.keys[len(f.keys)-1])
		if len(r.waiters) != 0 || r.stop != nil {
			t.Error("the room is not empty")
		}
	})
}

func TestADatabaseThatIsAwayEndsNoWaitingForAWhile(t *testing.T) {
	away := errors.New("connection refused")
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake()
		k := waitKey{"letter", "1"}
		f.err = away
		time.AfterFunc(50*time.Second, func() { f.mu.Lock(); f.err = nil; f.mu.Unlock() })
		time.AfterFunc(70*time.Second, func() { f.finish(k) })
		if _, err := r.await(t.Context(), k); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake()
		f.err = away
		_, err := r.await(t.Context(), waitKey{"letter", "1"})
		if d := time.Since(f.began); !errors.Is(err, away) || d < time.Minute || d > 63*time.Second {
			t.Errorf("after %s: %v", d, err)
		}
	})
}

func TestTheEndOfTheContextEndsWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, r := newFake()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		last, err := r.await(ctx, waitKey{"letter", "1"})
		if !errors.Is(err, context.DeadlineExceeded) || last == nil {
			t.Errorf("%v %v", last, err)
		}
		synctest.Wait()
		n := len(f.looks)
		time.Sleep(time.Minute)
		if len(f.looks) != n {
			t.Error("somebody looks though nobody waits")
		}
	})
}
