package cli

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// An actOnSchedule is a method of an Operator that changes one schedule.
type actOnSchedule func(op *admin.Operator, ctx context.Context, name, reason string) (*admin.Result, error)

// schedulesActCommands are the children of the command schedules that change something.
func (p *program) schedulesActCommands() []*cobra.Command {
	return []*cobra.Command{
		p.scheduleActCommand("pause", "Have a schedule tick no more", `Have a schedule tick no more, until it is resumed. Its times pass meanwhile, and are not
caught up. What it has started goes on.`, false,
			"Its times will pass, and will not be caught up.", (*admin.Operator).PauseSchedule),
		p.scheduleActCommand("resume", "Have a paused schedule tick again", `Have a paused schedule tick again, from now on.`, false,
			"It ticks again from now on.", (*admin.Operator).ResumeSchedule),
		p.scheduleActCommand("run-now", "Have a schedule start its work now, beside its times", `Have a schedule start its work now, beside its times, also one that is paused. A worker
that has the job does so within three seconds or so; while what the last tick started goes on,
it waits for that.`, false,
			"A worker starts it within three seconds or so, or when the tick before has ended.", (*admin.Operator).RunSchedule),
		p.scheduleActCommand("rm", "Delete a schedule that no program declares", `Delete a schedule that no program declares, with the record of its ticks. What it has
started goes on. One that is in the code of a program must be taken out there; it becomes an
orphan a quarter of an hour later, and can then be deleted.`, true,
			"The record of its ticks is deleted with it.", (*admin.Operator).DeleteSchedule),
	}
}

func (p *program) scheduleActCommand(action, short, long string, mustReason bool, then string, do actOnSchedule) *cobra.Command {
	cmd := &cobra.Command{Use: action + " NAME", Short: short, Long: long, Args: cobra.ExactArgs(1), ValidArgsFunction: p.completeSchedules}
	m := p.mutates(cmd, mustReason)
	cmd.RunE = m.run(func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error) {
		var s *admin.Schedule
		err := reading(cmd.Context(), op.Pool, lookTime, func(tx pgx.Tx) (err error) {
			s, err = admin.FindSchedule(cmd.Context(), tx, args[0])
			return err
		})
		if err != nil {
			return nil, err
		}
		table := rows{{"NAME", "SPEC", "ZONE", "STARTS", "STATE"},
			{cell(quoted(s.Name), wide), cell(s.Spec, narrow), s.Zone, cell(starts(s), narrow), cell(s.State, narrow)}}
		out := &proposal{Action: "schedules " + action, Type: s.Type, Matched: 1, Sample: []*admin.Schedule{s}, rows: table, then: []string{then}}
		out.what = action + " the schedule " + quoted(s.Name)
		if why := s.LeftAlone(action); why != "" {
			out.Matched, out.Sample, out.rows, out.Left = 0, []*admin.Schedule{}, nil, []admin.Left{{What: s.Name, Why: why}}
			return out, nil
		}
		out.do = func(ctx context.Context) (*admin.Result, error) { return do(op, ctx, s.Name, m.reason) }
		return out, nil
	}, func(*cobra.Command, []string) error { return nil })
	return cmd
}
