package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A Disputed is a success that was reported after its claim was lost: it was refused, and
// its effect may have happened twice.
type Disputed struct {
	Type   string     `json:"type"`
	Entity string     `json:"entity"`
	At     time.Time  `json:"at"`     // it was reported
	Number int        `json:"number"` // of the attempt
	Worker *Owner     `json:"worker"` // that reported it
	Fence  int64      `json:"fence"`  // that it had
	Error  string     `json:"error"`  // what was recorded of it
	Place  string     `json:"place"`  // where the entity is now: missing | open | done
	DoneAt *time.Time `json:"done_at"`
}

// DisputedCompletions lists late successes, the newest first.
func DisputedCompletions(ctx context.Context, tx pgx.Tx, set *jobs.Set, f Filter, p Page) (*List[Disputed], error) {
	before, err := parseMoment(p.After)
	if err != nil {
		return nil, err
	}
	types, err := wanted(ctx, tx, set, f.Type)
	if err != nil {
		return nil, err
	}
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, err
	}
	since, until := f.bounds(now)
	var n int64
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT`+disputedFrom+` LIMIT $4) a`, idsOf(types), since, until, CountMost+1).Scan(&n); err != nil {
		return nil, fmt.Errorf("count what is disputed: %w", err)
	}
	list := &List[Disputed]{Now: now, Of: Capped(n, CountMost), Rows: []Disputed{}}
	if p.Limit <= 0 {
		return list, nil
	}
	rows, err := tx.Query(ctx, disputedSQL, idsOf(types), since, until, before.at, before.jobType, before.entity, p.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("list what is disputed: %w", err)
	}
	last := before
	list.Rows, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (d Disputed, err error) {
		var id int32
		var w Owner
		err = row.Scan(&id, &d.Entity, &d.At, &d.Number, &d.Fence, &d.Error, &w.ID, &w.Name, &w.DeadAt, &d.Place, &d.DoneAt)
		d.Type = nameOf(types, id)
		if w.ID != 0 {
			d.Worker = &w
		}
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("list what is disputed: %w", err)
	}
	if len(list.Rows) > p.Limit {
		list.Rows = list.Rows[:p.Limit]
		d := &list.Rows[p.Limit-1]
		for id, t := range types {
			if t.Name == d.Type {
				last = moment{d.At, id, d.Entity}
			}
		}
		list.Next = last.String()
	}
	return list, nil
}

const disputedFrom = `
FROM oncemore.attempt a WHERE a.outcome = 'disputed' AND a.job_type = ANY ($1) AND ($2::timestamptz IS NULL OR a.at >= $2) AND ($3::timestamptz IS NULL OR a.at < $3)`

const disputedSQL = `
SELECT a.job_type, a.entity, a.at, a.number, coalesce(a.fence, 0), coalesce(a.error, ''), coalesce(a.worker, 0), coalesce(w.name, ''), w.dead_at,
       CASE WHEN l.entity IS NOT NULL THEN 'done' WHEN c.entity IS NOT NULL THEN 'open' ELSE 'missing' END, l.completed_at
FROM (SELECT a.*` + disputedFrom + ` AND (a.at, a.job_type, a.entity) < ($4, $5, $6)
      ORDER BY a.at DESC, a.job_type DESC, a.entity DESC LIMIT $7) a
LEFT JOIN oncemore.worker w ON w.id = a.worker
LEFT JOIN oncemore.ledger l ON l.job_type = a.job_type AND l.entity = a.entity
LEFT JOIN oncemore.claim c ON c.job_type = a.job_type AND c.entity = a.entity
ORDER BY a.at DESC, a.job_type DESC, a.entity DESC`

// A moment is where something stands in a list by time, the newest first.
type moment struct {
	at      time.Time
	jobType int32
	entity  string
}

func (m moment) String() string {
	return fmt.Sprintf("%d:%s", m.at.UnixMicro(), key{m.jobType, m.entity})
}

func parseMoment(s string) (moment, error) {
	if s == "" {
		return moment{at: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}, nil
	}
	micros, rest, _ := strings.Cut(s, ":")
	n, err := strconv.ParseInt(micros, 10, 64)
	k, err2 := parseKey(rest)
	if err := errors.Join(err, err2); err != nil || rest == "" {
		return moment{}, fmt.Errorf("%q: %w", s, ErrPage)
	}
	return moment{time.UnixMicro(n), k.jobType, k.entity}, nil
}
