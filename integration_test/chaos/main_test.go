//go:build linux

package chaos_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) {
	if told := os.Getenv(serviceEnv); told != "" {
		if err := runService(told); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// These tests wait for leases, restarts and other processes much more than they compute.
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("8")
	}
	sweep(false)
	code := pgtest.Main(m)
	sweep(true)
	os.Exit(code)
}

// full says that time does not matter.
var full = os.Getenv("ONCEMORE_FULL") == "1"

// size is how large something is in the short and in the full form of a story.
func size(short, long int) int {
	if full {
		return long
	}
	return short
}

// random returns a source of choices that can be replayed: ONCEMORE_SEED.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("ONCEMORE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ONCEMORE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// onlyFull skips what the short form leaves out.
func onlyFull(t *testing.T) {
	t.Helper()
	if !full {
		t.Skip("only with ONCEMORE_FULL=1")
	}
}

// lacking says what the test needs and this machine does not have.
func lacking(t *testing.T, what string, args ...any) {
	t.Helper()
	what = fmt.Sprintf(what, args...)
	if os.Getenv("TEST_REQUIRE") == "1" {
		t.Fatalf("TEST_REQUIRE=1, and %s", what)
	}
	t.Skip(what)
}

// patience is how long a story waits for anything: long, since it only matters when
// something is wrong, and the machine may be busy.
var patience = time.Duration(size(2, 5)) * time.Minute

// await waits for a condition.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %s: not yet: %s", patience, what)
		}
	}
}

// awaitRow waits until a query returns true.
func awaitRow(t *testing.T, pool *pgxpool.Pool, what, query string, args ...any) {
	t.Helper()
	await(t, what, func() bool { return ask[bool](t, pool, query, args...) })
}

// ask returns the one value that a query returns.
func ask[T any](t *testing.T, pool *pgxpool.Pool, query string, args ...any) (v T) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

func mustExec(t *testing.T, pool *pgxpool.Pool, statement string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// database makes a database for the test alone, on a server that all share. It returns
// its address, and the test's own way into it.
func database(t *testing.T) (dsn string, pool *pgxpool.Pool) {
	t.Helper()
	dsn = pgtest.DSN(t)
	pool = openPool(t, dsn)
	mustExec(t, pool, effectTable)
	return dsn, pool
}

// openPool is the test's own way into a database. It does without prepared statements, so
// that a restarted server does not confuse it.
func openPool(t *testing.T, dsn string) *pgxpool.Pool {
	t.Helper()
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	c.MaxConns = 4
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
