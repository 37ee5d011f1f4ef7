package admin

import (
	"context"
	"fmt"

	"github.com/oncemore-jobs/oncemore/worker"
)

// Pause has a run begin nothing more: see [worker.PauseRun].
func (op *Operator) Pause(ctx context.Context, run int64, reason string) (*Result, error) {
	return op.control(ctx, "pause", run, reason, "", func(a *act) error { return worker.PauseRun(ctx, a, run, because(reason, op.Actor)) })
}

// Resume lets a run go on that was paused, by a person or by its canary.
func (op *Operator) Resume(ctx context.Context, run int64, reason string) (*Result, error) {
	return op.control(ctx, "resume", run, reason, "", func(a *act) error { return worker.ResumeRun(ctx, a, run) })
}

// Cancel ends a run for good: see [worker.CancelRun].
func (op *Operator) Cancel(ctx context.Context, run int64, reason string) (*Result, error) {
	return op.control(ctx, "cancel", run, reason, "", func(a *act) error { return worker.CancelRun(ctx, a, run, because(reason, op.Actor)) })
}

// SetRate changes how many entities a run sends in a second; 0 is as many as the database
// bears. The error wraps [worker.ErrNoRate] where it is a fan-out.
func (op *Operator) SetRate(ctx context.Context, run int64, rate float64, reason string) (*Result, error) {
	detail := fmt.Sprintf("%g a second", rate)
	if rate == 0 {
		detail = "as many as the database bears"
	}
	return op.control(ctx, "rate", run, reason, detail, func(a *act) error { return worker.SetRate(ctx, a, run, rate) })
}

// Brake stops all re-runs of a job type, or all that there are (""), until [Operator.Release].
func (op *Operator) Brake(ctx context.Context, jobType, reason string) (*Result, error) {
	return op.brake(ctx, "stop-all", jobType, reason, func(a *act, name string) error { return worker.SetBrake(ctx, a, name, reason, op.Actor) })
}

// Release ends a [Operator.Brake] of the same job type, or that of all.
func (op *Operator) Release(ctx context.Context, jobType, reason string) (*Result, error) {
	return op.brake(ctx, "release", jobType, reason, func(a *act, name string) error { return worker.ReleaseBrake(ctx, a, name) })
}

func (op *Operator) control(ctx context.Context, action string, run int64, reason, detail string, f func(a *act) error) (*Result, error) {
	return op.do(ctx, AuditEntry{Action: action, Reason: reason, Detail: detail}, func(a *act) error {
		r, err := findRun(ctx, a, run)
		if err != nil {
			return err
		}
		a.entry.Type = r.Type
		if err := f(a); err != nil {
			return err
		}
		a.did(runName(run))
		return nil
	})
}

func (op *Operator) brake(ctx context.Context, action, jobType, reason string, f func(a *act, name string) error) (*Result, error) {
	return op.do(ctx, AuditEntry{Action: action, Reason: reason}, func(a *act) error {
		what := "all runs"
		if jobType != "" {
			t, err := FindType(ctx, a, op.Set, jobType)
			if err != nil {
				return err
			}
			jobType, a.entry.Type, what = t.Name, t.Name, "runs of "+t.Name
		}
		if err := f(a, jobType); err != nil {
			return err
		}
		a.did(what)
		return nil
	})
}

// because is a reason as those see it who find the run so.
func because(reason, actor string) string {
	if reason == "" {
		return "by " + actor
	}
	return reason + " (" + actor + ")"
}
