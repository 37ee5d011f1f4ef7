//go:build linux

package chaos_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A report, or a backup, holds an old snapshot, so nothing dead goes away: a claim that
// began at the front of the queue would walk over all that was ever done since. All work
// is done, once, and the receives read about as much as they take; only a sweep once a
// second begins at the front.
func TestClaimsDoNotCrawlWhileAnOldSnapshotIsHeld(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	report, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = report.Close(context.Background()) })
	tx, err := report.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT count(*) FROM oncemore.ledger`); err != nil {
		t.Fatal(err)
	}

	// What was done since it began.
	dead := size(50_000, 200_000)
	mustExec(t, pool, `INSERT INTO oncemore.message (queue, type, entities, args) SELECT '', 'once', ARRAY[n::text], ARRAY['{}'] FROM generate_series(1, $1::int) n`, dead)
	mustExec(t, pool, `DELETE FROM oncemore.message`)
	mustExec(t, pool, `VACUUM oncemore.message`)
	if n := blocksFromTheFront(t, pool); n < dead/100 {
		t.Fatalf("a claim from the front touches %d blocks: the snapshot holds nothing", n)
	}

	w := newWorld(t)
	l := load{}
	l.sendMixed(t, pool, size(600, 3000), "in_tx", "once", "keyed")
	reads, scans := indexReads(t, pool)
	began := time.Now()
	told := service{Database: dsn, World: w, Slots: 8, Lease: 15 * time.Second, Visibility: 5 * time.Second}
	ps := []*process{told.start(t), told.start(t)}
	awaitSettled(t, pool)
	stopAll(t, ps...) // after which its statistics are complete
	took := time.Since(began)
	if n := blocksFromTheFront(t, pool); n < dead/100 {
		t.Fatalf("a claim from the front touches %d blocks: the snapshot was not held all the time", n)
	}
	readsNow, scansNow := indexReads(t, pool)
	reads, scans = readsNow-reads, scansNow-scans
	sweeps := len(ps) * (int(took/time.Second) + 2)
	most := sweeps*(dead+2*len(l)) + 100*len(l)
	t.Logf("%d works in %s: %d scans of message_ready read %d entries; with %d sweeps at most, %d are allowed", len(l), took.Round(time.Millisecond), scans, reads, sweeps, most)
	if reads > most {
		t.Errorf("%d index entries were read, want at most %d: claims walk over what is dead", reads, most)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Errorf("the old snapshot did not last: %v", err)
	}
	checkEnd(t, pool, w, l)
}

// blocksFromTheFront is how many blocks a claim touches that begins at the front.
func blocksFromTheFront(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off`, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	var raw string
	err = conn.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT json)
SELECT m.id FROM oncemore.message m WHERE m.queue = '' AND m.lock IS NULL ORDER BY -m.priority, m.id LIMIT 1`).Scan(&raw)
	if err != nil {
		t.Fatal(err)
	}
	var plans []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := json.Unmarshal([]byte(raw), &plans); err != nil {
		t.Fatal(err)
	}
	return plans[0].Plan.Hit + plans[0].Plan.Read
}

// indexReads returns the entries that were read from the index of ready messages, and in
// how many scans.
func indexReads(t *testing.T, pool *pgxpool.Pool) (entries, scans int) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `SELECT idx_tup_read, idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'message_ready'`).Scan(&entries, &scans)
	if err != nil {
		t.Fatal(err)
	}
	return entries, scans
}
