package worker_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// An app records that six letters of many are done, and does not commit: its machine is gone, say. The
// letters were written here meanwhile, and what came of them cannot be recorded: that of all the others
// can. When the app's transaction ends, so does the wait.
func TestWhatSomebodyHasLockedIsSettledLaterAndItsNeighboursAreNot(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(pgx.Tx, context.Context) error{"that rolls back": pgx.Tx.Rollback, "that commits": pgx.Tx.Commit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			g := newGate()
			var written tally
			set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(ctx context.Context, l letter) error {
				written.add(l.Entity())
				return g.pass(ctx, l.Entity())
			}})
			w := begin(t, pool, set, worker.Config{Slots: 50})
			sendMessages(t, pgq(pool), pack(t, 1, 50))
			eventually(t, "all are being written", func() bool { return written.sum() == 50 })
			app, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer app.Rollback(context.WithoutCancel(t.Context()))
			if _, err := app.Exec(t.Context(), `
INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity)
SELECT 0, t.id, 1, 'a', n FROM oncemore.job_type t, unnest('{7,8,9,10,11,30}'::text[]) n WHERE t.name = 'letter'`); err != nil {
				t.Fatal(err)
			}
			close(g.open)
			eventuallyRow(t, pool, "all others are recorded", `SELECT count(*) = 44 FROM oncemore.ledger`)
			enqueue(t, pgq(pool), letter{51})
			eventuallyRow(t, pool, "what comes later is recorded too", `SELECT count(*) = 45 FROM oncemore.ledger`)
			if err := end(app, t.Context()); err != nil {
				t.Fatal(err)
			}
			eventuallyRow(t, pool, "all is recorded and acknowledged", `SELECT count(*) = 51 AND `+quiet[len("SELECT "):]+` FROM oncemore.ledger`)
			mustStop(t, w)
			if n := written.sum(); n != 51 {
				t.Errorf("%d letters were written of 51", n)
			}
		})
	}
}

// The end of the worker waits for it no longer than for a database that is away: the work was done, is
// found without a fact, and may be done again.
func TestAWorkerStopsThoughSomebodyHasLockedWhatItWouldRecord(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(ctx context.Context, l letter) error { return g.pass(ctx, l.Entity()) }})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), letter{7})
	within(t, "it is being written", g.entered)
	app, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.Exec(t.Context(), `
INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity)
SELECT 0, t.id, 1, 'a', '7' FROM oncemore.job_type t WHERE t.name = 'letter'`); err != nil {
		t.Fatal(err)
	}
	close(g.open)
	eventuallyRow(t, pool, "its settlement waits", `SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)`)
	w.stopping()
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.message WHERE lock IS NULL AND visible_at <= now() + interval '1 second'`); n != 1 {
		t.Errorf("%d messages were let go of, want the one", n)
	}
	if err := app.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "the next worker has done it", `SELECT count(*) = 1 FROM oncemore.ledger`)
	eventuallyRow(t, pool, "and acknowledged", quiet)
}
