package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// holdPatience is how long to wait for another transaction that is recording the same
// entity. Past it the work is theirs: ongoing.
const holdPatience = 2 * time.Second

// errNotOurs ends a transaction whose work turned out to be done, or in other hands.
var errNotOurs = errors.New("the work is in other hands")

// notBegun wraps errors of getting a transaction: nothing was tried, and no attempt is charged.
type notBegun struct{ error }

func (e notBegun) Unwrap() error { return e.error }

// doTx runs a DoTx body: fact first, then the effect, then one commit for both. A crash
// anywhere before the commit leaves neither; a commit whose answer was lost is found out
// by looking for the fact.
func (l *life) doTx(it *item) {
	err := l.transact([]*item{it}, func(ctx context.Context, tx pgx.Tx, its []*item) error {
		return it.kind.Erased.DoTx(ctx, tx, it.args)
	})
	l.endTx(it, err)
}

// workMany brings the items of one DoMany task to their end.
func (l *life) workMany(task []*item) {
	more := func() {}
	if slices.ContainsFunc(task, (*item).suspicious) {
		var next func()
		more, next = l.alone(task[0].kind)
		defer next()
	}
	defer l.returnRest(task)
	ready := make([]*item, 0, len(task))
	for _, it := range task {
		more()
		if l.mayStart(it) && l.ask(it) && !l.exhausted(it) && l.claimOne(it) {
			ready = append(ready, it)
		}
	}
	l.many(ready, more)
}

var errNeighbour = errors.New("the body or a check of another item of its transaction ended the goroutine")

// returnRest gives back what is left of a task when a body or a check has ended the goroutine:
// guard judges the items that it was called with, and nobody comes back to the others, claimed
// or not. What was tried of them was rolled back.
func (l *life) returnRest(task []*item) {
	for _, it := range task {
		if !it.ended.Load() {
			it.end = ending{}
			l.finish(it, ledger.Returned, errNeighbour)
		}
	}
}

// many does its items in one transaction, or halves them where that fails. It calls begins before
// each.
func (l *life) many(its []*item, begins func()) {
	if len(its) == 0 {
		return
	}
	begins()
	err := l.transact(its, func(ctx context.Context, tx pgx.Tx, mine []*item) error {
		args := make([]jobs.Args, len(mine))
		for i, it := range mine {
			args[i] = it.args
		}
		return its[0].kind.Erased.DoMany(ctx, tx, args)
	})
	if _, away := errors.AsType[notBegun](err); away || err == nil || len(its) == 1 || l.jobs.Err() != nil || its[0].parcel.lost.Load() && !its[0].claim.Won {
		for _, it := range its {
			l.endTx(it, err)
		}
		return
	}
	half := len(its) / 2
	l.many(its[:half], begins)
	l.many(its[half:], begins)
}

// endTx ends an item whose transaction returned err.
func (l *life) endTx(it *item, err error) {
	_, away := errors.AsType[notBegun](err)
	switch {
	case away:
		it.end = ending{}
		if l.jobs.Err() == nil {
			it.end.hold = min(time.Second<<min(it.Received, 10), time.Minute)
		}
		l.finish(it, ledger.Returned, err)
	case err == nil && it.end.reason == "":
		// The fact is committed: what is left is the acknowledgement.
		l.endItem(it)
	case err == nil, errors.Is(err, errNotOurs), errors.Is(err, ledger.ErrBusy):
		it.end.reason = ""
		l.outrun(it)
	default:
		l.judge(it, err)
	}
}

