package throttle_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// told is a signal that says what it is told to.
func told(name string, v throttle.Verdict) throttle.Signal {
	return throttle.Signal{Name: name, Read: func(context.Context, pgx.Tx) (throttle.Verdict, string, error) { return v, "as told", nil }}
}

func TestManyWhoAskAtOnceAreOneReading(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	var times atomic.Int32
	counted := throttle.Signal{Name: "counted", Read: func(ctx context.Context, tx pgx.Tx) (throttle.Verdict, string, error) {
		return throttle.Wait, fmt.Sprint(times.Add(1)), nil
	}}
	g := newGauge(t, pool, time.Hour, counted)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			readings, wait := g.Read(t.Context())
			if wait == nil || wait.Reason != "1" || &readings[0] != wait {
				t.Errorf("%+v", readings)
			}
			readings[0].Reason = "the reader's own"
		})
	}
	all.Wait()
	g = newGauge(t, pool, time.Nanosecond, counted)
	g.Read(t.Context())
	g.Read(t.Context())
	if times.Load() != 3 {
		t.Errorf("the signal was read %d times, want once in the hour and twice in nanoseconds", times.Load())
	}
}

func TestTheFirstThatSaysWaitIsNamedAndAllAreShown(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	g := newGauge(t, pool, 0, told("a", throttle.Go), told("b", throttle.Unknown), told("c", throttle.Wait), told("d", throttle.Wait))
	readings, wait := g.Read(t.Context())
	if len(readings) != 4 || wait == nil || wait.Signal != "c" {
		t.Errorf("%+v, %+v", readings, wait)
	}
	if ago := time.Since(readings[0].At); ago < -time.Minute || ago > time.Minute {
		t.Errorf("read at %v", readings[0].At)
	}
	if _, wait := newGauge(t, pool, 0).Read(t.Context()); wait != nil {
		t.Errorf("without signals: %+v", wait)
	}
}

func TestASignalThatFailsSpoilsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	bad := func(name string, f func(ctx context.Context, tx pgx.Tx) (throttle.Verdict, string, error)) throttle.Signal {
		return throttle.Signal{Name: name, Read: f, Timeout: 500 * time.Millisecond}
	}
	g := newGauge(t, pool, 0,
		bad("fails", func(context.Context, pgx.Tx) (throttle.Verdict, string, error) {
			return throttle.Wait, "", errors.New("no such host")
		}),
		bad("panics", func(context.Context, pgx.Tx) (throttle.Verdict, string, error) { panic("at the disco") }),
		bad("mumbles", func(context.Context, pgx.Tx) (throttle.Verdict, string, error) { return "perhaps", "", nil }),
		bad("hangs", func(ctx context.Context, _ pgx.Tx) (throttle.Verdict, string, error) {
			<-ctx.Done()
			return "", "", ctx.Err()
		}),
		bad("sleeps", func(ctx context.Context, tx pgx.Tx) (throttle.Verdict, string, error) {
			_, err := tx.Exec(ctx, "SELECT pg_sleep(60)")
			return "", "", err
		}),
		bad("writes", func(ctx context.Context, tx pgx.Tx) (throttle.Verdict, string, error) {
			_, err := tx.Exec(ctx, "CREATE TABLE written ()")
			return "", "", err
		}),
		told("good", throttle.Go))
	readings, wait := g.Read(t.Context())
	if wait != nil {
		t.Errorf("a signal that cannot be read holds up work: %+v", wait)
	}
	for i, words := range []string{"no such host", "at the disco", "perhaps", "no answer within 500 ms", "no answer within 500 ms", "read-only"} {
		if !is(readings[i], throttle.Unknown, []string{words}) {
			t.Errorf("%+v, want it unknown with %q", readings[i], words)
		}
	}
	if readings[6].Verdict != throttle.Go {
		t.Errorf("the good one says %+v", readings[6])
	}
	// A connection whose query was given up is closed beside us.
	for end := time.Now().Add(10 * time.Second); pool.Stat().AcquiredConns() != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are kept", pool.Stat().AcquiredConns())
		}
	}
}

func TestADatabaseThatCannotBeAskedIsUnknown(t *testing.T) {
	t.Parallel()
	away, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nowhere?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	defer away.Close()
	says(t, away, throttle.LockWaits(1), throttle.Unknown, "cannot be read")

	cfg, err := pgxpool.ParseConfig(pgtest.EmptyDSN(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 1
	drained, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer drained.Close()
	conn, err := drained.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hasty := throttle.LockWaits(1)
	hasty.Timeout = 20 * time.Millisecond
	says(t, drained, hasty, throttle.Unknown, "no answer within 20 ms")
	conn.Release()
	says(t, drained, throttle.LockWaits(1), throttle.Go)
}

func TestAServerThatRefusesConnectionsIsAnAnswer(t *testing.T) {
	t.Parallel()
	dsn := pgtest.EmptyDSN(t)
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	role := "oncemore_limited_" + fmt.Sprint(time.Now().UnixNano())
	exec(t, owner, "CREATE ROLE "+role+" LOGIN PASSWORD 'limited' CONNECTION LIMIT 0")
	defer func() { exec(t, owner, "DROP ROLE "+role) }()
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.ConnConfig.User, cfg.ConnConfig.Password = role, "limited"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	says(t, pool, throttle.Connections(1), throttle.Wait, "accepts no more connections", "too many connections")
}

func TestOneCallersHurryIsNobodyElsesAnswer(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	asked := make(chan struct{}, 2)
	hurry := make(chan struct{})
	g := newGauge(t, pool, time.Hour, throttle.Signal{Name: "slow", Read: func(ctx context.Context, tx pgx.Tx) (throttle.Verdict, string, error) {
		asked <- struct{}{}
		select {
		case <-ctx.Done():
			return "", "", ctx.Err()
		case <-hurry:
			return throttle.Go, "in the end", nil
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan []throttle.Reading)
	go func() { rs, _ := g.Read(ctx); first <- rs }()
	<-asked
	ended, end := context.WithCancel(t.Context())
	end()
	if rs, _ := g.Read(ended); !is(rs[0], throttle.Unknown, []string{"not asked", "canceled"}) {
		t.Errorf("to one who cannot wait: %+v", rs)
	}
	cancel()
	if rs := <-first; !is(rs[0], throttle.Unknown, []string{"not read to the end", "canceled"}) {
		t.Errorf("to one who left: %+v", rs)
	}
	close(hurry)
	if rs, _ := g.Read(t.Context()); !is(rs[0], throttle.Go, []string{"in the end"}) {
		t.Errorf("to the next: %+v", rs)
	}
	if rs, _ := g.Read(ended); !is(rs[0], throttle.Go, []string{"in the end"}) && rs[0].Verdict != throttle.Unknown {
		t.Errorf("what is remembered: %+v", rs)
	}
}
