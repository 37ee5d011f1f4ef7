package cli

import "github.com/spf13/cobra"

func (p *program) doubtCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "doubt", Short: "List and resolve what is in doubt", Args: cobra.NoArgs,
		Long: `List and resolve what is in doubt: effects outside the database of which nobody knows
whether they happened, and which may not be repeated on a guess.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(p.doubtLsCommand(), p.doubtResolveCommand())
	return cmd
}
