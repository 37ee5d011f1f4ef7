package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// inVisit makes one visit to a run, a fan-out's or a re-run's, in one transaction under the
// fence of the carrier's claim. do plans, sends and records; what it queues in b is
// committed together with the end of the visit: the claim goes when the run has ended, else
// it waits with a message that brings the next visit. A crash costs one visit.
func (l *life) inVisit(ctx context.Context, it *item, do func(tx pgx.Tx, b *pgx.Batch) (visited, error)) error {
	return inTx(ctx, l.pool, func(tx pgx.Tx) error {
		// Locked by its fence, the claim cannot be taken over while we write.
		var held int
		err := tx.QueryRow(ctx, lockClaimSQL, it.kind.ID, it.Entity, it.claim.Fence).Scan(&held)
		if errors.Is(err, pgx.ErrNoRows) {
			return errNotOurs
		} else if err != nil {
			return err
		}
		b := &pgx.Batch{}
		v, err := do(tx, b)
		if err != nil {
			return err
		}
		o := it.outcome(ledger.Ended)
		var next []queue.Message
		if v.ended {
			if err := freeRest(ctx, tx, b, v.run); err != nil {
				return err
			}
		} else {
			// Last of all that is sent: who paused the run meanwhile could not see it.
			pgqueue.HoldPaused(b, v.run)
			// A visit is no attempt: only those that fail count.
			o.State, o.Attempts, o.Absent, o.Delay = ledger.ToRetry, 0, true, v.wait
			next = append(next, *it.retry(o.Delay))
		}
		ledger.Settle(b, &it.kind.Type, l.lease.ID, []*ledger.Outcome{&o})
		l.pg.SendBatch(b, next...)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return err
		}
		if o.Refused {
			return errNotOurs
		}
		return nil
	})
}

// visited is how a run stands when a visit to it is over.
type visited struct {
	run   int64
	ended bool
	wait  time.Duration // until the next visit, where it has not
}

// freeRest frees what a run that ends leaves, and what was held back of it: that goes on without the
// run, and nobody could resume it. Who wants something of the run just now either has it, and is
// waited for here, or waits for our commit, and finds that it has ended.
func freeRest(ctx context.Context, tx pgx.Tx, b *pgx.Batch, run int64) error {
	if run == 0 {
		return nil // it has ended before
	}
	_, err := tx.Exec(ctx, lockControlSQL, run) // its end is not written yet
	// What goes on is sent again when it is tried again: nobody is to hold that.
	b.Queue(`/* run: end its pause */ UPDATE oncemore.run_control SET paused = NULL WHERE run = $1 AND paused IS NOT NULL`, run)
	pgqueue.Unhold(b, run)
	return err
}

// holdSent holds back what a settlement sends of runs that are paused: what it carries on is not
// to begin before its run goes on. Else the next visit would hold it, and that may be half a
// minute away.
func holdSent(b *pgx.Batch, ms []queue.Message) {
	run := int64(0)
	for i := range ms {
		if m := &ms[i]; m.Run != 0 && m.Run != run {
			run = m.Run
			pgqueue.HoldPaused(b, run)
		}
	}
}

const lockClaimSQL = `/* claim: lock */ SELECT 1 FROM oncemore.claim WHERE job_type = $1 AND entity = $2 AND fence = $3 FOR UPDATE`

// retry is the message that carries the next attempt on it.
func (it *item) retry(d time.Duration) *queue.Message {
	m := it.later(0)
	m.Delay, m.Deferred = d, 0
	return m
}

// conclude ends the delivery that brought a visit to what.
func (l *life) conclude(it *item, err error, what string, story func() string) {
	switch {
	case errors.Is(err, errNotOurs):
		l.outrun(it)
	case err != nil:
		err = fmt.Errorf("visit %s: %w", what, err)
		ctx, cancel := l.recording()
		defer cancel()
		if child, _ := l.cancelledChild(ctx, it); child != nil {
			// The next visit ends it, and needs nothing of what failed here. Were this the last that is
			// tried, nobody would.
			l.finish(it, ledger.Returned, err)
			return
		}
		l.judge(it, err)
	default:
		it.end.note = story()
		l.endItem(it)
	}
}
