package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const inserters = 4

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
