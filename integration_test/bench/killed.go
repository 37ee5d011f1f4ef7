package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

const (
	heldJobs  = 1_000
	survivors = 2
)

// timeTakeover kills a worker that runs all the jobs there are, and measures how long it takes
// until others have done them.
func timeTakeover(ctx context.Context, o *options, db string, pool *pgxpool.Pool, s side, m measurement) (sample, error) {
	if err := s.enqueue(ctx, m.kind, heldJobs); err != nil {
		return sample{}, fmt.Errorf("enqueue: %w", err)
	}
	victim, err := startWorker(ctx, o, db, measurement{m.side, holding}, heldJobs)
	if err != nil {
		return sample{}, err
	}
	defer victim.kill()
	if _, err := victim.begin(); err != nil {
		return sample{}, err
	}
	select {
	case <-victim.ran: // every body has begun, and none will end
	case err := <-victim.ended:
		return sample{}, fmt.Errorf("the worker that was to be killed ended: %w", err)
	case <-ctx.Done():
		return sample{}, context.Cause(ctx)
	}

	for range survivors {
		w, err := startWorker(ctx, o, db, m, heldJobs)
		if err != nil {
			return sample{}, err
		}
		defer w.kill()
		if _, err := w.begin(); err != nil {
			return sample{}, err
		}
	}
	// As in most of life, they have been there for a while.
	const lasting = `SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL AND started_at < clock_timestamp() - $1::interval`
	if _, err := awaitAtLeast(ctx, pool, survivors+1, lasting, ledger.DefaultLease); err != nil {
		return sample{}, fmt.Errorf("wait for the other workers: %w", err)
	}
	const held = `SELECT count(*) FROM oncemore.claim WHERE owner IS NOT NULL`
	if err := errors.Join(expect(ctx, pool, held, heldJobs), expect(ctx, pool, s.queries().done, 0)); err != nil {
		return sample{}, fmt.Errorf("count the jobs that the worker holds: %w", err)
	}

	start := time.Now()
	victim.kill()
	end, err := awaitAtLeast(ctx, pool, heldJobs, s.queries().done)
	if err != nil {
		return sample{}, fmt.Errorf("wait for the jobs of the killed worker: %w", err)
	}
	return sample{took: end.Sub(start)}, expect(ctx, pool, s.queries().done, heldJobs)
}

// awaitAtLeast returns the time at which a query began that counted n.
func awaitAtLeast(ctx context.Context, pool *pgxpool.Pool, n int, query string, args ...any) (time.Time, error) {
	for {
		began := time.Now()
		var got int
		if err := pool.QueryRow(ctx, query, args...).Scan(&got); err != nil {
			return time.Time{}, err
		}
		if got >= n {
			return began, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%d of %d: %w", got, n, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
