package integration_test

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

// Orders 1 to 3 are charged; 4 to 6 are called, and 3 once more under another epoch; a dump is made; all
// that is charged; and the database is lost. The restored one has no fact of it, but the messages.
// docs/operations.md says what to do before the first worker starts, and this is why.
func TestAfterARestoredBackupWhatWasDoneSinceIsDoneAgainUnlessItIsTakenBackFirst(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	charges := map[int64]int{} // at the provider, whom no backup takes back
	set, err := jobs.NewSet(jobs.Job[chargeOrder]{Effect: jobs.Once, Source: jobs.SQL[chargeOrder](`SELECT o.id::text AS entity, o.id AS "ID" FROM orders o`),
		Do: func(_ context.Context, a chargeOrder) error {
			mu.Lock()
			defer mu.Unlock()
			charges[a.ID]++
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	charged := func(db *pgxpool.Pool, want map[int64]int) {
		t.Helper()
		clear(charges)
		workertest.Run(t, db, set)
		if !maps.Equal(charges, want) {
			t.Errorf("charged %v, want %v", charges, want)
		}
	}
	missing := func(db *pgxpool.Pool, want int64) {
		t.Helper()
		if n, _, err := admin.CountMissing(t.Context(), db, set, "charge_order", time.Minute); err != nil || n.N != want {
			t.Errorf("%d are missing, %v; want %d", n.N, err, want)
		}
	}
	epoch := func(db *pgxpool.Pool) (n int64) {
		t.Helper()
		if err := db.QueryRow(t.Context(), `SELECT nextval('oncemore.epoch')`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	db := pgtest.OwnPool(t)
	if _, err := db.Exec(t.Context(), `CREATE TABLE orders AS SELECT n::bigint AS id FROM generate_series(1, 6) n`); err != nil {
		t.Fatal(err)
	}
	workertest.Run(t, db, set, chargeOrder{1}, chargeOrder{2}, chargeOrder{3})
	third, err := jobs.NewItem(chargeOrder{3})
	if err != nil {
		t.Fatal(err)
	}
	q := pgqueue.New(db, "")
	if err := q.Send(t.Context(), queue.Message{Type: "charge_order", Items: []queue.Item{third}, Epoch: epoch(db)}); err != nil {
		t.Fatal(err)
	}
	if err := jobs.Enqueue(t.Context(), q, chargeOrder{4}, chargeOrder{5}, chargeOrder{6}); err != nil {
		t.Fatal(err)
	}
	backup := dump(t, db)
	charged(db, map[int64]int{3: 1, 4: 1, 5: 1, 6: 1})
	last := epoch(db)

	t.Run("nobody does anything", func(t *testing.T) {
		charged(restore(t, db, backup), map[int64]int{3: 1, 4: 1, 5: 1, 6: 1})
	})
	t.Run("as the document says", func(t *testing.T) {
		restored := restore(t, db, backup)
		if _, err := restored.Exec(t.Context(), sqlBlock(t, "operations.md", "oncemore.epoch")); err != nil {
			t.Fatal(err)
		}
		missing(restored, 3)
		recordCharged(t, restored, set, `SELECT id FROM orders WHERE id IN (4, 5)`) // 6 nobody knows of
		missing(restored, 1)
		charged(restored, map[int64]int{})
		if err := jobs.Enqueue(t.Context(), pgqueue.New(restored, ""), chargeOrder{4}, chargeOrder{6}); err != nil {
			t.Fatal(err)
		}
		charged(restored, map[int64]int{6: 1})
		missing(restored, 0)
		if next := epoch(restored); next <= last {
			t.Errorf("epoch %d is given out a second time", next)
		}
	})
}

// dump is the whole database as pg_dump writes it.
func dump(t *testing.T, db *pgxpool.Pool) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "backup")
	postgres(t, "pg_dump", db, "--format=custom", "--file="+file)
	return file
}

// restore reads a dump into a new database of the same server.
func restore(t *testing.T, lost *pgxpool.Pool, file string) *pgxpool.Pool {
	t.Helper()
	c := lost.Config().Copy()
	c.ConnConfig.Database = fmt.Sprint("restored_", time.Now().UnixNano())
	if _, err := lost.Exec(t.Context(), `CREATE DATABASE `+c.ConnConfig.Database); err != nil {
		t.Fatal(err)
	}
	db, err := pgxpool.NewWithConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	postgres(t, "pg_restore", db, "--exit-on-error", file)
	return db
}

// postgres runs a program that comes with the server on a database.
func postgres(t *testing.T, program string, db *pgxpool.Pool, args ...string) {
	t.Helper()
	bin, err := pglocal.FindBin()
	if err != nil {
		t.Fatal(err)
	}
	c := db.Config().ConnConfig
	on := []string{"--host=" + c.Host, fmt.Sprint("--port=", c.Port), "--username=" + c.User, "--dbname=" + c.Database}
	if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, program), append(on, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}
