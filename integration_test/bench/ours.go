package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/migrations"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

type job struct {
	ID int64 `json:"id"`
}

func (job) JobType() string  { return "bench_job" }
func (j job) Entity() string { return fmt.Sprintf("job/%020d", j.ID) } // 24 bytes

// all fans out to every job of the source.
type all struct{}

func (all) JobType() string { return "bench_all" }
func (all) Entity() string  { return "all" }

const (
	makeSource = `CREATE TABLE public.bench_source AS
		SELECT 'job/' || lpad(id::text, 20, '0') AS entity, id FROM generate_series(0, $1::bigint - 1) AS id`
	readSource = `SELECT entity, id FROM public.bench_source`
)

type ourSide struct {
	pool  *pgxpool.Pool
	queue *pgqueue.Queue
}

func newOurs(pool *pgxpool.Pool) (side, error) {
	return &ourSide{pool: pool, queue: pgqueue.New(pool, "")}, nil
}

func (s *ourSide) migrate(ctx context.Context) error {
	_, err := migrations.Up(ctx, s.pool)
	return err
}

func (s *ourSide) prefill(ctx context.Context, k kind, n int) error {
	if k != burnFanOut && k != insertMany {
		return nil
	}
	// A statement that makes a table takes no parameters of its own.
	_, err := s.pool.Exec(ctx, makeSource, pgx.QueryExecModeSimpleProtocol, n)
	return err
}

func (s *ourSide) enqueue(ctx context.Context, k kind, n int) error {
	if k == burnFanOut {
		return jobs.Enqueue(ctx, s.queue, all{})
	}
	return s.enqueueSingles(ctx, n)
}

// enqueueSingles gives each job a message of its own.
func (s *ourSide) enqueueSingles(ctx context.Context, n int) error {
	args := make([]job, 0, batch)
	for i := range n {
		args = append(args, job{int64(i)})
		if len(args) == batch || i == n-1 {
			if err := jobs.Enqueue(ctx, s.queue, args...); err != nil {
				return err
			}
			args = args[:0]
		}
	}
	return nil
}

func (s *ourSide) insertTx(ctx context.Context, tx pgx.Tx, i int) error {
	return jobs.Enqueue(ctx, s.queue.Tx(tx), job{int64(i)})
}

func definition(did func()) jobs.Definition {
	return jobs.Job[job]{
		Do:     func(context.Context, job) error { did(); return nil },
		Effect: jobs.Repeatable,
	}
}

var fanOut = jobs.Job[all]{FanOut: func(all) jobs.Source { return jobs.SQL[job](readSource) }}

// insertAll runs a worker whose children's bodies wait for its end, so that their messages stay.
func (s *ourSide) insertAll(ctx context.Context, _ int) (stored time.Time, err error) {
	if err := jobs.Enqueue(ctx, s.queue, all{}); err != nil {
		return stored, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, fanOut, waiting) }()
	for planned := false; !planned; stored = time.Now() {
		select {
		case err := <-ended:
			return stored, fmt.Errorf("the worker ended too early: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
		const isPlanned = `SELECT EXISTS (SELECT FROM oncemore.run WHERE planned_at IS NOT NULL)`
		if err := s.pool.QueryRow(ctx, isPlanned).Scan(&planned); err != nil {
			return stored, fmt.Errorf("look whether the run is planned: %w", err)
		}
	}
	cancel()
	return stored, <-ended
}

var waiting = jobs.Job[job]{Effect: jobs.Repeatable, Do: func(ctx context.Context, _ job) error {
	<-ctx.Done()
	return ctx.Err()
}}

func (s *ourSide) work(ctx context.Context, did func()) error {
	return s.run(ctx, fanOut, definition(did))
}

func (s *ourSide) run(ctx context.Context, definitions ...jobs.Definition) error {
	set, err := jobs.NewSet(definitions...)
	if err != nil {
		return fmt.Errorf("register our jobs: %w", err)
	}
	w, err := worker.New(ctx, s.pool, set, worker.Config{
		Slots: slots,
		Log:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return fmt.Errorf("make our worker: %w", err)
	}
	if err := w.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("run our worker: %w", err)
	}
	return nil
}

func (s *ourSide) queries() queries {
	return queries{
		done: `SELECT count(*) FROM oncemore.ledger
			WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = 'bench_job')`,
		waiting:  `SELECT coalesce(sum(cardinality(entities)), 0) FROM oncemore.message WHERE type = 'bench_job'`,
		relation: "oncemore.ledger",
	}
}
