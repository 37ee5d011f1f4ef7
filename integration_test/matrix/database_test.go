package matrix_test

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// A lender lends databases to one case after the other, emptied in between: making a new
// one for each would take longer than most cases do.
type lender struct {
	mu    sync.Mutex
	owner testing.TB
	free  []*database
}

// A database has the ledger's tables and those of the world outside.
type database struct {
	dsn  string
	pool *pgxpool.Pool // behind no proxy
}

func newDatabase(t testing.TB) *database {
	t.Helper()
	d := &database{dsn: pgtest.DSN(t)}
	var err error
	if d.pool, err = openPool(d.dsn, "harness", 3); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.pool.Close)
	if _, err := d.pool.Exec(context.Background(), outsideSchema); err != nil {
		t.Fatal(err)
	}
	return d
}

// of makes the databases last as long as t.
func (l *lender) of(t testing.TB) {
	l.owner = t
	t.Cleanup(func() { l.free = nil })
}

// take lends a database until t ends.
func (l *lender) take(t testing.TB) *database {
	t.Helper()
	d := l.next()
	t.Cleanup(func() { // runs after all that t begins from here on has ended
		if _, err := d.pool.Exec(context.Background(), emptySQL); err != nil {
			t.Errorf("empty a database: %v", err)
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.free = append(l.free, d)
	})
	return d
}

func (l *lender) next() *database {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		d := l.free[n-1]
		l.free = l.free[:n-1]
		return d
	}
	return newDatabase(l.owner)
}

// Nobody who is still connected may write into the next case.
const emptySQL = `
DO $$
DECLARE t text; busy boolean;
BEGIN
    LOOP
        PERFORM pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name <> 'harness' AND backend_type = 'client backend';
        EXIT WHEN NOT FOUND;
        PERFORM pg_sleep(0.005);
        PERFORM pg_stat_clear_snapshot();
    END LOOP;
    FOR t IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('oncemore', 'public') AND tablename <> 'migration' LOOP
        EXECUTE 'SELECT EXISTS (SELECT FROM ' || t || ')' INTO busy;
        IF busy THEN
            EXECUTE 'DELETE FROM ' || t;
        END IF;
    END LOOP;
END $$`
