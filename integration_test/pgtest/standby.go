package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/migrations"
)

// WithStandby returns pools to a server of this test alone, at the newest version of the
// schema, and to a hot standby that streams from it. They end with the test. It takes some
// seconds. pg_wal_replay_pause() on the standby makes it lag.
func WithStandby(t testing.TB) (primary, standby *pgxpool.Pool) {
	t.Helper()
	dir := folder(t)
	first := own(t, filepath.Join(dir, "primary"))
	second := ended(t, func(ctx context.Context) (*pglocal.Cluster, error) {
		return pglocal.Follow(ctx, first, options(filepath.Join(dir, "standby")))
	})
	primary, standby = open(t, first), open(t, second)
	if _, err := migrations.Up(t.Context(), primary); err != nil {
		t.Fatal(err)
	}
	return primary, standby
}

// OwnPool is like [Pool], on a server of this test alone, with settings "name=value".
func OwnPool(t testing.TB, settings ...string) *pgxpool.Pool {
	t.Helper()
	pool := open(t, own(t, filepath.Join(folder(t), "own"), settings...))
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return pool
}

// folder returns a new one that the server may enter: not t.TempDir, since it may run as
// another user. The test is skipped where there is no server, as in [DSN].
func folder(t testing.TB) (dir string) {
	t.Helper()
	_, err := pglocal.FindBin()
	if err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatalf("no PostgreSQL, and TEST_REQUIRE=1: %v", err)
		}
		t.Skipf("no PostgreSQL: %v", err)
	}
	if dir, err = os.MkdirTemp("", fmt.Sprintf("oncemore-pgtest-%d-", os.Getpid())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// own starts a server in dir that ends with the test, and returns its address.
func own(t testing.TB, dir string, settings ...string) (dsn string) {
	t.Helper()
	return ended(t, func(ctx context.Context) (*pglocal.Cluster, error) {
		return pglocal.Start(ctx, options(dir, settings...))
	})
}

func options(dir string, settings ...string) pglocal.Options {
	return pglocal.Options{Dir: dir, NoSync: true, Bind: true, Params: settings}
}

// ended has what start starts end with the test, and returns its address.
func ended(t testing.TB, start func(context.Context) (*pglocal.Cluster, error)) (dsn string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Stop(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	return withDatabase(c.DSN, "postgres")
}

// AsStranger returns a pool like that of dsn's own role, whose sessions act as a new role
// that has been granted nothing. The role is dropped when the test ends.
func AsStranger(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	name := fmt.Sprintf("oncemore_stranger_%d_%d", os.Getpid(), time.Now().UnixNano())
	do := func(ctx context.Context, sql string) error {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		_, err = conn.Exec(ctx, sql)
		return err
	}
	if err := do(t.Context(), "CREATE ROLE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := do(ctx, "DROP ROLE "+name); err != nil {
			t.Error(err)
		}
	})
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET ROLE "+name)
		return err
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
