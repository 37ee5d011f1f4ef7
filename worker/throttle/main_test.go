package throttle_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// read asks one signal now.
func read(t testing.TB, pool *pgxpool.Pool, s throttle.Signal) throttle.Reading {
	t.Helper()
	readings, wait := newGauge(t, pool, 1, s).Read(t.Context())
	if len(readings) != 1 || readings[0].Signal != s.Name || readings[0].At.IsZero() {
		t.Fatalf("readings of %s: %+v", s.Name, readings)
	}
	if (wait != nil) != (readings[0].Verdict == throttle.Wait) {
		t.Fatalf("%+v, and what says wait is %+v", readings, wait)
	}
	return readings[0]
}

func newGauge(t testing.TB, pool *pgxpool.Pool, interval time.Duration, signals ...throttle.Signal) *throttle.Gauge {
	t.Helper()
	g, err := throttle.NewGauge(pool, interval, signals...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// says fails unless a signal answers so now; the reason must contain all the words.
func says(t testing.TB, pool *pgxpool.Pool, s throttle.Signal, v throttle.Verdict, words ...string) {
	t.Helper()
	if r := read(t, pool, s); !is(r, v, words) {
		t.Errorf("%s says %s (%s), want %s with %q", s.Name, r.Verdict, r.Reason, v, words)
	}
}

// comesToSay waits until a signal answers so.
func comesToSay(t testing.TB, pool *pgxpool.Pool, s throttle.Signal, v throttle.Verdict, words ...string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		r := read(t, pool, s)
		if is(r, v, words) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after 20 s %s says %s (%s), want %s with %q", s.Name, r.Verdict, r.Reason, v, words)
		}
	}
}

func is(r throttle.Reading, v throttle.Verdict, words []string) bool {
	for _, w := range words {
		if !strings.Contains(r.Reason, w) {
			return false
		}
	}
	return r.Verdict == v && r.Reason != ""
}

// session is a connection of its own to the database of pool.
func session(t testing.TB, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func exec(t testing.TB, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}
