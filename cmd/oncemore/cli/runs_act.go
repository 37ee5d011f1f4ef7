package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// An actOnRun is a command that changes one run.
type actOnRun struct {
	action string // "pause", as the audit has it
	says   string // to do what to a run; empty: as action
	then   string // what follows from it
	must   bool   // give a reason
	rerun  error  // why it is not for fan-outs; nil: it is
	do     func(ctx context.Context, op *admin.Operator, id int64, reason string) (*admin.Result, error)
}

// onRun makes cmd, whose first argument is a run, do a.
func (p *program) onRun(cmd *cobra.Command, a actOnRun, read func(args []string) error) *cobra.Command {
	cmd.ValidArgsFunction = p.completeRuns(true)
	m := p.mutates(cmd, a.must)
	var id int64
	cmd.RunE = m.run(func(cmd *cobra.Command, _ []string, op *admin.Operator) (*proposal, error) {
		var s *admin.RunStory
		err := reading(cmd.Context(), op.Pool, time.Minute, func(tx pgx.Tx) (err error) {
			s, err = admin.ShowRun(cmd.Context(), tx, id)
			return err
		})
		if err != nil {
			return nil, err
		}
		out := &proposal{Action: a.action, Type: s.Type, Sample: []admin.Run{s.Run}, rows: rows{{"RUN", "TYPE", "STATE", "STARTED", "DONE", "OF"},
			{fmt.Sprint(s.ID), cell(s.Type, wide), string(s.State), when(s.Now, s.StartedAt), s.Words(), cell(runOf(&s.Run), narrow)}}}
		out.what = fmt.Sprintf("%s run %d of %s", cmp.Or(a.says, a.action), id, s.Type)
		out.then = []string{a.then}
		leave := func(why string) (*proposal, error) {
			out.Sample, out.rows, out.Left = []admin.Run{}, nil, []admin.Left{{What: fmt.Sprintf("run %d", id), Why: why}}
			return out, nil
		}
		if s.State.Over() {
			return leave("has ended")
		}
		if a.rerun != nil && s.Selection == nil {
			return leave(a.rerun.Error())
		}
		out.Matched = 1
		out.do = func(ctx context.Context) (*admin.Result, error) { return a.do(ctx, op, id, m.reason) }
		return out, nil
	}, func(_ *cobra.Command, args []string) (err error) {
		if id, err = runID(args[0]); err == nil && read != nil {
			err = read(args[1:])
		}
		return err
	})
	return cmd
}

func (p *program) runsPauseCommand() *cobra.Command {
	return p.onRun(&cobra.Command{Use: "pause RUN", Short: "Have a run begin nothing more, until it is resumed", Args: cobra.ExactArgs(1)},
		actOnRun{action: "pause", then: "What is being worked goes on to its end; nothing more begins until 'runs resume'.",
			do: func(ctx context.Context, op *admin.Operator, id int64, reason string) (*admin.Result, error) {
				return op.Pause(ctx, id, reason)
			}}, nil)
}

func (p *program) runsResumeCommand() *cobra.Command {
	return p.onRun(&cobra.Command{Use: "resume RUN", Short: "Let a paused run go on, also one that its canary has paused", Args: cobra.ExactArgs(1)},
		actOnRun{action: "resume", then: "It goes on where it was; a canary that has paused it is not asked again.",
			do: func(ctx context.Context, op *admin.Operator, id int64, reason string) (*admin.Result, error) {
				return op.Resume(ctx, id, reason)
			}}, nil)
}

func (p *program) runsCancelCommand() *cobra.Command {
	return p.onRun(&cobra.Command{Use: "cancel RUN", Short: "End a run for good; what has not begun of it stays as it was", Args: cobra.ExactArgs(1)},
		actOnRun{action: "cancel", then: "What has not begun is taken back, and is missing or failed as before. What is being worked, and what waits for another attempt, goes on.",
			do: func(ctx context.Context, op *admin.Operator, id int64, reason string) (*admin.Result, error) {
				return op.Cancel(ctx, id, reason)
			}}, nil)
}

