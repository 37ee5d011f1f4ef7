package ledgerhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

const (
	holdPatience = 20 * time.Millisecond // for another transaction with the same fact, before it counts as ongoing
	recordTime   = 10 * time.Second      // to record what a handler has done, when its own time no longer counts
	idleGrace    = 5 * time.Second       // beyond Timeout, before the server ends a transaction that idles
)

// errTaken says that the fact is there: the request was done.
var errTaken = errors.New("the fact is there")

// errAborted says that a statement of the handler failed, which it did not mention, or that the
// server refused to commit what it wrote.
var errAborted = errors.New("the handler's transaction failed, and its answer did not say so")

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
	case errors.Is(err, errCrowded):
		return outcome{}, nil
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
	tx, err := g.hold(ctx, req.want)
	if err != nil {
		return nil, err
	}
	// However this ends, and even if the handler panics. After a commit it is nothing.
	defer tx.rollback()
	a, err := g.run(context.WithValue(ctx, callKey{}, &call{tx: tx.lent()}), req)
	switch {
	case err != nil:
		return nil, err // nothing is kept of it
	case !g.op.Store(a.status):
		return a, nil
	case a.status >= http.StatusBadRequest:
		tx.rollback()
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
	tx, err := g.hold(ctx, req.want)
	if err != nil {
		return nil, err
	}
	return g.commit(req, tx, a)
}

// commit stores the answer and commits. From here on the handler's time no longer counts.
func (g *guarded) commit(req *request, tx *transaction, a *answer) (*answer, error) {
	ctx, cancel := recording(req)
	defer cancel()
	err := tx.commit(ctx, func(b *pgx.Batch) { g.queueStore(b, req.want, a) })
	if err == nil || errors.Is(err, errAborted) {
		return a, err
	}
	// Whether it happened the fact tells. Where there is none it was rolled back, or it hangs in
	// the server still; then the next request waits for it at the same fact.
	standings, lookErr := g.ledger.Look(ctx, &g.kind, []ledger.Want{req.want})
	switch {
	case lookErr != nil:
		return nil, fmt.Errorf("commit: %w; and the ledger does not say whether it happened: %w", err, lookErr)
	case standings[0].Fact != nil:
		return nil, errTaken // by us, or by a twin after all; the stored answer is the one that counts
	case refused(err): // a deferred constraint, say, that will refuse it again: no use in sending it again
		return nil, fmt.Errorf("commit: %w: %w", errAborted, err)
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
		r := req.again(req.Context())
		defer removeForm(r)
		g.next.ServeHTTP(w, r)
		return
	}
	ctx, cancel := context.WithTimeout(req.Context(), g.op.Timeout)
	defer cancel()
	fail := func(err error) {
		g.log.Error("request without a key not brought to its end", "operation", g.op.Name, "error", err)
		g.refuse(w, unkept)
	}
	tx, err := g.begin(ctx, g.op.Timeout+idleGrace, func(*pgx.Batch) {})
	if err != nil {
		fail(err)
		return
	}
	defer tx.rollback()
	a, err := g.run(context.WithValue(ctx, callKey{}, &call{tx: tx.lent()}), req)
	if err == nil && a.status < http.StatusBadRequest {
		err = tx.commit(ctx, func(*pgx.Batch) {})
	}
	if err != nil {
		fail(err)
		return
	}
	tx.rollback() // before somebody reads slowly what was not done
	a.write(w)
}

// recording is a context to record what was done, whether or not the client is there still.
func recording(req *request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(req.Context()), recordTime)
}