// transact holds the facts of its, runs body for those that are ours, and commits. Items
// that are not ours have a reason set when it returns nil.
func (l *life) transact(its []*item, body func(ctx context.Context, tx pgx.Tx, mine []*item) error) error {
	first := its[0]
	// The wait for a connection is no time of the body's, and a database that is away no fault of it.
	conn, err := l.connection(first)
	if err != nil {
		return l.unbegun(l.jobs, first, err)
	}
	release := sync.OnceFunc(conn.Release)
	defer release()
	ctx := l.begin(first)
	defer ctx.end()
	ctx.attempt.Many = first.kind.Erased.DoMany != nil
	tx, err := conn.BeginTx(ctx, bounded(first.kind.Erased.Timeout+l.stuckGrace)) // by then a body has ended
	if err != nil {
		return l.unbegun(ctx, first, err)
	}
	// However this ends, and even if the body ends its goroutine. After a commit it is nothing.
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = tx.Rollback(ctx)
	}()
	outs := make([]*ledger.Outcome, len(its))
	for i, it := range its {
		o := it.outcome(ledger.Completed)
		o.Evidence = ledger.SameTx
		outs[i] = &o
	}
	held, err := ledger.Hold(ctx, tx, &first.kind.Type, holdPatience, outs)
	if err != nil {
		return err
	}
	mine, wants := make([]*item, 0, len(its)), make([]ledger.Want, 0, len(its))
	for i, it := range its {
		it.end = ending{}
		if held[i] {
			mine, wants = append(mine, it), append(wants, outs[i].Want) // of the epoch that the fact has now
			if it == first {
				ctx.attempt.Epoch = outs[i].Epoch
			}
		} else {
			it.end.reason = ledger.Ongoing
		}
	}
	if len(mine) == 0 {
		return errNotOurs
	}
	if err = l.guard(its, func() error { return body(ctx, guardedTx{tx}, mine) }); err != nil {
		return err
	}
	defer func(began time.Time) { l.tempos.add(first.Run, len(mine), time.Since(began)) }(first.began)
	first.end.note = ctx.attempt.Noted()
	returned := false
	for i, it := range its {
		outs[i].Result = ctx.attempt.Returned(it.Entity)
		returned = returned || outs[i].Result != nil
	}
	// From here on the body's timeout no longer counts: it has succeeded.
	commit, cancel := context.WithTimeout(l.record, 10*time.Second)
	defer cancel()
	if returned {
		b := &pgx.Batch{}
		ledger.KeepResults(b, &first.kind.Type, outs) // of those that are ours: it sees whose fact it is
		if err := tx.SendBatch(commit, b).Close(); err != nil {
			return fmt.Errorf("keep the result: %w", err)
		}
	}
	if err = tx.Commit(commit); err == nil {
		return nil
	}
	release() // to look at the facts takes another connection, and others may wait for this one
	return l.committed(first.kind, wants, err)
}

// connection waits for one of the pool's, for as long as the work may begin. It tries anew now and
// then: the pool may be asking one that was cut off without a word.
func (l *life) connection(it *item) (*pgxpool.Conn, error) {
	for {
		ctx, cancel := context.WithTimeout(l.jobs, 30*time.Second)
		conn, err := l.pool.Acquire(ctx)
		again := err != nil && ctx.Err() != nil && l.jobs.Err() == nil && !it.parcel.lost.Load()
		cancel()
		if !again {
			return conn, err
		}
	}
}

// unbegun is the error of a transaction of it, and perhaps others, that did not begin: the time of
// the body was up, or there was no database for it.
func (l *life) unbegun(ctx context.Context, it *item, err error) error {
	err = fmt.Errorf("begin: %w", err)
	if ctx.Err() != nil && l.jobs.Err() == nil {
		return notTried{err}
	}
	if l.jobs.Err() == nil { // else it is given back like all that has not begun
		l.log.Warn("a transaction could not begin: its message comes again", "type", it.kind.name, "entity", it.Entity, "error", err)
	}
	return notBegun{err}
}

// committed answers a commit that returned an error: the facts tell whether it happened, of
// the epochs under which they were held; a message may ask for less. Where they do not, it was
// rolled back, or it still hangs in the server; then the next attempt waits for it at the same
// fact.
func (l *life) committed(k *kind, wants []ledger.Want, cause error) error {
	ctx, cancel := context.WithTimeout(l.record, 10*time.Second)
	defer cancel()
	standings, err := l.ledger.Look(ctx, &k.Type, wants)
	if err != nil {
		return fmt.Errorf("commit: %w; and the ledger does not say whether it happened: %w", cause, err)
	}
	for _, st := range standings {
		if st.Reason != ledger.Done {
			return fmt.Errorf("commit: %w", cause)
		}
	}
	return nil
}

// inTx runs f, which waits for nothing but the database, in a transaction.
func inTx(ctx context.Context, pool *pgxpool.Pool, f func(tx pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, pool, bounded(time.Minute), f)
}

// bounded begins a transaction that the server ends when it idles for longer than idling: a process
// that is frozen, or a machine that is gone without a word, must not keep its locks until TCP
// notices. In one round trip with the beginning.
func bounded(idling time.Duration) pgx.TxOptions {
	return pgx.TxOptions{BeginQuery: fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = %d",
		min(idling.Milliseconds(), math.MaxInt32))}
}

// A guardedTx is a transaction lent to a body: whoever hands it out commits it.
type guardedTx struct{ pgx.Tx }

var errLent = errors.New("the transaction belongs to the worker, which commits it together with the fact: return an error to have it rolled back")

func (guardedTx) Commit(context.Context) error   { return errLent }
func (guardedTx) Rollback(context.Context) error { return errLent }
