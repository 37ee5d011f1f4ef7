package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/worker"
)

// status is the state of all that a database has, by the words of the design: done, open
// by trouble, missing.
type status struct {
	Now     time.Time          `json:"now"` // the database's clock
	Types   []typeStatus       `json:"types"`
	Queues  []queueStatus      `json:"queues"`
	Workers []workerStatus     `json:"workers"`
	Runs    []worker.RunStatus `json:"runs"`
	Parked  []parkedStatus     `json:"parked"`
}

type typeStatus struct {
	Type    string   `json:"type"`
	Effect  string   `json:"effect"`
	Done    count    `json:"done"`
	Open    openings `json:"open"`
	Missing *count   `json:"missing"`           // null: not known
	Unknown string   `json:"unknown,omitempty"` // why missing is not known
}

// openings are the claims of a type.
type openings struct {
	Running  int64 `json:"running"`  // held by a living worker
	Stranded int64 `json:"stranded"` // held by a dead one: a redelivery takes it over
	Retrying int64 `json:"retrying"`
	Failed   int64 `json:"failed"`
	InDoubt  int64 `json:"in_doubt"`
}

type queueStatus struct {
	Queue    string   `json:"queue"`
	Ready    int64    `json:"ready"` // messages, as are the others
	Held     int64    `json:"held"`
	Delayed  int64    `json:"delayed"`
	Entities int64    `json:"entities"`         // in all of them
	Oldest   *float64 `json:"oldest_ready_age"` // in seconds; null: nothing is ready
	Is       string   `json:"is"`               // exact | at_least
}

type workerStatus struct {
	ID        int64      `json:"id"`
	Name      string     `json:"name"`
	StartedAt time.Time  `json:"started_at"`
	DeadAt    *time.Time `json:"dead_at"` // null: living
	Cause     *string    `json:"cause"`   // of death: stopped | lapsed
	Overdue   bool       `json:"overdue"` // its lease has lapsed, and nobody has declared it dead yet
	Claims    int64      `json:"claims"`
}

type parkedStatus struct {
	Reason string    `json:"reason"`
	Type   string    `json:"type"`
	Inputs int64     `json:"inputs"`
	LastAt time.Time `json:"last_at"`
}

// readTime bounds each statement: what would take longer is said to be unknown.
const readTime = 5 * time.Second

func (p *program) readStatus(ctx context.Context, pool *pgxpool.Pool) (*status, error) {
	set, err := p.set(ctx, pool)
	if err != nil {
		return nil, err
	}
	s := &status{}
	var types []*jobType
	opens := map[int32]openings{}
	err = reading(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&s.Now); err != nil {
			return err
		}
		if types, err = readTypes(ctx, tx, set); err != nil {
			return err
		}
		if opens, err = readOpens(ctx, tx); err != nil {
			return err
		}
		if s.Queues, err = readRows[queueStatus](ctx, tx, queuesSQL, queueMost); err != nil {
			return fmt.Errorf("read the queues: %w", err)
		}
		if s.Workers, err = readRows[workerStatus](ctx, tx, workersSQL); err != nil {
			return fmt.Errorf("list the workers: %w", err)
		}
		if s.Parked, err = readRows[parkedStatus](ctx, tx, parkedSQL); err != nil {
			return fmt.Errorf("count what is parked: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.Types = make([]typeStatus, len(types))
	for i, t := range types {
		s.Types[i] = typeStatus{Type: t.Name, Effect: t.Effect, Open: opens[t.ID]}
		if err := readCounts(ctx, pool, t, &s.Types[i]); err != nil {
			return nil, err
		}
	}
	s.Runs, err = worker.Runs(ctx, pool, 10)
	if s.Runs == nil {
		s.Runs = []worker.RunStatus{}
	}
	return s, err
}

// readCounts reads what may take long of one type, in transactions of its own, so that one
// slow source leaves the others as they are.
func readCounts(ctx context.Context, pool *pgxpool.Pool, t *jobType, into *typeStatus) error {
	err := reading(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
		into.Done, err = readDone(ctx, tx, t)
		return err
	})
	if err != nil {
		return err
	}
	var n count
	if t.Query == "" && !t.source.IsZero() {
		into.Unknown = "its source is in Go; 'missing' walks it"
		return nil
	}
	err = reading(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
		n, err = t.missingCount(ctx, tx, countMost)
		return err
	})
	switch {
	case errors.Is(err, errNoSource):
		into.Unknown = "no source is known"
	case err != nil && ctx.Err() == nil:
		into.Unknown = firstLine(err.Error())
	case err != nil:
		return err
	default:
		into.Missing = &n
	}
	return nil
}

