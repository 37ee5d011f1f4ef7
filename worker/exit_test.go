package worker_test

import (
	"context"
	"errors"
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

// Three letters are one task of DoMany, and the goroutine ends at one of them. The others have
// no part in that: they are given back, claimed or not, and their message brings them again.
func TestABodyThatEndsItsGoroutineStrandsNoNeighbours(t *testing.T) {
	// exit ends the goroutine the first time that it comes to the second letter, or fails there.
	exit := func(tries *tally, l letter) bool { return l.N == 2 && tries.add("2") == 1 }
	nothing := func(context.Context, pgx.Tx, []letter) error { return nil }
	for name, body := range map[string]func(*tally) jobs.Job[letter]{
		"Ready": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{DoMany: nothing, Ready: func(_ context.Context, l letter) (bool, error) {
				if exit(tries, l) {
					runtime.Goexit()
				}
				return true, nil
			}}
		},
		"Done": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{DoMany: nothing, Done: func(_ context.Context, l letter) (bool, error) {
				if exit(tries, l) {
					runtime.Goexit()
				}
				return false, nil
			}}
		},
		"the first half": func(tries *tally) jobs.Job[letter] {
			return jobs.Job[letter]{DoMany: func(_ context.Context, _ pgx.Tx, ls []letter) error {
				switch tries.add("all") {
				case 1:
					return errors.New("all at once does not work")
				case 2:
					runtime.Goexit()
				}
				return nil
			}}
		},
	} {
		for claimed, epoch := range map[string]int64{"": 0, ", claimed": 1000} {
			t.Run(name+claimed, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				var tries tally
				j := body(&tries)
				j.Backoff = quickly
				m := pack(t, 1, 3)
				m.Epoch = epoch
				sendMessages(t, pgq(pool), m)
				w := begin(t, pool, newSet(t, j), worker.Config{Slots: 2})
				eventuallyRow(t, pool, "all are done", `
SELECT count(*) = 3 AND NOT EXISTS (SELECT FROM oncemore.message) AND NOT EXISTS (SELECT FROM oncemore.claim) FROM oncemore.ledger`)
				if ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE entity = '3' AND attempts <> 1)`) {
					t.Error("a neighbour was charged with an attempt")
				}
				mustStop(t, w)
			})
		}
	}
}
