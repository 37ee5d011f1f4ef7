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
	Missing  *Count          `json:"missing,omitempty"`  // by [CountMissing]; null: not counted
	Nameless int64           `json:"nameless,omitempty"` // by [CountMissing]
	Unknown  string          `json:"unknown,omitempty"`  // what else may be missing and cannot be told here: [NewerUnknown]; empty: nothing
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
		if t.staleUnknown() {
			var done bool
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE job_type = $1)`, t.ID).Scan(&done); err != nil {
				return fmt.Errorf("look for facts of %s: %w", t.Name, err)
			} else if done {
				m.Unknown = NewerUnknown
			}
		}
		if t.source.InGo() || p.Limit == 0 {
			return nil
		}
		m.Entities, err = t.missingPage(ctx, tx, p.After, p.Limit+1)
		return err
	})
	if err == nil && t.source.InGo() && p.Limit > 0 {
		_, err = t.missingInGo(ctx, pool, p.After, timeout, func(found []MissingEntity) bool {
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

// CountMissing counts what [Missing] lists, up to [CountMost], and the rows of the source
// that name no entity (NULL, or empty), which no list can show; where more is missing than is
// counted, those that it came upon.
func CountMissing(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, name string, timeout time.Duration) (n Count, nameless int64, err error) {
	var t *Type
	err = Read(ctx, pool, timeout, func(tx pgx.Tx) (err error) {
		if t, err = FindType(ctx, tx, set, name); err == nil && !t.source.InGo() {
			n, nameless, err = t.missingCount(ctx, tx, CountMost)
		}
		return err
	})
	if err == nil && t.source.InGo() {
		n, nameless, err = t.missingCountInGo(ctx, pool, timeout, CountMost)
	}
	return n, nameless, err
}

// NamelessWords tells of rows of a source that name no entity.
func NamelessWords(jobType string, n int64) string {
	return fmt.Sprintf("the source of %s names %s rows without an entity: it is NULL, or empty", jobType, thousands(n))
}

// missingSQL is a sieve that lets through what is missing of a type: what has no fact that
// satisfies it, and no claim. Rows without an entity pass as well, and an entity as often as
// it is named. It adds parameters behind those of the source.
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

// missingPage returns the first entities behind one that are missing, by the key: each once,
// however often the source names it.
func (t *Type) missingPage(ctx context.Context, tx pgx.Tx, after string, limit int) ([]MissingEntity, error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return nil, err
	}
	query = fmt.Sprintf(`SELECT m.entity, m.source_version FROM (%s AND s.entity::text COLLATE "C" > $%d::text) m ORDER BY m.entity LIMIT $%d`,
		query, len(params)+1, len(params)+2)
	var wants []ledger.Want
	for whole := false; !whole && len(wants) < limit; {
		read := 0
		rows, err := tx.Query(ctx, query, append(slices.Clone(params), after, limit)...)
		if err == nil {
			var w ledger.Want
			_, err = pgx.ForEachRow(rows, []any{&w.Entity, &w.SourceVersion}, func() error {
				if read++; w.Entity != after && len(wants) < limit {
					wants = append(wants, w)
				}
				after = w.Entity
				return nil
			})
		}
		if err != nil {
			return nil, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
		}
		whole = read < limit
	}
	return t.missingOf(ctx, tx, wants)
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

// missingCount counts up to most of the entities that are missing, and the rows without one
// that it comes upon.
func (t *Type) missingCount(ctx context.Context, tx pgx.Tx, most int64) (n Count, nameless int64, err error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return Count{}, 0, err
	}
	var rows, entities int64
	// Of the first rows that are missing, which a source soon has: to tell all its entities
	// apart it would have to be read to its end.
	err = tx.QueryRow(ctx, fmt.Sprintf(`
SELECT count(*), count(DISTINCT m.entity) FILTER (WHERE m.entity > ''), count(*) FILTER (WHERE m.entity = '' OR m.entity IS NULL)
FROM (%s LIMIT %d) m`, query, most+1), params...).Scan(&rows, &entities, &nameless)
	if err == nil && rows > most && entities <= most {
		// They were fewer entities than rows, so there may be more of them behind.
		err = tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM (SELECT DISTINCT m.entity FROM (%s) m WHERE m.entity > '' LIMIT %d) m`, query, most+1), params...).Scan(&entities)
	}
	if err != nil {
		return Count{}, 0, fmt.Errorf("count what is missing of %s: %w", t.Name, err)
	}
	return Capped(entities, most), nameless, nil
}

func (t *Type) missingCountInGo(ctx context.Context, pool *pgxpool.Pool, timeout time.Duration, most int64) (_ Count, nameless int64, err error) {
	n := int64(0)
	nameless, err = t.missingInGo(ctx, pool, "", timeout, func(found []MissingEntity) bool {
		n += int64(len(found))
		return n <= most
	})
	return Capped(n, most), nameless, err
}

// missingInGo walks a source in Go behind an entity, and hands on what is missing of it,
// until more says that it is enough: each entity once, since it names them in order. Those
// that are none are counted. No transaction is held meanwhile, since a source may take its
// time.
func (t *Type) missingInGo(ctx context.Context, pool *pgxpool.Pool, after string, timeout time.Duration, more func([]MissingEntity) bool) (nameless int64, err error) {
	var wants []ledger.Want
	last := ""
	look := func() (found []MissingEntity, err error) {
		err = Read(ctx, pool, timeout, func(tx pgx.Tx) error {
			found, err = t.missingOf(ctx, tx, wants)
			return err
		})
		wants = wants[:0]
		found = slices.DeleteFunc(found, func(e MissingEntity) bool {
			again := e.Entity == last
			last = e.Entity
			return again
		})
		return found, err
	}
	for a, err := range t.source.Each(ctx, after) {
		if err != nil {
			return nameless, fmt.Errorf("the source of %s: %w", t.Name, err)
		}
		w := ledger.Want{Entity: a.Entity()}
		if w.Entity == "" {
			nameless++
			continue
		}
		if s, ok := a.(jobs.Sourced); ok {
			w.SourceVersion = s.SourceVersion()
		}
		if wants = append(wants, w); len(wants) < 1000 {
			continue
		}
		if found, err := look(); err != nil {
			return nameless, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
		} else if !more(found) {
			return nameless, nil
		}
	}
	found, err := look()
	if err != nil {
		return nameless, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
	}
	more(found)
	return nameless, nil
}
