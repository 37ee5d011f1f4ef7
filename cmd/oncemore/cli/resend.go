package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// parkedActCommands are the children of the command parked that change something.
func (p *program) parkedActCommands() []*cobra.Command {
	return []*cobra.Command{p.parkedResendCommand(), p.parkedDropCommand()}
}

func (p *program) parkedResendCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "resend [ID...]", Short: "Send parked input again, as it came",
		Long: `Send parked input again, as it came, through the Postgres queue.

It goes from the list into the queue in one transaction. What a worker still cannot work
it sets aside again. Input that was not kept as it came (too long, or not text) and what
names no entity cannot be a message: it is left alone, and its producer must send it again.`}
	m := p.mutates(cmd, false)
	m.sends(cmd)
	s := selectsParked(cmd)
	cmd.RunE = m.run(func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error) {
		shown, err := op.Parked(cmd.Context(), s.ParkedSelection)
		if err != nil {
			return nil, err
		}
		out := parkedProposal("resend", shown)
		out.what = "send " + several(len(shown.Entries), "parked input", "parked inputs") + " again"
		out.do = func(ctx context.Context) (*admin.Result, error) { return op.Resend(ctx, shown, m.reason) }
		return out, nil
	}, s.read)
	return cmd
}

func (p *program) parkedDropCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "drop [ID...]", Short: "Remove parked input for good",
		Long: `Remove parked input for good: it will not be worked, and its body is gone.`}
	m := p.mutates(cmd, true)
	s := selectsParked(cmd)
	cmd.RunE = m.run(func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error) {
		shown, err := op.Parked(cmd.Context(), s.ParkedSelection)
		if err != nil {
			return nil, err
		}
		out := parkedProposal("drop", shown)
		out.what = "drop " + several(len(shown.Entries), "parked input", "parked inputs")
		out.then = []string{"They will not be worked, and their bodies are gone for good."}
		out.do = func(ctx context.Context) (*admin.Result, error) { return op.Drop(ctx, shown, m.reason) }
		return out, nil
	}, s.read)
	return cmd
}

// A parkedSelection selects parked input by flags and arguments.
type parkedSelection struct {
	admin.ParkedSelection
	all    bool
	window windowFlags
}

func selectsParked(cmd *cobra.Command) *parkedSelection {
	s := &parkedSelection{}
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	flags := cmd.Flags()
	flags.BoolVar(&s.all, "all", false, "all that match, instead of single ones by id")
	flags.StringVar(&s.Reason, "reason-was", "", "with --all: those that were set aside for this `reason` (undecodable, unknown_type, conflict, …)")
	flags.StringVar(&s.Type, "type", "", "with --all: those of this job `type`, as the message named it")
	s.window.add(cmd, "with --all: those that came last")
	flags.IntVar(&s.Limit, "limit", 0, fmt.Sprintf("with --all: the first so many, by id (0: all, up to %s)", thousands(admin.MaxAct)))
	return s
}

func (s *parkedSelection) read(cmd *cobra.Command, args []string) (err error) {
	s.IDs = nil
	for _, arg := range args {
		id, err := strconv.ParseInt(arg, 10, 64)
		if err != nil || id <= 0 {
			return usageError(fmt.Sprintf("%q is no id of parked input: they are numbers", arg))
		}
		s.IDs = append(s.IDs, id)
	}
	narrowed := slices.ContainsFunc([]string{"reason-was", "type", "since", "until", "limit"}, cmd.Flags().Changed)
	switch {
	case s.all == (len(s.IDs) > 0):
		return usageError("give ids, or say --all for all that match: one of the two")
	case !s.all && narrowed:
		return usageError("--reason-was, --type, --since, --until and --limit are for --all")
	case s.Limit < 0:
		return usageError("--limit must not be negative")
	}
	s.Window, err = s.window.window()
	return err
}

func parkedProposal(action string, shown *admin.ShownParked) *proposal {
	sample := sampleOf(shown.Entries)
	table := rows{{"ID", "REASON", "TYPE", "ENTITY", "LAST", "TIMES", "ERROR"}}
	for _, e := range sample {
		table = append(table, []string{fmt.Sprint(e.ID), e.Reason, cell(quoted(e.Type), wide), cell(quoted(e.Entity), wide), stamp(e.LastAt), fmt.Sprint(e.Times), cell(e.Error, narrow)})
	}
	return &proposal{Action: action, Matched: len(shown.Entries), More: shown.More, Sample: sample, Left: shown.Absent, rows: table}
}
