package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// ErrNoSource says that what is missing of a type cannot be told here.
var ErrNoSource = errors.New("its source is not known here: workers register the sources that are SQL without parameters, " +
	"and other sources need a program that has the jobs (cli.Options.Set)")

// MissingList is what [Missing] found.
type MissingList struct {
	Type     string          `json:"type"`
	Missing  Count           `json:"missing"` // up to [CountMost] are counted
	Entities []MissingEntity `json:"entities"`
}

// Missing lists up to limit entities of a type that its source names and that are neither
// open nor, as they are now, done. Each query of it may take up to timeout. A source in Go
// is walked, which takes as long as it takes. The error wraps [ErrNoSource] where there is
// nothing to ask.
func Missing(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, name string, limit int, timeout time.Duration) (*MissingList, error) {
	m := &MissingList{Entities: []MissingEntity{}}
	var t *Type
	err := Read(ctx, pool, timeout, func(tx pgx.Tx) (err error) {
		if t, err = FindType(ctx, tx, set, name); err != nil {
			return err
		}
		m.Type = t.Name
		if t.source.InGo() {
			return nil
		}
		if m.Missing, err = t.missingCount(ctx, tx, CountMost); err != nil {
			return err
		}
		page, err := t.missingPage(ctx, tx, limit)
		m.Entities = append(m.Entities, page...)
		return err
	})
	if err == nil && t.source.InGo() {
		var page []MissingEntity
		page, m.Missing, err = t.missingInGo(ctx, pool, limit, CountMost)
		m.Entities = append(m.Entities, page...)
	}
	return m, err
}

// A MissingEntity is named by the source and neither open nor, as it is now, done.
type MissingEntity struct {
	Entity string `json:"entity"`
	Reason string `json:"reason"` // missing | stale_source | stale_version
}

// missingSQL names what is missing of a type: without a fact, or with one that is stale,
// and without a claim. It adds parameters behind those of the source.
func (t *Type) missingSQL(ctx context.Context, tx pgx.Tx) (query string, params []any, err error) {
	if t.Query == "" {
		return "", nil, ErrNoSource
	}
	d, err := tx.Conn().PgConn().Prepare(ctx, "", t.Query, nil)
	if err != nil {
		return "", nil, fmt.Errorf("the source of %s cannot be run: %w", t.Name, err)
	}
	sourced := slices.ContainsFunc(d.Fields, func(f pgconn.FieldDescription) bool { return f.Name == "source_version" })
	params = append(slices.Clone(t.Params), t.ID)
	jobType := fmt.Sprintf("$%d::int", len(params))
	is, reason := `l.entity IS NULL`, `CASE WHEN l.entity IS NULL THEN 'missing'`
	stale := func(name, condition string) {
		is += ` OR ` + condition
		reason += ` WHEN ` + condition + ` THEN '` + name + `'`
	}
	if sourced {
		stale("stale_source", `s.source_version > coalesce(l.source_version, 0)`)
	}
	if t.Version > 0 {
		params = append(params, t.Version)
		stale("stale_version", fmt.Sprintf(`$%d::int > coalesce(l.version, 0)`, len(params)))
	}
	return `
SELECT s.entity::text AS entity, ` + reason + ` END AS reason
FROM (` + t.Query + `
) s
LEFT JOIN oncemore.ledger l ON l.job_type = ` + jobType + ` AND l.entity = s.entity::text COLLATE "C"
WHERE (` + is + `)
AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = ` + jobType + ` AND c.entity = s.entity::text COLLATE "C")`, params, nil
}

// missingPage returns the first entities that are missing, in the order in which the
// source names them.
func (t *Type) missingPage(ctx context.Context, tx pgx.Tx, limit int) ([]MissingEntity, error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, fmt.Sprintf("%s LIMIT %d", query, limit), params...)
	if err == nil {
		var page []MissingEntity
		if page, err = pgx.CollectRows(rows, pgx.RowToStructByPos[MissingEntity]); err == nil {
			return page, nil
		}
	}
	return nil, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
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

const absentSQL = `
SELECT w.entity, CASE WHEN l.entity IS NULL THEN 'missing' WHEN w.source > coalesce(l.source_version, 0) THEN 'stale_source' ELSE 'stale_version' END
FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS w(entity, source, n)
LEFT JOIN oncemore.ledger l ON l.job_type = $1 AND l.entity = w.entity COLLATE "C"
WHERE (l.entity IS NULL OR w.source > coalesce(l.source_version, 0) OR $4 > coalesce(l.version, 0))
AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = $1 AND c.entity = w.entity COLLATE "C")
ORDER BY w.n`

// missingInGo walks a source in Go: it returns a page of what is missing, and counts on
// up to most. No transaction is held meanwhile, since a source may take its time.
func (t *Type) missingInGo(ctx context.Context, pool *pgxpool.Pool, limit int, most int64) (page []MissingEntity, n Count, err error) {
	var entities []string
	var sources []int64
	total := int64(0)
	look := func() error {
		return Read(ctx, pool, time.Minute, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, absentSQL, t.ID, entities, sources, t.Version)
			if err != nil {
				return err
			}
			found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[MissingEntity])
			total += int64(len(found))
			page = append(page, found[:min(len(found), limit-len(page))]...)
			entities, sources = entities[:0], sources[:0]
			return err
		})
	}
	for a, err := range t.source.Each(ctx, "") {
		if err != nil {
			return nil, n, fmt.Errorf("the source of %s: %w", t.Name, err)
		}
		version := int64(0)
		if s, ok := a.(jobs.Sourced); ok {
			version = s.SourceVersion()
		}
		entities, sources = append(entities, a.Entity()), append(sources, version)
		if len(entities) < 1000 {
			continue
		}
		if err := look(); err != nil {
			return nil, n, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
		}
		if total > most {
			break
		}
	}
	if err := look(); err != nil {
		return nil, n, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
	}
	return page, Capped(total, most), nil
}
