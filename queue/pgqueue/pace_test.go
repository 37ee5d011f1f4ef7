package pgqueue

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"
)

// A day of receives, as they may come and as long as they may take, in no time at all:
// pace takes its time as an argument.

func TestSweepsTakeATenthOfTheTimeAndStillComeInTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pace
		start := time.Unix(1e9, 0)
		now, swept := start, start
		var sweeping, last time.Duration
		cost := rapid.IntRange(1, 2000) // of a claim, in ms
		for i := range rapid.IntRange(10, 300).Draw(t, "receives") {
			empty := rapid.Bool().Draw(t, "nothing was found behind the mark")
			if rapid.IntRange(0, 9).Draw(t, "hint") == 0 {
				p.sweepSoon()
			}
			from := p.begin(now, empty)
			due := max(sweepEvery, shareOfTime*last)
			if sweep := from == first; !sweep && i > 0 && now.Sub(swept) >= due {
				t.Fatalf("no sweep for %v, the last one took %v", now.Sub(swept), last)
			} else if sweep && i > 0 && now.Sub(swept) < shareOfTime*last {
				t.Fatalf("a sweep %v after one that took %v", now.Sub(swept), last)
			}
			took := time.Duration(cost.Draw(t, "ms")) * time.Millisecond
			began := now
			now = now.Add(took)
			p.end(began, now, from, []position{{0, int64(i + 1)}})
			if from == first {
				swept, last, sweeping = now, took, sweeping+took
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "pause")) * time.Millisecond)
		}
		if total := now.Sub(start) + shareOfTime*last; sweeping > total/shareOfTime+2*time.Second {
			t.Fatalf("sweeps took %v of %v", sweeping, total)
		}
	})
}

func TestTheMarkFollowsWhatIsClaimedAndStraysDoNotDrawItBack(t *testing.T) {
	at := func(ids ...int64) (ps []position) {
		for _, id := range ids {
			ps = append(ps, position{0, id})
		}
		return ps
	}
	for _, c := range []struct {
		what       string
		mark, want int64
		found      []position
	}{
		{"nothing was found", 7, 7, nil},
		{"the next ones", 7, 8, at(8, 9)},
		{"the mark itself, released", 7, 7, at(7, 8)},
		{"strays before it, and the next ones", 7, 9, at(2, 3, 9, 10)},
		{"strays alone", 7, 2, at(2, 3)},
	} {
		p := pace{mark: position{0, c.mark}}
		p.end(time.Unix(1, 0), time.Unix(2, 0), p.mark, c.found)
		if p.mark != (position{0, c.want}) {
			t.Errorf("%s: the mark is %v, want %d", c.what, p.mark, c.want)
		}
	}
	// A higher priority lies before all of a lower one.
	p := pace{mark: position{0, 7}}
	p.end(time.Unix(1, 0), time.Unix(2, 0), first, []position{{-5, 100}, {0, 8}})
	if p.mark != (position{0, 8}) {
		t.Errorf("an urgent message draws the mark to %v", p.mark)
	}
	if !slices.IsSortedFunc([]position{first, {-100, 1}, {-100, 2}, {0, 1}, {100, 1}}, position.compare) {
		t.Error("positions are not in the order in which messages are taken")
	}
}

