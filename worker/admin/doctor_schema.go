package admin

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/migrations"
)

// oldest is the oldest version of PostgreSQL that we work with.
const oldest = 15

func checkServer(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	var number int
	var version string
	var standby bool
	if err := tx.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()`).Scan(&number, &version, &standby); err != nil {
		return nil, err
	}
	switch {
	case number/10000 < oldest:
		return []Check{{State: Bad, Found: "PostgreSQL " + version, Do: fmt.Sprintf("use PostgreSQL %d or newer", oldest)}}, nil
	case standby:
		return []Check{{State: Warn, Found: "PostgreSQL " + version + ", a standby: workers cannot write here, and not all can be seen", Do: "name the primary"}}, nil
	}
	return ok("PostgreSQL %s", version), nil
}

func checkSchema(ctx context.Context, p *patient, _ pgx.Tx) ([]Check, error) {
	all, err := migrations.Status(ctx, p.pool)
	if newer, is := errors.AsType[*migrations.NewerError](err); is {
		return []Check{{State: Warn, Found: newer.Error(), Do: "use a newer program to look"}}, nil
	} else if err != nil {
		return nil, err
	}
	newest := all[len(all)-1].Version
	if behind := unapplied(all); behind > 0 {
		return []Check{{State: Bad, Found: fmt.Sprintf("%d migrations are not applied, up to version %d", behind, newest), Do: "run 'migrate up'"}}, nil
	}
	return ok("current, at version %d", newest), nil
}

func unapplied(all []migrations.Migration) (n int) {
	for _, m := range all {
		if m.AppliedAt.IsZero() {
			n++
		}
	}
	return n
}

// checkIndexes compares the indexes that there are with those that the migrations make. A
// missing one costs no answer, only time, until a table is large.
func checkIndexes(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	all, err := migrations.Status(ctx, p.pool)
	if _, newer := errors.AsType[*migrations.NewerError](err); err != nil && !newer {
		return nil, err
	}
	if unapplied(all) > 0 {
		return []Check{{State: Unseen, Found: "the schema is not current, so not all indexes can be there"}}, nil
	}
	rows, err := tx.Query(ctx, indexesSQL)
	if err != nil {
		return nil, err
	}
	there := map[string]bool{}
	var invalid []string
	var name string
	var valid bool
	if _, err := pgx.ForEachRow(rows, []any{&name, &valid}, func() error {
		there[name] = true
		if !valid {
			invalid = append(invalid, name)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var found []Check
	expected := schemaIndexes(migrations.SQL())
	for _, index := range expected {
		if !there[index.name] {
			found = append(found, Check{State: Bad, Found: index.name + " is missing", Do: index.restore})
		}
	}
	for _, name := range invalid {
		found = append(found, Check{State: Bad, Found: name + " is invalid: it costs writes, and helps no query", Do: "REINDEX INDEX CONCURRENTLY oncemore." + name})
	}
	return orOK(found, "%d of %d are there and valid", len(expected), len(expected)), nil
}

const indexesSQL = `
SELECT c.relname, i.indisvalid AND i.indisready
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'oncemore' ORDER BY 1`

// An index is one that the migrations make.
type index struct {
	name    string
	restore string // the statement that makes it anew
}

var (
	createIndex = regexp.MustCompile(`CREATE (?:UNIQUE )?INDEX (\w+) ON oncemore\.\w+[^;]*`)
	dropIndex   = regexp.MustCompile(`DROP INDEX (?:IF EXISTS )?oncemore\.(\w+)`)
	createTable = regexp.MustCompile(`(?s)CREATE TABLE oncemore\.(\w+) \((.*?)\n\)`)
	primaryKey  = regexp.MustCompile(`(?m)^\s*(?:PRIMARY KEY \(([^)]*)\)|(\w+) .*?\bPRIMARY KEY)`)
	unique      = regexp.MustCompile(`(?m)^\s*UNIQUE \(([^)]*)\)`)
	sqlComment  = regexp.MustCompile(`--[^\n]*`)
)

// schemaIndexes reads the text of the schema, so that there is no second list of its
// indexes to keep in step. It knows the forms that the migrations use, no others: a test
// holds it against a database that they made.
func schemaIndexes(sql string) (out []index) {
	sql = sqlComment.ReplaceAllString(sql, "")
	for _, m := range createTable.FindAllStringSubmatch(sql, -1) {
		table, columns := m[1], m[2]
		if k := primaryKey.FindStringSubmatch(columns); k != nil {
			out = append(out, index{table + "_pkey", fmt.Sprintf("ALTER TABLE oncemore.%s ADD PRIMARY KEY (%s)", table, k[1]+k[2])})
		}
		for _, u := range unique.FindAllStringSubmatch(columns, -1) {
			name := table + "_" + strings.ReplaceAll(strings.ReplaceAll(u[1], ",", "_"), " ", "") + "_key"
			out = append(out, index{name, fmt.Sprintf("ALTER TABLE oncemore.%s ADD CONSTRAINT %s UNIQUE (%s)", table, name, u[1])})
		}
	}
	for _, m := range createIndex.FindAllStringSubmatch(sql, -1) {
		out = append(out, index{m[1], strings.Join(strings.Fields(m[0]), " ")})
	}
	for _, m := range dropIndex.FindAllStringSubmatch(sql, -1) {
		out = slices.DeleteFunc(out, func(i index) bool { return i.name == m[1] })
	}
	return out
}
