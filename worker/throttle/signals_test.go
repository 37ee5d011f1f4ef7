package throttle_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

func TestAnIdleTransactionHoldsUpWorkUntilItEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	oldest := throttle.OldestTransaction(100 * time.Millisecond)
	says(t, pool, oldest, throttle.Go, "no other transaction")

	idle := session(t, pool)
	exec(t, idle, "SET application_name = 'report'")
	exec(t, idle, "BEGIN")
	says(t, pool, throttle.OldestTransaction(time.Hour), throttle.Go, "allowed are 1h0m0s", "idle in transaction")
	comesToSay(t, pool, oldest, throttle.Wait, "more than 100 ms", fmt.Sprintf("pid %d, idle in transaction, report", idle.PgConn().PID()))
	exec(t, idle, "COMMIT")
	says(t, pool, oldest, throttle.Go)

	other := pgtest.EmptyPool(t)
	exec(t, session(t, other), "BEGIN")
	comesToSay(t, other, oldest, throttle.Wait)
	says(t, pool, oldest, throttle.Go, "no other transaction") // in this database
}

func TestVacuumIsNoTransactionThatAnybodyWaitsFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	slow := session(t, pool)
	exec(t, slow, "CREATE TABLE long AS SELECT repeat('x', 500) FROM generate_series(1, 20000)")
	exec(t, slow, "SET vacuum_cost_delay = 100")
	exec(t, slow, "SET vacuum_cost_limit = 1")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = slow.Exec(ctx, "VACUUM long") }()
	defer func() { stop(); <-ended }()
	old := throttle.SQL("vacuum", "SELECT count(*) FROM pg_stat_progress_vacuum v JOIN pg_stat_activity a USING (pid) WHERE v.datname = current_database() AND a.xact_start < clock_timestamp() - interval '100 ms'")
	comesToSay(t, pool, old, throttle.Wait)
	says(t, pool, throttle.OldestTransaction(50*time.Millisecond), throttle.Go)
}

func TestTransactionsWhoseAgeIsHiddenAreUnknownIfTheyCanHoldBackCleaning(t *testing.T) {
	t.Parallel()
	dsn := pgtest.EmptyDSN(t)
	stranger := pgtest.AsStranger(t, dsn)
	oldest := throttle.OldestTransaction(50 * time.Millisecond)
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	exec(t, owner, "BEGIN")
	says(t, stranger, oldest, throttle.Go) // it has done nothing
	exec(t, owner, "CREATE TABLE written ()")
	says(t, stranger, oldest, throttle.Unknown, "the age of 1 transactions is hidden", "pg_read_all_stats")
	exec(t, owner, "COMMIT")
	says(t, stranger, oldest, throttle.Go)
}

