// Package admin is what an operator asks of a database: what is done, open and missing,
// what failed and why, what is in doubt, stranded, parked or disputed, the story of one
// entity, and whether the database itself is fit.
//
// Looking is plain functions over rows, for commands and screens alike. They only read.
// Those that take a transaction want one of [Read]: it shows one moment, cannot write,
// and bounds each statement, so that no look at a large table can hold up the work.
// What an operator changes is the business of an [Operator].
//
// What the lists say of an entity is what [ledger.Decide] says of it, as it would be
// decided if its next message came now. SQL only narrows down what is looked at.
//
// A count says how far it can be trusted, see [Count]. Lists come in pages that begin
// behind a key, never at an offset, so that the last page costs what the first one does.
package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Read runs f in a transaction that shows one moment and may not write. Each of its
// statements may take up to limit; see [TimedOut].
func Read(ctx context.Context, pool *pgxpool.Pool, limit time.Duration, f func(pgx.Tx) error) error {
	return explain(pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// Compiling costs more than it spares: the first page is wanted, and soon.
		// And who is frozen between two statements must not keep what they have read for ever: a migration
		// would wait for that, and everybody for the migration.
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true), set_config('jit', 'off', true), set_config('idle_in_transaction_session_timeout', '1min', true)`, strconv.FormatInt(max(1, limit.Milliseconds()), 10)); err != nil {
			return err
		}
		return f(tx)
	}))
}

// explain adds what to do to errors that a new user meets.
func explain(err error) error {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch pg.Code {
		case "3F000", "42P01": // no such schema, no such table
			return fmt.Errorf("%w (is the schema there, and is it current? run 'oncemore migrate up')", err)
		case "55P03":
			return fmt.Errorf("%w (another transaction has it locked, an operator's or an app's: nothing was changed; try again, and see 'oncemore doctor')", err)
		case "42501":
			return fmt.Errorf("%w (reading needs USAGE on the schema oncemore and SELECT on its tables)", err)
		}
	}
	return err
}

// TimedOut tells whether a statement took longer than it may.
func TimedOut(err error) bool { return sqlState(err) == "57014" }

func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

// A Count is a number of things, and how far it can be trusted.
type Count struct {
	N  int64     `json:"n"`
	Is Exactness `json:"is"`
}

// Exactness says what a count is.
type Exactness string

const (
	Exact    Exactness = "exact"
	AtLeast  Exactness = "at_least" // counting ended there
	Estimate Exactness = "estimate" // of the planner's statistics
)

// CountMost bounds exact counts of lists: past it, a count is [AtLeast].
const CountMost = 10_000

// Capped is the count of things of which at most limit+1 were counted.
func Capped(n, limit int64) Count {
	if n > limit {
		return Count{limit, AtLeast}
	}
	return Count{n, Exact}
}

// String is the count in words: "1,234", "more than 10,000", "about 5,000,000".
func (c Count) String() string {
	switch c.Is {
	case AtLeast:
		return "more than " + thousands(c.N)
	case Estimate:
		return "about " + thousands(c.N)
	}
	return thousands(c.N)
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// A Page says which part of a list is wanted.
type Page struct {
	After string // the Next of the page before; empty: the first page
	Limit int    // rows; 0: none, for the count alone
}

// A List is a page of rows, and how many there are in all.
type List[T any] struct {
	Now  time.Time `json:"now"` // the database's clock
	Of   Count     `json:"of"`
	Rows []T       `json:"rows"`
	Next string    `json:"next,omitempty"` // where the next page begins; empty: this is the last one
}

// ErrPage says that a Page.After is none that this list gave out.
var ErrPage = errors.New("this is not where a page of this list begins: give what the page before said")

// A key is where an entity stands in a list of many types.
type key struct {
	jobType int32
	entity  string
}

func (k key) String() string { return fmt.Sprintf("%d:%s", k.jobType, k.entity) }

func parseKey(s string) (key, error) {
	if s == "" {
		return key{}, nil
	}
	id, entity, ok := strings.Cut(s, ":")
	n, err := strconv.ParseInt(id, 10, 32)
	if !ok || err != nil {
		return key{}, fmt.Errorf("%q: %w", s, ErrPage)
	}
	return key{int32(n), entity}, nil
}

// rowsOf reads rows whose columns are T's fields in order. It never returns nil rows.
func rowsOf[T any](ctx context.Context, tx pgx.Tx, query string, args ...any) ([]T, error) {
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

// serverTime is the database's clock.
func serverTime(ctx context.Context, tx pgx.Tx) (now time.Time, err error) {
	err = tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
	return now, err
}