// One wake at a time, at least 50 ms apart and ten times as long as it takes, at least once
// a second; and twice a minute one that looks everywhere.
func TestWakesComeNeitherTooOftenNorTooLate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p pace
		now := time.Unix(1e9, 0)
		ended, full := time.Time{}, time.Time{}
		last, more := time.Duration(0), false
		lower := bounds{}
		for range rapid.IntRange(10, 200).Draw(t, "polls") {
			now = now.Add(time.Duration(rapid.IntRange(1, 1200).Draw(t, "pause")) * time.Millisecond)
			from, ok := p.beginWake(now)
			gap := max(wakeAfter, shareOfTime*last)
			switch since := now.Sub(ended); {
			case ok && !more && !ended.IsZero() && since < gap:
				t.Fatalf("a wake %v after one that took %v", since, last)
			case !ok && (more || since >= max(gap, wakeEvery)):
				t.Fatalf("no wake for %v, the last one took %v; there is more: %t", since, last, more)
			}
			if !ok {
				continue
			}
			if _, twice := p.beginWake(now); twice {
				t.Fatal("two wakes side by side")
			}
			everywhere := from == bounds{}
			if !everywhere && now.Sub(full) >= fullWakeEvery {
				t.Fatalf("no wake looked everywhere for %v", now.Sub(full))
			}
			if everywhere {
				full = now
			} else if from != lower {
				t.Fatalf("a wake looks from %v, want from %v", from, lower)
			}
			last = time.Duration(rapid.IntRange(0, 200).Draw(t, "ms")) * time.Millisecond
			ended = now.Add(last)
			w := woken{next: wakeEvery, full: rapid.IntRange(0, 5).Draw(t, "more") == 0, lower: bounds{delayed: now, receives: now}}
			var err error
			if rapid.IntRange(0, 5).Draw(t, "fails") == 0 {
				w, err = woken{}, errors.New("the database is away")
			} else {
				lower = w.lower
			}
			more = w.full
			p.endWake(now, ended, w, err)
			if err != nil {
				last, more = max(last, 0), false
			}
			now = ended
		}
	})
}

// Whoever delays a message wakes it in time, though nothing else had been due for a second.
func TestADelayedMessageIsWokenWhenItsTimeHasCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		if _, ok := p.beginWake(time.Now()); !ok {
			t.Fatal("a new queue does not look for what is due")
		}
		p.endWake(time.Now(), time.Now(), woken{next: wakeEvery}, nil)
		p.expect(300 * time.Millisecond)
		p.expect(700 * time.Millisecond) // a later one changes nothing
		p.expect(0)                      // and one without delay is no matter of wakes
		if d := p.untilWake(time.Now()); d != 300*time.Millisecond {
			t.Errorf("the next wake is in %v", d)
		}
		time.Sleep(300*time.Millisecond - 1)
		if _, ok := p.beginWake(time.Now()); ok {
			t.Error("woken too early")
		}
		time.Sleep(time.Nanosecond)
		if _, ok := p.beginWake(time.Now()); !ok {
			t.Error("not woken in time")
		}
		p.endWake(time.Now(), time.Now(), woken{next: wakeEvery}, nil)
		p.expect(time.Millisecond)
		if d := p.untilWake(time.Now()); d != wakeAfter {
			t.Errorf("a wake right after another is in %v, want in %v", d, wakeAfter)
		}
	})
}

// However many send at once, and whenever: one hint in five milliseconds.
func TestOfManySendersOneHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d debounce
		var hints atomic.Int64
		var senders sync.WaitGroup
		for i := range 50 {
			senders.Go(func() {
				time.Sleep(time.Duration(i%7) * time.Millisecond)
				for range 1000 {
					if d.allow(time.Now()) {
						hints.Add(1)
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		start := time.Now()
		senders.Wait()
		if most := int64(time.Since(start)/notifyEvery) + 1; hints.Load() > most || hints.Load() < most-2 {
			t.Errorf("%d hints in %v, want %d", hints.Load(), time.Since(start), most)
		}
	})
}

// A listener whose database is away tries again after pauses that double up to half a
// minute, and none of it outlives its context.
func TestAListenerWithoutADatabaseTriesAgainAfterGrowingPauses(t *testing.T) {
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
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		New(pool, "").Listen(ctx)
		if len(tries) < 20 || len(tries) > 60 {
			t.Errorf("%d tries in ten minutes", len(tries))
		}
		want := 100 * time.Millisecond
		for i := 1; i < len(tries); i++ {
			if pause := tries[i].Sub(tries[i-1]); pause < want/2 || pause > want {
				t.Errorf("pause %d is %v, want between %v and %v", i, pause, want/2, want)
			}
			want = min(2*want, 30*time.Second)
		}
		if fmt.Sprint(ctx.Err()) == "<nil>" {
			t.Error("it gave up before its context ended")
		}
	})
}
