package worker_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// heldBack: some message is delayed by a century.
const heldBack = `EXISTS (SELECT FROM oncemore.message WHERE visible_at > now() + interval '50 years')`

// lockTable keeps everybody else from a table until it is let go, and before that makes a
// change that nobody sees until then.
func lockTable(t *testing.T, pool *pgxpool.Pool, table, change string) (letGo func()) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	for _, s := range []string{`LOCK TABLE ` + table + ` IN ACCESS EXCLUSIVE MODE`, change} {
		if _, err := tx.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

const waitsForTable = `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = $1::regclass AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`

// What waits for another attempt goes on when its run is cancelled. That the run was paused
// before is no reason to hold it back: nobody could resume a run that has ended.
func TestACancelledRunThatWasPausedHoldsNothingBack(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a re-run", "a fan-out"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			named := jobs.SQL[letter](`SELECT 1::text AS entity, 1 AS n`)
			set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return named }},
				jobs.Job[letter]{Effect: jobs.Repeatable, Source: named, Policy: jobs.Policy{Backoff: func(int) time.Duration { return time.Hour }},
					Do: func(context.Context, letter) error { return errTrouble }})
			w := begin(t, pool, set, quietly(t))
			if name == "a fan-out" {
				enqueue(t, pgq(pool), mailing{1})
			} else {
				rerun(t, pool, worker.Order{Type: "letter"})
			}
			eventuallyRow(t, pool, "the letter waits for another attempt", `SELECT count(*) = 1 FROM oncemore.claim WHERE entity = '1' AND trouble = 'retrying'
				AND job_type = (SELECT id FROM oncemore.job_type WHERE name = 'letter')`)
			control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.PauseRun(ctx, tx, 1, "the mailer is down") })
			eventuallyRow(t, pool, "its message is held back", `SELECT `+heldBack)
			control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, 1, "wrong text") })
			eventuallyRow(t, pool, "the run has ended", `SELECT ended_at IS NOT NULL FROM oncemore.run`)
			mustStop(t, w)
			if ask(t, pool, `SELECT `+heldBack) {
				t.Error("a message is held back for a century")
			}
			if !ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.message WHERE type = 'letter' AND entities = '{1}')`) {
				t.Error("nothing carries the retry")
			}
		})
	}
}

// A visit finds the run paused, and plans what came late; meanwhile the run is resumed.
func TestARunThatIsResumedDuringAVisitHoldsNothingBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE wanted AS SELECT 1 AS n`)
	letters := newGate()
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM wanted`), jobs.Job[letter]{Effect: jobs.Repeatable,
		Do: func(ctx context.Context, l letter) error { return letters.pass(ctx, l.Entity()) }})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, quietly(t))
	within(t, "the first letter is being worked", letters.entered)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.PauseRun(ctx, tx, 1, "the mailer is down") })
	letGo := lockTable(t, pool, "wanted", `INSERT INTO wanted VALUES (2)`)
	close(letters.open)
	eventuallyRow(t, pool, "a visit asks the source what came late", waitsForTable, "wanted")
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, 1) })
	letGo()
	eventuallyRow(t, pool, "the late letter is sent", `SELECT items = 2 FROM oncemore.run`)
	if ask(t, pool, `SELECT `+heldBack) {
		t.Fatal("the late letter is held back for a century")
	}
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
}

// Who pauses a re-run does not see what a visit is just sending. The visit sees the pause.
func TestARerunThatIsPausedWhileItSendsBeginsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var worked tally
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n`, func(_ context.Context, l letter) error {
		worked.add(l.Entity())
		return nil
	}))
	w := begin(t, pool, set, quietly(t))
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		return worker.SetBrake(ctx, tx, "", "a look first", "anna")
	})
	rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "it is planned", `SELECT waits LIKE 'all runs are stopped%' FROM oncemore.run`)
	letGo := lockTable(t, pool, "oncemore.run_pack", `SELECT`)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ReleaseBrake(ctx, tx, "") })
	eventuallyRow(t, pool, "a visit reads what it is to send", waitsForTable, "oncemore.run_pack")
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.PauseRun(ctx, tx, 1, "the mailer is down") })
	letGo()
	eventuallyRow(t, pool, "all is sent", `SELECT sent = 20 FROM oncemore.run`)
	if ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.message WHERE type = 'letter' AND visible_at < now() + interval '50 years')`) || worked.sum() > 0 {
		t.Errorf("of a paused run %d letters were written, or are about to be", worked.sum())
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, 1) })
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
}

// Whoever wants something of a run while a visit ends it comes too late, and holds back nothing
// of what goes on without the run.
func TestARunThatIsJustEndingIsNotPausedAnyMore(t *testing.T) {
	t.Parallel()
	t.Run("cancelled", func(t *testing.T) { pausedTooLate(t, true) })
	t.Run("by itself", func(t *testing.T) { pausedTooLate(t, false) })
}

func pausedTooLate(t *testing.T, cancelled bool) {
	t.Parallel()
	pool := pgtest.Pool(t)
	letters := newGate()
	set := newSet(t, lettersFrom(`SELECT 1::text AS entity, 1 AS n`, func(ctx context.Context, l letter) error {
		if err := letters.pass(ctx, l.Entity()); err != nil {
			return err
		}
		return jobs.Permanent(errTrouble)
	}))
	w := begin(t, pool, set, quietly(t))
	rerun(t, pool, worker.Order{Type: "letter"})
	within(t, "the letter is being worked", letters.entered)
	// The visit has written that the run has ended, and has yet to commit.
	mustExec(t, pool, `
