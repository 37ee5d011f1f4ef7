package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	slots     = 2_000 // jobs at once, as in River's own benchmark
	poolSize  = 8     // connections of a worker process
	batch     = 5_000 // jobs per bulk insert, as in River's own benchmark
	inserters = 4
	patience  = 10 * time.Minute // with one measurement
)

// A side is one of the two that are compared, on one database. Jobs are numbered from 0.
type side interface {
	// migrate makes the schema in a fresh database.
	migrate(ctx context.Context) error
	// prefill stores what a measurement of kind k has in place before its clock and
	// its count of WAL start, and enqueue what a burn-down works.
	prefill(ctx context.Context, k kind, n int) error
	enqueue(ctx context.Context, k kind, n int) error
	// work runs a worker until ctx is canceled, and calls did after each job.
	work(ctx context.Context, did func()) error
	// insertTx enqueues job i in the caller's transaction.
	insertTx(ctx context.Context, tx pgx.Tx, i int) error
	// insertAll enqueues n jobs the fastest way and says when all were stored, which
	// may be before it returns.
	insertAll(ctx context.Context, n int) (stored time.Time, err error)
	// queries say where the outcomes are.
	queries() queries
}

type queries struct {
	done     string // counts the finished jobs
	waiting  string // counts the enqueued ones
	relation string // holds the outcomes
}

func newSide(name string, pool *pgxpool.Pool) (side, error) {
	if name == ours {
		return newOurs(pool)
	}
	return newRiver(pool)
}

// measure does one measurement in a database of its own, which it drops again.
func measure(ctx context.Context, o *options, m measurement) (_ sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	db, drop, err := freshDatabase(ctx, o)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, drop()) }()
	pool, err := connect(ctx, o.baseDSN, db)
	if err != nil {
		return sample{}, err
	}
	defer pool.Close()
	s, err := newSide(m.side, pool)
	if err != nil {
		return sample{}, err
	}
	if err := s.migrate(ctx); err != nil {
		return sample{}, fmt.Errorf("migrate: %w", err)
	}
	n := o.n
	switch m.kind {
	case insertOne:
		n = o.singly()
	case insertMany:
		n = o.bulk(m.side)
	}
	if err := s.prefill(ctx, m.kind, n); err != nil {
		return sample{}, fmt.Errorf("prefill: %w", err)
	}
	if err := vacuum(ctx, pool); err != nil {
		return sample{}, err
	}
	if err := checkpoint(ctx, pool); err != nil {
		return sample{}, err
	}
	switch m.kind {
	case insertOne:
		return timeInsert(ctx, pool, s, n, func(ctx context.Context, n int) (time.Time, error) {
			err := insertSingly(ctx, pool, s, n)
			return time.Now(), err
		})
	case insertMany:
		return timeInsert(ctx, pool, s, n, s.insertAll)
	default:
		return burn(ctx, o, db, pool, s, m, n)
	}
}

func timeInsert(ctx context.Context, pool *pgxpool.Pool, s side, n int, insert func(context.Context, int) (time.Time, error)) (sample, error) {
	start := time.Now()
	stored, err := insert(ctx, n)
	if err != nil {
		return sample{}, fmt.Errorf("enqueue: %w", err)
	}
	if err := expect(ctx, pool, s.queries().waiting, n); err != nil {
		return sample{}, fmt.Errorf("count the enqueued jobs: %w", err)
	}
	return sample{rate: float64(n) / stored.Sub(start).Seconds()}, nil
}

// insertSingly gives each of n jobs a transaction of its own.
func insertSingly(ctx context.Context, pool *pgxpool.Pool, s side, n int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range inserters {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && ctx.Err() == nil; i = next.Add(1) - 1 {
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return s.insertTx(ctx, tx, int(i)) })
				if err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// burn enqueues n jobs, starts a worker process on them, and waits until the
// database counts them all as finished.
func burn(ctx context.Context, o *options, db string, pool *pgxpool.Pool, s side, m measurement, n int) (sample, error) {
	w, err := startWorker(ctx, o, db, m, n)
	if err != nil {
		return sample{}, err
	}
	defer w.kill()

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
	disk, err := relationSize(ctx, pool, s.queries().relation)
	if err != nil {
		return sample{}, err
	}
	return sample{
		rate: float64(n) / end.Sub(start).Seconds(),
		rss:  rss,
		wal:  float64(enqueued-before+after-vacuumed) / float64(n),
		disk: float64(disk) / float64(n),
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

func expect(ctx context.Context, pool *pgxpool.Pool, query string, n int) error {
	var got int
	if err := pool.QueryRow(ctx, query).Scan(&got); err != nil {
		return err
	}
	if got != n {
		return fmt.Errorf("%d, expected %d", got, n)
	}
	return nil
}
