package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A Failure is all attempts of one job type that ended with errors of one class. Counts of
// attempts are exact within the window that was asked for, those of entities are of now.
type Failure struct {
	Type     string    `json:"type"`
	Class    string    `json:"error_class"` // empty: the attempts said none
	Attempts int64     `json:"attempts"`
	LastHour int64     `json:"last_hour"` // attempts of the last hour: whether it goes on
	FirstAt  time.Time `json:"first_at"`
	LastAt   time.Time `json:"last_at"`
	Failed   Count     `json:"failed"`   // entities that are failed now, their last error being of this class
	Retrying Count     `json:"retrying"` // those that wait for another attempt
	InDoubt  Count     `json:"in_doubt"`
	Entity   string    `json:"entity"` // a late one, as a sample
	Error    string    `json:"error"`  // of the sample, whole
}

// Failures are the failed attempts in groups, and what of their entities is still open.
type Failures struct {
	Now    time.Time `json:"now"`    // the database's clock
	Of     Count     `json:"of"`     // groups
	Rows   []Failure `json:"rows"`   // the last seen first
	Others Count     `json:"others"` // entities that are failed now and in no group of the window: older ones
}

// GroupFailures groups the attempts that ended in a retry, a failure or a doubt by job
// type and error class. The zero window is all that is kept.
func GroupFailures(ctx context.Context, tx pgx.Tx, set *jobs.Set, f Filter, limit int) (*Failures, error) {
	types, err := wanted(ctx, tx, set, f.Type)
	if err != nil {
		return nil, err
	}
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, err
	}
	since, until := f.bounds(now)
	rows, err := tx.Query(ctx, failuresSQL, idsOf(types), f.Class, since, until, now.Add(-time.Hour))
	if err != nil {
		return nil, fmt.Errorf("group the failures: %w", err)
	}
	out := &Failures{Now: now, Rows: []Failure{}}
	var id int32
	var g Failure
	var all int64
	ids := map[openGroup]int{}
	_, err = pgx.ForEachRow(rows, []any{&id, &g.Class, &g.Attempts, &g.LastHour, &g.FirstAt, &g.LastAt, &g.Entity, &g.Error}, func() error {
		all++
		if len(out.Rows) < limit {
			g.Type = nameOf(types, id)
			ids[openGroup{id, g.Class}] = len(out.Rows)
			out.Rows = append(out.Rows, g)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("group the failures: %w", err)
	}
	out.Of = Count{all, Exact}
	return out, countStillOpen(ctx, tx, idsOf(types), f.Class, ids, out)
}

// The newest row of a group is its sample: attempt is append-only, so the highest place in
// the heap is nearly always the newest, and costs no sort.
const failuresSQL = `
WITH g AS MATERIALIZED (
    SELECT a.job_type, a.error_class AS class, count(*) AS n, count(*) FILTER (WHERE a.at > $5) AS hour,
           min(a.at) AS first, max(a.at) AS last, max(a.ctid) AS sample
    FROM oncemore.attempt a
    WHERE a.job_type = ANY ($1) AND a.outcome IN ('retrying', 'failed', 'in_doubt') AND ($2 = '' OR a.error_class = $2)
    AND ($3::timestamptz IS NULL OR a.at >= $3) AND ($4::timestamptz IS NULL OR a.at < $4)
    GROUP BY 1, 2
)
SELECT g.job_type, coalesce(g.class, ''), g.n, g.hour, g.first, g.last, a.entity, coalesce(a.error, '')
FROM g JOIN oncemore.attempt a ON a.ctid = g.sample ORDER BY g.last DESC`

type openGroup struct {
	jobType int32
	class   string
}

// countStillOpen adds to the groups what of them is still open. Up to CountMost of each
// trouble are looked at; where there are more, the counts are lower bounds.
func countStillOpen(ctx context.Context, tx pgx.Tx, types []int32, class string, ids map[openGroup]int, out *Failures) error {
	for trouble, of := range map[string]func(*Failure) *Count{
		"failed":   func(g *Failure) *Count { return &g.Failed },
		"retrying": func(g *Failure) *Count { return &g.Retrying },
		"in_doubt": func(g *Failure) *Count { return &g.InDoubt },
	} {
		rows, err := tx.Query(ctx, stillOpenSQL, types, trouble, CountMost+1)
		if err != nil {
			return fmt.Errorf("count what is still %s: %w", trouble, err)
		}
		counts := map[openGroup]int64{}
		var k openGroup
		var n, total int64
		_, err = pgx.ForEachRow(rows, []any{&k.jobType, &k.class, &n}, func() error {
			counts[k] = n
			total += n
			return nil
		})
		if err != nil {
			return fmt.Errorf("count what is still %s: %w", trouble, err)
		}
		is := Exact
		if total > CountMost {
			is = AtLeast
		}
		for i := range out.Rows {
			of(&out.Rows[i]).Is = is
		}
		others := int64(0)
		for k, n := range counts {
			if i, ok := ids[k]; ok {
				of(&out.Rows[i]).N = n
			} else if class == "" || class == k.class {
				others += n
			}
		}
		if trouble == "failed" {
			out.Others = Count{others, is}
		}
	}
	return nil
}

const stillOpenSQL = `
SELECT c.job_type, coalesce(a.error_class, ''), count(*)
FROM (SELECT c.job_type, c.entity, c.trouble, c.owner FROM oncemore.claim c
      WHERE c.job_type = ANY ($1) AND c.owner IS NULL AND c.trouble = $2 LIMIT $3) c
LEFT JOIN LATERAL (SELECT a.error_class ` + lastAttempt + `) a ON true
GROUP BY 1, 2`

// Failed lists the entities that are failed now: no attempt was left, or the job said that
// none would help.
func Failed(ctx context.Context, tx pgx.Tx, set *jobs.Set, f Filter, p Page) (*List[Open], error) {
	return opens(ctx, tx, set, areFailed, f, p)
}
