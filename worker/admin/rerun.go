package admin

import (
	"context"
	"fmt"
	"slices"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A Rerun is what came of asking for one.
type Rerun struct {
	worker.Opened
	Audit int64 // the id of its audit row
}

// Rerun asks for a re-run: see [worker.OpenRerun]. Who joins a run that goes on is in the
// audit as well. The reason is required where o forces, or rules on what is in doubt.
func (op *Operator) Rerun(ctx context.Context, o worker.Order) (*Rerun, error) {
	if o.By == "" {
		o.By = op.Actor
	}
	if o.Reason == "" && NeedsReason(&o.Selection) {
		return nil, errNoReason
	}
	out := &Rerun{}
	r, err := op.do(ctx, AuditEntry{Action: "rerun", Type: o.Type, Reason: o.Reason}, func(a *act) (err error) {
		t, err := FindType(ctx, a, op.Set, o.Type)
		if err != nil {
			return err
		}
		a.entry.Type = t.Name
		if out.Opened, err = worker.OpenRerun(ctx, a, pgqueue.New(op.Pool, op.Queue), o); err != nil {
			return err
		}
		a.did(runName(out.Run))
		a.entry.Detail = o.Selection.String() + orderWords(&o)
		if out.Joined {
			a.entry.Detail += "; joined the run of the same that went on"
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.Audit = r.Audit
	return out, nil
}

// orderWords tells how a re-run is to go, for people.
func orderWords(o *worker.Order) (words string) {
	if o.Rate > 0 {
		words += fmt.Sprintf("; %g a second", o.Rate)
	}
	if o.Canary > 0 {
		words += fmt.Sprintf("; the first %d as a canary, of which %g%% may fail", o.Canary, 100*o.CanaryShare)
	}
	return words
}

// runName is how the audit names a run.
func runName(id int64) string { return fmt.Sprintf("run %d", id) }

// NeedsReason tells whether a selection asks for something of which somebody will want to
// know why: a force repeats what is done, and who picks what is in doubt says that it did
// not happen.
func NeedsReason(s *plan.Selection) bool {
	return s.Force || slices.Contains(s.Reasons, ledger.InDoubt)
}
