package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

// A letter is work on one entity.
type letter struct {
	N int `json:"n"`
}

func (letter) JobType() string  { return "letter" }
func (l letter) Entity() string { return jobs.Key(l.N) }

// A mailing fans out to letters.
type mailing struct {
	ID int `json:"id"`
}

func (mailing) JobType() string  { return "mailing" }
func (m mailing) Entity() string { return jobs.Key(m.ID) }

func newSet(t testing.TB, ds ...jobs.Definition) *jobs.Set {
	t.Helper()
	set, err := jobs.NewSet(ds...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func count(t testing.TB, pool *pgxpool.Pool, query string, args ...any) (n int64) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// tally counts how often each entity was worked.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) add(entity string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[entity]++
	return c.n[entity]
}

func quickly(int) time.Duration { return time.Millisecond }

func TestDuplicatesOfDoneWorkAreSkipped(t *testing.T) {
	for _, class := range []jobs.Effect{jobs.Repeatable, jobs.Once, jobs.Keyed(time.Hour)} {
		t.Run(class.String(), func(t *testing.T) {
			pool := pgtest.Pool(t)
			var done tally
			set := newSet(t, jobs.Job[letter]{Effect: class, Do: func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }})
			first := workertest.Run(t, pool, set, letter{1}, letter{2}, letter{3})
			if first.Done != 3 || first.Open != 0 || first.Waiting != 0 {
				t.Fatalf("after the first call: %+v", first)
			}
			again := workertest.Run(t, pool, set, letter{1}, letter{2}, letter{3}, letter{1})
			if again != first {
				t.Errorf("calling again changed %+v to %+v", first, again)
			}
			for e, n := range done.n {
				if n != 1 {
					t.Errorf("letter %s was worked %d times", e, n)
				}
			}
		})
	}
}

func TestAFailingJobIsTriedAgainUntilItSucceeds(t *testing.T) {
	for _, class := range []jobs.Effect{jobs.Repeatable, jobs.Keyed(time.Hour)} {
		t.Run(class.String(), func(t *testing.T) {
			pool := pgtest.Pool(t)
			var tries tally
			set := newSet(t, jobs.Job[letter]{Effect: class, Policy: jobs.Policy{Backoff: quickly}, Do: func(ctx context.Context, l letter) error {
				n := tries.add(l.Entity())
				if at := jobs.Current(ctx).Number; at != n {
					t.Errorf("try %d says that it is number %d", n, at)
				}
				if n < 3 {
					return errors.New("not yet")
				}
				return nil
			}})
			awaitDone(t, pool, set, worker.Config{}, 2, letter{1}, letter{2})
			if n := count(t, pool, `SELECT sum(attempts) FROM oncemore.ledger`); n != 6 {
				t.Errorf("the facts speak of %d attempts, want 6", n)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'retrying'`); n != 4 {
				t.Errorf("%d failed attempts are recorded, want 4", n)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.claim`); n != 0 {
				t.Errorf("%d claims are left", n)
			}
		})
	}
}

// awaitDone lets a worker run until n facts are there and no message is left.
func awaitDone(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, c worker.Config, n int64, args ...jobs.Args) {
	t.Helper()
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), args...); err != nil {
		t.Fatal(err)
	}
	run(t, pool, set, c, func() bool {
		return count(t, pool, `SELECT count(*) FROM oncemore.ledger`) == n && count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0
	})
}

// run lets a worker run until the condition holds, then stops it cleanly.
func run(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, c worker.Config, until func() bool) {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	w, err := worker.New(t.Context(), pool, set, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- w.Run(ctx) }()
	await(t, until)
	stop()
	if err := <-stopped; err != nil {
		t.Fatalf("the worker did not stop cleanly: %v", err)
	}
}

func await(t testing.TB, until func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !until(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what was waited for did not happen within a minute")
		}
	}
}

func TestAFanOutWorksEachEntityOnceAndIsComplete(t *testing.T) {
	pool := pgtest.Pool(t)
	var done tally
	set := newSet(t,
		jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }, Policy: jobs.Policy{PackSize: 7}},
		jobs.Job[mailing]{FanOut: func(m mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, $1::int) n`, 100*m.ID)
		}})
	awaitRuns(t, pool, set, 1, mailing{1})
	if len(done.n) != 100 {
		t.Errorf("%d letters were worked, want 100", len(done.n))
	}
	// Late letters are found by calling it again, and only they are worked.
	awaitRuns(t, pool, set, 2, mailing{2}, mailing{2})
	if len(done.n) != 200 {
		t.Errorf("%d letters were worked, want 200", len(done.n))
	}
	for e, n := range done.n {
		if n != 1 {
			t.Errorf("letter %s was worked %d times", e, n)
		}
	}
	if n := count(t, pool, `SELECT skipped FROM oncemore.run WHERE parent_entity = '2' ORDER BY id LIMIT 1`); n != 100 {
		t.Errorf("the second run skipped %d, want 100", n)
	}
}

func awaitRuns(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, n int64, args ...jobs.Args) {
	t.Helper()
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), args...); err != nil {
		t.Fatal(err)
	}
	run(t, pool, set, worker.Config{}, func() bool {
		return count(t, pool, `SELECT count(*) FROM oncemore.run WHERE complete`) >= n && count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0
	})
}

func TestI3InTransactionEffectsHappenOnce(t *testing.T) {
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE effect (n int)`); err != nil {
		t.Fatal(err)
	}
	var failures atomic.Int32
	flaky := func(n int) error {
		if n%3 == 0 && failures.Add(1)%2 == 1 {
			return fmt.Errorf("letter %d fails now and then", n)
		}
		return nil
	}
	bodies := map[string]jobs.Job[letter]{
		"DoTx": {DoTx: func(ctx context.Context, tx pgx.Tx, l letter) error {
			if _, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, l.N); err != nil {
				return err
			}
			return flaky(l.N)
		}},
		"DoMany": {DoMany: func(ctx context.Context, tx pgx.Tx, ls []letter) error {
			for _, l := range ls {
				if _, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, l.N); err != nil {
					return err
				}
				if err := flaky(l.N); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	for name, body := range bodies {
		t.Run(name, func(t *testing.T) {
			if _, err := pool.Exec(t.Context(), `TRUNCATE effect, oncemore.ledger, oncemore.claim`); err != nil {
				t.Fatal(err)
			}
			body.Backoff = quickly
			set := newSet(t, body, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source {
				return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 60) n`)
			}})
			runs := count(t, pool, `SELECT count(*) FROM oncemore.run WHERE complete`)
			var twice []jobs.Args
			for n := range 60 {
				twice = append(twice, letter{n + 1})
			}
			if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), twice...); err != nil {
				t.Fatal(err)
			}
			awaitRuns(t, pool, set, runs+1, mailing{1})
			if all, distinct := count(t, pool, `SELECT count(*) FROM effect`), count(t, pool, `SELECT count(DISTINCT n) FROM effect`); all != 60 || distinct != 60 {
				t.Errorf("%d effects on %d letters, want 60 on 60", all, distinct)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE evidence = 't'`); n != 60 {
				t.Errorf("%d facts of the same transaction, want 60", n)
			}
		})
	}
}
