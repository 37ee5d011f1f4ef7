package worker_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// An outage outlasts all attempts. Whoever then calls a fan-out again asks for what is not
// done, failed or not; and for nothing that the call does not name.
func TestCallingAgainAfterAnOutageTriesWhatHadFailed(t *testing.T) {
	sources := map[string]func(m mailing) jobs.Source{
		"SQL": func(m mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series($1 * 100 + 10, $1 * 100 + 29) n`, m.ID)
		},
		"Go": func(m mailing) jobs.Source {
			return jobs.Seq(func(_ context.Context, after string) iter.Seq2[letter, error] {
				return func(yield func(letter, error) bool) {
					for n := m.ID*100 + 10; n < m.ID*100+30; n++ {
						if l := (letter{n}); l.Entity() > after && !yield(l, nil) {
							return
						}
					}
				}
			})
		},
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var outage atomic.Bool
			outage.Store(true)
			set := newSet(t, jobs.Job[mailing]{FanOut: source},
				jobs.Job[letter]{Effect: jobs.Once, Policy: jobs.Policy{Attempts: 2, Backoff: quickly}, Do: func(_ context.Context, l letter) error {
					if outage.Load() && l.N%2 == 0 {
						return jobs.NotApplied(errors.New("the mail server is away"))
					}
					return nil
				}})
			failed := func() int64 { return count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE trouble = 'failed'`) }
			call := func(until func() bool, ms ...mailing) {
				t.Helper()
				if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), ms...); err != nil {
					t.Fatal(err)
				}
				run(t, pool, set, worker.Config{}, func() bool { return until() && count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0 })
			}
			call(func() bool { return failed() == 20 }, mailing{1}, mailing{2})
			if n := count(t, pool, `SELECT count(*) FROM oncemore.run WHERE ended_at IS NOT NULL AND NOT complete AND failed = 10`); n != 2 {
				t.Errorf("%d runs have ended with 10 failed, want 2", n)
			}
			outage.Store(false)
			call(func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.run WHERE complete`) == 1 }, mailing{1})
			if n := failed(); n != 10 {
				t.Errorf("%d letters are listed as failed, want the 10 of the mailing that was not called again", n)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger`); n != 30 {
				t.Errorf("%d letters are done, want 30", n)
			}
		})
	}
}
