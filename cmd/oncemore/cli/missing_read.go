package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A jobType is a job type as the database knows it, and as the application does where
// its set is at hand.
type jobType struct {
	ID      int32
	Name    string
	Effect  string
	Query   string // that names its entities; empty: unknown
	Params  []any
	Version int         // of the code; 0 where that is unknown
	source  jobs.Source // in Go
}

var errNoSource = errors.New("its source is not known here: workers register the sources that are SQL without parameters, " +
	"and other sources need a program that has the jobs (cli.Options.Set)")

// A renamed type has several names; the one that a worker used last is shown.
const typesSQL = `
SELECT DISTINCT ON (id) id, name, effect, coalesce(source, '') FROM oncemore.job_type ORDER BY id, seen_at DESC, name`

func readTypes(ctx context.Context, tx pgx.Tx, set *jobs.Set) ([]*jobType, error) {
	rows, err := tx.Query(ctx, typesSQL)
	if err != nil {
		return nil, fmt.Errorf("list the job types: %w", err)
	}
	types, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*jobType, error) {
		t := &jobType{}
		return t, row.Scan(&t.ID, &t.Name, &t.Effect, &t.Query)
	})
	if err != nil {
		return nil, fmt.Errorf("list the job types: %w", err)
	}
	for _, t := range types {
		if set == nil {
			break
		}
		if e, ok := set.Lookup(t.Name); ok {
			t.source = e.Source
			t.Query, t.Params = e.Source.Query()
			if e.Effect.MayRepeat() {
				t.Version = e.Version
			}
		}
	}
	slices.SortFunc(types, func(a, b *jobType) int { return strings.Compare(a.Name, b.Name) })
	return types, nil
}

const typeByNameSQL = `SELECT id FROM oncemore.job_type WHERE name = $1`

// readType finds a type by any of its names.
func readType(ctx context.Context, tx pgx.Tx, set *jobs.Set, name string) (*jobType, error) {
	types, err := readTypes(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	var id int32
	if err := tx.QueryRow(ctx, typeByNameSQL, name).Scan(&id); errors.Is(err, pgx.ErrNoRows) {
		var names []string
		for _, t := range types {
			names = append(names, t.Name)
		}
		if names == nil {
			return nil, fmt.Errorf("no worker has registered a job type %q in this database, nor any other", name)
		}
		return nil, fmt.Errorf("no worker has registered a job type %q in this database; there are: %s", name, strings.Join(names, ", "))
	} else if err != nil {
		return nil, fmt.Errorf("look for job type %q: %w", name, err)
	}
	i := slices.IndexFunc(types, func(t *jobType) bool { return t.ID == id })
	return types[i], nil
}

// A missingEntity is named by the source and neither open nor, as it is now, done.
type missingEntity struct {
	Entity string `json:"entity"`
	Reason string `json:"reason"` // missing | stale_source | stale_version
}

// missingSQL names what is missing of a type: without a fact, or with one that is stale,
// and without a claim. It adds parameters behind those of the source.
func (t *jobType) missingSQL(ctx context.Context, tx pgx.Tx) (query string, params []any, err error) {
	if t.Query == "" {
		return "", nil, errNoSource
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
func (t *jobType) missingPage(ctx context.Context, tx pgx.Tx, limit int) ([]missingEntity, error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, fmt.Sprintf("%s LIMIT %d", query, limit), params...)
	if err == nil {
		var page []missingEntity
		if page, err = pgx.CollectRows(rows, pgx.RowToStructByPos[missingEntity]); err == nil {
			return page, nil
		}
	}
	return nil, fmt.Errorf("look for what is missing of %s: %w", t.Name, err)
}

// missingCount counts up to most of what is missing.
func (t *jobType) missingCount(ctx context.Context, tx pgx.Tx, most int64) (count, error) {
	query, params, err := t.missingSQL(ctx, tx)
	if err != nil {
		return count{}, err
	}
	var n int64
	if err := tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM (%s LIMIT %d) m", query, most+1), params...).Scan(&n); err != nil {
		return count{}, fmt.Errorf("count what is missing of %s: %w", t.Name, err)
	}
	return capped(n, most), nil
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
func (t *jobType) missingInGo(ctx context.Context, pool *pgxpool.Pool, limit int, most int64) (page []missingEntity, n count, err error) {
	var entities []string
	var sources []int64
	total := int64(0)
	look := func() error {
		return reading(ctx, pool, time.Minute, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, absentSQL, t.ID, entities, sources, t.Version)
			if err != nil {
				return err
			}
			found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[missingEntity])
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
	return page, capped(total, most), nil
}
