package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

// A receipt is what a letter returns.
type receipt struct {
	For  int    `json:"for"`
	Text string `json:"text"`
}

// receipts are those that are stored, of letters.
func receipts(t *testing.T, pool *pgxpool.Pool, ns ...int) string {
	t.Helper()
	var all []string
	for _, n := range ns {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		r, err := jobs.Await[receipt](ctx, ledger.New(pool), letter{n})
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%d %s", r.For, r.Text))
	}
	return strings.Join(all, ", ")
}

// What a body returns, in each kind of body, is there for who waits: of the attempt that
// was completed, and of no other.
func TestWhoWaitsGetsWhatTheCompletedAttemptReturned(t *testing.T) {
	t.Parallel()
	var tries tally
	body := func(ctx context.Context, l letter) error {
		n := tries.add(l.Entity())
		a := jobs.Current(ctx)
		if err := a.Return(receipt{l.N, "too soon"}); err != nil {
			return err
		}
		if n == 1 && l.N == 2 {
			return errors.New("not yet")
		}
		return a.Return(receipt{l.N, fmt.Sprint("try ", n)})
	}
	many := func(ctx context.Context, _ pgx.Tx, ls []letter) error {
		a := jobs.Current(ctx)
		if err := a.Return(7); err == nil {
			return errors.New("whose result is it?")
		}
		var early error
		for _, l := range ls {
			n := tries.add(l.Entity())
			if err := a.ReturnFor(l, receipt{l.N, fmt.Sprint("try ", n)}); err != nil {
				return err
			}
			if l.N == 2 && n == 1 {
				early = errors.New("not yet")
			}
		}
		return early
	}
	for name, test := range map[string]struct {
		job  jobs.Job[letter]
		want string
	}{
		"Repeatable": {jobs.Job[letter]{Effect: jobs.Repeatable, Do: body}, "1 try 1, 2 try 2, 3 try 1"},
		"Keyed":      {jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Do: body}, "1 try 1, 2 try 2, 3 try 1"},
		"DoTx": {jobs.Job[letter]{DoTx: func(ctx context.Context, _ pgx.Tx, l letter) error { return body(ctx, l) }},
			"1 try 1, 2 try 2, 3 try 1"},
		"DoMany": {jobs.Job[letter]{DoMany: many}, "1 try 2, 2 try 2, 3 try 2"}, // all were rolled back, then done by halves
		"a done-check": {jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return errors.New("never") },
			Done: func(ctx context.Context, l letter) (bool, error) {
				return true, jobs.Current(ctx).Return(receipt{l.N, "found"})
			}}, "1 found, 2 found, 3 found"},
	} {
		t.Run(name, func(t *testing.T) {
			tries = tally{}
			pool := pgtest.Pool(t)
			test.job.Backoff = quickly
			w := begin(t, pool, newSet(t, test.job), worker.Config{})
			sendMessages(t, pgq(pool), together(t, letter{1}, letter{2}, letter{3}))
			if got := receipts(t, pool, 1, 2, 3); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			mustStop(t, w)
			if n := count(t, pool, `SELECT count(*) FROM oncemore.result`); n != 3 {
				t.Errorf("%d results are stored", n)
			}
		})
	}
}

func TestAResultThatIsTooLargeIsRefusedAndSaysSo(t *testing.T) {
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(ctx context.Context, l letter) error {
		a := jobs.Current(ctx)
		if err := a.Return(receipt{l.N, "small"}); err != nil {
			return err
		}
		err := a.Return(strings.Repeat("x", ledger.MaxResult))
		if !errors.Is(err, jobs.ErrResultTooLarge) || !strings.Contains(err.Error(), "65538 bytes") {
			t.Errorf("got %v", err)
		}
		if err := a.Return(func() {}); err == nil {
			t.Error("a function was taken for JSON")
		}
		return nil
	}})
	workertest.Run(t, pool, set, letter{1})
	if got := receipts(t, pool, 1); got != "1 small" {
		t.Errorf("got %s: what was returned before should stay", got)
	}
}

