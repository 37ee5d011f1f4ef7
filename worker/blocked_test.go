package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
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

// Of two that are known to be locked, by two transactions, one is free again while the worker stops: that
// it was charged is recorded, and nobody has to find out.
func TestWhatIsFreeAgainIsRecordedWhileTheWorkerStops(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	var log lockedBuffer
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error { return g.pass(ctx, l.Entity()) }})
	w := begin(t, pool, set, worker.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	sendMessages(t, pgq(pool), pack(t, 1, 2))
	var apps [2]pgx.Tx
	for i := range apps {
		within(t, "it is being charged", g.entered)
		var err error
		if apps[i], err = pool.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer apps[i].Rollback(context.WithoutCancel(t.Context()))
	}
	for i, app := range apps {
		if _, err := app.Exec(t.Context(), `SELECT FROM oncemore.claim WHERE entity = $1 FOR UPDATE`, fmt.Sprint(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	close(g.open)
	eventually(t, "both are known", func() bool { return strings.Count(log.String(), "cannot be recorded") == 2 })
	w.stopping()
	eventually(t, "it stops", func() bool { return w.Ready() != nil })
	if err := apps[1].Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustStop(t, w)
	if s := text(t, pool, `SELECT coalesce(string_agg(entity, ' '), '') FROM oncemore.ledger`); s != "2" {
		t.Errorf("the ledger has %q, want that 2 is done", s)
	}
}

// A queue in a service that is cut off takes an acknowledgement, and says nothing. What is to go back
// into another queue meanwhile does not wait for that.
func TestAQueueThatHangsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var hangs atomic.Bool
	back := make(chan struct{})
	far := &witness{Queue: memqueue.New(), seen: func(context.Context, []queue.Delivery) { hangs.Store(true); <-back }}
	g := newGate()
	set := newSet(t,
		jobs.Job[errand]{Effect: jobs.Repeatable, Do: func(context.Context, errand) error { return nil }, Policy: jobs.Policy{Queue: "far"}},
		jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(ctx context.Context, l letter) error { return g.pass(ctx, l.Entity()) }})
	w := begin(t, pool, set, worker.Config{Slots: 1, Queues: map[string]queue.Queue{"far": far}})
	answer := sync.OnceFunc(func() { close(back) })
	t.Cleanup(answer)
	enqueue(t, far, errand{"bread"})
	eventually(t, "the far queue hangs", hangs.Load)
	enqueue(t, pgq(pool), letter{1})
	within(t, "the first letter is being written", g.entered)
	enqueue(t, pgq(pool), letter{2})
	eventuallyRow(t, pool, "the second one waits for a slot", `SELECT count(*) = 2 FROM oncemore.message WHERE lock IS NOT NULL`)
	w.stopping()
	eventuallyRow(t, pool, "the second one is given back", `SELECT count(*) = 1 FROM oncemore.message WHERE lock IS NULL`)
	close(g.open)
	answer()
	mustStop(t, w)
}
