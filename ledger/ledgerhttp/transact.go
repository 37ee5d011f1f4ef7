package ledgerhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/ledger"
)

const (
	holdPatience = 20 * time.Millisecond // for another transaction with the same fact, before it counts as ongoing
	recordTime   = 10 * time.Second      // to record what a handler has done, when its own time no longer counts
	idleGrace    = 5 * time.Second       // beyond Timeout, before the server ends a transaction that idles
)

// errTaken says that the fact is there: the request was done.
var errTaken = errors.New("the fact is there")

// errAborted says that a statement of the handler failed, which it did not mention.
var errAborted = errors.New("the handler's transaction had failed, and its answer did not say so")

// inTransaction tries to do the request in one transaction with its fact and its answer.
func (g *guarded) inTransaction(req *request) (outcome, error) {
	// The client's going away does not end what it asked for: it will ask what became of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), g.op.Timeout)
	defer cancel()
	a, err := g.transact(ctx, req)
	switch {
	case err == nil:
		return outcome{answer: a}, nil
	case errors.Is(err, ledger.ErrBusy):
		return outcome{busy: true}, nil
	case errors.Is(err, errTaken):
		return g.look(req)
	case errors.Is(err, ErrResponseTooLarge):
		g.log.Error("response too large, transaction rolled back", "operation", g.op.Name, "entity", req.want.Entity, "allowed", g.op.MaxResponse)
		return unstorable.outcome(), nil
	case errors.Is(err, errAborted):
		g.log.Error("transaction rolled back", "operation", g.op.Name, "entity", req.want.Entity, "error", err)
		return aborted.outcome(), nil
	}
	return outcome{}, err
}

// transact holds the fact, runs the handler, and commits: the answer is final then. A
// crash anywhere before the commit leaves nothing.
func (g *guarded) transact(ctx context.Context, req *request) (*answer, error) {
	tx, err := g.hold(ctx, req)
	if err != nil {
		return nil, err
	}
	// However this ends, and even if the handler panics. After a commit it is nothing.
	defer rollback(tx)
	a, err := g.run(context.WithValue(ctx, callKey{}, &call{tx: tx}), req)
	switch {
	case err != nil:
		return nil, err
	case !g.op.Store(a.status):
		return a, nil
	case a.status >= http.StatusBadRequest:
		rollback(tx)
		return g.keepRefusal(req, a)
	}
	return g.commit(req, tx, a)
}

// keepRefusal stores an answer that says that nothing was done. What the handler wrote
// before it found out is rolled back already, so this is a transaction of its own; whoever
// came between has the request, and we did nothing.
func (g *guarded) keepRefusal(req *request, a *answer) (*answer, error) {
	ctx, cancel := recording(req)
	defer cancel()
	tx, err := g.hold(ctx, req)
	if err != nil {
		return nil, err
	}
	defer rollback(tx)
	return g.commit(req, tx, a)
}

// hold begins a transaction whose first change is the fact.
func (g *guarded) hold(ctx context.Context, req *request) (pgx.Tx, error) {
	// A frozen process must not hold its locks for ever: the server ends a transaction that
	// idles longer than a handler may take. READ COMMITTED is said aloud: others' facts must be seen.
	limit := strconv.FormatInt((g.op.Timeout + idleGrace).Milliseconds(), 10)
	tx, err := g.pool.BeginTx(ctx, pgx.TxOptions{BeginQuery: `BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = ` + limit})
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	mine, err := ledger.Hold(ctx, tx, &g.kind, holdPatience, []*ledger.Outcome{{Want: req.want, State: ledger.Completed, Attempts: 1, Evidence: ledger.SameTx}})
	if err == nil && !mine[0] {
		err = errTaken
	}
	if err != nil {
		rollback(tx)
		return nil, err
	}
	return tx, nil
}

// commit stores the answer and commits. From here on the handler's time no longer counts.
func (g *guarded) commit(req *request, tx pgx.Tx, a *answer) (*answer, error) {
	ctx, cancel := recording(req)
	defer cancel()
	err := g.store(ctx, tx, req.want, a)
	if err == nil {
		if err = tx.Commit(ctx); err == nil {
			return a, nil
		}
	}
	var pg *pgconn.PgError
	if errors.Is(err, pgx.ErrTxCommitRollback) || errors.As(err, &pg) && pg.Code == "25P02" {
		return nil, errAborted
	}
	// Whether it happened the fact tells. Where there is none it was rolled back, or it hangs in
	// the server still; then the next request waits for it at the same fact.
	standings, lookErr := g.ledger.Look(ctx, &g.kind, []ledger.Want{req.want})
	switch {
	case lookErr != nil:
		return nil, fmt.Errorf("commit: %w; and the ledger does not say whether it happened: %w", err, lookErr)
	case standings[0].Fact != nil:
		return nil, errTaken // by us, or by a twin after all; the stored answer is the one that counts
	}
	return nil, fmt.Errorf("commit: %w", err)
}

// look answers from what the ledger says now.
func (g *guarded) look(req *request) (outcome, error) {
	ctx, cancel := recording(req)
	defer cancel()
	standings, err := g.ledger.Look(ctx, &g.kind, []ledger.Want{req.want})
	if err != nil {
		return outcome{}, err
	}
	return g.standing(ctx, &standings[0])
}

// forget runs the handler for a request without a key: nothing is remembered.
func (g *guarded) forget(w http.ResponseWriter, req *request) {
	if g.op.Effect != ledger.InTransaction {
		g.next.ServeHTTP(w, req.again(req.Context()))
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), g.op.Timeout)
	defer cancel()
	fail := func(err error) {
		g.log.Error("request without a key not brought to its end", "operation", g.op.Name, "error", err)
		g.refuse(w, unkept)
	}
	tx, err := g.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		fail(err)
		return
	}
	defer rollback(tx)
	a, err := g.run(context.WithValue(ctx, callKey{}, &call{tx: tx}), req)
	if err == nil && a.status < http.StatusBadRequest {
		err = tx.Commit(ctx)
	}
	if err != nil {
		fail(err)
		return
	}
	a.write(w)
}

// recording is a context to record what was done, whether or not the client is there still.
func recording(req *request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(req.Context()), recordTime)
}

func rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTime)
	defer cancel()
	_ = tx.Rollback(ctx) // it had ended, or the server ends it with the connection
}