func (p *program) runsRateCommand() *cobra.Command {
	var rate float64
	return p.onRun(&cobra.Command{Use: "rate RUN RATE", Short: "Change how many entities a run sends in a second", Args: cobra.ExactArgs(2),
		Long: "Change how many entities a run sends in a second; 0 is as many as the database bears."},
		actOnRun{action: "rate", says: "change the rate of", rerun: worker.ErrNoRate, then: "It is so from its next message on.",
			do: func(ctx context.Context, op *admin.Operator, id int64, reason string) (*admin.Result, error) {
				return op.SetRate(ctx, id, rate, reason)
			}},
		func(args []string) (err error) {
			if rate, err = strconv.ParseFloat(args[0], 64); err == nil {
				err = worker.CheckRate(rate)
			}
			if err != nil {
				return usageError(fmt.Sprintf("%q is no rate: want entities in a second, or 0 for as many as the database bears", args[0]))
			}
			return nil
		})
}

func (p *program) runsStopAllCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "stop-all", Short: "Stop all re-runs, or those of a job type: the kill switch", Args: cobra.NoArgs,
		Long: `Stop all re-runs, or those of a job type, until 'runs release': none of them, nor one that
is begun meanwhile, sends anything more. What is sent is worked. Fan-outs send all at once,
and are not stopped: 'runs pause' holds one back.`}
	return p.brakes(cmd, "stop-all", "stop", (*admin.Operator).Brake)
}

func (p *program) runsReleaseCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "release", Short: "Let re-runs go on that 'runs stop-all' has stopped", Args: cobra.NoArgs,
		Long: `Let re-runs go on that 'runs stop-all' has stopped: with --type what was stopped with that,
without what was stopped without.`}
	return p.brakes(cmd, "release", "let go on", (*admin.Operator).Release)
}

func (p *program) brakes(cmd *cobra.Command, action, verb string, do func(*admin.Operator, context.Context, string, string) (*admin.Result, error)) *cobra.Command {
	m := p.mutates(cmd, action == "stop-all")
	jobType := cmd.Flags().String("type", "", "those of this job `type` alone")
	_ = cmd.RegisterFlagCompletionFunc("type", func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		return p.completeTypes(cmd, nil, begun)
	})
	cmd.RunE = m.run(func(cmd *cobra.Command, _ []string, op *admin.Operator) (*proposal, error) {
		var list *admin.List[admin.Run]
		var set []admin.Brake
		names := []string{""} // by which it may have been stopped: a type may have had several
		err := reading(cmd.Context(), op.Pool, time.Minute, func(tx pgx.Tx) (err error) {
			if *jobType != "" {
				t, err := admin.FindType(cmd.Context(), tx, op.Set, *jobType)
				if err != nil {
					return err
				}
				*jobType, names = t.Name, t.Names
			}
			if set, err = admin.Brakes(cmd.Context(), tx); err != nil {
				return err
			}
			list, err = admin.ListRuns(cmd.Context(), tx, admin.RunFilter{Type: *jobType, Going: true, Rerun: true}, admin.Page{Limit: 10})
			return err
		})
		if err != nil {
			return nil, err
		}
		table := rows{{"RUN", "TYPE", "STATE", "DONE"}}
		for _, r := range list.Rows {
			table = append(table, []string{fmt.Sprint(r.ID), cell(r.Type, wide), string(r.State), r.Words()})
		}
		out := &proposal{Action: action, Type: *jobType, Sample: list.Rows, rows: table, rest: list.Of.N - int64(len(list.Rows))}
		if action == "stop-all" {
			out.then = []string{"Fan-outs go on: 'runs pause' holds one back."}
		}
		what := "all re-runs"
		if *jobType != "" {
			what = "re-runs of " + *jobType
		}
		out.what = verb + " " + what
		out.Matched = 1
		if action == "release" && !slices.ContainsFunc(set, func(b admin.Brake) bool { return slices.Contains(names, b.Type) }) {
			out.Matched = 0
		}
		out.do = func(ctx context.Context) (*admin.Result, error) { return do(op, ctx, *jobType, m.reason) }
		return out, nil
	}, func(*cobra.Command, []string) error { return nil })
	return cmd
}
