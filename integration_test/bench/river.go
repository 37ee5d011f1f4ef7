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
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type riverArgs struct {
	ID int64 `json:"id"`
}

func (riverArgs) Kind() string { return "bench_job" }

type riverWorker struct {
	river.WorkerDefaults[riverArgs]
	kind kind
	did  func(int64)
}

func (w *riverWorker) Work(_ context.Context, job *river.Job[riverArgs]) error {
	if w.kind == burnBusy {
		time.Sleep(busy)
	}
	w.did(job.Args.ID)
	return nil
}

type riverSide struct {
	pool   *pgxpool.Pool
	insert *river.Client[pgx.Tx] // inserts only
}

var riverLog = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))

func newRiver(pool *pgxpool.Pool) (side, error) {
	c, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Logger: riverLog})
	if err != nil {
		return nil, fmt.Errorf("make a River client: %w", err)
	}
	return &riverSide{pool: pool, insert: c}, nil
}

func (s *riverSide) migrate(ctx context.Context) error {
	m, err := rivermigrate.New(riverpgxv5.New(s.pool), &rivermigrate.Config{Logger: riverLog})
	if err != nil {
		return err
	}
	_, err = m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

func (s *riverSide) prefill(ctx context.Context, k kind, _, _ int) error {
	if k != burnEffects {
		return nil
	}
	_, err := s.pool.Exec(ctx, makeEffects)
	return err
}

func (s *riverSide) enqueue(ctx context.Context, _ kind, n int) error {
	_, err := s.insertAll(ctx, n)
	return err
}

func (s *riverSide) insertAll(ctx context.Context, n int) (time.Time, error) {
	params := make([]river.InsertManyParams, 0, batch)
	for i := range n {
		params = append(params, river.InsertManyParams{Args: riverArgs{int64(i)}})
		if len(params) == batch || i == n-1 {
			if _, err := s.insert.InsertMany(ctx, params); err != nil {
				return time.Time{}, err
			}
			params = params[:0]
		}
	}
	return time.Now(), nil
}

func (s *riverSide) insertTx(ctx context.Context, tx pgx.Tx, i int) error {
	_, err := s.insert.InsertTx(ctx, tx, riverArgs{int64(i)}, nil)
	return err
}

// riverWorkers is MaxWorkers, which has no default, in the examples of River's documentation.
const riverWorkers = 100

// riverConfig has the settings of River's own benchmark (river bench), or its defaults.
func riverConfig(k kind) *river.Config {
	c := &river.Config{Logger: riverLog}
	most := slots
	switch {
	case k == burnBusy:
		most = 16
	case k.defaults():
		most = riverWorkers
	default:
		c.FetchCooldown, c.FetchPollInterval = 2*time.Millisecond, 20*time.Millisecond
	}
	c.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: most}}
	return c
}

func (s *riverSide) work(ctx context.Context, k kind, did func(int64)) error {
	config := riverConfig(k)
	config.Workers = river.NewWorkers()
	var err error
	if k == burnEffects {
		err = river.AddWorkerSafely(config.Workers, &riverEffects{pool: s.pool, did: did})
	} else {
		err = river.AddWorkerSafely(config.Workers, &riverWorker{kind: k, did: did})
	}
	if err != nil {
		return fmt.Errorf("register River's worker: %w", err)
	}
	c, err := river.NewClient(riverpgxv5.New(s.pool), config)
	if err != nil {
		return fmt.Errorf("make a River client: %w", err)
	}
	// Canceling Start's context would cancel jobs; Stop lets them end.
	background := context.WithoutCancel(ctx)
	if err := c.Start(background); err != nil {
		return fmt.Errorf("start River: %w", err)
	}
	<-ctx.Done()
	stopCtx, cancel := context.WithTimeout(background, 30*time.Second)
	defer cancel()
	if err := c.Stop(stopCtx); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("stop River: %w", err)
	}
	return nil
}

func (s *riverSide) queries() queries {
	return queries{
		done:     "SELECT count(*) FROM river_job WHERE state = 'completed'",
		waiting:  "SELECT count(*) FROM river_job WHERE state = 'available'",
		relation: "river_job",
	}
}
