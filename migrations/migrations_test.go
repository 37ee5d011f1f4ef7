package migrations_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/migrations"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestUpBringsAnEmptyDatabaseToTheNewestVersion(t *testing.T) {
	pool := pgtest.EmptyPool(t)
	before, err := migrations.Status(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range before {
		if !m.AppliedAt.IsZero() {
			t.Errorf("migration %d is said to be applied to an empty database", m.Version)
		}
	}

	applied, err := migrations.Up(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	if len(applied) != len(before) || applied[0].Name != "core" {
		t.Errorf("Up applied %+v, want all of %+v", applied, before)
	}

	after, err := migrations.Status(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range after {
		if age := time.Since(m.AppliedAt); age < -time.Minute || age > time.Minute {
			t.Errorf("migration %d is said to be applied at %v", m.Version, m.AppliedAt)
		}
	}
}

func TestUpTwiceIsHarmless(t *testing.T) {
	pool := pgtest.Pool(t)
	before := schema(t, pool)
	applied, err := migrations.Up(t.Context(), pool)
	if err != nil || len(applied) != 0 {
		t.Errorf("the second Up: applied %+v, %v; want nothing", applied, err)
	}
	if after := schema(t, pool); after != before {
		t.Errorf("the second Up changed the schema from\n%s\nto\n%s", before, after)
	}
}

// A deploy restarts many processes at once, on few connections.
func TestManyProcessesMigrateAtOnceAndOneDoes(t *testing.T) {
	dsn := pgtest.EmptyDSN(t)
	shared := pool(t, dsn, 2) // fewer connections than callers, all of them busy waiting
	var wg sync.WaitGroup
	var mu sync.Mutex
	migrated := 0
	for i := range 8 {
		p := shared
		if i%2 == 0 {
			p = pool(t, dsn, 1)
		}
		wg.Go(func() {
			applied, err := migrations.Up(t.Context(), p)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(applied) > 0 {
				migrated++
			}
		})
	}
	wg.Wait()
	if migrated != 1 {
		t.Errorf("%d of 8 say that they migrated, want 1", migrated)
	}
	var rows, versions int
	if err := shared.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT version_id) FROM oncemore.migration").Scan(&rows, &versions); err != nil {
		t.Fatal(err)
	}
	if rows != versions {
		t.Errorf("%d rows for %d versions: some migration was recorded twice", rows, versions)
	}
}

func TestACurrentDatabaseIsNotLocked(t *testing.T) {
	pool := pgtest.Pool(t)
	tx := holdLock(t, pool)
	if _, err := migrations.Up(within(t, 10*time.Second), pool); err != nil {
		t.Errorf("Up on a current database, while another process holds the lock: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestUpWaitsForTheProcessThatMigrates(t *testing.T) {
	pool := pgtest.EmptyPool(t)
	tx := holdLock(t, pool)

	if _, err := migrations.Up(within(t, 300*time.Millisecond), pool); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Up, while another process holds the lock for longer than its context lasts: %v", err)
	}

	done := make(chan error)
	go func() {
		_, err := migrations.Up(t.Context(), pool)
		done <- err
	}()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Up, after the other process let go: %v", err)
	}
}

// While a fleet is being replaced, a program of before restarts on the schema of after.
func TestADatabaseOfANewerProgramIsLeftAsItIsAndStatusSaysBothVersions(t *testing.T) {
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), "INSERT INTO oncemore.migration (version_id, is_applied) VALUES (9000, true)"); err != nil {
		t.Fatal(err)
	}
	known, err := migrations.Status(t.Context(), pool)
	newer, ok := errors.AsType[*migrations.NewerError](err)
	if !ok || newer.Database != 9000 || newer.Binary != known[len(known)-1].Version {
		t.Errorf("Status: %v", err)
	}
	if err != nil && !strings.Contains(err.Error(), "9000") {
		t.Errorf("the error does not name the database's version: %v", err)
	}
	if applied, err := migrations.Up(t.Context(), pool); err != nil || len(applied) > 0 {
		t.Errorf("Up applied %v: %v", applied, err)
	}
}

func TestAFailedMigrationLeavesAWholeVersion(t *testing.T) {
	pool := pgtest.EmptyPool(t)
	files := fstest.MapFS{
		"00001_first.sql":  {Data: []byte("-- +goose Up\nCREATE TABLE oncemore.first (x int);")},
		"00002_second.sql": {Data: []byte("-- +goose Up\nCREATE TABLE oncemore.half (x int);\nSELECT 1/0;")},
	}
	applied, err := migrations.UpFrom(t.Context(), pool, files)
	if err == nil {
		t.Fatal("a migration that divides by zero succeeded")
	}
	if !strings.Contains(err.Error(), "00002_second.sql") || !strings.Contains(err.Error(), "division by zero") {
		t.Errorf("the error does not say which migration failed, and how: %v", err)
	}
	if len(applied) != 1 || applied[0].Name != "first" {
		t.Errorf("applied %+v, want the first", applied)
	}
	if got := schema(t, pool); strings.Contains(got, "half") || !strings.Contains(got, "first") {
		t.Errorf("after the failure the schema is\n%s", got)
	}

	// The mended program goes on from there.
	files["00002_second.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE oncemore.half (x int);")}
	applied, err = migrations.UpFrom(t.Context(), pool, files)
	if err != nil || len(applied) != 1 || applied[0].Name != "second" {
		t.Errorf("the mended migration: applied %+v, %v", applied, err)
	}
}

