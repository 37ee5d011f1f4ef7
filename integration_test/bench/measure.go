package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	slots    = 2_000            // jobs at once, as in River's own benchmark
	poolSize = 8                // connections of a worker process
	batch    = 5_000            // jobs per bulk insert, as in River's own benchmark
	patience = 10 * time.Minute // with one measurement
)

// A side is one of the two that are compared, on one database.
type side interface {
	// migrate makes the schema in a fresh database.
	migrate(ctx context.Context) error
	// prefill stores what a measurement of kind k has in place before its clock and its
	// count of WAL start; enqueue stores what its workers work: n jobs, the first of this
	// number.
	prefill(ctx context.Context, k kind, first, n int) error
	enqueue(ctx context.Context, k kind, n int) error
	// work runs a worker until ctx is canceled; the bodies call did, with the number of the job.
	work(ctx context.Context, k kind, did func(id int64)) error
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
	db, drop, err := o.database(ctx, m.kind)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, drop()) }()
	ctx, cancel := context.WithTimeout(ctx, patience+o.hold)
	defer cancel()
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
	n := o.jobs(m)
	if err := s.prefill(ctx, m.kind, o.from(m.kind), n); err != nil {
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
	case pickUp:
		return timePickUps(ctx, pool, s)
	case loopClean, loopHeld:
		return loop(ctx, o, db, pool, m)
	case rerunDone:
		return timeRerun(ctx, o, db, pool, s, m, n)
	case doorGuarded, doorByHand, doorPlain:
		return timeRequests(ctx, o, db, pool, m, n)
	case sqsSingles, sqsPacks, sqsAlone:
		return timeSQS(ctx, o, db, pool, s, m, n)
	case takeover:
		return timeTakeover(ctx, o, db, pool, s, m)
	default:
		return burn(ctx, o, db, pool, s, m, n)
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