CREATE FUNCTION wait_at_the_end() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END $$;
CREATE TRIGGER wait_at_the_end BEFORE UPDATE ON oncemore.run FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL) EXECUTE FUNCTION wait_at_the_end()`)
	answered := make(chan struct{})
	holder, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(context.Background()) }()
	if _, err := holder.Exec(t.Context(), `SELECT pg_advisory_xact_lock(7)`); err != nil {
		t.Fatal(err)
	}
	if cancelled {
		control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, 1, "wrong text") })
	} else {
		close(letters.open)
	}
	eventuallyRow(t, pool, "a visit is about to end the run", `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`)
	var late error
	go func() {
		defer close(answered)
		late = pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			return worker.PauseRun(context.Background(), tx, 1, "the mailer is down")
		})
	}()
	eventually(t, "the pause waits, or is done", func() bool {
		select {
		case <-answered:
			return true
		default:
			return ask(t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INTO oncemore.run_control%')`)
		}
	})
	if err := holder.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	within(t, "the pause has its answer", answered)
	if !errors.Is(late, worker.ErrRunEnded) {
		t.Errorf("a pause that came too late: %v", late)
	}
	eventuallyRow(t, pool, "the run has ended", `SELECT ended_at IS NOT NULL AND cancelled = $1 FROM oncemore.run`, cancelled)
	if cancelled {
		close(letters.open)
	}
	mustStop(t, w)
}

// Who slows a fan-out down must not believe that it is slow now.
func TestAFanOutHasNoRateAndSaysSo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `INSERT INTO oncemore.run (id, parent_type, parent_entity, job_type) OVERRIDING SYSTEM VALUE VALUES (7, 1, 'a', 1)`)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if err := worker.SetRate(t.Context(), tx, 7, 5); !errors.Is(err, worker.ErrNoRate) {
		t.Errorf("the rate of a fan-out: %v", err)
	}
	if err := worker.SetRate(t.Context(), tx, 8, 5); !errors.Is(err, worker.ErrNoRun) {
		t.Errorf("the rate of no run: %v", err)
	}
}

func TestARateThatNobodyCanCountWithIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	newWorker(t, pool, newSet(t, lettersFrom(`SELECT '1' AS entity, 1 AS n`, func(context.Context, letter) error { return nil })), quietly(t)) // registers
	opened := rerun(t, pool, worker.Order{Type: "letter", Rate: 1e9})
	for _, rate := range []float64{math.Inf(1), math.NaN(), 1e19, -1} {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return worker.SetRate(t.Context(), tx, opened.Run, rate) })
		if err == nil || !strings.Contains(err.Error(), "a rate is a number of entities a second") {
			t.Errorf("a change of the rate to %g: %v", rate, err)
		}
		err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := worker.OpenRerun(t.Context(), tx, pgq(pool), worker.Order{Type: "letter", Rate: rate})
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "a rate is a number of entities a second") {
			t.Errorf("a re-run at %g: %v", rate, err)
		}
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := worker.OpenRerun(t.Context(), tx, pgq(pool), worker.Order{Type: "letter", Canary: 1, CanaryShare: math.NaN()})
		return err
	})
	if err == nil {
		t.Error("a share that is no number was taken")
	}
}

// A program that did not check it, or a person with SQL, has stored such a rate: the run is
// sent all the same, as fast as the database bears it.
func TestARunWhoseStoredRateIsBeyondAllCountingGoesOn(t *testing.T) {
	t.Parallel()
	for _, rate := range []string{"Infinity", "NaN", "1e19"} {
		t.Run(rate, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			config := newWorker(t, pool, newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n`, func(context.Context, letter) error { return nil })), quietly(t))
			rerun(t, pool, worker.Order{Type: "letter"})
			mustExec(t, pool, `UPDATE oncemore.run_control SET rate = $1::text::float8`, rate)
			mustExec(t, pool, `UPDATE oncemore.run SET credit = $1::text::float8`, rate)
			w := runWorker(t, config)
			if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
				t.Errorf("the run: %s", got)
			}
			mustStop(t, w)
		})
	}
}
