// Package pgtest gives each test a PostgreSQL database of its own.
//
// A test binary has one server: the one that TEST_DATABASE_URL names, whose role
// must be allowed to create databases, else a private one from the installed
// binaries, which ends with the test binary however that ends. On it lies one
// template, migrated once, and every test gets a copy (tens of milliseconds), so tests may
// run in parallel and leave whatever they like behind.
//
// Without a server tests are skipped. TEST_REQUIRE=1 makes that a failure.
package pgtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/migrations"
)

// Main runs the tests, then removes what this package made for them. A package
// whose tests use pgtest has
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// It returns the exit code, which may be ignored: package testing knows it too.
func Main(m *testing.M) int {
	binary.main = true
	defer binary.close()
	return m.Run()
}

// DSN returns the address of a database at the newest version of the schema that
// belongs to this test alone. It is dropped when the test ends.
func DSN(t testing.TB) string {
	t.Helper()
	s := start(t)
	template, err := s.template()
	if err != nil {
		t.Fatal(err)
	}
	return s.database(t, template)
}

// EmptyDSN is like [DSN], for a database without our schema.
func EmptyDSN(t testing.TB) string {
	t.Helper()
	return start(t).database(t, "template1")
}

// Pool returns a pool of up to 10 connections to a database like that of [DSN].
// It is closed when the test ends.
func Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return open(t, DSN(t))
}

// EmptyPool is like [Pool], for a database without our schema.
func EmptyPool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return open(t, EmptyDSN(t))
}

func open(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 10
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// binary is this test binary's server.
var binary = newServer()

type server struct {
	main     bool // Main was called, so close will be
	connect  func() error
	template func() (string, error)
	prefix   string // of the names of our databases
	number   atomic.Int64

	admin   *pgxpool.Pool // to the server's own database; set by connect
	dsn     string
	private bool // we started the server
	stop    []func()
}

func newServer() *server {
	s := &server{prefix: fmt.Sprintf("oncemore_test_%d_%d", os.Getpid(), time.Now().UnixNano()%1e6)}
	s.connect = sync.OnceValue(s.doConnect)
	s.template = sync.OnceValues(s.makeTemplate)
	return s
}

func start(t testing.TB) *server {
	t.Helper()
	if !binary.main {
		t.Fatal("this package needs: func TestMain(m *testing.M) { pgtest.Main(m) }")
	}
	if err := binary.connect(); err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatalf("no PostgreSQL, and TEST_REQUIRE=1: %v", err)
		}
		t.Skipf("no PostgreSQL: %v", err)
	}
	return binary
}

func (s *server) doConnect() error {
	s.dsn = os.Getenv("TEST_DATABASE_URL")
	if s.dsn == "" {
		if err := s.startPrivate(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cfg, err := pgxpool.ParseConfig(s.dsn)
	if err != nil {
		return err
	}
	cfg.MaxConns = 4 // creating and dropping databases gains nothing from more
	if s.admin, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return err
	}
	s.stop = append(s.stop, s.admin.Close)
	return s.admin.Ping(ctx)
}

func (s *server) startPrivate() error {
	sweep()
	// Not t.TempDir, which ends with one test.
	dir, err := os.MkdirTemp("", fmt.Sprintf("oncemore-pgtest-%d-", os.Getpid()))
	if err != nil {
		return err
	}
	s.stop = append(s.stop, func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // the server may run as another user
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pglocal.Start(ctx, pglocal.Options{Dir: dir, NoSync: true, Bind: true, Params: []string{"max_connections=300"}})
	if err != nil {
		return err
	}
	s.dsn, s.private = c.DSN, true
	s.stop = append(s.stop, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := c.Stop(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
		}
	})
	return nil
}

// sweep removes the folders of test binaries that were killed: their server went
// with them, their data could not.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), "oncemore-pgtest-*-*"))
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "oncemore-pgtest-%d-", &pid); err != nil {
			continue
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			os.RemoveAll(dir)
		}
	}
}

// makeTemplate returns the name of a migrated database that nobody is connected
// to: only such a one can be copied.
func (s *server) makeTemplate() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	name := s.prefix + "_template"
	if err := s.create(ctx, name, "template1"); err != nil {
		return "", err
	}
	s.stop = append(s.stop, func() {
		if err := s.drop(name); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err)
		}
	})
	pool, err := pgxpool.New(ctx, withDatabase(s.dsn, name))
	if err != nil {
		return "", err
	}
	defer pool.Close()
	if _, err := migrations.Up(ctx, pool); err != nil {
		return "", err
	}
	return name, nil
}

// database makes a copy of a template for one test and returns its address.
func (s *server) database(t testing.TB, template string) string {
	t.Helper()
	name := fmt.Sprintf("%s_%d", s.prefix, s.number.Add(1))
	if err := s.create(context.Background(), name, template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.drop(name); err != nil {
			t.Error(err)
		}
	})
	return withDatabase(s.dsn, name)
}

func (s *server) create(ctx context.Context, name, template string) error {
	sql := "CREATE DATABASE " + ident(name) + " TEMPLATE " + ident(template)
	if s.private {
		// Half the time of the default where nothing is synced. (On a server that
		// syncs it forces two checkpoints, and is slower.)
		sql += " STRATEGY file_copy"
	}
	if _, err := s.admin.Exec(ctx, sql); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// drop ends the connections that a test left open.
func (s *server) drop(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.admin.Exec(ctx, "DROP DATABASE "+ident(name)+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

// close undoes what was done, last first.
func (s *server) close() {
	for i := len(s.stop) - 1; i >= 0; i-- {
		s.stop[i]()
	}
}

func ident(name string) string { return pgx.Identifier{name}.Sanitize() }

// withDatabase names another database in a DSN of either form, URL or key=value.
func withDatabase(dsn, name string) string {
	if u, err := url.Parse(dsn); err == nil && strings.HasPrefix(u.Scheme, "postgres") {
		u.Path = "/" + name
		q := u.Query()
		q.Del("dbname") // would win over the path
		q.Del("database")
		u.RawQuery = q.Encode()
		return u.String()
	}
	return dsn + " dbname=" + name // the last one wins
}