func readRows[T any](ctx context.Context, tx pgx.Tx, query string, args ...any) ([]T, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if out == nil {
		out = []T{}
	}
	return out, err
}

const opensSQL = `
SELECT c.job_type,
       count(*) FILTER (WHERE c.owner IS NOT NULL AND w.dead_at IS NULL),
       count(*) FILTER (WHERE c.owner IS NOT NULL AND w.dead_at IS NOT NULL),
       count(*) FILTER (WHERE c.owner IS NULL AND c.trouble = 'retrying'),
       count(*) FILTER (WHERE c.owner IS NULL AND c.trouble = 'failed'),
       count(*) FILTER (WHERE c.owner IS NULL AND c.trouble = 'in_doubt')
FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner GROUP BY c.job_type`

func readOpens(ctx context.Context, tx pgx.Tx) (map[int32]openings, error) {
	rows, err := tx.Query(ctx, opensSQL)
	if err != nil {
		return nil, fmt.Errorf("count what is open: %w", err)
	}
	out := map[int32]openings{}
	var id int32
	var o openings
	_, err = pgx.ForEachRow(rows, []any{&id, &o.Running, &o.Stranded, &o.Retrying, &o.Failed, &o.InDoubt}, func() error {
		out[id] = o
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count what is open: %w", err)
	}
	return out, nil
}

// doneMost facts are counted in some ten milliseconds; past it the planner's statistics
// must do.
const doneMost = 100_000

const (
	doneSQL = `SELECT count(*) FROM (SELECT FROM oncemore.ledger WHERE job_type = $1 LIMIT $2) l`

	estimateSQL = `
SELECT (c.reltuples * f.freq)::bigint
FROM pg_catalog.pg_class c, pg_catalog.pg_stats s, unnest(s.most_common_vals::text::int[], s.most_common_freqs) AS f(val, freq)
WHERE c.oid = 'oncemore.ledger'::regclass AND s.schemaname = 'oncemore' AND s.tablename = 'ledger' AND s.attname = 'job_type'
AND f.val = $1 AND c.reltuples > 0`
)

func readDone(ctx context.Context, tx pgx.Tx, t *jobType) (count, error) {
	var n int64
	if err := tx.QueryRow(ctx, doneSQL, t.ID, doneMost+1).Scan(&n); err != nil {
		return count{}, fmt.Errorf("count the facts of %s: %w", t.Name, err)
	}
	if n <= doneMost {
		return count{n, "exact"}, nil
	}
	err := tx.QueryRow(ctx, estimateSQL, t.ID).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && n <= doneMost {
		return count{doneMost, "at_least"}, nil // not analysed yet, or rare
	} else if err != nil {
		return count{}, fmt.Errorf("estimate the facts of %s: %w", t.Name, err)
	}
	return count{n, "estimate"}, nil
}

// queueMost messages are looked at, the oldest ones.
const queueMost = 100_000

const queuesSQL = `
SELECT m.queue, count(*) FILTER (WHERE m.lock IS NULL), count(*) FILTER (WHERE m.lock > 0), count(*) FILTER (WHERE m.lock = 0),
       coalesce(sum(m.n), 0)::bigint,
       greatest(0, extract(epoch FROM clock_timestamp() - min(m.visible_at) FILTER (WHERE m.lock IS NULL)))::float8,
       CASE WHEN sum(count(*)) OVER () >= $1::int THEN 'at_least' ELSE 'exact' END
FROM (SELECT queue, lock, visible_at, cardinality(entities) AS n FROM oncemore.message ORDER BY id LIMIT $1::int) m
GROUP BY m.queue ORDER BY m.queue`

// The living, and those that died within the hour.
const workersSQL = `
SELECT w.id, w.name, w.started_at, w.dead_at, w.cause, w.dead_at IS NULL AND w.expires < clock_timestamp(), coalesce(c.n, 0)
FROM oncemore.worker w
LEFT JOIN (SELECT owner, count(*) AS n FROM oncemore.claim WHERE owner IS NOT NULL GROUP BY owner) c ON c.owner = w.id
WHERE w.dead_at IS NULL OR w.dead_at > clock_timestamp() - interval '1 hour'
ORDER BY w.dead_at IS NOT NULL, w.id DESC LIMIT 50`

const parkedSQL = `SELECT reason, type, count(*), max(last_at) FROM oncemore.parked GROUP BY reason, type ORDER BY reason, type LIMIT 100`
