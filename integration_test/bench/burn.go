package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// burn enqueues n jobs, starts a worker process on them, and waits until the
// database counts them all as finished.
func burn(ctx context.Context, o *options, db string, pool *pgxpool.Pool, s side, m measurement, n int) (sample, error) {
	w, err := startWorker(ctx, o, db, m, n)
	if err != nil {
		return sample{}, err
	}
	defer w.kill()

	empty, err := relationSize(ctx, pool, s.queries().relation)
	if err != nil {
		return sample{}, err
	}
	before, err := walPosition(ctx, pool)
	if err != nil {
		return sample{}, err
	}
	if err := s.enqueue(ctx, m.kind, n); err != nil {
		return sample{}, fmt.Errorf("enqueue: %w", err)
	}
	enqueued, err := walPosition(ctx, pool)
	if err != nil {
		return sample{}, err
	}
	// No checkpoint here: it would charge work on stored jobs, and only that, with
	// the images of all their pages.
	if err := vacuum(ctx, pool); err != nil {
		return sample{}, err
	}
	vacuumed, err := walPosition(ctx, pool)
	if err != nil {
		return sample{}, err
	}

	start, err := w.begin()
	if err != nil {
		return sample{}, err
	}
	end, err := awaitCount(ctx, pool, s.queries().done, n, w)
	if err != nil {
		return sample{}, err
	}
	after, err := walPosition(ctx, pool)
	if err != nil {
		return sample{}, err
	}
	rss, err := w.peakMemory()
	if err != nil {
		return sample{}, err
	}
	if err := w.stop(); err != nil {
		return sample{}, err
	}
	if err := expect(ctx, pool, s.queries().done, n); err != nil {
		return sample{}, fmt.Errorf("count the finished jobs after the worker's end: %w", err)
	}
	full, err := relationSize(ctx, pool, s.queries().relation)
	if err != nil {
		return sample{}, err
	}
	if m.side == peer {
		empty = 0 // jobs and outcomes are the same rows
	}
	return sample{
		rate: float64(n) / end.Sub(start).Seconds(),
		rss:  rss,
		wal:  float64(enqueued-before+after-vacuumed) / float64(n),
		disk: float64(full-empty) / float64(n),
	}, nil
}

// awaitCount returns the time at which a query began that saw n finished jobs. To
// leave the machine to the worker it counts seldom, and often once the
// worker says that it has run them all: what remains then is recording them.
func awaitCount(ctx context.Context, pool *pgxpool.Pool, query string, n int, w *workerProcess) (time.Time, error) {
	ran := w.ran
	pause := 10 * time.Second
	for {
		select {
		case <-ran:
			ran, pause = nil, 5*time.Millisecond
		case err := <-w.ended:
			return time.Time{}, fmt.Errorf("the worker ended too early: %w", err)
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-time.After(pause):
		}
		began := time.Now()
		var got int
		if err := pool.QueryRow(ctx, query).Scan(&got); err != nil {
			return time.Time{}, fmt.Errorf("count the finished jobs: %w", err)
		}
		if got >= n {
			return began, nil
		}
	}
}
