package stage_test

import (
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// Plays migrate their database, add schemas, jobs and facts, and empty tables: nothing to be let
// loose on the one that the user's own workers have.
func TestAPlayLeavesTheDatabaseOfTheUsersWorkersAlone(t *testing.T) {
	if _, err := pglocal.FindBin(); errors.Is(err, pglocal.ErrNoBinaries) && os.Getenv("TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	mine := pgtest.EmptyDSN(t)
	t.Setenv("DATABASE_URL", mine)
	t.Setenv("EXAMPLES_DATABASE_URL", "")
	s, err := stage.Open(t.Context(), "test", stage.Options{Out: t.Output(), NoSync: true})
	t.Cleanup(func() { s.Close(false) })
	if err != nil {
		t.Fatal(err)
	}
	if s.DSN == mine {
		t.Error("it plays there")
	}
	db, err := pgxpool.New(t.Context(), mine)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var schemas int
	if err := db.QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname = 'oncemore'`).Scan(&schemas); err != nil || schemas != 0 {
		t.Errorf("it made %d schemas there, %v", schemas, err)
	}
}

func TestAPlayIsOnTheDatabaseThatIsNamedForIt(t *testing.T) {
	named := pgtest.DSN(t)
	t.Setenv("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nowhere")
	t.Setenv("EXAMPLES_DATABASE_URL", named)
	s, err := stage.Open(t.Context(), "test", stage.Options{Out: t.Output()})
	t.Cleanup(func() { s.Close(false) })
	if err != nil || s.DSN != named {
		t.Errorf("it plays on %s: %v", s.DSN, err)
	}
}
