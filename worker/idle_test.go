package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A worker that is frozen in a transaction, or whose machine is gone without a word, would keep its
// locks until TCP notices: of a run that nobody else could visit then, of a schedule that nobody else
// could tick, of a fact. So the server has a bound for each transaction that takes more than one round
// trip. It is read where those transactions write.
func TestTheServerEndsEachTransactionOfAWorkerThatIdles(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `
CREATE TABLE idling (what text, bound text);
CREATE FUNCTION note_idling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO idling VALUES (TG_TABLE_NAME, current_setting('idle_in_transaction_session_timeout'));
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER UPDATE ON oncemore.run FOR EACH ROW EXECUTE FUNCTION note_idling();
CREATE TRIGGER note AFTER INSERT ON oncemore.schedule_tick FOR EACH ROW EXECUTE FUNCTION note_idling()`)
	note := func(ctx context.Context, tx pgx.Tx, what string) error {
		_, err := tx.Exec(ctx, `INSERT INTO idling VALUES ($1, current_setting('idle_in_transaction_session_timeout'))`, what)
		return err
	}
	source := jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 20) n`)
	set := newSet(t,
		jobs.Job[letter]{Policy: jobs.Policy{Timeout: 25 * time.Second}, Source: source, DoTx: func(ctx context.Context, tx pgx.Tx, _ letter) error { return note(ctx, tx, "a body") }},
		jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return source }})
	begin(t, pool, set, worker.Config{Schedules: []worker.Schedule{{Name: "mailing", Spec: "@every 1s", Args: mailing{1}}}})
	eventuallyRow(t, pool, "a run has ended", `SELECT EXISTS (SELECT FROM oncemore.run WHERE ended_at IS NOT NULL)`)
	rerun(t, pool, worker.Order{Type: "letter", By: "anna", Reason: "the outage of Friday"})
	eventuallyRow(t, pool, "the re-run has ended", `SELECT EXISTS (SELECT FROM oncemore.run WHERE selection IS NOT NULL AND ended_at IS NOT NULL)`)
	const want = "a body 30s, run 1min, schedule_tick 1min"
	if got := text(t, pool, `SELECT string_agg(DISTINCT what || ' ' || bound, ', ') FROM idling`); got != want {
		t.Errorf("bounds of transactions: %s, want %s", got, want)
	}
}

// It waits for a connection, and nothing of it has begun: when the worker stops it is let go at once,
// as all that waits is, and not put off as if the database were away.
func TestATransactionThatWaitsForAConnectionIsLetGoAtOnceWhenTheWorkerStops(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	narrow := direct.Config()
	narrow.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(t.Context(), narrow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	g := newGate()
	set := newSet(t, jobs.Job[letter]{DoTx: func(ctx context.Context, _ pgx.Tx, l letter) error { return g.pass(ctx, l.Entity()) }})
	enqueue(t, pgq(direct), letter{1}, letter{2}, letter{3})
	w := begin(t, pool, set, worker.Config{Slots: 3, Grace: 100 * time.Millisecond})
	within(t, "one has begun", g.entered)
	within(t, "another has begun", g.entered)
	mustStop(t, w)
	if n := count(t, direct, `SELECT count(*) FROM oncemore.message WHERE lock IS NULL AND visible_at <= now()`); n != 3 {
		t.Errorf("%d of 3 messages can be received: %s", n, text(t, direct, `SELECT string_agg(format('%s lock %s in %s', entities, lock, visible_at - now()), ', ') FROM oncemore.message`))
	}
}
