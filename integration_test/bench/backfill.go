package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Effects that are a row each, on both sides.
const (
	effectsAtOnce = 500
	makeEffects   = `CREATE TABLE public.bench_effect (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())`
)

// effects does many in one transaction, with their facts.
func effects(did func(int64)) jobs.Definition {
	return jobs.Job[job]{
		DoMany: func(ctx context.Context, tx pgx.Tx, js []job) error {
			ids := make([]int64, len(js))
			for i, j := range js {
				ids[i] = j.ID
			}
			if _, err := tx.Exec(ctx, `INSERT INTO public.bench_effect (id) SELECT unnest($1::bigint[])`, ids); err != nil {
				return err
			}
			for _, id := range ids {
				did(id)
			}
			return nil
		},
		Policy: jobs.Policy{PackSize: effectsAtOnce},
	}
}

// riverEffects does one in a transaction, and completes its job in the same one.
type riverEffects struct {
	river.WorkerDefaults[riverArgs]
	pool *pgxpool.Pool
	did  func(int64)
}

func (w *riverEffects) Work(ctx context.Context, job *river.Job[riverArgs]) error {
	err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO public.bench_effect (id) VALUES ($1)`, job.Args.ID); err != nil {
			return err
		}
		_, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, job)
		return err
	})
	if err == nil {
		w.did(job.Args.ID)
	}
	return err
}

// donePerMissing is how many entities a re-run finds done for each that is missing.
const donePerMissing = 1000

// prefillRerun names the entities in the middle of the facts, and takes n of these away.
func (s *ourSide) prefillRerun(ctx context.Context, facts, n int) error {
	first := facts / 2
	if _, err := s.pool.Exec(ctx, makeSource(rerunDone), pgx.QueryExecModeSimpleProtocol, first, n*donePerMissing); err != nil {
		return fmt.Errorf("make the source: %w", err)
	}
	_, err := s.pool.Exec(ctx, `
DELETE FROM oncemore.ledger l USING public.bench_source s
WHERE l.entity = s.entity COLLATE "C" AND s.id % $1 = $1 / 2`, int64(donePerMissing))
	if err != nil {
		return fmt.Errorf("take facts away: %w", err)
	}
	return nil
}

// openRerun asks for what is missing, as an operator would.
func (s *ourSide) openRerun(ctx context.Context) error {
	set, err := jobs.NewSet(definition(rerunDone, func(int64) {}))
	if err != nil {
		return err
	}
	if _, err := worker.New(ctx, s.pool, set, config(rerunDone)); err != nil { // registers the job type
		return err
	}
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		_, err := worker.OpenRerun(ctx, tx, s.queue, worker.Order{Type: job{}.JobType(), Reason: "to measure it"})
		return err
	})
}

// timeRerun measures how fast a re-run goes over what is done: from the start of a worker
// until what is missing has its facts. It fails when the entities that are done cost a write.
func timeRerun(ctx context.Context, o *options, db string, pool *pgxpool.Pool, s side, m measurement, n int) (sample, error) {
	before, err := writes(ctx, pool)
	if err != nil {
		return sample{}, err
	}
	got, err := burn(ctx, o, db, pool, s, m, n)
	if err != nil {
		return sample{}, err
	}
	var after written
	for end := time.Now().Add(10 * time.Second); after.facts-before.facts < int64(n) && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if after, err = writes(ctx, pool); err != nil {
			return sample{}, err
		}
	}
	// The one claim is that of the run itself; each of its visits changes it.
	if facts := after.facts - before.facts; facts != int64(n) || after.changed != before.changed || after.claims-before.claims > 100 {
		return sample{}, fmt.Errorf("a re-run with %d missing wrote %d facts, changed %d, and made %d claims", n, facts, after.changed-before.changed, after.claims-before.claims)
	}
	return sample{rate: got.rate * donePerMissing}, nil
}

// written is what the server counted.
type written struct{ facts, changed, claims int64 }

func writes(ctx context.Context, pool *pgxpool.Pool) (w written, err error) {
	// A session tells what it did when it ends, at the latest.
	err = pool.QueryRow(ctx, `
SELECT max(n_tup_ins) FILTER (WHERE relname = 'ledger'), max(n_tup_upd + n_tup_del) FILTER (WHERE relname = 'ledger'),
       max(n_tup_ins) FILTER (WHERE relname = 'claim')
FROM pg_stat_user_tables, pg_stat_clear_snapshot() WHERE schemaname = 'oncemore'`).Scan(&w.facts, &w.changed, &w.claims)
	if err != nil {
		return w, fmt.Errorf("ask what was written: %w", err)
	}
	return w, nil
}