// Its lock is gone, with its connection: somebody else may migrate now, so this one stops.
func TestAProcessThatLosesTheLockStopsToMigrate(t *testing.T) {
	pool := pgtest.EmptyPool(t)
	was := migrations.SetAliveEvery(50 * time.Millisecond)
	defer migrations.SetAliveEvery(was)
	files := fstest.MapFS{
		"00001_first.sql":  {Data: []byte("-- +goose Up\nCREATE TABLE oncemore.first (x int);")},
		"00002_second.sql": {Data: []byte("-- +goose Up\nCREATE TABLE oncemore.half (x int);\nSELECT pg_sleep(60);")},
	}
	go func() {
		const lock = `SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
		for t.Context().Err() == nil {
			var killed bool
			err := pool.QueryRow(t.Context(), `SELECT coalesce(bool_or(pg_terminate_backend(l.pid)), false) FROM (`+lock+`) l
WHERE EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND datname = current_database() AND pid <> pg_backend_pid())`).Scan(&killed)
			if killed || err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	applied, err := migrations.UpFrom(within(t, 30*time.Second), pool, files)
	if err == nil || !strings.Contains(err.Error(), "the lock of the migrations is lost") {
		t.Errorf("it says %v", err)
	}
	if len(applied) != 1 || strings.Contains(schema(t, pool), "half") {
		t.Errorf("applied %+v, and the schema is\n%s", applied, schema(t, pool))
	}
}

// Who may not create schemas can have one prepared.
func TestARoleThatOwnsOnlyTheSchemaCanMigrate(t *testing.T) {
	owner := pgtest.EmptyPool(t)
	// A role belongs to the whole server: one of this database's own name.
	var role string
	if err := owner.QueryRow(t.Context(), "SELECT current_database() || '_role'").Scan(&role); err != nil {
		t.Fatal(err)
	}
	exec(t, owner, "CREATE ROLE "+role, "CREATE SCHEMA oncemore AUTHORIZATION "+role)
	t.Cleanup(func() {
		for _, sql := range []string{"DROP OWNED BY " + role, "DROP ROLE " + role} {
			if _, err := owner.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	cfg := owner.Config()
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SET ROLE "+role)
		return err
	}
	limited, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(limited.Close)
	if _, err := migrations.Up(t.Context(), limited); err != nil {
		t.Error(err)
	}
}

func TestSQLByHandGivesTheSameSchema(t *testing.T) {
	byHand, byUp := pgtest.EmptyPool(t), pgtest.Pool(t)
	text := migrations.SQL()
	if strings.Contains(text, "+goose") {
		t.Error("goose's directives are still there")
	}
	// Without arguments this is the simple protocol, which takes many statements, as psql does.
	if _, err := byHand.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	if got, want := schema(t, byHand), schema(t, byUp); got != want {
		t.Errorf("by hand:\n%s\nby Up:\n%s", got, want)
	}
	applied, err := migrations.Up(t.Context(), byHand)
	if err != nil || len(applied) != 0 {
		t.Errorf("Up afterwards: applied %+v, %v; want nothing", applied, err)
	}
}

// Up looks at the highest version: it would never come back to one before.
func TestByHandNoMigrationIsLeftOut(t *testing.T) {
	pool := pgtest.EmptyPool(t)
	parts := strings.Split(migrations.SQL(), "\n-- Migration ")
	for i, part := range slices.Delete(parts, 2, 3) {
		if i > 0 {
			part = "-- Migration " + part
		}
		_, err := pool.Exec(t.Context(), part, pgx.QueryExecModeSimpleProtocol)
		if refused := err != nil && strings.Contains(err.Error(), "which must be the last that was applied"); refused != (i > 1) || err != nil && !refused {
			t.Errorf("%.40q: %v", part, err)
		}
	}
	if text := schema(t, pool); strings.Contains(text, "run_control") {
		t.Errorf("a migration was applied though one before it was not:\n%s", text)
	}
}

// schema describes every column, index, constraint, function and trigger.
func schema(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	const sql = `
WITH thing (line) AS (
  SELECT format('column %s.%s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                CASE WHEN a.attnotnull THEN 'not null' END, pg_get_expr(d.adbin, d.adrelid))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
   WHERE c.relnamespace = 'oncemore'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
  UNION ALL SELECT format('%s %s %s', c.relkind, c.relname, c.reloptions) FROM pg_class c WHERE c.relnamespace = 'oncemore'::regnamespace
  UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'oncemore'
  UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = 'oncemore'::regnamespace
  UNION ALL SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'oncemore'::regnamespace
  UNION ALL SELECT pg_get_triggerdef(g.oid) FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid WHERE c.relnamespace = 'oncemore'::regnamespace
)
SELECT coalesce(string_agg(line, E'\n' ORDER BY line COLLATE "C"), '') FROM thing`
	var text string
	if err := pool.QueryRow(t.Context(), sql).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// holdLock plays another process in the middle of its migrations.
func holdLock(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var held bool
	if err := tx.QueryRow(t.Context(), migrations.TryLock).Scan(&held); err != nil || !held {
		t.Fatal(held, err)
	}
	return tx
}

func pool(t *testing.T, dsn string, conns int32) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = conns
	p, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func exec(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
