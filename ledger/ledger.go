package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Ledger reads and writes the facts and claims of one database. It has no state of
// its own and is safe for concurrent use.
type Ledger struct{ pool *pgxpool.Pool }

// New returns the ledger in pool's database, whose schema must be current (see
// package migrations).
func New(pool *pgxpool.Pool) *Ledger { return &Ledger{pool} }

// maxName keeps keys fit for the index; queues refuse longer ones too.
const maxName = 512

// checkName tells whether s can name a job type or an entity, as queues do, before the database
// does: what that refuses fails the whole transaction, or all who share a statement.
func checkName(kind, s string) error {
	switch {
	case s == "" || len(s) > maxName:
		return fmt.Errorf("the %s %.40q has %d bytes, allowed are 1 to %d", kind, s, len(s), maxName)
	case !utf8.ValidString(s):
		return fmt.Errorf("the %s %.40q is not valid UTF-8", kind, s)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("the %s %.40q contains a NUL byte", kind, s)
	}
	return nil
}

// Register gives t its number, and a new job type its row: all that [Record] and
// [Transition.Apply] need. aliases are earlier names of the same job type; the first that
// exists lends its number, so that its facts stay.
//
// What is written down of the type already stays as it is. Those who work it know its
// effect class and its source, and have said so by [Ledger.Declare]; who only names it, as a
// web server beside the workers does, must not take that from the tools.
func (l *Ledger) Register(ctx context.Context, t *Type, aliases ...string) error {
	return l.number(ctx, t, registerSQL, t.Name, aliases, t.declared())
}

// Declare is Register for who works t, and for nobody else: it also writes down what tools
// know of the type that do not link the app, whatever was there. source is the query that
// names the entities; empty where there is none that can be run as it stands.
func (l *Ledger) Declare(ctx context.Context, t *Type, source string, aliases ...string) error {
	return l.number(ctx, t, declareTypeSQL, t.Name, aliases, t.declared(), source)
}

func (l *Ledger) number(ctx context.Context, t *Type, sql string, args ...any) error {
	if err := l.pool.QueryRow(ctx, sql, args...).Scan(&t.ID); err != nil {
		return fmt.Errorf("register job type %s: %w", t.Name, explain(err))
	}
	return nil
}

// ByRequest ends what is written down as the effect of a type whose Requests is true.
const ByRequest = ", by request"

func (t *Type) declared() string {
	if t.Requests {
		return t.Effect.String() + ByRequest
	}
	return t.Effect.String()
}

const (
	firstAliasSQL = `(SELECT min(a.id) FROM oncemore.job_type a WHERE a.name = ANY ($2::text[]))`

	// Of the names of a type tools believe the one that was seen last, and nobody who works the
	// type has seen this one. The update changes nothing: it is there for the id.
	registerSQL = `
/* job type: register */
INSERT INTO oncemore.job_type AS t (name, id, effect, seen_at)
SELECT $1, coalesce(` + firstAliasSQL + `, nextval('oncemore.job_type_id')), $3, '-infinity'::timestamptz
ON CONFLICT (name) DO UPDATE SET seen_at = t.seen_at
RETURNING id`

	// An alias that was never there is written down, too: who has no code at hand sees then that the type
	// had another name, of which its effect keys are made.
	declareTypeSQL = `
/* job type: register */
WITH own AS (
    INSERT INTO oncemore.job_type AS t (name, id, effect, source)
    SELECT $1, coalesce(` + firstAliasSQL + `, nextval('oncemore.job_type_id')), $3, nullif($4, '')
    ON CONFLICT (name) DO UPDATE SET effect = excluded.effect, source = excluded.source, seen_at = now()
    RETURNING id
), earlier AS (
    INSERT INTO oncemore.job_type (name, id, effect, seen_at)
    SELECT DISTINCT a.name, own.id, $3, '-infinity'::timestamptz FROM own CROSS JOIN unnest($2::text[]) AS a(name) WHERE a.name <> $1
    ON CONFLICT (name) DO NOTHING
)
SELECT own.id FROM own`
)

// explain adds what to do to errors that a new user meets.
func explain(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "3F000" || pg.Code == "42P01") {
		return fmt.Errorf("%w (is the schema there? run 'oncemore migrate up', or migrations.Up)", err)
	}
	return err
}

// Every statement that writes, here and in the packages above, begins with its name in a
// comment. So pg_stat_activity and the server's log say what a session of ours is at, and
// tests can let each write fail.

// Every statement of the ledger reaches its rows by primary key, in key order. The
// planner would rather scan a claim table that was empty when the plan was made, and
// keep that plan when it holds a hundred thousand rows; so this is said aloud, for our
// transactions alone.
const steadyPlans = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)`

// begin and commit are sent with the statements between them, in one round trip. READ
// COMMITTED is said explicitly: under REPEATABLE READ the second look of a claim would
// be blind.
const (
	beginSQL  = `BEGIN ISOLATION LEVEL READ COMMITTED`
	commitSQL = `COMMIT`
)

// RunBatch runs what queue puts on a batch in one transaction and one round trip, with
// plans that stay by primary key. It tries again after a deadlock or a serialization
// failure, calling queue anew. Any other error may mean that the transaction was
// committed and only the answer lost.
func (l *Ledger) RunBatch(ctx context.Context, queue func(*pgx.Batch)) error {
	for try := 1; ; try++ {
		b := &pgx.Batch{}
		b.Queue(beginSQL)
		b.Queue(steadyPlans)
		queue(b)
		b.Queue(commitSQL)
		err := l.pool.SendBatch(ctx, b).Close()
		if err == nil || try == 5 || !transient(err) || ctx.Err() != nil {
			return err
		}
	}
}

func transient(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "40001")
}

// OfTheMoment tells whether the server's error says nothing about what it was asked, and may pass
// by itself: of the connection (08), of the transaction or of a server that became a standby (25, 26),
// a conflict with others (40, 55), a lack of resources (53), a shutdown or a timeout (57), of the
// disk (58), and what should not happen (XX).
func OfTheMoment(pg *pgconn.PgError) bool {
	return slices.Contains([]string{"08", "25", "26", "40", "53", "55", "57", "58", "XX"}, pg.Code[:min(2, len(pg.Code))])
}

// nullTime reads a nullable timestamp as a time that is zero for NULL.
func nullTime(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
