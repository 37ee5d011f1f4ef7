package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

const (
	packSize = 100
	backlog  = 40_000 // jobs that may be enqueued and not done
	sendSize = 50     // packs of one send
)

// loop lets a worker process enqueue and work for o.hold, and counts the facts of the
// last half by their time: what is dead by then has had time to pile up.
func loop(ctx context.Context, o *options, db string, pool *pgxpool.Pool, m measurement) (_ sample, err error) {
	w, err := startWorker(ctx, o, db, m, 0)
	if err != nil {
		return sample{}, err
	}
	defer w.kill()
	if m.kind == loopHeld {
		release, e := holdSnapshot(ctx, o, db)
		if e != nil {
			return sample{}, e
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	if _, err := w.begin(); err != nil {
		return sample{}, err
	}
	select {
	case <-time.After(o.hold):
	case err := <-w.ended:
		return sample{}, fmt.Errorf("the worker ended too early: %w", err)
	case <-ctx.Done():
		return sample{}, context.Cause(ctx)
	}
	var end time.Time // by the clock that dates the facts
	if err := pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&end); err != nil {
		return sample{}, fmt.Errorf("read the server's clock: %w", err)
	}
	if err := w.stop(); err != nil {
		return sample{}, err
	}
	window := o.hold / 2
	var done int
	const between = `SELECT count(*) FROM oncemore.ledger WHERE completed_at >= $1 AND completed_at < $2`
	if err := pool.QueryRow(ctx, between, end.Add(-window), end).Scan(&done); err != nil {
		return sample{}, fmt.Errorf("count the facts: %w", err)
	}
	if done == 0 {
		return sample{}, fmt.Errorf("no job was done in the last %s", window)
	}
	return sample{rate: float64(done) / window.Seconds()}, nil
}

// holdSnapshot opens a transaction in a session of its own that sees the database as it
// is now. release ends it, with an error if it has not lasted until then.
func holdSnapshot(ctx context.Context, o *options, db string) (release func() error, err error) {
	c, err := pgx.ParseConfig(o.baseDSN)
	if err != nil {
		return nil, fmt.Errorf("hold a snapshot: %w", err)
	}
	c.Database = db
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("hold a snapshot: %w", err)
	}
	var before string
	_, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ`)
	if err == nil {
		err = conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&before)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hold a snapshot: %w", err), conn.Close(ctx))
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		var after string
		err := conn.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&after)
		if err == nil && after != before {
			err = fmt.Errorf("it was %s and is %s", before, after)
		}
		if err != nil {
			err = fmt.Errorf("the snapshot was not held: %w", err)
		}
		return errors.Join(err, conn.Close(ctx))
	}, nil
}

// loop sends packs as long as not too many jobs are ahead of those that are done, and works them.
func (s *ourSide) loop(ctx context.Context, k kind, did func(int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var done atomic.Int64
	room := make(chan struct{}, 1)
	produced := make(chan struct{})
	go func() {
		defer close(produced)
		for sent := int64(0); ctx.Err() == nil; {
			if sent-done.Load() > backlog-sendSize*packSize {
				select {
				case <-room:
				case <-ctx.Done():
				}
				continue
			}
			err := s.queue.Send(ctx, packs(sent)...)
			if err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("enqueue: %w", err))
			}
			sent += sendSize * packSize
		}
	}()
	err := s.run(ctx, k, definition(k, func(id int64) {
		did(id)
		if done.Add(1)%packSize == 0 {
			select {
			case room <- struct{}{}:
			default:
			}
		}
	}))
	cause := context.Cause(ctx)
	cancel(nil)
	<-produced
	if errors.Is(cause, context.Canceled) {
		cause = nil // we were told to stop
	}
	return errors.Join(err, cause)
}

// packs are messages of the jobs from this number on.
func packs(from int64) []queue.Message {
	ms := make([]queue.Message, sendSize)
	for i := range ms {
		items := make([]queue.Item, packSize)
		for j := range items {
			items[j], _ = jobs.NewItem(job{from}) // a number always encodes
			from++
		}
		ms[i] = queue.Message{Type: job{}.JobType(), Items: items}
	}
	return ms
}
