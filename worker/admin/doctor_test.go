package admin_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/migrations"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// examine makes the checks of one name.
func examine(t *testing.T, pool *pgxpool.Pool, name string, l admin.Limits) []admin.Check {
	t.Helper()
	if !slices.Contains(admin.CheckNames(), name) {
		t.Fatalf("there is no check %s", name)
	}
	skip := slices.DeleteFunc(admin.CheckNames(), func(n string) bool { return n == name })
	checks, err := admin.Diagnose(t.Context(), pool, l, skip...)
	if err != nil {
		t.Fatal(err)
	}
	if len(checks) == 0 {
		t.Fatalf("%s says nothing", name)
	}
	for _, c := range checks {
		if c.Name != name || c.Found == "" || (c.State == admin.Bad || c.State == admin.Warn) && c.Do == "" {
			t.Errorf("not a whole check: %+v", c)
		}
	}
	return checks
}

// says expects a check in a state that says something, and returns it.
func says(t *testing.T, checks []admin.Check, state admin.Health, text string) admin.Check {
	t.Helper()
	for _, c := range checks {
		if c.State == state && strings.Contains(c.Found, text) {
			return c
		}
	}
	t.Errorf("no check is %s and says %q: %+v", state, text, checks)
	return admin.Check{}
}

func healthy(t *testing.T, checks []admin.Check) {
	t.Helper()
	for _, c := range checks {
		if c.State != admin.OK {
			t.Errorf("%+v", c)
		}
	}
}

