package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// ErrNoSource says that what is missing of a type cannot be told here.
var ErrNoSource = plan.ErrNoSource

// A MissingList is a page of what is missing.
type MissingList struct {
	Type     string          `json:"type"`
	Missing  *Count          `json:"missing,omitempty"` // by [CountMissing]; null: not counted
	Entities []MissingEntity `json:"entities"`
	Next     string          `json:"next,omitempty"` // where the next page begins; empty: this is the last one
}

// A MissingEntity is named by the source and neither open nor, as it is now, done.
type MissingEntity struct {
	Entity string        `json:"entity"`
	Reason ledger.Reason `json:"reason"` // missing | stale_source | stale_version
}

// Missing returns a page of the entities of a type that its source names and that are
// neither open nor, as they are now, done: in the order of the key, without counting them.
// Each query of it may take up to timeout. A source in Go is walked until the page is full.
// The error wraps [ErrNoSource] where there is nothing to ask.
func Missing(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, name string, p Page, timeout time.Duration) (*MissingList, error) {
	m := &MissingList{Entities: []MissingEntity{}}
	var t *Type
	err := Read(ctx, pool, timeout, func(tx pgx.Tx) (err error) {
		if t, err = FindType(ctx, tx, set, name); err != nil {
			return err
		}
		m.Type = t.Name
		if t.source.InGo() || p.Limit == 0 {
			return nil
		}
		m.Entities, err = t.missingPage(ctx, tx, p.After, p.Limit+1)
		return err
	})
	if err == nil && t.source.InGo() && p.Limit > 0 {
		err = t.missingInGo(ctx, pool, p.After, timeout, func(found []MissingEntity) bool {
			m.Entities = append(m.Entities, found...)
			return len(m.Entities) <= p.Limit
		})
	}
	if err != nil {
		return nil, err
	}
	if len(m.Entities) > p.Limit {
		m.Entities = m.Entities[:p.Limit]
		m.Next = m.Entities[p.Limit-1].Entity
	}
	return m, nil
}

// CountMissing counts what [Missing] lists, up to [CountMost].
func CountMissing(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, name string, timeout time.Duration) (n Count, err error) {
	var t *Type
	err = Read(ctx, pool, timeout, func(tx pgx.Tx) (err error) {
		if t, err = FindType(ctx, tx, set, name); err == nil && !t.source.InGo() {
			n, err = t.missingCount(ctx, tx, CountMost)
		}
		return err
	})
	if err == nil && t.source.InGo() {
		n, err = t.missingCountInGo(ctx, pool, timeout, CountMost)
	}
	return n, err
}

// missingSQL is a sieve that lets through what is missing of a type: what has no fact that
// satisfies it, and no claim. It adds parameters behind those of the source.
func (t *Type) missingSQL(ctx context.Context, tx pgx.Tx) (query string, params []any, err error) {
	if t.Query == "" {
		return "", nil, fmt.Errorf("%s: %w", t.Name, ErrNoSource)
	}
	columns, err := plan.Describe(ctx, tx, t.Query)
	if err != nil {
		return "", nil, fmt.Errorf("the source of %s cannot be used: %w", t.Name, err)
	}
	version := `0`
	if columns.Has("source_version") {
		version = `coalesce(s.source_version, 0)::bigint`
	}
	params = append(slices.Clone(t.Params), t.ID, t.Version)
	jobType := fmt.Sprintf("$%d::int", len(params)-1)
	return fmt.Sprintf(`
SELECT s.entity::text COLLATE "C" AS entity, %s AS source_version
FROM (%s
) s
LEFT JOIN oncemore.ledger l ON l.job_type = %s AND l.entity = s.entity::text COLLATE "C"
WHERE (l.entity IS NULL OR coalesce(l.source_version, 0) < %[1]s OR coalesce(l.version, 0) < $%[4]d::int)
AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = %[3]s AND c.entity = s.entity::text COLLATE "C")`,
		version, t.Query, jobType, len(params)), params, nil
}

// missingPage returns the first entities behind one that are missing, by the key.
func (t *Type) missingPage(ctx context.Context, tx pgx.Tx, after string, limit int) ([]MissingEntity, error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return nil, err
	}
	params = append(params, after, limit)
	rows, err := tx.Query(ctx, fmt.Sprintf(`SELECT m.entity, m.source_version FROM (%s AND s.entity::text COLLATE "C" > $%d::text) m ORDER BY m.entity LIMIT $%d`,
		query, len(params)-1, len(params)), params...)
	if err == nil {
		var wants []ledger.Want
		wants, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (w ledger.Want, err error) {
			return w, row.Scan(&w.Entity, &w.SourceVersion)
		})
		if err == nil {
			return t.missingOf(ctx, tx, wants)
		}
	}
	return nil, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
}

// missingOf asks the ledger which of the named entities are missing, and why.
func (t *Type) missingOf(ctx context.Context, tx pgx.Tx, wants []ledger.Want) ([]MissingEntity, error) {
	standings, err := ledger.LookIn(ctx, tx, &t.Type, wants)
	if err != nil {
		return nil, err
	}
	found := []MissingEntity{}
	for i, st := range standings {
		if st.Open == nil && st.Reason.Run() {
			found = append(found, MissingEntity{wants[i].Entity, st.Reason})
		}
	}
	return found, nil
}

// missingCount counts up to most of what is missing.
func (t *Type) missingCount(ctx context.Context, tx pgx.Tx, most int64) (Count, error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return Count{}, err
	}
	var n int64
	if err := tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM (%s LIMIT %d) m", query, most+1), params...).Scan(&n); err != nil {
		return Count{}, fmt.Errorf("count what is missing of %s: %w", t.Name, err)
	}
	return Capped(n, most), nil
}

func (t *Type) missingCountInGo(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration, most int64) (Count, error) {
	n := int64(0)
	err := t.missingInGo(ctx, pool, "", timeout, func(found []MissingEntity) bool {
		n += int64(len(found))
		return n <= most
	})
	return Capped(n, most), err
}

// missingInGo walks a source in Go behind an entity, and hands on what is missing of it,
// until more says that it is enough. No transaction is held meanwhile, since a source may
// take its time.
func (t *Type) missingInGo(ctx context.Context, pool *pgxpool.Pool, after string, timeout time.Duration, more func([]MissingEntity) bool) error {
	var wants []ledger.Want
	look := func() (found []MissingEntity, err error) {
		err = Read(ctx, pool, timeout, func(tx pgx.Tx) error {
			found, err = t.missingOf(ctx, tx, wants)
			return err
		})
		wants = wants[:0]
		return found, err
	}
	for a, err := range t.source.Each(ctx, after) {
		if err != nil {
			return fmt.Errorf("the source of %s: %w", t.Name, err)
		}
		w := ledger.Want{Entity: a.Entity()}
		if s, ok := a.(jobs.Sourced); ok {
			w.SourceVersion = s.SourceVersion()
		}
		if wants = append(wants, w); len(wants) < 1000 {
			continue
		}
		if found, err := look(); err != nil {
			return fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
		} else if !more(found) {
			return nil
		}
	}
	found, err := look()
	if err != nil {
		return fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
	}
	more(found)
	return nil
}