func TestConnectionsThatAreTakenHoldUpWork(t *testing.T) {
	pool := pgtest.EmptyPool(t)
	count := session(t, pool)
	var taken, limit float64
	if err := count.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
		current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int`).Scan(&taken, &limit); err != nil {
		t.Fatal(err)
	}
	// The gauge's own pool may open one more.
	connections := throttle.Connections((taken + 10) / limit)
	says(t, pool, connections, throttle.Go, fmt.Sprintf("of %.0f connections are taken, allowed are", limit))
	var others []*pgx.Conn
	for range 20 {
		others = append(others, session(t, pool))
	}
	says(t, pool, connections, throttle.Wait, "connections are taken, more than")
	for _, conn := range others {
		conn.Close(t.Context())
	}
	comesToSay(t, pool, connections, throttle.Go)
}

func TestLockWaitsHoldUpWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	holder := session(t, pool)
	exec(t, holder, "CREATE TABLE disputed AS SELECT 1 AS id")
	exec(t, holder, "SELECT pg_advisory_lock(1)")
	says(t, pool, throttle.LockWaits(0), throttle.Go, "no session")
	exec(t, holder, "BEGIN")
	exec(t, holder, "UPDATE disputed SET id = id")

	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{}, 3)
	for _, sql := range []string{"SELECT pg_advisory_lock(1)", "UPDATE disputed SET id = id", "TRUNCATE disputed"} {
		waiter := session(t, pool)
		go func() { _, _ = waiter.Exec(ctx, sql); ended <- struct{}{} }()
	}
	defer func() {
		stop()
		for range 3 {
			<-ended
		}
	}()
	comesToSay(t, pool, throttle.LockWaits(1), throttle.Wait, "2 sessions", "more than 1", "behind ")
	says(t, pool, throttle.LockWaits(2), throttle.Go, "2 sessions", "allowed are 2") // the advisory lock is none of them
	exec(t, holder, "ROLLBACK")
	comesToSay(t, pool, throttle.LockWaits(0), throttle.Go)
}

// An installation may take the server's views from the public.
func TestWhatMayNotBeReadIsUnknown(t *testing.T) {
	t.Parallel()
	dsn := pgtest.EmptyDSN(t)
	stranger := pgtest.AsStranger(t, dsn)
	owner, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(context.Background())
	for _, s := range throttle.Defaults() {
		says(t, stranger, s, throttle.Go)
	}
	says(t, stranger, throttle.Hours("", "00:00-24:00"), throttle.Go)
	for _, view := range []string{"TABLE pg_catalog.pg_stat_activity", "TABLE pg_catalog.pg_stat_replication", "TABLE pg_catalog.pg_locks"} {
		exec(t, owner, "REVOKE ALL ON "+view+" FROM PUBLIC")
	}
	for _, s := range throttle.Defaults() {
		says(t, stranger, s, throttle.Unknown, "cannot be read", "permission denied")
	}
	exec(t, owner, "REVOKE ALL ON FUNCTION pg_catalog.clock_timestamp() FROM PUBLIC")
	says(t, stranger, throttle.Hours("", "00:00-24:00"), throttle.Unknown, "permission denied")
	if readings, wait := newGauge(t, stranger, 0, throttle.Defaults()...).Read(t.Context()); wait != nil {
		t.Errorf("what cannot be read holds up work: %+v", readings)
	}
}

func TestAUsersQuestionHoldsUpWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.EmptyPool(t)
	for _, test := range []struct {
		query string
		want  throttle.Verdict
		words string
	}{
		{"SELECT 0", throttle.Go, "it is 0"},
		{"SELECT -1.5", throttle.Go, "it is -1.5"},
		{"SELECT 0, NULL", throttle.Go, "it is 0"},
		{"SELECT false", throttle.Go, "it is false"},
		{"SELECT 3", throttle.Wait, "it is 3, and more than 0 means wait"},
		{"SELECT 0.001::numeric", throttle.Wait, "it is 0.001"},
		{"SELECT 'Infinity'::float8", throttle.Wait, "it is Infinity"},
		{"SELECT true, 'the outbox is full'", throttle.Wait, "the outbox is full"},
		{"SELECT 2, 7", throttle.Wait, "7"},
		{"SELECT 1 UNION ALL SELECT 0", throttle.Wait, "it is 1"},
		{"SELECT 1 WHERE false", throttle.Unknown, "no row"},
		{"SELECT NULL::int, 'x'", throttle.Unknown, "NULL"},
		{"SELECT 'many'", throttle.Unknown, `"many", which is no number`},
		{"SELECT 'NaN'::float8", throttle.Unknown, `"NaN", which is no number`},
		{"SELECT", throttle.Unknown, "NULL"},
		{"SELECT 1 FROM nowhere", throttle.Unknown, `relation "nowhere" does not exist`},
		{"SELECT 1/0", throttle.Unknown, "division by zero"},
		{"SELECT 1; SELECT 2", throttle.Unknown, "cannot insert multiple commands"},
		{"CREATE TABLE written ()", throttle.Unknown, "read-only transaction"},
	} {
		says(t, pool, throttle.SQL("mine", test.query), test.want, test.words)
	}
	slow := throttle.SQL("slow", "SELECT 1 FROM pg_sleep(60)")
	slow.Timeout = 50 * time.Millisecond
	says(t, pool, slow, throttle.Unknown, "no answer within 50 ms")
}

func TestAStandbyThatLagsHoldsUpWork(t *testing.T) {
	t.Parallel()
	lag := throttle.ReplicaLag(300 * time.Millisecond)
	says(t, pgtest.EmptyPool(t), lag, throttle.Go, "no standby is connected")

	primary, standby := pgtest.WithStandby(t)
	writes := throttle.Signal{Name: lag.Name, Timeout: 5 * time.Second, Read: func(ctx context.Context, tx pgx.Tx) (throttle.Verdict, string, error) {
		if _, err := primary.Exec(ctx, "CREATE TABLE IF NOT EXISTS written (n int); INSERT INTO written VALUES (1)"); err != nil {
			return "", "", err
		}
		return lag.Read(ctx, tx)
	}}
	comesToSay(t, primary, lag, throttle.Go, "standby walreceiver is ", "allowed are 300 ms")

	exec(t, session(t, standby), "SELECT pg_wal_replay_pause()")
	comesToSay(t, standby, throttle.SQL("paused", "SELECT pg_get_wal_replay_pause_state() = 'paused'"), throttle.Wait)
	comesToSay(t, primary, writes, throttle.Wait, "standby walreceiver is ", "behind, more than 300 ms")

	stranger := pgtest.AsStranger(t, primary.Config().ConnString())
	says(t, stranger, lag, throttle.Unknown, "the lag of 1 standbys is hidden", "pg_read_all_stats")
	stranger.Close()

	exec(t, session(t, standby), "SELECT pg_wal_replay_resume()")
	comesToSay(t, primary, writes, throttle.Go)
}
