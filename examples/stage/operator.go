package stage

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// Call asks for a re-run, as an operator does.
func (s *Stage) Call(ctx context.Context, o worker.Order) (run int64, err error) {
	r, err := s.Operator().Rerun(ctx, o)
	if err != nil {
		return 0, err
	}
	return r.Run, nil
}

// AwaitRun returns when a run has ended, and tells of it.
func (s *Stage) AwaitRun(ctx context.Context, run int64) error {
	if err := s.Await(ctx, fmt.Sprintf("run %d has ended", run), Over, run); err != nil {
		return err
	}
	var items, failed, skipped int64
	var took time.Duration
	err := s.DB.QueryRow(ctx, `SELECT items, failed, skipped, ended_at - started_at FROM oncemore.run WHERE id = $1`, run).Scan(&items, &failed, &skipped, &took)
	if err != nil {
		return fmt.Errorf("read run %d: %w", run, err)
	}
	s.Say("Run %d has ended after %.1fs: %d were planned and %d skipped as done; %d failed.", run, took.Seconds(), items, skipped, failed)
	return nil
}

// KillBusy kills, with -9, the first of the living workers that is seen in the middle of a
// transaction whose last statement has the given name. It returns nil when the query over
// says true first: it is too late.
func (s *Stage) KillBusy(ctx context.Context, statement, over string, args ...any) (*Process, error) {
	return s.killWhen(ctx, busySQL, "%/* "+statement+" */%", "open transactions ("+statement+"), which Postgres rolls back", over, args)
}

// KillHolding is like KillBusy, for a worker that holds claims of a job type: it is in the
// middle of outside effects.
func (s *Stage) KillHolding(ctx context.Context, jobType, over string, args ...any) (*Process, error) {
	return s.killWhen(ctx, holdingSQL, jobType, "claims of "+jobType, over, args)
}

// killWhen kills the first worker of which a query, of the worker's name and what, counts
// something.
func (s *Stage) killWhen(ctx context.Context, query, what, words, over string, args []any) (*Process, error) {
	for {
		for _, p := range s.Living() {
			// Frozen, it cannot commit between our look and the kill.
			if err := syscall.Kill(p.Pid(), syscall.SIGSTOP); err != nil {
				return nil, fmt.Errorf("freeze %s: %w", p.Name, os.NewSyscallError("kill", err))
			}
			open, err := s.Int(ctx, query, p.Name, what)
			if err == nil && open == 0 {
				err = syscall.Kill(p.Pid(), syscall.SIGCONT)
			}
			if err != nil {
				return nil, fmt.Errorf("look whether %s is busy: %w", p.Name, err)
			}
			if open > 0 {
				s.Say("kill -9: %s dies over %d %s.", p.Name, open, words)
				return p, p.Kill()
			}
		}
		var late bool
		if err := s.DB.QueryRow(ctx, over, args...).Scan(&late); err != nil {
			return nil, fmt.Errorf("look whether it is too late to kill a worker: %w", err)
		} else if late {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w; it was waiting until a worker is busy", context.Cause(ctx))
		case <-time.After(2 * time.Millisecond): // short work is rarely seen
		}
	}
}

// Over is a query that tells whether a run, its one parameter, has ended.
const Over = `SELECT ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`

// Operator acts in the plays.
func (s *Stage) Operator() *admin.Operator { return &admin.Operator{Pool: s.DB, Actor: "anna"} }

const holdingSQL = `
SELECT count(*) FROM oncemore.claim c JOIN oncemore.worker w ON w.id = c.owner
WHERE w.name = $1 AND w.dead_at IS NULL AND c.job_type = (SELECT id FROM oncemore.job_type WHERE name = $2)`

const busySQL = `
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 AND backend_xid IS NOT NULL AND query LIKE $2`
