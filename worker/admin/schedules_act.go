package admin

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/worker"
)

// LeftAlone says why pause, resume or rm would leave s as it is; empty: they would not.
func (s *Schedule) LeftAlone(act string) string {
	switch {
	case act == "pause" && s.Paused != nil:
		return "is paused: " + *s.Paused
	case act == "resume" && s.Paused == nil:
		return "is not paused"
	case act == "rm" && s.FromCode && !s.Orphaned:
		return "is declared by programs, which would write it again: take it out there, or pause it"
	}
	return ""
}

// PauseSchedule has a schedule tick no more. Its times pass, and are not caught up later.
func (op *Operator) PauseSchedule(ctx context.Context, name, reason string) (*Result, error) {
	return op.actOnSchedule(ctx, "schedule-pause", name, reason, func(a *act, s *Schedule) error {
		if why := s.LeftAlone("pause"); why != "" {
			a.leave(name, why)
			return nil
		}
		return a.change(ctx, name, pauseScheduleSQL, name, because(reason, op.Actor))
	})
}

// ResumeSchedule has a paused one tick again, from now on.
func (op *Operator) ResumeSchedule(ctx context.Context, name, reason string) (*Result, error) {
	return op.actOnSchedule(ctx, "schedule-resume", name, reason, func(a *act, s *Schedule) error {
		if why := s.LeftAlone("resume"); why != "" {
			a.leave(name, why)
			return nil
		}
		a.entry.Detail = "was paused: " + *s.Paused
		return a.change(ctx, name, resumeScheduleSQL, name)
	})
}

// RunSchedule asks for a tick of this instant, beside those of the spec. A worker that has
// the job starts it within three seconds or so, also of a schedule that is paused; while what
// the last tick started goes on, it waits for that.
func (op *Operator) RunSchedule(ctx context.Context, name, reason string) (*Result, error) {
	return op.actOnSchedule(ctx, "schedule-run", name, reason, func(a *act, s *Schedule) error {
		var asked bool
		if err := a.QueryRow(ctx, askedForSQL, name).Scan(&asked); err != nil {
			return err
		}
		if asked {
			a.leave(name, "was asked to run before, and that waits")
			return nil
		}
		if _, err := a.Exec(ctx, runScheduleSQL, name, because(reason, op.Actor)); err != nil {
			return err
		}
		return a.change(ctx, name, wakeScheduleSQL, name)
	})
}

// PutSchedule writes a schedule that no program declares; one of that name is changed. See
// [worker.Schedule].
func (op *Operator) PutSchedule(ctx context.Context, s worker.Schedule, reason string) (*Result, error) {
	return op.do(ctx, AuditEntry{Action: "schedule-put", Reason: reason}, func(a *act) error {
		put, err := worker.PutSchedule(ctx, a, op.Set, s)
		if err != nil {
			return err
		}
		if !put {
			a.leave(s.Name, "is declared by programs: change it there, or pause it")
			return nil
		}
		written, err := FindSchedule(ctx, a, s.Name)
		if err != nil {
			return err
		}
		a.entry.Type, a.entry.Detail = written.Type, written.Spec+" "+written.Zone
		a.did(s.Name)
		return nil
	})
}

// DeleteSchedule deletes a schedule of the database, or an orphan. What became of its ticks
// is deleted too; what they started goes on.
func (op *Operator) DeleteSchedule(ctx context.Context, name, reason string) (*Result, error) {
	return op.actOnSchedule(ctx, "schedule-delete", name, reason, func(a *act, s *Schedule) error {
		if why := s.LeftAlone("rm"); why != "" {
			a.leave(name, why)
			return nil
		}
		a.entry.Detail = s.Spec + " " + s.Zone
		if _, err := a.Exec(ctx, deleteTicksSQL, name); err != nil {
			return err
		}
		return a.change(ctx, name, deleteScheduleSQL, name)
	})
}

const (
	lockScheduleSQL   = `/* schedule: lock */ SELECT s.name FROM oncemore.schedule s WHERE s.name = $1 FOR UPDATE`
	pauseScheduleSQL  = `/* schedule: pause */ UPDATE oncemore.schedule SET paused = $2 WHERE name = $1`
	resumeScheduleSQL = `/* schedule: resume */ UPDATE oncemore.schedule SET paused = NULL WHERE name = $1`
	wakeScheduleSQL   = `/* schedule: wake */ UPDATE oncemore.schedule SET next_at = '-infinity' WHERE name = $1`
	deleteScheduleSQL = `/* schedule: delete */ DELETE FROM oncemore.schedule WHERE name = $1`
	deleteTicksSQL    = `/* schedule: delete ticks */ DELETE FROM oncemore.schedule_tick WHERE schedule = $1`

	// Ticks of a spec are whole seconds, and this one is not.
	runScheduleSQL = `
/* schedule: run now */
INSERT INTO oncemore.schedule_tick (schedule, tick, at, outcome, by_hand, detail)
SELECT $1, CASE WHEN date_trunc('second', n.t) = n.t THEN n.t + interval '1 microsecond' ELSE n.t END, n.t, 'queued', true, $2
FROM (SELECT clock_timestamp() AS t) n`
	askedForSQL = `SELECT EXISTS (SELECT FROM oncemore.schedule_tick t WHERE t.schedule = $1 AND t.outcome = 'queued' AND t.by_hand)`
)

// actOnSchedule locks the schedule first: whoever ticks it does so before or after the act.
func (op *Operator) actOnSchedule(ctx context.Context, action, name, reason string, f func(*act, *Schedule) error) (*Result, error) {
	return op.do(ctx, AuditEntry{Action: action, Reason: reason}, func(a *act) error {
		var locked string
		if err := a.QueryRow(ctx, lockScheduleSQL, name).Scan(&locked); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("lock schedule %q: %w", name, err)
		}
		s, err := FindSchedule(ctx, a, name)
		if err != nil {
			return err
		}
		a.entry.Type = s.Type
		if err := f(a, s); err != nil {
			return fmt.Errorf("%s %q: %w", action, name, err)
		}
		return nil
	})
}

func (a *act) change(ctx context.Context, name, sql string, args ...any) error {
	if _, err := a.Exec(ctx, sql, args...); err != nil {
		return err
	}
	a.did(name)
	return nil
}
