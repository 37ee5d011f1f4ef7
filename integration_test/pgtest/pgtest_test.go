package pgtest_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestEachTestHasAMigratedDatabaseOfItsOwn(t *testing.T) {
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var facts int
			if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM oncemore.ledger").Scan(&facts); err != nil {
				t.Fatal(err)
			}
			// Another test's table of the same name would be in the way.
			if _, err := pool.Exec(t.Context(), "CREATE TABLE mine (x int)"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnEmptyDatabaseHasNoSchema(t *testing.T) {
	var exists bool
	err := pgtest.EmptyPool(t).QueryRow(t.Context(), "SELECT to_regnamespace('oncemore') IS NOT NULL").Scan(&exists)
	if err != nil || exists {
		t.Errorf("the schema exists: %v, %v", exists, err)
	}
}

// Otherwise a test that fails in the middle would keep the others waiting.
func TestALeakedConnectionDoesNotKeepADatabaseAlive(t *testing.T) {
	var name string
	t.Run("leaks", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), pgtest.DSN(t))
		if err != nil {
			t.Fatal(err)
		}
		name = conn.Config().Database
	})
	var exists bool
	err := pgtest.Pool(t).QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	if err != nil || exists {
		t.Errorf("database %q exists after its test: %v, %v", name, exists, err)
	}
}

func BenchmarkDSN(b *testing.B) {
	pgtest.DSN(b)
	for b.Loop() {
		pgtest.DSN(b)
	}
}
