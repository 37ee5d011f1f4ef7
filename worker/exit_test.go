package worker_test

import (
	"context"
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Somebody calls t.FailNow, or require, in a body: that ends the goroutine without a return
// and without a panic.
func TestABodyThatEndsItsGoroutineIsAFailedAttempt(t *testing.T) {
	for name, body := range map[string]func(*tally) jobs.Job[letter]{
		"Do": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(_ context.Context, l letter) error {
				if tries.add(l.Entity()) == 1 {
					runtime.Goexit()
				}
				return nil
			}}
		},
		"DoTx": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{DoTx: func(_ context.Context, _ pgx.Tx, l letter) error {
				if tries.add(l.Entity()) == 1 {
					runtime.Goexit()
				}
				return nil
			}}
		},
		"DoMany": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{DoMany: func(_ context.Context, _ pgx.Tx, ls []letter) error {
				if tries.add("all") == 1 {
					runtime.Goexit()
				}
				return nil
			}}
		},
		"Ready": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }, Ready: func(_ context.Context, l letter) (bool, error) {
				if tries.add(l.Entity()) == 1 {
					runtime.Goexit()
				}
				return true, nil
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var tries tally
			j := body(&tries)
			j.Backoff = quickly
			sendMessages(t, pgq(pool), pack(t, 1, 3))
			w := begin(t, pool, newSet(t, j), worker.Config{Slots: 2})
			eventuallyRow(t, pool, "all are done", `SELECT count(*) = 3 AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.ledger`)
			mustStop(t, w)
			eventually(t, "all connections have come back", func() bool { return pool.Stat().AcquiredConns() == 0 })
		})
	}
}
