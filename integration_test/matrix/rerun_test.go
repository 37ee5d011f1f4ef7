package matrix_test

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// operate does what an operator does: again, until it is told that it worked. It goes
// through the producer's proxy.
func (w *world) operate(f func(ctx context.Context, tx pgx.Tx) error) {
	w.Helper()
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := pgx.BeginTxFunc(ctx, w.writer, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error { return f(ctx, tx) })
		cancel()
		if err == nil || errors.Is(err, worker.ErrRunEnded) {
			return
		}
		if try == 20 {
			w.Fatalf("after %d tries: %v", try, err)
		}
	}
}

// rerun asks for a re-run of the scenario's class.
func (w *world) rerun(o worker.Order) {
	w.Helper()
	o.Type, o.By, o.Reason = w.class, "the operator", "the outage"
	w.operate(func(ctx context.Context, tx pgx.Tx) error {
		_, err := worker.OpenRerun(ctx, tx, pgqueue.New(w.writer, ""), o)
		return err
	})
}

// control is one of worker's functions that say what is wanted of the newest run.
func (w *world) control(f func(ctx context.Context, tx pgx.Tx, run int64) error) {
	w.Helper()
	run := ask[int64](w, `SELECT max(id) FROM oncemore.run`)
	w.operate(func(ctx context.Context, tx pgx.Tx) error { return f(ctx, tx, run) })
}

func pauseRun(ctx context.Context, tx pgx.Tx, run int64) error {
	return worker.PauseRun(ctx, tx, run, "to look")
}

func cancelRun(ctx context.Context, tx pgx.Tx, run int64) error {
	return worker.CancelRun(ctx, tx, run, "it was wrong")
}

func setRate(ctx context.Context, tx pgx.Tx, run int64) error {
	return worker.SetRate(ctx, tx, run, 1000)
}

const (
	registered = `SELECT count(*) > 0 FROM oncemore.job_type WHERE name LIKE 'oncemore.rerun.%'`
	runEnded   = `SELECT bool_and(ended_at IS NOT NULL) IS TRUE FROM oncemore.run`
	runWaits   = `SELECT EXISTS (SELECT FROM oncemore.run WHERE waits LIKE `
)

// reruns are the ways of re-runs.
func reruns() (all []scenario) {
	plain := step{registered, func(w *world) { w.rerun(worker.Order{}) }}
	for _, s := range []scenario{{class: "doMany"}, {class: "once"}, {class: "repeatable", traits: traits{inGo: true}}} {
		s.shape, s.slots, s.things, s.named, s.steps = "re-run", 3, 5, 5, []step{plain}
		if s.class == "doMany" {
			s.takes = always(600 * time.Millisecond) // so that its pace is recorded
		}
		s.done = `SELECT bool_and(complete) OR EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'in_doubt') FROM oncemore.run`
		all = append(all, s)
	}
	// An outage outlasts all attempts. What failed is selected when it is over.
	all = append(all, scenario{shape: "re-run what failed", class: "keyed", slots: 3, things: 3, prepare: `INSERT INTO outage VALUES (1)`,
		traits: traits{named: 3, outage: true, policy: jobs.Policy{Attempts: 2}},
		steps: []step{plain, {runEnded, func(w *world) {
			w.exec(`DELETE FROM outage`)
			w.rerun(worker.Order{Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Missing, ledger.Retry, ledger.Failed}}})
		}}}})
	// Everything that can be wanted of a run is, one after the other.
	all = append(all, scenario{shape: "re-run controlled", class: "doTx", slots: 2, things: 4, traits: traits{named: 4},
		steps: []step{
			{registered, func(w *world) {
				w.operate(func(ctx context.Context, tx pgx.Tx) error {
					return worker.SetBrake(ctx, tx, "", "to look", "the operator")
				})
				w.rerun(worker.Order{Canary: 2, CanaryShare: 1}) // the fault may be theirs
			}},
			{runWaits + `'all runs are stopped%')`, func(w *world) {
				w.control(pauseRun)
				w.operate(func(ctx context.Context, tx pgx.Tx) error { return worker.ReleaseBrake(ctx, tx, "") })
				w.control(setRate)
			}},
			{runWaits + `'paused%')`, func(w *world) { w.control(worker.ResumeRun) }},
		},
		done: `SELECT bool_and(complete) FROM oncemore.run`})
	// The first two fail, so the rest waits until somebody has looked.
	all = append(all, scenario{shape: "re-run with a canary", class: "repeatable", slots: 2, things: 4,
		traits: traits{named: 4, fails: func(_, entity string, try int) failure {
			if try == 1 && entity < "3" {
				return before
			}
			return no
		}, policy: jobs.Policy{Backoff: always(3 * time.Second)}},
		steps: []step{
			{registered, func(w *world) { w.rerun(worker.Order{Canary: 2}) }},
			{`SELECT EXISTS (SELECT FROM oncemore.run_control WHERE paused LIKE 'canary%') OR ` + runEndedIsh, func(w *world) { w.control(worker.ResumeRun) }},
		},
		done: `SELECT bool_and(complete) FROM oncemore.run`})
	// It is cancelled while the first is being worked, and asked for again.
	all = append(all, scenario{shape: "re-run cancelled", class: "doTx", slots: 1, things: 4, traits: traits{named: 4, takes: always(300 * time.Millisecond)},
		steps: []step{plain,
			{begun, func(w *world) { w.control(cancelRun) }},
			{runEnded, func(w *world) { w.rerun(worker.Order{}) }},
		}})
	return all
}

// A crash may leave of the canary's entities one that fails and one that is done later.
const runEndedIsh = `EXISTS (SELECT FROM oncemore.run_event WHERE kind = 'canary')`
