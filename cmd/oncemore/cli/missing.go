package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) missingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "missing TYPE", Short: "List the entities of a job type that are neither open nor done", Args: cobra.ExactArgs(1),
		Long: fmt.Sprintf(`List the entities that a job type's source names and that are neither open nor done, in
the order of the key.

A done entity counts as missing again when its fact is stale. The page comes first; then
up to %s are counted, which may take longer: --no-count leaves that out. The database is
only read. 'rerun' does what is missing.`, thousands(admin.CountMost)),
		Example: `  oncemore missing invitation
  oncemore missing invitation --after 234/17 --limit 1000 --no-count -o jsonl`,
		ValidArgsFunction: p.completeTypes}
	l := listFlags(cmd)
	timeout := cmd.Flags().Duration("timeout", time.Minute, "of each query")
	uncounted := cmd.Flags().Bool("no-count", false, "do not count")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err != nil {
			return err
		}
		if *timeout < time.Millisecond {
			return usageError("--timeout must be at least 1ms")
		}
		ctx := cmd.Context()
		pool, err := p.connect(ctx)
		if err != nil {
			return err
		}
		defer pool.Close()
		set, err := p.set(ctx, pool)
		if err != nil {
			return err
		}
		m, err := admin.Missing(ctx, pool, set, args[0], page, *timeout)
		if err == nil && *l.output != "json" {
			err = writeRows(cmd, *l.output, m.Entities, []string{"ENTITY", "REASON"}, func(e *admin.MissingEntity) []string {
				return []string{cell(e.Entity, wide), string(e.Reason)}
			})
		}
		if err == nil && !*uncounted {
			var n admin.Count
			n, m.Nameless, err = admin.CountMissing(ctx, pool, set, args[0], *timeout)
			m.Missing = &n
		}
		if admin.TimedOut(err) {
			return fmt.Errorf("%w: the source takes longer than %s; try a longer --timeout", err, *timeout)
		} else if err != nil {
			return err
		}
		return endMissing(cmd, *l.output, m)
	})
	return cmd
}

// endMissing writes what is known when all has been asked.
func endMissing(cmd *cobra.Command, output string, m *admin.MissingList) error {
	if output == "json" {
		if err := writeJSON(cmd.OutOrStdout(), m); err != nil {
			return err
		}
	}
	w := cmd.ErrOrStderr()
	if m.Nameless > 0 {
		fmt.Fprintln(w, admin.NamelessWords(m.Type, m.Nameless))
	}
	if m.Missing != nil {
		fmt.Fprintf(w, "%s of %s missing, ", *m.Missing, m.Type)
	}
	fmt.Fprintf(w, "%s listed", thousands(int64(len(m.Entities))))
	if m.Next != "" {
		fmt.Fprintf(w, "; the next page: --after %s", shellQuoted(m.Next))
	}
	fmt.Fprintln(w)
	if m.Unknown != "" {
		fmt.Fprintf(w, "%s: %s\n", m.Type, m.Unknown)
	}
	return nil
}
