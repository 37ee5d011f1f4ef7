package integration_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

type (
	chargeOrder struct{ ID int64 }
	chargeAll   struct{ Day int }
)

func (chargeOrder) JobType() string  { return "charge_order" }
func (chargeAll) JobType() string    { return "charge_all" }
func (a chargeOrder) Entity() string { return jobs.Key(a.ID) }
func (a chargeAll) Entity() string   { return jobs.Key(a.Day) }

// The accident of the first day: an application with a history begins to use the ledger, and
// whoever calls has all of it done again. docs/adopting.md says how it does not happen.
func TestWhatWasDoneBeforeThereWasALedgerIsAdoptedAndNotDoneAgain(t *testing.T) {
	t.Parallel()
	for way, how := range map[string]struct {
		version int
		adopt   func(*testing.T, *pgxpool.Pool, *jobs.Set)
	}{
		"in SQL": {0, func(t *testing.T, db *pgxpool.Pool, _ *jobs.Set) {
			if _, err := db.Exec(t.Context(), sqlBlock(t, "adopting.md", "oncemore.ledger")); err != nil {
				t.Fatal(err)
			}
		}},
		"in Go": {3, func(t *testing.T, db *pgxpool.Pool, set *jobs.Set) {
			recordCharged(t, db, set, `SELECT id FROM orders WHERE charged_at IS NOT NULL ORDER BY id`)
		}},
	} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			db := pgtest.Pool(t)
			must := func(sql string) {
				t.Helper()
				if _, err := db.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			must(`CREATE TABLE orders (id bigint PRIMARY KEY, charged_at timestamptz)`)
			must(`CREATE TABLE charge (order_id bigint)`)
			must(`INSERT INTO orders SELECT n, CASE WHEN n <= 90 THEN now() END FROM generate_series(1, 100) n`)
			all := jobs.SQL[chargeOrder](`SELECT o.id::text AS entity, o.id AS "ID" FROM orders o`)
			set, err := jobs.NewSet(
				jobs.Job[chargeOrder]{Source: all, Policy: jobs.Policy{Version: how.version}, DoTx: func(ctx context.Context, tx pgx.Tx, a chargeOrder) error {
					_, err := tx.Exec(ctx, `INSERT INTO charge VALUES ($1)`, a.ID)
					return err
				}},
				jobs.Job[chargeAll]{FanOut: func(chargeAll) jobs.Source { return all }})
			if err != nil {
				t.Fatal(err)
			}
			missing := func(want int64) {
				t.Helper()
				n, _, err := admin.CountMissing(t.Context(), db, set, "charge_order", time.Minute)
				if err != nil || n.N != want {
					t.Errorf("%d are missing, %v; want %d", n.N, err, want)
				}
			}
			workertest.Run(t, db, set) // the workers come up, and nobody calls
			missing(100)
			how.adopt(t, db, set)
			how.adopt(t, db, set) // once more, when the old way is switched off
			missing(10)
			workertest.Run(t, db, set, chargeAll{1}, chargeOrder{17}, chargeOrder{100})
			var charges, old, adopted int
			if err := db.QueryRow(t.Context(), `SELECT count(*), count(*) FILTER (WHERE order_id <= 90) FROM charge`).Scan(&charges, &old); err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRow(t.Context(), `SELECT count(*) FROM oncemore.ledger WHERE evidence = 'a'`).Scan(&adopted); err != nil {
				t.Fatal(err)
			}
			if charges != 10 || old != 0 || adopted != 90 {
				t.Errorf("%d orders were charged, %d of them for the second time, and %d are adopted; want 10, 0 and 90", charges, old, adopted)
			}
		})
	}
}

