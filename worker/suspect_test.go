package worker_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Two workers have died over the same letters, so each is tried alone. One of them does not end, and
// does not look at its context: the others, and all other work, go on without it.
func TestASuspectThatNeverEndsDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	for name, job := range map[string]func(*gate) jobs.Job[letter]{
		"outside the database": func(g *gate) jobs.Job[letter] {
			return jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(_ context.Context, l letter) error { return neverEnds(g, l) }}
		},
		"its done-check": func(g *gate) jobs.Job[letter] {
			return jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(context.Context, letter) error { return nil },
				Done: func(_ context.Context, l letter) (bool, error) { return false, neverEnds(g, l) }}
		},
		"in a transaction of many": func(g *gate) jobs.Job[letter] {
			return jobs.Job[letter]{DoMany: func(_ context.Context, _ pgx.Tx, ls []letter) (err error) {
				for _, l := range ls {
					err = errors.Join(err, neverEnds(g, l))
				}
				return err
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			g := newGate()
			t.Cleanup(func() { close(g.open) })
			j := job(g)
			j.Policy = jobs.Policy{Timeout: 200 * time.Millisecond}
			var errands tally
			set := newSet(t, j, jobs.Job[errand]{Effect: jobs.Repeatable, Do: func(_ context.Context, e errand) error { errands.add(e.What); return nil }})
			newWorker(t, pool, set, worker.Config{}) // registers the job types
			mustExec(t, pool, `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('dead', now(), now()) RETURNING id)
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), 0, 0, 0, 0, t.id, 2, n::text, format('{"n":%s}', n)
FROM dead, oncemore.job_type t, generate_series(1, 6) n WHERE t.name = 'letter'`)
			enqueue(t, pgq(pool), letter{1})
			w := newWorker(t, pool, set, worker.Config{Slots: 4})
			w.SetStuckGrace(100 * time.Millisecond)
			r := runWorker(t, w)
			within(t, "the first of them is tried, and does not end", g.entered)
			enqueue(t, pgq(pool), letters(2, 6)...)
			enqueue(t, pgq(pool), errand{What: "bread"})
			eventually(t, "all the others are done", func() bool {
				return ask(t, pool, `SELECT count(*) = 6 FROM oncemore.ledger`) && errands.of("bread") == 1
			})
			_ = r
		})
	}
}

// neverEnds waits for the gate with the first letter, whatever its context says.
func neverEnds(g *gate, l letter) error {
	if l.Entity() != "1" {
		return nil
	}
	return g.pass(context.Background(), l.Entity())
}
