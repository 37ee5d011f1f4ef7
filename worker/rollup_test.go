package worker_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A past is a ledger with facts that were completed before now.
type past struct {
	testing.TB
	pool *pgxpool.Pool
	now  time.Time // of the server, as it was
	open int       // transactions that the test holds open
}

func newPast(t testing.TB, pool *pgxpool.Pool) *past {
	t.Helper()
	p := &past{TB: t, pool: pool}
	if err := pool.QueryRow(t.Context(), `SELECT now()`).Scan(&p.now); err != nil {
		t.Fatal(err)
	}
	// As in a database that had facts when it was migrated.
	mustExec(t, pool, `UPDATE oncemore.completions_watermark SET closed = NULL`)
	return p
}

// facts adds n facts of a type, completed so long ago.
func (p *past) facts(jobType, n int, ago time.Duration) {
	p.Helper()
	mustExec(p, p.pool, `INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, completed_at)
		SELECT 1, $1, 1, 'r', $2 || ' ' || n, $3 FROM generate_series(1, $4) n`, jobType, ago.String(), p.now.Add(-ago), n)
}

// rolled rolls up to the end, and checks that the sums are what the ledger says.
func (p *past) rolled() worker.Rollup {
	p.Helper()
	r := rollUp(p, p.pool, p.open)
	p.agree()
	return r
}

// rollUp calls RollUp until nothing more can be summed, and it waits for no more than the
// transactions that the test holds open: a session of another test's database that begins
// or ends at that moment may be taken for one of ours.
func rollUp(t testing.TB, pool *pgxpool.Pool, open int) worker.Rollup {
	t.Helper()
	for {
		r, err := worker.RollUp(t.Context(), pool)
		if err != nil {
			t.Fatal(err)
		}
		if !r.More && r.Waiting <= open {
			return r
		}
		time.Sleep(time.Millisecond)
	}
}

// agree fails unless the sums are what counting everything before closed says.
func (p *past) agree() {
	p.Helper()
	var wrong *string
	if err := p.pool.QueryRow(p.Context(), differenceSQL).Scan(&wrong); err != nil {
		p.Fatal(err)
	}
	if wrong != nil {
		p.Errorf("the sums (first) are not what the ledger says (second): %s", *wrong)
	}
}

const differenceSQL = `
WITH w AS (SELECT coalesce(closed, '-infinity') AS closed FROM oncemore.completions_watermark), fact AS (
    SELECT job_type, completed_at FROM oncemore.ledger UNION ALL SELECT job_type, completed_at FROM oncemore.ledger_history
), counted AS (
    SELECT job_type, date_trunc('hour', completed_at) + interval '15 min' * floor(extract(minute FROM completed_at) / 15) AS quarter, count(*) AS n
    FROM fact, w WHERE completed_at < w.closed GROUP BY 1, 2
)
SELECT string_agg(format('type %s at %s: %s, %s', job_type, quarter, q.n, c.n), '; ')
FROM (SELECT q.* FROM oncemore.completions_quarter q, w WHERE q.quarter < w.closed) q FULL JOIN counted c USING (job_type, quarter) WHERE q.n IS DISTINCT FROM c.n`

