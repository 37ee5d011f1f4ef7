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
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
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

// makeSource is the statement that makes the table of the jobs that a fan-out names.
func makeSource(k kind) string {
	return `CREATE TABLE public.bench_source AS SELECT ` + entityOfID + ` AS entity, id
		FROM (SELECT ` + idOf(k) + ` AS id FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) AS n) AS numbered`
}

const readSource = `SELECT entity, id FROM public.bench_source`

type ourSide struct {
	pool  *pgxpool.Pool
	queue *pgqueue.Queue
	grown int // pages of the ledger that are full of other facts
}

func newOurs(pool *pgxpool.Pool) (side, error) {
	return &ourSide{pool: pool, queue: pgqueue.New(pool, "")}, nil
}

func (s *ourSide) migrate(ctx context.Context) error {
	if _, err := migrations.Up(ctx, s.pool); err != nil {
		return err
	}
	return s.pool.QueryRow(ctx, `SELECT greatest(0, pg_relation_size('oncemore.ledger') / current_setting('block_size')::int - 1)`).Scan(&s.grown)
}

func (s *ourSide) prefill(ctx context.Context, k kind, first, n int) error {
	if !k.planned() {
		return nil
	}
	if k == rerunDone {
		return s.prefillRerun(ctx, first, n)
	}
	if k == burnEffects {
		if _, err := s.pool.Exec(ctx, makeEffects); err != nil {
			return err
		}
	}
	// A statement that makes a table takes no parameters of its own.
	_, err := s.pool.Exec(ctx, makeSource(k), pgx.QueryExecModeSimpleProtocol, first, n)
	return err
}

func (s *ourSide) enqueue(ctx context.Context, k kind, n int) error {
	if k == rerunDone {
		return s.openRerun(ctx)
	}
	if k.planned() {
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

// busy is how long the jobs of burnBusy take.
const busy = time.Millisecond

// definition is the job of a measurement. Its bodies do nothing, or nearly so.
func definition(k kind, did func(int64)) jobs.Definition {
	j := jobs.Job[job]{
		Do:     func(_ context.Context, a job) error { did(a.ID); return nil },
		Effect: jobs.Repeatable,
	}
	switch k {
	case burnBusy:
		j.Do = func(_ context.Context, a job) error {
			time.Sleep(busy)
			did(a.ID)
			return nil
		}
	case rerunDone:
		j.Source = jobs.SQL[job](readSource)
	case burnEffects:
		return effects(did)
	case holding:
		j.Do = func(ctx context.Context, a job) error {
			did(a.ID)
			<-ctx.Done()
			return ctx.Err()
		}
	}
	if k == burnVerified || k == holding || k == takeover {
		j.Effect = jobs.Verifiable(0)
		j.Done = func(context.Context, job) (bool, error) { return false, nil }
	}
	return j
}

// config has the slots of River's own benchmark, or our defaults.
func config(k kind) worker.Config {
	c := worker.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	switch {
	case k == holding:
		c.Slots = heldJobs
	case !k.defaults():
		c.Slots = slots
	}
	return c
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
	go func() { ended <- s.run(ctx, insertMany, fanOut, waiting) }()
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

func (s *ourSide) work(ctx context.Context, k kind, did func(int64)) error {
	if k == loopClean || k == loopHeld {
		return s.loop(ctx, k, did)
	}
	return s.run(ctx, k, fanOut, definition(k, did))
}

func (s *ourSide) run(ctx context.Context, k kind, definitions ...jobs.Definition) error {
	set, err := jobs.NewSet(definitions...)
	if err != nil {
		return fmt.Errorf("register our jobs: %w", err)
	}
	c := config(k)
	if k == sqsSingles || k == sqsPacks {
		q, err := sqsqueue.New(ctx, sqsName, sqsqueue.Options{})
		if err != nil {
			return err
		}
		c.Queues = map[string]queue.Queue{"": q} // and not closed: the server ends with the measurement
	}
	w, err := worker.New(ctx, s.pool, set, c)
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
		// It reads none of the pages that were full before: a count of ten million facts takes about as long as
		// the work that it is to time.
		done: fmt.Sprintf(`SELECT count(*) FROM oncemore.ledger WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = 'bench_job')
			AND completed_at > %s AND ctid >= '(%d,0)'`, longAgo, s.grown),
		waiting:  `SELECT coalesce(sum(cardinality(entities)), 0) FROM oncemore.message WHERE type = 'bench_job'`,
		relation: "oncemore.ledger",
	}
}
