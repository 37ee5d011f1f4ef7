package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// schema is a live table, and what the backfill makes of each of its rows. effect has no
// key at all: what is done twice stands there twice.
const schema = `
CREATE SCHEMA live;
CREATE TABLE live.account (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    balance bigint NOT NULL
) WITH (fillfactor = 80);
CREATE TABLE live.effect (
    account bigint NOT NULL,
    run     bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp()
)`

// Backfill asks for the effect on one account.
type Backfill struct {
	ID int64 `json:"id"`
}

func (Backfill) JobType() string  { return "backfill_account" }
func (a Backfill) Entity() string { return jobs.Key(a.ID) }

const backfillSQL = `/* live: backfill */ INSERT INTO live.effect (account, run) SELECT id, $2 FROM live.account WHERE id = ANY ($1)`

// The source names every account, done or not: nothing but the ledger says which are.
func definitions() []jobs.Definition {
	return []jobs.Definition{jobs.Job[Backfill]{
		Source: jobs.SQL[Backfill](`SELECT a.id::text AS entity, a.id FROM live.account a`),
		DoMany: func(ctx context.Context, tx pgx.Tx, as []Backfill) error {
			ids := make([]int64, len(as))
			for i, a := range as {
				ids[i] = a.ID
			}
			_, err := tx.Exec(ctx, backfillSQL, ids, jobs.Current(ctx).Run)
			return err
		},
	}}
}

// Bounds of the throttles. An old snapshot that is held for a minute must be noticed.
const (
	mostLag = 2 * time.Second
	mostAge = 20 * time.Second
)

func config() worker.Config {
	return worker.Config{Throttles: []throttle.Signal{
		throttle.ReplicaLag(mostLag), throttle.OldestTransaction(mostAge), throttle.Connections(0.8), throttle.LockWaits(5),
	}}
}

// A writer is the application beside the backfill: accounts are opened and used.
type writer struct {
	db     *pgxpool.Pool
	opened atomic.Int64
	stop   context.CancelFunc
	ended  chan struct{}
	took   []time.Duration // of each of its transactions; owned by its goroutine until ended
	err    error
}

func openWriter(ctx context.Context, db *pgxpool.Pool) *writer {
	ctx, stop := context.WithCancel(ctx)
	w := &writer{db: db, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for ctx.Err() == nil && w.err == nil {
			began := time.Now()
			if err := w.use(ctx); err != nil && ctx.Err() == nil {
				w.err = fmt.Errorf("the application beside the backfill: %w", err)
			}
			w.took = append(w.took, time.Since(began))
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return w
}

// use opens an account and moves some money to it, in one transaction.
//
// It is not interrupted: a commit whose answer was not waited for could not be counted.
func (w *writer) use(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	err := pgx.BeginFunc(ctx, w.db, func(tx pgx.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, `INSERT INTO live.account (balance) VALUES (10) RETURNING id`).Scan(&id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `UPDATE live.account SET balance = balance - 10 WHERE id = $1`, 1+rand.N(id))
		return err
	})
	if err == nil {
		w.opened.Add(1)
	}
	return err
}

// close returns when nothing of it is under way.
func (w *writer) close() error {
	w.stop()
	<-w.ended
	return w.err
}

// slowest is how long all but one in a thousand of its transactions took at most. Call it
// after close.
func (w *writer) slowest() time.Duration {
	if len(w.took) == 0 {
		return 0
	}
	slices.Sort(w.took)
	return w.took[len(w.took)*999/1000]
}