func closedOf(t testing.TB, pool *pgxpool.Pool) (closed time.Time) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT coalesce(closed, '0001-01-01 00:00Z') FROM oncemore.completions_watermark`).Scan(&closed); err != nil {
		t.Fatal(err)
	}
	return closed
}

func TestClosedQuartersAreSummedOnceAndAreWhatTheLedgerSays(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.Pool(t))
	for i, ago := range []time.Duration{3 * 365 * 24 * time.Hour, 30 * 24 * time.Hour, 25 * time.Hour, 61 * time.Minute, 33 * time.Minute, 20 * time.Minute, 0} {
		p.facts(1+i%2, i+1, ago)
	}
	r := p.rolled()
	if late := p.now.Sub(r.Closed); late < 30*time.Second || late > 17*time.Minute {
		t.Errorf("at %s it is closed up to %s", p.now, r.Closed)
	}
	if r.Waiting != 0 || closedOf(t, p.pool) != r.Closed {
		t.Errorf("%+v, and in the database %s", r, closedOf(t, p.pool))
	}
	again, err := worker.RollUp(t.Context(), p.pool)
	if err != nil || again.Summed != 0 || again.Closed != r.Closed {
		t.Errorf("once more: %+v, %v", again, err)
	}
	// Facts are replaced: what was completed then was completed then.
	mustExec(t, p.pool, `UPDATE oncemore.ledger SET epoch = 7, completed_at = now() WHERE entity LIKE '% 1'`)
	p.agree()
	// The sums are a cache.
	mustExec(t, p.pool, `TRUNCATE oncemore.completions_quarter`)
	mustExec(t, p.pool, `DELETE FROM oncemore.completions_watermark`)
	if r := p.rolled(); closedOf(t, p.pool) != again.Closed || r.Closed != again.Closed {
		t.Errorf("made anew: %+v", r)
	}
}

// The time of a fact is that of its transaction's beginning, and it is seen at its end.
func TestAQuarterIsNotClosedWhileATransactionOfItIsOpen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		open func(*past) (end func()) // begins a transaction that adds a fact of an hour ago at its end
	}{
		{"that has done nothing yet", func(p *past) func() {
			tx := p.begin()
			return func() { p.late(tx); p.end(tx) }
		}},
		{"that has written", func(p *past) func() {
			tx := p.begin()
			p.late(tx)
			return func() { p.end(tx) }
		}},
		{"of a role that sees nothing of others", func(p *past) func() {
			tx := p.begin()
			stranger := pgtest.AsStranger(p, p.pool.Config().ConnString())
			mustExec(p, p.pool, `GRANT USAGE ON SCHEMA oncemore TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA oncemore TO PUBLIC`)
			p.pool = stranger
			return func() { p.late(tx); p.end(tx) }
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := newPast(t, pgtest.Pool(t))
			p.facts(1, 10, 2*time.Hour)
			end := test.open(p)
			p.open = 1
			for range 3 {
				if r := p.rolled(); r.Waiting != 1 || !r.Closed.IsZero() {
					t.Fatalf("while it is open: %+v", r)
				}
			}
			end()
			p.open = 0
			if r := p.rolled(); r.Waiting != 0 || r.Closed.IsZero() {
				t.Errorf("when it has ended: %+v", r)
			}
			if !ask(t, p.pool, `SELECT sum(n) = 11 FROM oncemore.completions_quarter`) {
				t.Error("its fact is not among the sums")
			}
		})
	}
}

// begin begins a transaction that ends with the test at the latest.
func (p *past) begin() pgx.Tx {
	p.Helper()
	tx, err := p.pool.Begin(p.Context())
	if err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// late adds a fact as a transaction does that began an hour ago.
func (p *past) late(tx pgx.Tx) {
	p.Helper()
	if _, err := tx.Exec(p.Context(), `INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, completed_at)
		VALUES (1, 1, 1, 'r', 'late', now() - interval '1 hour')`); err != nil {
		p.Fatal(err)
	}
}

func (p *past) end(tx pgx.Tx) {
	p.Helper()
	if err := tx.Commit(p.Context()); err != nil {
		p.Fatal(err)
	}
}

// A transaction that is prepared is open, though no session has it any more.
func TestAQuarterIsNotClosedWhileATransactionOfItIsPrepared(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.OwnPool(t, "max_prepared_transactions=5"))
	p.facts(1, 10, 2*time.Hour)
	conn, err := p.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	run := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, asked := range []string{"before", "after"} { // it was prepared
		run(`BEGIN`)
		p.open = 1
		run(`INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, completed_at) VALUES (1, 1, 1, 'r', '` + asked + `', now() - interval '1 hour')`)
		if asked == "before" {
			if r := p.rolled(); r.Waiting != 1 || !r.Closed.IsZero() {
				t.Fatalf("while a session has it: %+v", r)
			}
		}
		run(`PREPARE TRANSACTION 'two'`)
		mustExec(t, p.pool, `UPDATE oncemore.completions_watermark SET closed = NULL, quiet = NULL`)
		for range 3 {
			if r := p.rolled(); r.Waiting != 1 || !r.Closed.IsZero() {
				t.Fatalf("while it is prepared: %+v", r)
			}
		}
		run(`COMMIT PREPARED 'two'`)
		p.open = 0
		if r := p.rolled(); r.Waiting != 0 || r.Closed.IsZero() {
			t.Errorf("when it has ended: %+v", r)
		}
	}
}

func TestWhatIsOfNoConcernHoldsUpNoQuarter(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.Pool(t))
	p.facts(1, 10, 2*time.Hour)
	elsewhere, err := pgtest.EmptyPool(t).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = elsewhere.Rollback(context.Background()) }()
	if r := p.rolled(); r.Waiting != 0 || r.Closed.IsZero() {
		t.Errorf("a transaction of another database holds it up: %+v", r)
	}
	// One that began after the question was asked is newer than what is to be closed.
	mustExec(t, p.pool, `UPDATE oncemore.completions_watermark SET closed = NULL, quiet = NULL, asked = now(), running = '{0/0}'`)
	p.begin()
	if r := p.rolled(); r.Waiting != 0 || r.Closed.IsZero() {
		t.Errorf("a transaction that began later holds it up: %+v", r)
	}
}

func TestManyWhoRollUpAtOnceSumEachFactOnce(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.Pool(t))
	for day := range 60 {
		p.facts(1, 50, time.Duration(day)*23*time.Hour+time.Hour)
	}
	// Half of them as behind a pooler.
	cfg := p.pool.Config()
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pooled, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer pooled.Close()
	var all sync.WaitGroup
	var mu sync.Mutex
	summed := int64(0)
	for i := range 8 {
		pool := []*pgxpool.Pool{p.pool, pooled}[i%2]
		all.Go(func() {
			for range 20 {
				r, err := worker.RollUp(t.Context(), pool)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				summed += r.Summed
				mu.Unlock()
			}
		})
	}
	all.Wait()
	p.rolled()
	if !ask(t, p.pool, `SELECT sum(n) = 3000 FROM oncemore.completions_quarter`) || summed > 3000 {
		t.Errorf("they say that they summed %d of 3000", summed)
	}
}

// Of a step that is broken off nothing is left, and the next one does it.
func TestACrashBetweenTheSumsAndTheWatermarkLeavesNeither(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.Pool(t))
	p.facts(1, 10, 2*time.Hour)
	mustExec(t, p.pool, `
CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF new.closed > now() - interval '1 day' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN new; END $$;
CREATE TRIGGER crash AFTER UPDATE ON oncemore.completions_watermark FOR EACH ROW EXECUTE FUNCTION crash()`)
	for range 2 {
		r, err := worker.RollUp(t.Context(), p.pool)
		for steps := 0; err == nil && steps < 100; steps++ { // it may close some of the past first, and wait
			r, err = worker.RollUp(t.Context(), p.pool)
		}
		if err == nil {
			t.Fatalf("it went through: %+v", r)
		}
		p.agree()
		if !ask(t, p.pool, `SELECT count(*) = 0 FROM oncemore.completions_quarter WHERE quarter > now() - interval '1 day'`) {
			t.Fatal("sums without their watermark are left")
		}
	}
	mustExec(t, p.pool, `DROP FUNCTION crash CASCADE`)
	if r := p.rolled(); r.Closed.IsZero() || !ask(t, p.pool, `SELECT sum(n) = 10 FROM oncemore.completions_quarter`) {
		t.Errorf("afterwards: %+v", r)
	}
}

func TestAWorkerKeepsTheStatistics(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.Pool(t))
	p.facts(1, 10, 2*time.Hour)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(context.Context, letter) error { return nil }})
	w := newWorker(t, p.pool, set, worker.Config{})
	w.SetRollEvery(10 * time.Millisecond)
	r := runWorker(t, w)
	eventuallyRow(t, p.pool, "the facts are summed", `SELECT coalesce(sum(n), 0) = 10 FROM oncemore.completions_quarter`)
	mustStop(t, r)
	p.agree()
}

func TestWhereNothingIsDueOneRowIsReadAndNoneWritten(t *testing.T) {
	t.Parallel()
	p := newPast(t, pgtest.Pool(t))
	p.rolled()
	mustExec(t, p.pool, `UPDATE oncemore.completions_watermark SET closed = now() + interval '1 hour'`)
	writes := func() (n string) {
		if err := p.pool.QueryRow(t.Context(), `SELECT xmin || ' ' || ctid FROM oncemore.completions_watermark`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := writes()
	for range 3 {
		if r, err := worker.RollUp(t.Context(), p.pool); err != nil || r.Summed+int64(r.Waiting) != 0 || r.More {
			t.Errorf("%+v, %v", r, err)
		}
	}
	if after := writes(); after != before {
		t.Errorf("the row was %s and is %s", before, after)
	}
}
