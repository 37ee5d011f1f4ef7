package ledgerhttp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A transaction is one of the middleware, for a handler.
//
// It begins in one round trip with the statements that hold its fact, and ends in one with those
// that store its answer. (pgx's own Commit would be one more, after them.)
type transaction struct {
	tx    pgx.Tx
	conn  *pgxpool.Conn
	ended atomic.Bool // the connection is no longer ours; set before it is given back
}

// begin begins a transaction, and does first in it. A process that is frozen, or cut off, must not
// hold its locks for ever: the server ends a transaction that idles longer than idle; 0: first says
// how long that is.
func (g *guarded) begin(ctx context.Context, idle time.Duration, first func(*pgx.Batch)) (*transaction, error) {
	conn, err := g.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	b := &pgx.Batch{}
	b.BeginTx(pgx.TxOptions{IsoLevel: pgx.ReadCommitted}) // said aloud: others' facts must be seen
	if idle > 0 {
		b.Queue(`/* transaction: bound its idling */ SELECT set_config('idle_in_transaction_session_timeout', $1, true)`, strconv.FormatInt(idle.Milliseconds(), 10))
	}
	first(b)
	results := conn.SendBatch(ctx, b)
	t := &transaction{tx: results.Tx(), conn: conn}
	if err := results.Close(); err != nil {
		t.rollback()
		return nil, fmt.Errorf("begin: %w", err)
	}
	return t, nil
}

// hold begins a transaction whose first change is the fact that is wanted. [errTaken]: it is
// there. [ledger.ErrBusy]: another transaction is about to have it.
func (g *guarded) hold(ctx context.Context, want ledger.Want) (*transaction, error) {
	var mine *bool
	t, err := g.begin(ctx, 0, func(b *pgx.Batch) {
		mine = ledger.QueueHoldFirst(b, &g.kind, holdPatience, g.op.Timeout+idleGrace, want)
	})
	switch {
	case err != nil && ledger.IsBusy(err) && overARow(err):
		return nil, ledger.ErrBusy
	case err != nil && ledger.IsBusy(err):
		return nil, errCrowded
	case err != nil:
		return nil, err
	case !*mine:
		t.rollback()
		return nil, errTaken
	}
	return t, nil
}

// errCrowded says that the wait was not for a twin: where many insert at once they wait for each
// other to make the table longer, too.
var errCrowded = errors.New("the ledger's table was locked for longer than a fact is waited for")

// overARow tells whether a statement that did not get a lock in time waited for a row. Then the
// server says which, in whatever language.
func overARow(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Where != ""
}

// commit does last, and commits. Where a statement of last fails, the server does not come to the
// COMMIT. After an error that is not [errAborted] it may have.
func (t *transaction) commit(ctx context.Context, last func(*pgx.Batch)) error {
	defer t.rollback()
	b := &pgx.Batch{}
	last(b)
	var tag pgconn.CommandTag
	b.Queue(`COMMIT`).Exec(func(said pgconn.CommandTag) error { tag = said; return nil })
	err := t.conn.SendBatch(ctx, b).Close()
	var pg *pgconn.PgError
	if err == nil && tag.String() == "ROLLBACK" || errors.As(err, &pg) && pg.Code == "25P02" {
		return errAborted
	}
	return err
}

// refused tells whether the server has said that it does not commit, for a reason of what is
// written, which stays.
func refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR" && !ledger.OfTheMoment(pg)
}

// rollback undoes what is not committed, and gives the connection back. After a commit, or a
// second time, there is nothing left to undo.
func (t *transaction) rollback() {
	if !t.ended.CompareAndSwap(false, true) {
		return
	}
	if t.conn.Conn().PgConn().TxStatus() != 'I' {
		ctx, cancel := context.WithTimeout(context.Background(), recordTime)
		defer cancel()
		_ = t.tx.Rollback(ctx) // where it fails the pool closes the connection, and with that the server ends it
	}
	t.conn.Release()
}

// lent is what the handler gets of t.
func (t *transaction) lent() pgx.Tx { return lentTx{t.tx, &t.ended} }

// A lentTx is a transaction lent to a handler: whoever hands it out ends it, and then its
// connection is somebody else's.
type lentTx struct {
	pgx.Tx
	ended *atomic.Bool
}

var errLent = errors.New("the transaction belongs to the middleware, which commits it together with the answer: answer with a status of 400 or above to have it rolled back")

func (lentTx) Commit(context.Context) error   { return errLent }
func (lentTx) Rollback(context.Context) error { return errLent }

// A lentSavepoint may be released and rolled back to.
type lentSavepoint struct{ lentTx }

func (s lentSavepoint) Commit(ctx context.Context) error   { return s.now().Commit(ctx) }
func (s lentSavepoint) Rollback(ctx context.Context) error { return s.now().Rollback(ctx) }

// endedTx answers everything with [pgx.ErrTxClosed].
var endedTx = func() pgx.Tx {
	b := &pgx.Batch{}
	b.BeginTx(pgx.TxOptions{})
	return pgx.FailedBatchResults(b, pgx.ErrTxClosed).Tx()
}()

func (l lentTx) now() pgx.Tx {
	if l.ended.Load() {
		return endedTx
	}
	return l.Tx
}

func (l lentTx) Begin(ctx context.Context) (pgx.Tx, error) {
	tx, err := l.now().Begin(ctx)
	if err != nil {
		return nil, err
	}
	return lentSavepoint{lentTx{tx, l.ended}}, nil
}

func (l lentTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return l.now().Exec(ctx, sql, args...)
}

func (l lentTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return l.now().Query(ctx, sql, args...)
}

func (l lentTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return l.now().QueryRow(ctx, sql, args...)
}

func (l lentTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return l.now().SendBatch(ctx, b)
}

func (l lentTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	return l.now().CopyFrom(ctx, table, columns, from)
}

func (l lentTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	return l.now().Prepare(ctx, name, sql)
}

func (l lentTx) LargeObjects() pgx.LargeObjects { return l.now().LargeObjects() }
func (l lentTx) Conn() *pgx.Conn                { return l.now().Conn() }
