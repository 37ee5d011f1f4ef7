package worker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// sendOld sends messages that have been received once before, so that they need a claim.
func sendOld(t *testing.T, pool *pgxpool.Pool, ms ...queue.Message) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if err := pgq(pool).Tx(tx).Send(t.Context(), ms...); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), `UPDATE oncemore.message SET received = 1 WHERE received = 0 AND xmin = pg_current_xact_id()::xid`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// Two notes about one entity, with other arguments. Bee's is a first delivery, without a claim;
// while it is worked, Ann's is claimed. Bee's fails for good, and there is no place to say so: the
// claim is Ann's. So Bee's message looks again, and tells whoever looks after parked input.
func TestI1NoLossAClaimlessFailureThatMeetsTheClaimOfOtherWorkIsNotSwallowed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	gates := map[string]*gate{"Ann": newGate(), "Bee": newGate()}
	set := newSet(t, jobs.Job[note]{Effect: jobs.Repeatable, Do: func(ctx context.Context, n note) error {
		if err := gates[n.Text].pass(ctx, n.Text); err != nil || n.Text == "Ann" {
			return err
		}
		return jobs.Permanent(errors.New("no such reader"))
	}})
	w := begin(t, pool, set, worker.Config{Slots: 2})
	enqueue(t, pgq(pool), note{ID: 1, Text: "Bee"})
	within(t, "Bee's is worked", gates["Bee"].entered)
	sendOld(t, pool, together(t, note{ID: 1, Text: "Ann"}))
	within(t, "Ann's is worked", gates["Ann"].entered)
	close(gates["Bee"].open)
	eventuallyRow(t, pool, "Bee's has failed", `SELECT EXISTS (SELECT FROM oncemore.attempt WHERE outcome = 'failed')`)
	close(gates["Ann"].open)
	eventually(t, "Ann's is done", func() bool { return standing(t, pool, "1") == "done r 1" })
	eventuallyRow(t, pool, "no message is left", quiet)
	mustStop(t, w)
	if !ask(t, pool, `SELECT count(*) = 1 AND bool_and(reason = 'conflict' AND body LIKE '%Bee%') FROM oncemore.parked`) {
		t.Error("nobody is told of Bee's")
	}
}

// Both notes are first deliveries, worked side by side. Ann's is done; the first word of Bee's
// never reaches the database, and the second finds Ann's fact there. That is no answer to a
// settlement whose reply was lost: the arguments are others.
func TestI8AFirstCompletionThatIsTriedAgainMeetsTheFactOfOtherArguments(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	bee := newGate()
	var losing, lost atomic.Bool
	set := newSet(t, jobs.Job[note]{Effect: jobs.Repeatable, Do: func(ctx context.Context, n note) error {
		if n.Text == "Bee" {
			return bee.pass(ctx, n.Text)
		}
		return nil
	}})
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if losing.Load() && b.Has("fact: insert") && lost.CompareAndSwap(false, true) {
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	enqueue(t, pgq(direct), note{ID: 1, Text: "Bee"})
	w := begin(t, proxied, set, worker.Config{Slots: 2})
	within(t, "Bee's is worked", bee.entered)
	enqueue(t, pgq(direct), note{ID: 1, Text: "Ann"})
	eventually(t, "Ann's is done", func() bool { return standing(t, direct, "1") == "done r 1" })
	losing.Store(true)
	close(bee.open)
	eventuallyRow(t, direct, "no message is left", quiet)
	mustStop(t, w)
	if !lost.Load() {
		t.Error("nothing was lost")
	}
	if !ask(t, direct, `SELECT count(*) = 1 AND bool_and(reason = 'conflict' AND body LIKE '%Bee%') FROM oncemore.parked`) {
		t.Error("nobody is told of Bee's")
	}
}

// The reply to a first settlement is lost, and it was committed: what is there then is our own.
func TestAFirstCompletionWhoseReplyWasLostIsKnownForOurOwn(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	var worked tally
	var lost atomic.Bool
	set := newSet(t, jobs.Job[note]{Effect: jobs.Repeatable, Do: func(_ context.Context, n note) error { worked.add(n.Text); return nil }})
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if b.Has("fact: insert") && lost.CompareAndSwap(false, true) {
			return pgproxy.ReportedLost
		}
		return pgproxy.Pass
	})
	enqueue(t, pgq(direct), note{ID: 1, Text: "Ann"})
	w := begin(t, proxied, set, worker.Config{})
	eventuallyRow(t, direct, "it is done, and no message is left", `
SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, w)
	if worked.sum() != 1 || !lost.Load() || ask(t, direct, `SELECT EXISTS (SELECT FROM oncemore.parked)`) {
		t.Errorf("it was worked %d times (lost: %t), or parked", worked.sum(), lost.Load())
	}
}

// Ann's note is a first delivery, without a claim. While it is worked the app records that it is
// done, and says nothing of its arguments: that fits all, so nobody has done it with others.
func TestAFactOfUnknownArgumentsIsNoConflictForWhatWasDoneBesideIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	set := newSet(t, jobs.Job[note]{Effect: jobs.Repeatable, Do: func(ctx context.Context, n note) error { return g.pass(ctx, n.Text) }})
	enqueue(t, pgq(pool), note{ID: 1, Text: "Ann"})
	w := begin(t, pool, set, worker.Config{})
	within(t, "it is worked", g.entered)
	mustExec(t, pool, `
INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence) SELECT t.id, '1', 0, 0, 'a' FROM oncemore.job_type t WHERE t.name = 'note'`)
	close(g.open)
	eventuallyRow(t, pool, "no message is left", quiet)
	mustStop(t, w)
	if ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.parked)`) || standing(t, pool, "1") != "done a 0" {
		t.Errorf("it is %s, and parked as done with other arguments", standing(t, pool, "1"))
	}
}
