package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// Status is the state of all that a database has, by the words of the design: done, open
// by trouble, missing.
type Status struct {
	Now     time.Time      `json:"now"` // the database's clock
	Types   []TypeStatus   `json:"types"`
	Queues  []QueueStatus  `json:"queues"`
	Workers []WorkerStatus `json:"workers"`
	Runs    []Run          `json:"runs"` // the newest, as [ListRuns] has them
	Parked  []ParkedStatus `json:"parked"`

	RunsUnknown string `json:"runs_unknown,omitempty"` // why the runs are not known
}

// NoSource is the TypeStatus.Unknown of a type without a source: then nothing of it can be
// missing, or a worker knows a source that cannot be written into the database.
const NoSource = "no source is known"

// TypeStatus is what is done, open and missing of a job type.
type TypeStatus struct {
	Type    string   `json:"type"`
	Effect  string   `json:"effect"`
	Done    Count    `json:"done"`
	Open    Openings `json:"open"`
	Missing *Count   `json:"missing"`           // null: not known
	Unknown string   `json:"unknown,omitempty"` // why missing is not known

	// Nameless rows of the source have no entity: it is NULL, or empty. No work can be called
	// by them. Where more is missing than is counted, these are those that were seen.
	Nameless int64 `json:"nameless,omitempty"`
	// StaleUnknown tells that Missing does not know what newer code makes stale: see
	// [NewerUnknown].
	StaleUnknown bool `json:"stale_unknown,omitempty"`
	// Unregistered types are known from the application's set alone: no worker has registered
	// them in this database.
	Unregistered bool `json:"unregistered,omitempty"`
}

// Openings are the claims of a type.
type Openings struct {
	Running  int64 `json:"running"`  // held by a living worker
	Stranded int64 `json:"stranded"` // held by a dead one: a redelivery takes it over
	Retrying int64 `json:"retrying"`
	Failed   int64 `json:"failed"`
	InDoubt  int64 `json:"in_doubt"`
}

// QueueStatus is what a Postgres queue holds.
type QueueStatus struct {
	Queue    string    `json:"queue"`
	Ready    int64     `json:"ready"` // messages, as are the others
	Held     int64     `json:"held"`
	Delayed  int64     `json:"delayed"`
	Entities int64     `json:"entities"`         // in all of them
	Oldest   *float64  `json:"oldest_ready_age"` // in seconds; null: nothing is ready
	Is       Exactness `json:"is"`               // exact | at_least
}

// WorkerStatus is a worker that lives, or died within the hour.
type WorkerStatus struct {
	ID        int64      `json:"id"`
	Name      string     `json:"name"`
	StartedAt time.Time  `json:"started_at"`
	DeadAt    *time.Time `json:"dead_at"` // null: living
	Cause     *string    `json:"cause"`   // of death: stopped | lapsed
	Overdue   bool       `json:"overdue"` // its lease has lapsed, and nobody has declared it dead yet
	Claims    int64      `json:"claims"`
}

// ParkedStatus counts input that was kept aside for one reason.
type ParkedStatus struct {
	Reason string    `json:"reason"`
	Type   string    `json:"type"`
	Inputs int64     `json:"inputs"`
	LastAt time.Time `json:"last_at"`
}

// readTime bounds each statement: what would take longer is said to be unknown.
const readTime = 5 * time.Second

// runsShown is how many runs are shown, the newest.
const runsShown = 10

// StatusOptions says what else a look at everything is to do.
type StatusOptions struct {
	// Walk the sources in Go of the application's set, so that what is missing there is known
	// too. It takes as long as the sources take.
	Walk bool
}

