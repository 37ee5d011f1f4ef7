package ledger_test

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// The claim table is empty when a worker starts, and may hold a hundred thousand rows
// after an outage. Statements that were prepared then must still reach their rows by key.
func TestPlansMadeForAnEmptyTableStayByKeyWhenItGrows(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	cfg := w.pool.Config().ConnConfig
	cfg.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	w.ok(err)
	defer conn.Close(t.Context())
	do := func(sql string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
		w.ok(err)
	}
	// An analyzed empty table is the worst case: it is known to be empty.
	do(`VACUUM ANALYZE oncemore.claim`)
	do(`VACUUM ANALYZE oncemore.ledger`)
	names := map[string]string{}
	for what, s := range ledger.HotStatements {
		names[what] = "hot_" + strings.ReplaceAll(what, " ", "_")
		do(`PREPARE ` + names[what] + ` AS ` + s.SQL)
		for range 6 {
			do(`BEGIN`)
			do(ledger.SteadyPlans)
			do(`EXECUTE ` + names[what] + `(` + s.Args + `)`)
			do(`ROLLBACK`)
		}
	}
	w.exec(`ALTER TABLE oncemore.claim SET (autovacuum_enabled = off)`) // nothing shall make the plans anew
	w.exec(`INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
		SELECT n, 1, 0, 0, 0, 1, 1, 'e' || n, '{}' FROM generate_series(1, 50000) n`)
	w.exec(`INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity) SELECT 1, 1, 1, 'r', 'f' || n FROM generate_series(1, 50000) n`)
	for what, s := range ledger.HotStatements {
		do(`BEGIN`)
		do(ledger.SteadyPlans)
		rows, err := conn.Query(t.Context(), `EXPLAIN EXECUTE `+names[what]+`(`+s.Args+`)`, pgx.QueryExecModeSimpleProtocol)
		w.ok(err)
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		w.ok(err)
		plan := strings.Join(lines, "\n")
		for _, bad := range []string{"Seq Scan on claim", "Seq Scan on ledger", "Hash Join", "Merge Join", "Seq Scan on worker", "Filter: (entity"} {
			if strings.Contains(plan, bad) {
				t.Errorf("%s has a %s:\n%s", what, bad, plan)
			}
		}
		do(`ROLLBACK`)
	}
}
