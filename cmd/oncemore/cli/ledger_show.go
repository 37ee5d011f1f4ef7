package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) ledgerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ledger", Short: "Look into the ledger", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(p.ledgerShowCommand())
	return cmd
}

func (p *program) ledgerShowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "show TYPE ENTITY", Short: "Tell the whole story of one entity, and what happens next", Args: cobra.ExactArgs(2),
		Long: `Tell the whole story of one entity in order of time: facts and the results that are
kept beside them, attempts, the claim, the messages that carry it, input that was set
aside, runs that it began, what operators did.
Then what the ledger would decide now, and what happens next.

Attempts that simply succeeded leave no trace but the fact. Messages are those of this
database's queues.`,
		ValidArgsFunction: p.completeTypes}
	output := outputFlag(cmd, "table", "json", "jsonl")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		set, err := p.set(cmd.Context(), pool)
		if err != nil {
			return err
		}
		s, err := admin.Tell(cmd.Context(), pool, set, args[0], args[1])
		if err != nil {
			return err
		}
		return writeStory(cmd, *output, s)
	})
	return cmd
}

func writeStory(cmd *cobra.Command, output string, s *admin.Story) error {
	for _, u := range s.Unseen {
		fmt.Fprintln(cmd.ErrOrStderr(), "not seen:", u)
	}
	if output == "json" {
		return writeJSON(cmd.OutOrStdout(), s)
	}
	if output == "table" {
		if err := writeHead(cmd, s); err != nil {
			return err
		}
	}
	return writeRows(cmd, output, s.Events, []string{"AT", "AGO", "KIND", "WHAT"}, func(e *admin.Event) []string {
		return []string{stamp(e.At), when(s.Now, e.At), e.Kind, cell(e.Text, 300)}
	})
}

func writeHead(cmd *cobra.Command, s *admin.Story) error {
	named := "is not known here"
	if s.Named != nil {
		named = map[bool]string{true: "names it", false: "does not name it"}[*s.Named]
	}
	t := newTable(cmd.OutOrStdout(), "ENTITY", cell(s.Type+" "+s.Entity, 2*wide))
	t.row("PLACE", s.Place)
	t.row("REASON", string(s.Reason))
	t.row("EFFECT", s.Effect)
	t.row("EFFECT KEY", orDash(s.EffectKey))
	t.row("SOURCE", named)
	t.row("NEXT", s.Next)
	t.row("")
	return t.Flush()
}