func TestADatabaseThatIsFitHasNothingToBeDone(t *testing.T) {
	s := newScene(t)
	w := s.worker("anna")
	mail := s.kind("mail", ledger.Repeatable)
	s.complete(mail, w, "a")
	s.claim(mail, w, "b")
	s.ok(pgqueue.New(s.pool, "").Send(t.Context(), queue.Message{Type: "mail", Items: []queue.Item{{Entity: "c", Args: []byte(`{}`)}}}))
	if _, err := pgqueue.New(s.pool, "").Receive(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	// The tests' own server may not sync, and is used by others beside this test.
	checks, err := admin.Diagnose(t.Context(), s.pool, admin.Limits{}, "settings", "connections", "replication")
	s.ok(err)
	healthy(t, checks)
	if len(checks) != len(admin.CheckNames())-3 || admin.Worst(checks) != admin.OK {
		t.Errorf("%+v", checks)
	}
}

func TestASchemaThatIsNotThereOrBehindIsBadAndTheRestIsUnseen(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	says(t, examine(t, pool, "schema", admin.Limits{}), admin.Bad, "migrations are not applied")
	for _, name := range []string{"indexes", "workers", "leases", "lives", "owners", "waiting", "held"} {
		says(t, examine(t, pool, name, admin.Limits{}), admin.Unseen, "")
	}
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	healthy(t, examine(t, pool, "schema", admin.Limits{}))
	if _, err := pool.Exec(t.Context(), `INSERT INTO oncemore.migration (version_id, is_applied) VALUES (9000, true)`); err != nil {
		t.Fatal(err)
	}
	says(t, examine(t, pool, "schema", admin.Limits{}), admin.Warn, "9000")
}

// What the check expects is read from the text of the schema: here is what holds it
// against a database.
func TestTheExpectedIndexesAreThoseThatTheMigrationsMake(t *testing.T) {
	s := newScene(t)
	rows, err := s.pool.Query(t.Context(), `SELECT indexname::text FROM pg_indexes WHERE schemaname = 'oncemore' ORDER BY 1`)
	s.ok(err)
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.ok(err)
	expected, _ := admin.SchemaIndexes(migrations.SQL())
	slices.Sort(expected)
	if !slices.Equal(expected, there) {
		t.Errorf("expected are\n%s\nthere are\n%s", strings.Join(expected, "\n"), strings.Join(there, "\n"))
	}
}

func TestEachIndexThatIsDroppedIsMissedAndCanBeRestoredAsItIsSaid(t *testing.T) {
	s := newScene(t)
	expected, _ := admin.SchemaIndexes(migrations.SQL())
	for _, name := range expected {
		if name == "migration_pkey" {
			continue // goose's own
		}
		var constraint *string
		var table string
		s.ok(s.pool.QueryRow(t.Context(), `SELECT k.conname::text, i.indrelid::regclass::text FROM pg_index i LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid
			WHERE i.indexrelid = ('oncemore.' || $1)::regclass`, name).Scan(&constraint, &table))
		if constraint != nil {
			s.exec(`ALTER TABLE ` + table + ` DROP CONSTRAINT ` + name)
		} else {
			s.exec(`DROP INDEX oncemore.` + name)
		}
		c := says(t, examine(t, s.pool, "indexes", admin.Limits{}), admin.Bad, name+" is missing")
		s.exec(c.Do)
		healthy(t, examine(t, s.pool, "indexes", admin.Limits{}))
	}
}

func TestAnInvalidIndexIsNamed(t *testing.T) {
	s := newScene(t)
	s.exec(`UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'oncemore.message_run'::regclass`) // as a CREATE INDEX CONCURRENTLY that failed leaves it
	c := says(t, examine(t, s.pool, "indexes", admin.Limits{}), admin.Bad, "message_run is invalid")
	s.exec(c.Do)
	healthy(t, examine(t, s.pool, "indexes", admin.Limits{}))
}

func TestAPlanThatReadsAWholeTableIsNamedWithItsStatement(t *testing.T) {
	s := newScene(t)
	healthy(t, examine(t, s.pool, "plans", admin.Limits{}))
	names, restore := admin.SchemaIndexes(migrations.SQL())
	for _, c := range []struct{ index, drop, statement, says string }{
		{"message_ready", `DROP INDEX oncemore.message_ready`, `"receive"`, "does not use the index message_ready"},
		{"message_delayed", `DROP INDEX oncemore.message_delayed`, `"wake delayed"`, "does not use the index message_delayed"},
		{"claim_pkey", `ALTER TABLE oncemore.claim DROP CONSTRAINT claim_pkey`, `"takeover"`, "reads all of claim"},
		{"claim_pkey", `ALTER TABLE oncemore.claim DROP CONSTRAINT claim_pkey`, `"claim" has no plan`, "no unique or exclusion constraint"},
		{"ledger_pkey", `ALTER TABLE oncemore.ledger DROP CONSTRAINT ledger_pkey`, `"facts"`, "reads all of ledger"},
	} {
		s.exec(c.drop)
		checks := examine(t, s.pool, "plans", admin.Limits{})
		says(t, checks, admin.Bad, c.statement)
		says(t, checks, admin.Bad, c.says)
		s.exec(restore[slices.Index(names, c.index)])
		healthy(t, examine(t, s.pool, "plans", admin.Limits{}))
	}
	// It leaves no prepared statement behind, of those that have a plan and of those that have none.
	config := s.pool.Config()
	config.MaxConns = 1
	single, err := pgxpool.NewWithConfig(t.Context(), config)
	s.ok(err)
	defer single.Close()
	s.exec(`ALTER TABLE oncemore.claim DROP CONSTRAINT claim_pkey`)
	says(t, examine(t, single, "plans", admin.Limits{}), admin.Bad, `"claim" has no plan`)
	var left int
	s.ok(single.QueryRow(t.Context(), `SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'oncemore%'`).Scan(&left))
	if left != 0 {
		t.Errorf("%d prepared statements are left", left)
	}
}

func TestAnOldTransactionIsNamedWithItsSession(t *testing.T) {
	s := newScene(t)
	tx, err := s.pool.Begin(t.Context())
	s.ok(err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	var pid int
	s.ok(tx.QueryRow(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid))
	s.exec(`SELECT pg_sleep(0.2)`)
	limit := admin.Limits{OldTransaction: 100 * time.Millisecond}
	checks := examine(t, s.pool, "transactions", limit)
	c := checks[0]
	if c.State != admin.Warn && c.State != admin.Bad || !strings.Contains(c.Found, fmt.Sprintf("pid %d, idle in transaction", pid)) || !strings.Contains(c.Do, fmt.Sprint(pid)) {
		t.Errorf("%+v", checks)
	}
	healthy(t, examine(t, s.pool, "transactions", admin.Limits{}))
	limit.OldTransaction = time.Millisecond // 12 times that has long passed
	says(t, examine(t, s.pool, "transactions", limit), admin.Bad, fmt.Sprint(pid))
	s.ok(tx.Rollback(t.Context()))
	limit.OldTransaction = time.Minute
	healthy(t, examine(t, s.pool, "transactions", limit))
}

func TestATableWithoutAutovacuumIsBad(t *testing.T) {
	s := newScene(t)
	s.exec(`ALTER TABLE oncemore.claim SET (autovacuum_enabled = off)`)
	c := says(t, examine(t, s.pool, "autovacuum", admin.Limits{}), admin.Bad, "off for oncemore.claim")
	s.exec(c.Do)
	healthy(t, examine(t, s.pool, "autovacuum", admin.Limits{}))
	s.exec(`ALTER TABLE oncemore.ledger RESET (autovacuum_vacuum_insert_scale_factor)`)
	says(t, examine(t, s.pool, "autovacuum", admin.Limits{}), admin.Warn, "oncemore.ledger has lost its setting autovacuum_vacuum_insert_scale_factor")
}

func TestDeadRowsThatStayAreCounted(t *testing.T) {
	s := newScene(t)
	s.exec(`ALTER TABLE oncemore.claim SET (autovacuum_enabled = off)`)
	conn, err := s.pool.Acquire(t.Context())
	s.ok(err)
	defer conn.Release()
	for _, sql := range []string{
		`INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, entity, args) SELECT n, 1, 0, 0, 0, 1, 1, 'e' || n, '{}' FROM generate_series(1, 2000) n`,
		`DELETE FROM oncemore.claim`,
		`SELECT pg_stat_force_next_flush()`, // else a session reports its counts when it likes
	} {
		_, err := conn.Exec(t.Context(), sql)
		s.ok(err)
	}
	c := says(t, examine(t, s.pool, "dead-rows", admin.Limits{DeadRows: 1000}), admin.Warn, "oncemore.claim 0 live, 2,000 dead, vacuumed never")
	if !strings.Contains(c.Do, "VACUUM oncemore.claim") {
		t.Errorf("%+v", c)
	}
	says(t, examine(t, s.pool, "dead-rows", admin.Limits{DeadRows: 100}), admin.Bad, "oncemore.claim")
	healthy(t, examine(t, s.pool, "dead-rows", admin.Limits{}))
}

func TestTheAgeOfTheOldestTransactionNumberIsTold(t *testing.T) {
	s := newScene(t)
	says(t, examine(t, s.pool, "wraparound", admin.Limits{}), admin.OK, "transactions and")
	s.exec(`INSERT INTO oncemore.parked (reason, type, entity, body, error, digest) VALUES ('a', 'b', 'c', 'd', 'e', 'f')`) // which has a number
	s.exec(`UPDATE oncemore.parked SET times = 2`)
	c := says(t, examine(t, s.pool, "wraparound", admin.Limits{XIDAge: 1}), admin.Warn, "since the last freeze")
	if !strings.Contains(c.Do, "FREEZE") {
		t.Errorf("%+v", c)
	}
}

func TestSettingsThatLoseOrCutWorkAreNamed(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        admin.Health
	}{
		{"fsync", "on", admin.OK}, {"fsync", "off", admin.Bad},
		{"full_page_writes", "off", admin.Bad},
		{"synchronous_commit", "off", admin.Bad}, {"synchronous_commit", "local", admin.OK}, {"synchronous_commit", "remote_apply", admin.OK},
		{"default_transaction_isolation", "serializable", admin.Warn}, {"default_transaction_isolation", "read committed", admin.OK},
		{"statement_timeout", "0", admin.OK}, {"statement_timeout", "5000", admin.Warn}, {"statement_timeout", "5s", admin.Warn}, {"statement_timeout", "1min", admin.OK}, {"statement_timeout", "30000", admin.OK},
		{"idle_in_transaction_session_timeout", "10s", admin.Warn}, {"idle_in_transaction_session_timeout", "1h", admin.OK},
		{"transaction_timeout", "500ms", admin.Warn}, {"lock_timeout", "100", admin.Warn},
	} {
		if got := admin.JudgeSetting(c.name, c.value); got != c.want {
			t.Errorf("%s = %s is %s, want %s", c.name, c.value, got, c.want)
		}
	}

	s := newScene(t)
	var database string
	s.ok(s.pool.QueryRow(t.Context(), `SELECT current_database()`).Scan(&database))
	role := database + "_slow"
	s.exec(`CREATE ROLE ` + role)
	s.exec(`ALTER ROLE ` + role + ` IN DATABASE ` + database + ` SET synchronous_commit = off`)
	s.exec(`ALTER DATABASE ` + database + ` SET statement_timeout = '7s'`)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY `, `DROP ROLE `} {
			if _, err := s.pool.Exec(context.Background(), sql+role); err != nil {
				t.Error(err)
			}
		}
	})
	s.pool.Reset() // settings are of new sessions
	checks := examine(t, s.pool, "settings", admin.Limits{})
	says(t, checks, admin.Warn, "statement_timeout = 7000: ") // of this very session
	says(t, checks, admin.Bad, "synchronous_commit = off for the role "+role)
}

func TestWorkersThatAreSilentDeadOrGoneAreToldApart(t *testing.T) {
	s := newScene(t)
	mail := s.kind("mail", ledger.Repeatable)
	anna := s.worker("anna")
	s.claim(mail, anna, "a", "b")
	lapse := func(d string) {
		s.exec(`UPDATE oncemore.worker SET expires = clock_timestamp() - $1::interval WHERE name = 'anna'`, d)
	}
	s.dies(s.worker("zoe")) // dead for long, as most are
	s.exec(`UPDATE oncemore.worker SET expires = clock_timestamp() - interval '1 day' WHERE name = 'zoe'`)
	lapse("5 seconds")
	healthy(t, examine(t, s.pool, "leases", admin.Limits{}))
	says(t, examine(t, s.pool, "workers", admin.Limits{}), admin.Bad, "none is alive, and there is work")
	lapse("5 minutes")
	says(t, examine(t, s.pool, "leases", admin.Limits{}), admin.Warn, "nobody lives to declare it dead: 2 claims wait")
	s.worker("bert")
	s.exec(`UPDATE oncemore.worker SET started_at = started_at - interval '1 hour' WHERE name = 'bert'`)
	says(t, examine(t, s.pool, "leases", admin.Limits{}), admin.Bad, "the living have not declared it dead")
	healthy(t, examine(t, s.pool, "workers", admin.Limits{}))

	// Somebody has tidied up the table of workers.
	healthy(t, examine(t, s.pool, "owners", admin.Limits{}))
	s.exec(`DELETE FROM oncemore.worker WHERE name = 'anna'`)
	c := says(t, examine(t, s.pool, "owners", admin.Limits{}), admin.Bad, "2 claims are held by workers that have no row")
	_, sql, _ := strings.Cut(c.Do, ": ")
	s.exec(sql)
	healthy(t, examine(t, s.pool, "owners", admin.Limits{}))
	if list := s.opens(stranded, admin.Filter{}, admin.Page{Limit: 9}); list.Of.N != 2 {
		t.Errorf("after that they are not stranded: %+v", list)
	}
}

func TestAWorkerThatBeginsAgainAndAgainIsNamed(t *testing.T) {
	s := newScene(t)
	s.exec(`INSERT INTO oncemore.worker (name, expires, dead_at, cause) SELECT 'pod-7/1', now(), now(), CASE WHEN n <= 3 THEN 'lapsed' ELSE 'stopped' END FROM generate_series(1, 5) n`)
	s.exec(`INSERT INTO oncemore.worker (name, expires, dead_at, cause) SELECT 'pod-8/1', now(), now(), CASE WHEN n <= 2 THEN 'lapsed' ELSE 'stopped' END FROM generate_series(1, 9) n`)
	checks := examine(t, s.pool, "lives", admin.Limits{})
	says(t, checks, admin.Warn, "pod-7/1 began 5 lives within an hour, and 3 ended without a word")
	if len(checks) != 1 {
		t.Errorf("who is stopped and started is named as well: %+v", checks)
	}
	s.exec(`UPDATE oncemore.worker SET started_at = started_at - interval '2 hours'`)
	healthy(t, examine(t, s.pool, "lives", admin.Limits{}))
}

func TestMessagesThatNobodyTakesAreNamedWithTheirReason(t *testing.T) {
	s := newScene(t)
	s.kind("mail", ledger.Repeatable)
	s.send(queue.Message{Type: "mail"}, "a")
	s.send(queue.Message{Type: "mail", Delay: time.Hour}, "b")
	s.send(queue.Message{Type: "male"}, "c")
	healthy(t, examine(t, s.pool, "waiting", admin.Limits{}))
	s.exec(`UPDATE oncemore.message SET visible_at = clock_timestamp() - interval '10 minutes'`)
	checks := examine(t, s.pool, "waiting", admin.Limits{})
	found := map[string]string{}
	for _, c := range checks {
		found[c.Found+" "+c.Do] = string(c.State)
	}
	if len(checks) != 3 {
		t.Errorf("%+v", checks)
	}
	says(t, checks, admin.Warn, `1 messages of mail have been due in queue "" for up to 10m`)
	if c := says(t, checks, admin.Warn, "of male"); !strings.Contains(c.Do, "no worker has ever known this type") {
		t.Errorf("%+v", c)
	}
	s.exec(`UPDATE oncemore.message SET visible_at = clock_timestamp() - interval '2 hours'`)
	says(t, examine(t, s.pool, "waiting", admin.Limits{}), admin.Bad, "up to 2h")
}

func TestAHeldMessageThatNoReceiveNamesIsBadAndCanBeFreed(t *testing.T) {
	s := newScene(t)
	receive := func() int {
		ds, err := pgqueue.New(s.pool, "").Receive(t.Context(), 1, nil)
		s.ok(err)
		return len(ds)
	}
	s.send(queue.Message{Type: "mail"}, "a")
	s.send(queue.Message{Type: "mail"}, "b")
	for range 2 {
		if receive() != 1 {
			t.Fatal("a message was not received")
		}
	}
	says(t, examine(t, s.pool, "held", admin.Limits{}), admin.OK, "2 messages are held")
	s.exec(`UPDATE oncemore.message_receive SET check_at = clock_timestamp() - interval '10 minutes'`)
	says(t, examine(t, s.pool, "held", admin.Limits{}), admin.Warn, `2 receives of queue "" should have been looked at 10m ago`)
	s.exec(`UPDATE oncemore.message_receive SET check_at = clock_timestamp() + interval '10 minutes'`)
	s.exec(`DELETE FROM oncemore.message_receive WHERE lock = (SELECT lock FROM oncemore.message WHERE entities = '{a}')`)
	c := says(t, examine(t, s.pool, "held", admin.Limits{}), admin.Bad, "1 held messages are named by no receive")
	_, sql, _ := strings.Cut(c.Do, ": ")
	s.exec(sql)
	says(t, examine(t, s.pool, "held", admin.Limits{}), admin.OK, "1 messages are held")
	if receive() != 1 {
		t.Error("it does not come again")
	}
}

func TestASlotThatNobodyReadsIsNamed(t *testing.T) {
	s := newScene(t)
	var slot string
	s.ok(s.pool.QueryRow(t.Context(), `SELECT current_database() || '_slot'`).Scan(&slot))
	if _, err := s.pool.Exec(t.Context(), `SELECT pg_create_physical_replication_slot($1, true)`, slot); err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatal("TEST_REQUIRE=1, and this server gives no slot: ", err)
		}
		t.Skip("this server gives no slot: ", err)
	}
	t.Cleanup(func() {
		if _, err := s.pool.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, slot); err != nil {
			t.Error(err)
		}
	})
	says(t, examine(t, s.pool, "replication", admin.Limits{}), admin.Warn, "nobody reads the replication slot "+slot)
}

// A viewer can see most of it, and is told what it cannot see.
func TestARoleThatOnlyReadsIsToldWhatItCannotSee(t *testing.T) {
	s := newScene(t)
	mail := s.kind("mail", ledger.Repeatable)
	w := s.worker("anna")
	s.fail(mail, w, ledger.GaveUp, "x", "no", "a")
	var role string
	s.ok(s.pool.QueryRow(t.Context(), `SELECT current_database() || '_viewer'`).Scan(&role))
	for _, sql := range []string{`CREATE ROLE ` + role, `GRANT USAGE ON SCHEMA oncemore TO ` + role, `GRANT SELECT ON ALL TABLES IN SCHEMA oncemore TO ` + role} {
		s.exec(sql)
	}
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY `, `DROP ROLE `} {
			if _, err := s.pool.Exec(context.Background(), sql+role); err != nil {
				t.Error(err)
			}
		}
	})
	config := s.pool.Config()
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SET ROLE "+role)
		return err
	}
	viewer, err := pgxpool.NewWithConfig(t.Context(), config)
	s.ok(err)
	t.Cleanup(viewer.Close)

	checks, err := admin.Diagnose(t.Context(), viewer, admin.Limits{}, "settings", "connections", "replication")
	s.ok(err)
	for _, c := range checks {
		switch {
		case c.State == admin.Unseen && (c.Name == "plans" || c.Name == "transactions") && c.Do != "":
		case c.State != admin.OK:
			t.Errorf("%+v", c)
		}
	}
	says(t, checks, admin.Unseen, "the plans of")
	says(t, checks, admin.OK, "3 statements reach their rows by index") // those that only read
	says(t, checks, admin.Unseen, "sessions of other roles")
	list := look(&scene{T: t, pool: viewer}, func(tx pgx.Tx) (*admin.List[admin.Open], error) {
		return admin.Failed(t.Context(), tx, nil, admin.Filter{}, admin.Page{Limit: 3})
	})
	if list.Of.N != 1 {
		t.Errorf("%+v", list)
	}
	if status, err := admin.ReadStatus(t.Context(), viewer, nil, admin.StatusOptions{}); err != nil || len(status.Types) != 1 {
		t.Errorf("%+v, %v", status, err)
	}
	if story, err := admin.Tell(t.Context(), viewer, nil, "mail", "a"); err != nil || story.Reason != ledger.Failed || len(story.Unseen) != 0 {
		t.Errorf("%+v, %v", story, err)
	}
	// One that may not even read is told so.
	s.exec(`REVOKE SELECT ON oncemore.worker FROM ` + role)
	c := says(t, examine(t, viewer, "leases", admin.Limits{}), admin.Unseen, "permission denied")
	if c.Do == "" {
		t.Errorf("%+v", c)
	}
}
