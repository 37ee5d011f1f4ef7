package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) missingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "missing TYPE", Short: "List the entities of a job type that are neither open nor done", Args: cobra.ExactArgs(1),
		Long: fmt.Sprintf(`List the entities that a job type's source names and that are neither open nor done.

A done entity counts as missing again when its fact is stale. Up to %s are counted. The
database is only read.`, thousands(admin.CountMost)),
		ValidArgsFunction: p.completeTypes}
	output := outputFlag(cmd, "table", "json", "jsonl")
	limit := cmd.Flags().Int("limit", 50, "how many to list")
	timeout := cmd.Flags().Duration("timeout", time.Minute, "of each query")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if *limit < 0 || *timeout < time.Millisecond {
			return usageError("--limit must not be negative, and --timeout must be at least 1ms")
		}
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		set, err := p.set(cmd.Context(), pool)
		if err != nil {
			return err
		}
		m, err := admin.Missing(cmd.Context(), pool, set, args[0], *limit, *timeout)
		if admin.TimedOut(err) {
			return fmt.Errorf("%w: the source takes longer than %s; try a longer --timeout", err, *timeout)
		} else if err != nil {
			return err
		}
		return writeMissing(cmd, *output, m)
	})
	return cmd
}

func writeMissing(cmd *cobra.Command, output string, m *admin.MissingList) error {
	var err error
	if output == "json" {
		err = writeJSON(cmd.OutOrStdout(), m)
	} else {
		err = writeRows(cmd, output, m.Entities, []string{"ENTITY", "REASON"}, func(e *admin.MissingEntity) []string {
			return []string{cell(e.Entity, wide), e.Reason}
		})
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s missing, %d listed\n", m.Missing, m.Type, len(m.Entities))
	return err
}

// completeTypes helps a shell, in the time that a person waits for it.
func (p *program) completeTypes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	pool, err := p.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer pool.Close()
	var names []string
	_ = reading(ctx, pool, completeTime, func(tx pgx.Tx) error {
		types, err := admin.Types(ctx, tx, nil)
		for _, t := range types {
			names = append(names, t.Name)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
