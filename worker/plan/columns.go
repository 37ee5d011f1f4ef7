package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// Columns are those of a source's query.
type Columns []column

type column struct {
	name    string
	integer bool
}

// Describe returns the columns of a query, and refuses one that cannot be a source.
func Describe(ctx context.Context, tx pgx.Tx, query string) (Columns, error) {
	d, err := tx.Conn().PgConn().Prepare(ctx, "", query, nil)
	if err != nil {
		return nil, err
	}
	columns := make(Columns, len(d.Fields))
	names := make([]string, len(d.Fields))
	for i, f := range d.Fields {
		names[i] = f.Name
		columns[i].name = f.Name
		switch f.DataTypeOID {
		case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID:
			columns[i].integer = true
		}
	}
	if !slices.Contains(names, "entity") {
		return nil, fmt.Errorf("the query has no column entity, but %s: name what Entity() returns 'entity', as text", strings.Join(names, ", "))
	}
	return columns, nil
}

// Has tells whether there is a column of this name.
func (cs Columns) Has(name string) bool {
	return slices.ContainsFunc(cs, func(c column) bool { return c.name == name })
}

// Arguments are the names of the columns that become arguments.
func (cs Columns) Arguments() (names []string) {
	for _, c := range cs {
		if c.name != "entity" {
			names = append(names, c.name)
		}
	}
	return names
}

// Others lists, for SQL, the columns of q that become arguments.
func (cs Columns) Others() string {
	var b strings.Builder
	for _, name := range cs.Arguments() {
		b.WriteString(", q." + pgx.Identifier{name}.Sanitize())
	}
	return b.String()
}

// JSON is SQL that builds the arguments of a row s: a JSON object of all columns but the
// entity, put together as text, which takes half the time of row_to_json.
func (cs Columns) JSON() string {
	var b strings.Builder
	before := "{"
	for _, c := range cs {
		if c.name == "entity" {
			continue
		}
		name, _ := json.Marshal(c.name)
		value := `to_json(s.` + pgx.Identifier{c.name}.Sanitize() + `)::text`
		if c.integer { // its text is its JSON, for a third of the price
			value = `s.` + pgx.Identifier{c.name}.Sanitize() + `::text`
		}
		b.WriteString(quoteLiteral(before+string(name)+":") + ` || coalesce(` + value + `, 'null') || `)
		before = ","
	}
	if b.Len() == 0 {
		return `'{}'`
	}
	return b.String() + `'}'`
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// Order is SQL for the order in which the rows of a source are taken, at the end of a
// FROM item whose first column is the entity. A source without an order of its own is put
// into that of the ledger's key: neighbours in the index stay together, when they are
// looked for and when their facts come. With random keys behind ten million facts it makes
// work half as fast again.
func Order(query string) string {
	if strings.Contains(strings.ToLower(query), "order by") {
		return inOwnOrder
	}
	return `ORDER BY 1`
}

const inOwnOrder = `OFFSET 0`
