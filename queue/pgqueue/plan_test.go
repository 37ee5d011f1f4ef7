package pgqueue

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// A prepared statement keeps the plan that it got when its table was empty, and the
// statistics may be of a moment when all messages were ready, or none. Whatever they
// say, each statement reaches its rows by its own index, in order.
func TestPlansHoldWhenTheTableGrows(t *testing.T) {
	pool := pgtest.Pool(t)
	ctx := t.Context()
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec(`SET plan_cache_mode = force_generic_plan`)
	exec(`VACUUM oncemore.message`)
	exec(`VACUUM oncemore.message_receive`)
	statements := map[string]struct {
		sql, args string
		uses      []string
	}{
		"claim_all":    {claimAllSQL, `'', (-32768)::smallint, 0, 100, 1000`, []string{"Index Scan using message_ready", "Index Cond: ((queue = $1) AND (ROW((- priority), id) >= ROW($2, $3)))", "Tid Scan"}},
		"claim_types":  {claimTypesSQL, `'', 0::smallint, 7, 100, 1000, '{t}'`, []string{"Index Scan using message_ready", "Tid Scan"}},
		"wake_delayed": {wakeDelayedSQL, `'', '-infinity', 100`, []string{"Scan using message_delayed", "visible_at <= now()) AND (visible_at >= $2)", "Tid Scan"}},
		"wake_lapsed":  {wakeLapsedSQL, `'', '-infinity', 100`, []string{"Scan using message_receive_check", "Index Scan using message_pkey", "Tid Scan"}},
		"ack":          {ackSQL, `'{1,2,3}', 1`, []string{"Index Scan using message_pkey"}},
		"extend":       {extendSQL, `'{1,2,3}', 1, 1000`, []string{"Index Scan using message_pkey"}},
		"release":      {releaseSQL, `'{1,2,3}', 1, 1000`, []string{"Index Scan using message_pkey"}},
	}
	check := func(when string) {
		t.Helper()
		for name, s := range statements {
			exec(`BEGIN`)
			exec(plansSQL)
			if when == "empty" {
				exec(`PREPARE ` + name + ` AS ` + s.sql)
			}
			rows, err := conn.Query(ctx, `EXPLAIN EXECUTE `+name+`(`+s.args+`)`, pgx.QueryExecModeSimpleProtocol)
			if err != nil {
				t.Fatal(err)
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			exec(`COMMIT`)
			plan := strings.Join(lines, "\n")
			for _, use := range s.uses {
				if !strings.Contains(plan, use) {
					t.Errorf("%s, %s: the plan does not say %q\n%s", when, name, use, plan)
				}
			}
			for _, line := range lines {
				if strings.Contains(line, "Seq Scan on message") || strings.Contains(line, "Sort") {
					t.Errorf("%s, %s: %s\n%s", when, name, line, plan)
				}
			}
		}
	}
	check("empty")
	grow := `INSERT INTO oncemore.message (queue, type, entities, args, lock) SELECT '', 't', '{e}', '{1}', `
	exec(grow + `NULL FROM generate_series(1, 20000)`)
	check("all ready, statistics old")
	exec(`ANALYZE oncemore.message`)
	check("all ready")
	exec(grow + `0 FROM generate_series(1, 60000)`)
	exec(grow + `i FROM generate_series(1, 60000) i`)
	exec(`INSERT INTO oncemore.message_receive (lock, check_at, queue, ids) SELECT i, now(), '', ARRAY[i] FROM generate_series(1, 60000) i`)
	check("mostly held and delayed, statistics old")
	exec(`ANALYZE oncemore.message`)
	exec(`ANALYZE oncemore.message_receive`)
	check("mostly held and delayed")
	exec(`TRUNCATE oncemore.message`)
	exec(`VACUUM ANALYZE oncemore.message`)
	check("empty again")
}
