package worker

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
)

type sheet struct {
	Name     string `json:"name"`
	Revision int64  `json:"source_version"`
}

func (sheet) JobType() string        { return "sheet" }
func (s sheet) Entity() string       { return s.Name }
func (s sheet) SourceVersion() int64 { return s.Revision }

// A fan-out may name its work by a query or in Go. Where both name the same, both plan the
// same: of every fact beside every claim, for runs of two epochs, first and later.
func TestAFanOutPlansTheSameFromSQLAndFromGo(t *testing.T) {
	pool := pgtest.Pool(t)
	const query = `SELECT name AS entity, name, revision AS source_version FROM sheet`
	inSQL := jobs.SQL[sheet](query)
	inGo := jobs.Seq(func(ctx context.Context, after string) iter.Seq2[sheet, error] {
		return func(yield func(sheet, error) bool) {
			rows, err := pool.Query(ctx, `SELECT name, coalesce(revision, 0) FROM sheet WHERE name > $1 ORDER BY name`, after)
			if err != nil {
				yield(sheet{}, err)
				return
			}
			defer rows.Close()
			var s sheet
			for rows.Next() {
				if err := rows.Scan(&s.Name, &s.Revision); !yield(s, err) || err != nil {
					return
				}
			}
			if err := rows.Err(); err != nil {
				yield(sheet{}, err)
			}
		}
	})
	for name, job := range map[string]jobs.Job[sheet]{
		"Repeatable": {Effect: jobs.Repeatable, Policy: jobs.Policy{Version: 1}, Do: func(context.Context, sheet) error { return nil }},
		"Once":       {Effect: jobs.Once, Do: func(context.Context, sheet) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := jobs.NewSet(job)
			if err != nil {
				t.Fatal(err)
			}
			w, err := New(t.Context(), pool, set, Config{})
			if err != nil {
				t.Fatal(err)
			}
			l, child := &life{Worker: w}, w.kinds["sheet"]
			everySheet(t, pool.Exec, child.ID)
			read, err := readChunk(t.Context(), inGo, child, "")
			if err != nil || read.more {
				t.Fatalf("more: %t, %v", read.more, err)
			}
			for _, r := range []run{{id: 1}, {id: 1, epoch: 3}, {id: 1, planned: true, packs: 7}, {id: 1, epoch: 3, planned: true, packs: 7}} {
				bySQL := tried(t, pool, &r, func(tx pgx.Tx) (planned, error) { return l.planSQL(t.Context(), tx, &r, child, inSQL) })
				byGo := tried(t, pool, &r, func(tx pgx.Tx) (planned, error) { return l.planChunk(t.Context(), tx, &r, child, read) })
				if len(bySQL) < 20 {
					t.Fatalf("the plan is poor: %v", bySQL)
				}
				without := func(a, b []string) string {
					left := slices.DeleteFunc(slices.Clone(a), func(line string) bool { return slices.Contains(b, line) })
					return fmt.Sprintf("%d, among them\n%s", len(left), strings.Join(left[max(0, len(left)-10):], "\n"))
				}
				slices.Sort(bySQL)
				slices.Sort(byGo)
				if !slices.Equal(bySQL, byGo) {
					t.Errorf("epoch %d, planned before: %t\n--- only from SQL: %s\n--- only from Go: %s", r.epoch, r.planned, without(bySQL, byGo), without(byGo, bySQL))
				}
			}
		})
	}
}

// everySheet fills the tables with a sheet of each kind. Its name tells what it is.
func everySheet[R any](t *testing.T, exec func(context.Context, string, ...any) (R, error), jobType int32) {
	t.Helper()
	for _, statement := range []string{
		`DROP TABLE IF EXISTS sheet`,
		`TRUNCATE oncemore.claim, oncemore.ledger`,
		`CREATE TABLE sheet AS
WITH fact AS (
    SELECT NULL::bigint AS epoch, NULL::int AS version, NULL::bigint AS source, NULL::int AS args
    UNION ALL SELECT * FROM unnest('{0,3}'::bigint[]) e, unnest('{0,1}'::int[]) v, unnest('{0,2}'::bigint[]) s, unnest('{0,1}'::int[]) a
), claim AS (
    SELECT NULL::text AS state, NULL::bigint AS epoch, NULL::bigint AS source, NULL::int AS args
    UNION ALL SELECT * FROM unnest('{living,dead,retrying,failed,in_doubt}'::text[]) c, unnest('{0,3}'::bigint[]) e, unnest('{0,2}'::bigint[]) s, unnest('{0,1}'::int[]) a
), all_of_it AS (
    SELECT r.revision, f.epoch AS f_epoch, f.version AS f_version, f.source AS f_source, f.args AS f_args, c.state, c.epoch AS c_epoch, c.source AS c_source, c.args AS c_args
    FROM unnest('{0,1,2,NULL}'::bigint[]) AS r(revision), fact f, claim c
)
SELECT format('revision %s, fact (%s %s %s %s), claim (%s %s %s %s)', revision, f_epoch, f_version, f_source, f_args, state, c_epoch, c_source, c_args) COLLATE "C" AS name, a.*
FROM all_of_it a`,
		`INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('living', now() + interval '1 day', NULL), ('dead', now(), now() - interval '1 hour')`,
	} {
		if _, err := exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	// Arguments that differ have another fingerprint of the same rule; 0 fits all.
	for _, statement := range []string{
		`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, epoch, version, source_version, attempts, evidence)
SELECT $1, name, f_args * (x'0100000000000001'::bigint), nullif(f_epoch, 0), nullif(f_version, 0), nullif(f_source, 0), 1, 'r' FROM sheet WHERE f_epoch IS NOT NULL`,
		`INSERT INTO oncemore.claim (job_type, entity, fence, owner, trouble, fingerprint, epoch, source_version, run, attempts, args)
SELECT $1, name, nextval('oncemore.fence'), (SELECT min(id) FROM oncemore.worker w WHERE w.name = s.state), CASE WHEN state IN ('retrying', 'failed', 'in_doubt') THEN state END,
       c_args * (x'0100000000000001'::bigint), c_epoch, c_source, 0, 1, '{}' FROM sheet s WHERE state IS NOT NULL`,
	} {
		if _, err := exec(t.Context(), statement, jobType); err != nil {
			t.Fatal(err)
		}
	}
}

// tried plans in a transaction that is rolled back, and tells what came of it.
func tried(t *testing.T, pool interface {
	Begin(context.Context) (pgx.Tx, error)
}, r *run, plan func(pgx.Tx) (planned, error)) (lines []string) {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	p, err := plan(tx)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := tx.Query(t.Context(), `
SELECT 'sent: ' || unnest(entities) FROM oncemore.message WHERE run = $1
UNION ALL SELECT format('revived: %s, %s, %s attempts, run %s', entity, trouble, attempts, run) FROM oncemore.claim WHERE run = $1`, r.id)
	if err == nil {
		lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil {
		t.Fatal(err)
	}
	carried := 0
	for _, line := range lines {
		if strings.HasPrefix(line, "sent: ") {
			carried++
		}
	}
	return append(lines, fmt.Sprintf("%d sent of %d items; %d skipped, %d going, %d failed, %d in doubt", carried, p.items, p.skipped, p.going, p.failed, p.inDoubt))
}