// An expired result is deleted by any worker, and is no permission to do the work again.
func TestAnExpiredResultIsDeletedAndTheWorkStaysDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var tries tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{ResultTTL: time.Millisecond}, Do: func(ctx context.Context, l letter) error {
		tries.add(l.Entity())
		return jobs.Current(ctx).Return(7)
	}})
	w := begin(t, pool, set, worker.Config{Recheck: 20 * time.Millisecond})
	for range 2 {
		enqueue(t, pgq(pool), letter{1})
		eventuallyRow(t, pool, "it is done, and its result is gone", `SELECT NOT EXISTS (SELECT FROM oncemore.result) AND EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
	}
	mustStop(t, w)
	if _, err := jobs.Await[int](t.Context(), ledger.New(pool), letter{1}); !errors.Is(err, ledger.ErrNoResult) {
		t.Errorf("got %v", err)
	}
	if n := tries.of("1"); n != 1 {
		t.Errorf("it was done %d times", n)
	}
}

// The worker is killed while somebody waits. Another one takes over, and the waiting ends
// with what that returned.
func TestAwaitGoesOnWhenTheWorkerIsKilled(t *testing.T) {
	for _, class := range []string{"Repeatable", "Keyed", "DoTx"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			mustExec(t, pool, outside)
			const n = 100
			pids := make([]int, n)
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					var err error
					if pids[i], err = jobs.Await[int](t.Context(), ledger.New(pool), letter{i + 1}); err != nil {
						t.Error(err)
					}
				})
			}
			dsn := pool.Config().ConnString()
			victim := start(t, class, dsn)
			sendMessages(t, pgq(pool), pack(t, 1, n))
			await(t, func() bool { return count(t, pool, `SELECT count(*) FROM outside`) >= 1 })
			victim.kill()
			next := start(t, class, dsn)
			wg.Wait()
			if t.Failed() {
				return
			}
			by := map[int]int{}
			for i, pid := range pids {
				by[pid]++
				if stored := count(t, pool, `SELECT value::int FROM oncemore.result WHERE entity = $1`, fmt.Sprint(i+1)); stored != int64(pid) {
					t.Errorf("letter %d: %d was told, and %d is stored", i+1, pid, stored)
				}
			}
			if by[victim.Pid]+by[next.Pid] != n || by[next.Pid] == 0 {
				t.Errorf("results by process: %v; killed was %d, then came %d", by, victim.Pid, next.Pid)
			}
		})
	}
}

// A transition that finds its row elsewhere is a conflict, and no retry helps.
func TestATransitionInAJobIsAppliedOnceAndAConflictIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE orders (id text PRIMARY KEY, state text, version bigint)`)
	mustExec(t, pool, `INSERT INTO orders VALUES ('7', 'cart', 3), ('8', 'cart', 4)`)
	set := newSet(t, jobs.Job[moveOrder]{Policy: jobs.Policy{Backoff: quickly}, DoTx: func(ctx context.Context, tx pgx.Tx, m moveOrder) error {
		_, err := m.apply(ctx, tx)
		return err
	}})
	report := workertest.Run(t, pool, set, moveOrder{"7", "cart", "ordered", 3}, moveOrder{"8", "cart", "ordered", 3}, moveOrder{"7", "cart", "ordered", 3})
	if report.Done != 1 || report.Open != 1 || report.Waiting != 0 {
		t.Errorf("%+v", report)
	}
	if got := standing(t, pool, "8/cart/ordered"); got != "failed 1" {
		t.Errorf("the conflict is %s", got)
	}
	// The same wish over another way, without the job, is a repeat.
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		applied, err := moveOrder{"7", "cart", "ordered", 3}.apply(t.Context(), tx)
		if applied {
			t.Error("it was applied twice")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if !ask(t, pool, `SELECT (state, version) = ('ordered', 4) FROM orders WHERE id = '7'`) {
		t.Error("order 7 was not moved once")
	}
}
