// Package workertest runs jobs in tests: for real, on a test database, until nothing is
// left to do.
package workertest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A Report is what the database says after a run.
type Report struct {
	Done    int64 // facts, of all job types
	Open    int64 // entities that wait for a retry, have failed, or are in doubt
	Waiting int64 // messages that are delayed, for a retry or because work was not ready
	Parked  int64 // input that was set aside
}

// Run enqueues args, lets a worker with the jobs of set work, and returns when no message
// is due any more; what is delayed (a retry, a run's next look) waits for the next Run. It
// fails the test after a minute. The pool's schema must be current.
func Run(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, args ...jobs.Args) Report {
	t.Helper()
	return RunConfig(t, pool, set, worker.Config{}, args...)
}

// RunConfig is Run with a worker of your own making.
func RunConfig(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, c worker.Config, args ...jobs.Args) Report {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	if err := jobs.Enqueue(ctx, pgqueue.New(pool, ""), args...); err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(ctx, pool, set, c)
	if err != nil {
		t.Fatal(err)
	}
	working, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- w.Run(working) }()
	for {
		var due int64
		if err := pool.QueryRow(ctx, dueSQL).Scan(&due); err != nil {
			t.Fatal(err)
		}
		if due == 0 {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("work is still going on after a minute: %d messages are due", due)
		case <-time.After(5 * time.Millisecond):
		}
	}
	stop()
	if err := <-stopped; err != nil {
		t.Fatalf("the worker did not stop cleanly: %v", err)
	}
	var r Report
	if err := pool.QueryRow(ctx, reportSQL).Scan(&r.Done, &r.Open, &r.Waiting, &r.Parked); err != nil {
		t.Fatal(err)
	}
	return r
}

const (
	dueSQL    = `SELECT count(*) FROM oncemore.message WHERE lock IS DISTINCT FROM 0 OR visible_at <= clock_timestamp()`
	reportSQL = `
SELECT (SELECT count(*) FROM oncemore.ledger), (SELECT count(*) FROM oncemore.claim),
       (SELECT count(*) FROM oncemore.message), (SELECT count(*) FROM oncemore.parked)`
)