// ReadStatus reads the state of everything. set may be nil: then the sources that workers
// have registered are all that is known. With it a type that no worker has registered yet is
// there too: all that its source names is missing. What would take too long to tell is said
// to be unknown, and never fails the rest.
func ReadStatus(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, o StatusOptions) (*Status, error) {
	s := &Status{}
	var types []*Type
	opens := map[int32]Openings{}
	err := Read(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
		if s.Now, err = serverTime(ctx, tx); err != nil {
			return err
		}
		if types, err = Types(ctx, tx, set); err != nil {
			return err
		}
		if opens, err = readOpens(ctx, tx); err != nil {
			return err
		}
		if s.Queues, err = rowsOf[QueueStatus](ctx, tx, queuesSQL, queueMost); err != nil {
			return fmt.Errorf("read the queues: %w", err)
		}
		if s.Workers, err = rowsOf[WorkerStatus](ctx, tx, workersSQL); err != nil {
			return fmt.Errorf("list the workers: %w", err)
		}
		if s.Parked, err = rowsOf[ParkedStatus](ctx, tx, parkedSQL); err != nil {
			return fmt.Errorf("count what is parked: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	types = append(types, unregistered(set, types)...)
	slices.SortFunc(types, func(a, b *Type) int { return strings.Compare(a.Name, b.Name) })
	s.Types = []TypeStatus{}
	for _, t := range types {
		ty := TypeStatus{Type: t.Name, Effect: t.Declared, Open: opens[t.ID], Unregistered: t.ID == 0}
		if t.Internal() && ty.Open.Failed+ty.Open.InDoubt+ty.Open.Stranded == 0 {
			continue // nobody needs to know of it while it is well
		}
		if err := readCounts(ctx, pool, t, o, &ty); err != nil {
			return nil, err
		}
		s.Types = append(s.Types, ty)
	}
	return s, s.readRuns(ctx, pool)
}

// readRuns reads the newest runs. How far those are that go on is derived from their plans,
// which may be large.
func (s *Status) readRuns(ctx context.Context, pool *pgxpool.Pool) error {
	s.Runs = []Run{}
	err := Read(ctx, pool, readTime, func(tx pgx.Tx) error {
		runs, err := ListRuns(ctx, tx, RunFilter{}, Page{Limit: runsShown})
		if err == nil {
			s.Runs = runs.Rows
		}
		return err
	})
	if TimedOut(err) {
		s.RunsUnknown = firstLine(err.Error())
		return nil
	}
	return err
}

// readCounts reads what may take long of one type, in transactions of its own, so that one
// slow source leaves the others as they are.
func readCounts(ctx context.Context, pool *pgxpool.Pool, t *Type, o StatusOptions, into *TypeStatus) error {
	err := Read(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
		into.Done, err = readDone(ctx, tx, t)
		return err
	})
	if err != nil {
		return err
	}
	var n Count
	var nameless int64
	switch {
	case t.source.InGo() && !o.Walk:
		into.Unknown = "its source is in Go; 'missing' walks it"
		return nil
	case t.source.InGo():
		n, nameless, err = t.missingCountInGo(ctx, pool, time.Minute, CountMost)
	default:
		err = Read(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
			n, nameless, err = t.missingCount(ctx, tx, CountMost)
			return err
		})
	}
	switch {
	case errors.Is(err, ErrNoSource):
		into.Unknown = NoSource
	case err != nil && ctx.Err() == nil:
		into.Unknown = firstLine(err.Error())
	case err != nil:
		return err
	default:
		into.Missing, into.Nameless = &n, nameless
		into.StaleUnknown = t.staleUnknown() && into.Done.N > 0
	}
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

const opensSQL = `
SELECT c.job_type,
       count(*) FILTER (WHERE c.owner IS NOT NULL AND w.dead_at IS NULL),
       count(*) FILTER (WHERE c.owner IS NOT NULL AND w.dead_at IS NOT NULL),
       count(*) FILTER (WHERE c.owner IS NULL AND c.trouble = 'retrying'),
       count(*) FILTER (WHERE c.owner IS NULL AND c.trouble = 'failed'),
       count(*) FILTER (WHERE c.owner IS NULL AND c.trouble = 'in_doubt')
FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner GROUP BY c.job_type`

func readOpens(ctx context.Context, tx pgx.Tx) (map[int32]Openings, error) {
	rows, err := tx.Query(ctx, opensSQL)
	if err != nil {
		return nil, fmt.Errorf("count what is open: %w", err)
	}
	out := map[int32]Openings{}
	var id int32
	var o Openings
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

func readDone(ctx context.Context, tx pgx.Tx, t *Type) (Count, error) {
	var n int64
	if err := tx.QueryRow(ctx, doneSQL, t.ID, doneMost+1).Scan(&n); err != nil {
		return Count{}, fmt.Errorf("count the facts of %s: %w", t.Name, err)
	}
	if n <= doneMost {
		return Count{n, Exact}, nil
	}
	err := tx.QueryRow(ctx, estimateSQL, t.ID).Scan(&n)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && n <= doneMost {
		return Count{doneMost, AtLeast}, nil // not analysed yet, or rare
	} else if err != nil {
		return Count{}, fmt.Errorf("estimate the facts of %s: %w", t.Name, err)
	}
	return Count{n, Estimate}, nil
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

// A Verdict says in one word whether everything is done.
type Verdict string

const (
	AllDone    Verdict = "done"
	Troubled   Verdict = "trouble"    // something failed, is in doubt, stranded or parked, or a source names nothing: somebody must act
	Unfinished Verdict = "unfinished" // something is missing or in work: it may come right by itself
	NotKnown   Verdict = "unknown"    // a source could not be asked, and nothing worse was found
)

// Verdict tells whether everything is done, and says why not, the worst first. A type
// whose source nobody here knows has no missing; see [NoSource].
func (s *Status) Verdict() (Verdict, []string) {
	var trouble, undone, unknown []string
	add := func(to *[]string, n int64, format string, args ...any) {
		if n > 0 {
			*to = append(*to, fmt.Sprintf(format, args...))
		}
	}
	for _, t := range s.Types {
		add(&trouble, t.Open.Failed, "%s: %s failed", t.Type, thousands(t.Open.Failed))
		add(&trouble, t.Open.InDoubt, "%s: %s in doubt", t.Type, thousands(t.Open.InDoubt))
		add(&trouble, t.Open.Stranded, "%s: %s stranded", t.Type, thousands(t.Open.Stranded))
		add(&trouble, t.Nameless, "%s", NamelessWords(t.Type, t.Nameless))
		add(&undone, t.Open.Running, "%s: %s running", t.Type, thousands(t.Open.Running))
		add(&undone, t.Open.Retrying, "%s: %s retrying", t.Type, thousands(t.Open.Retrying))
		switch {
		case t.Missing != nil:
			by := ""
			if t.Unregistered {
				by = ", and no worker has registered it in this database"
			}
			add(&undone, t.Missing.N, "%s: %s missing%s", t.Type, *t.Missing, by)
		case t.Unknown != NoSource:
			unknown = append(unknown, fmt.Sprintf("%s: what is missing is not known: %s", t.Type, t.Unknown))
		}
	}
	for _, p := range s.Parked {
		add(&trouble, p.Inputs, "%s: %s inputs parked: %s", p.Type, thousands(p.Inputs), p.Reason)
	}
	for _, q := range s.Queues {
		add(&undone, q.Ready+q.Held+q.Delayed, "queue %q: %s messages", q.Queue, thousands(q.Ready+q.Held+q.Delayed))
	}
	why := append(append(trouble, undone...), unknown...)
	switch {
	case len(trouble) > 0:
		return Troubled, why
	case len(undone) > 0:
		return Unfinished, why
	case len(unknown) > 0:
		return NotKnown, why
	}
	return AllDone, nil
}
