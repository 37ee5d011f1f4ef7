package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	pickUpRate   = 100 // jobs per second
	pickUpLength = 12 * time.Second
	warmUp       = 2 * time.Second // before that, not counted
)

// timePickUps measures how long a job waits for its body when there is next to nothing to
// do. Producer and worker are this one process, so that one clock times both.
func timePickUps(ctx context.Context, pool *pgxpool.Pool, s side) (sample, error) {
	due := arrivals(pickUpRate, warmUp+pickUpLength)
	committed, picked := make([]atomic.Int64, len(due)), make([]atomic.Int64, len(due)) // since start
	start := time.Now()
	var left atomic.Int64
	left.Store(int64(len(due)))
	all := make(chan struct{})

	work, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- s.work(work, pickUp, func(id int64) {
			at := int64(time.Since(start))
			if picked[id].CompareAndSwap(0, at) && left.Add(-1) == 0 {
				close(all)
			}
		})
	}()

	begin := time.Now()
	for i, d := range due {
		select {
		case <-time.After(time.Until(begin.Add(d))):
		case err := <-ended:
			return sample{}, fmt.Errorf("the worker ended too early: %w", err)
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			return sample{}, fmt.Errorf("enqueue: %w", err)
		}
		if err := s.insertTx(ctx, tx, i); err != nil {
			return sample{}, errors.Join(fmt.Errorf("enqueue: %w", err), tx.Rollback(ctx))
		}
		committed[i].Store(int64(time.Since(start)))
		if err := tx.Commit(ctx); err != nil {
			return sample{}, fmt.Errorf("enqueue: %w", err)
		}
	}
	select {
	case <-all:
	case err := <-ended:
		return sample{}, fmt.Errorf("the worker ended too early: %w", err)
	case <-time.After(time.Minute):
		return sample{}, fmt.Errorf("%d jobs were not picked up within a minute", left.Load())
	}
	stop()
	if err := <-ended; err != nil {
		return sample{}, err
	}
	if err := expect(ctx, pool, s.queries().done, len(due)); err != nil {
		return sample{}, fmt.Errorf("count the finished jobs: %w", err)
	}

	var waits []time.Duration
	for i, d := range due {
		if d >= warmUp {
			waits = append(waits, time.Duration(picked[i].Load()-committed[i].Load()))
		}
	}
	slices.Sort(waits)
	return sample{p50: percentile(waits, 50), p99: percentile(waits, 99)}, nil
}

// arrivals are moments of a Poisson process, the same ones every time: at even intervals
// a poll could run in step with them.
func arrivals(perSecond float64, length time.Duration) (due []time.Duration) {
	r := rand.New(rand.NewPCG(1, 2))
	for at := 0.0; ; {
		at += r.ExpFloat64() / perSecond
		d := time.Duration(at * float64(time.Second))
		if d >= length {
			return due
		}
		due = append(due, d)
	}
}

// percentile is the least of the sorted values that p of 100 do not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, int(math.Ceil(p/100*float64(len(sorted))))-1)]
}