// recordCharged records the orders that a query names as charged, as docs/adopting.md does in Go.
func recordCharged(t *testing.T, db *pgxpool.Pool, set *jobs.Set, query string) {
	t.Helper()
	job, _ := set.Lookup("charge_order")
	typ := &ledger.Type{Name: job.Type, Effect: job.Effect, Version: job.Version}
	if err := ledger.New(db).Register(t.Context(), typ, job.Aliases...); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(t.Context(), db, func(tx pgx.Tx) error {
		rows, _ := tx.Query(t.Context(), query)
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		wants := make([]ledger.Want, len(ids))
		for i, id := range ids {
			wants[i] = ledger.Want{Entity: chargeOrder{id}.Entity()}
		}
		_, err = ledger.Record(t.Context(), tx, typ, wants...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What docs/personal-data.md erases is nowhere any more, and nobody else is touched.
func TestAfterTheErasureNoTableHasTheEntity(t *testing.T) {
	t.Parallel()
	db := pgtest.Pool(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%v in %s", err, sql)
		}
	}
	exec(`INSERT INTO oncemore.job_type (name, id) VALUES ('welcome', 1), ('greet', 1), ('other', 2)`)
	for _, who := range []string{"anna@example.com", "bert@example.com"} {
		exec(strings.ReplaceAll(`
INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity) VALUES (0, 1, 1, 'r', 'WHO');
INSERT INTO oncemore.ledger_history SELECT now(), l.* FROM oncemore.ledger l WHERE entity = 'WHO';
INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, trouble, entity, args, error) VALUES (1, 0, 1, 0, 0, 1, 1, 'failed', 'WHO', '{"to":"WHO"}', 'no WHO');
INSERT INTO oncemore.attempt (job_type, number, entity, outcome, error) VALUES (1, 1, 'WHO', 'failed', 'no WHO');
INSERT INTO oncemore.parked (reason, type, entity, body, error, digest) VALUES ('conflict', 'greet', 'WHO', '{"to":"WHO"}', 'conflict', 'WHO');
INSERT INTO oncemore.message (queue, type, entities, args) VALUES ('', 'welcome', '{WHO}', '{"{\"to\":\"WHO\"}"}');
INSERT INTO oncemore.result (expires_at, epoch, job_type, entity, value) VALUES (now(), 0, 1, 'WHO', '"WHO"');
INSERT INTO oncemore.response (expires_at, epoch, job_type, status, entity, headers, body) VALUES (now(), 0, 1, 200, 'WHO', '{}', 'hi WHO');
INSERT INTO oncemore.schedule_tick (tick, at, schedule, outcome, job_type, entity) VALUES (now() + random() * interval '1 day', now(), 'daily', 'started', 'welcome', 'WHO');
INSERT INTO oncemore.audit (entities, actor, action, job_type, sample) VALUES (2, 'carl', 'retry', 'welcome', '{WHO,x}');
INSERT INTO oncemore.audit (entities, actor, action, job_type, sample) VALUES (2, 'carl', 'drop', '', '{17 greet WHO,18 other x}');
WITH r AS (INSERT INTO oncemore.run (parent_type, parent_entity, job_type, ended_at, cursor) VALUES (1, 'WHO', 1, now(), 'WHO') RETURNING id),
     p AS (INSERT INTO oncemore.run_pack (run, pack, entities, args) SELECT id, 0, '{WHO}', '{"{\"to\":\"WHO\"}"}' FROM r)
INSERT INTO oncemore.run_event (run, kind, detail) SELECT id, 'opened', 'for WHO' FROM r;
INSERT INTO oncemore.run (parent_type, parent_entity, job_type, ended_at, selection) VALUES (3, 'k', 1, now(), '{"force":true,"entities":["WHO","x"]}')`, "WHO", who))
	}
	found := func(words string) (tables []string) {
		t.Helper()
		rows, _ := db.Query(t.Context(), `SELECT relname::text FROM pg_class WHERE relnamespace = 'oncemore'::regnamespace AND relkind = 'r' ORDER BY 1`)
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			var is bool
			// bytea is shown in hexadecimal, so it is looked for so as well.
			err := db.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM oncemore.`+pgx.Identifier{name}.Sanitize()+` r
WHERE strpos(r::text, $1) > 0 OR strpos(r::text, encode($1::bytea, 'hex')) > 0)`, words).Scan(&is)
			if err != nil {
				t.Fatal(err)
			}
			if is {
				tables = append(tables, name)
			}
		}
		return tables
	}
	before := found("bert@example.com")
	if len(before) != 13 || len(found("anna@example.com")) != 13 {
		t.Fatalf("the story does not reach all tables: %q", before)
	}
	erase := sqlBlock(t, "personal-data.md", "DELETE FROM oncemore.ledger ")
	exec(strings.NewReplacer(`:'type'`, `'welcome'`, `:'entity'`, `'anna@example.com'`).Replace(erase))
	if left := found("anna@example.com"); len(left) > 0 {
		t.Errorf("it is still in %q", left)
	}
	if after := found("bert@example.com"); len(after) != len(before) {
		t.Errorf("the neighbour is in %q, and was in %q", after, before)
	}
	if _, err := db.Exec(t.Context(), `DELETE FROM oncemore.audit`); err == nil {
		t.Error("the audit is no longer append-only")
	}
}
