package admin

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// An Operator changes by hand what jobs left behind.
//
// Each of its acts takes what was shown ([Shown], [ShownParked]), changes what is still
// so, and leaves alone, and names, what somebody has changed meanwhile. It is one
// transaction together with its audit row: either both are there or neither. An error
// means that nothing was changed, unless the answer to the commit was lost: then act
// again, since what was changed already is left alone, and work that is enqueued twice is
// done once.
type Operator struct {
	Pool  *pgxpool.Pool
	Actor string    // who acts, for the audit; required
	Set   *jobs.Set // the app's jobs; nil: not known here, and then less can be checked
	Queue string    // the Postgres queue that carries what is sent; "": the default one
}

// A Result says what an act came to.
type Result struct {
	Changed int
	Left    []Left // what was shown or given and was left alone
	Audit   int64  // the id of its audit row; 0: nothing was changed, so there is none
}

// A Left is one thing that an act left alone.
type Left struct {
	What string `json:"what"` // an entity; of parked input its id
	Why  string `json:"why"`
}

// MaxAct is how much one act selects at most: it is one transaction. What is more needs
// more acts.
const MaxAct = 100_000

// errNoActor is a mistake of the program, not of a person.
var errNoActor = errors.New("an operator needs a name: set Operator.Actor")

// An act gathers what the audit is to say while it is done.
type act struct {
	pgx.Tx
	entry   AuditEntry
	result  Result
	changed []string // the first of them
}

// sampleSize is how many of what was changed are named in the audit.
const sampleSize = 10

func (a *act) did(what string) {
	a.result.Changed++
	if len(a.changed) < sampleSize {
		a.changed = append(a.changed, what)
	}
}

func (a *act) leave(what, why string) {
	a.result.Left = append(a.result.Left, Left{what, why})
}

// A laptop that sleeps in the middle must not keep what it has locked from schedules and workers, and
// who waits for another operator is told so.
const beginSQL = `BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '15s'; SET LOCAL lock_timeout = '30s'`

// do runs f in one transaction, and records it in the same one.
func (op *Operator) do(ctx context.Context, e AuditEntry, f func(a *act) error) (*Result, error) {
	if op.Actor == "" {
		return nil, errNoActor
	}
	e.Actor = op.Actor
	a := &act{entry: e}
	err := pgx.BeginTxFunc(ctx, op.Pool, pgx.TxOptions{BeginQuery: beginSQL}, func(tx pgx.Tx) error {
		a.Tx = tx
		if err := f(a); err != nil || a.result.Changed == 0 {
			return err
		}
		a.entry.Entities, a.entry.Sample = int64(a.result.Changed), a.changed
		if n := len(a.result.Left); n > 0 {
			a.entry.Detail += fmt.Sprintf("; left alone: %d", n)
		}
		return record(ctx, tx, &a.entry)
	})
	if err != nil {
		return nil, explain(err)
	}
	a.result.Audit = a.entry.ID
	return &a.result, nil
}

// sender carries messages in a's transaction.
func (op *Operator) sender(a *act) queue.Sender { return pgqueue.New(op.Pool, op.Queue).Tx(a.Tx) }

// carryOn sends what is open again, as it is there: the limits of a producer are not asked about, since
// a source may have longer arguments.
func (op *Operator) carryOn(ctx context.Context, a *act, ms []queue.Message) error {
	b := &pgx.Batch{}
	pgqueue.New(op.Pool, op.Queue).SendBatch(b, ms...)
	return a.SendBatch(ctx, b).Close()
}

// priority is that of messages of a job type, where the app's jobs are known.
func (op *Operator) priority(jobType string) int {
	if op.Set != nil {
		if e, ok := op.Set.Lookup(jobType); ok {
			return e.Priority
		}
	}
	return 0
}
