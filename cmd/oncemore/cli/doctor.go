package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "doctor", Short: "Look whether the database is fit for its work", Args: cobra.NoArgs,
		Long: `Look whether the database is fit for its work, and say what is to be done where it is not.
It only reads. What its role may not see is said to be unseen: run it as the workers' role
to see the plans of what they run, and with pg_read_all_stats to see the sessions of others.

  ok      nothing is to be done
  warn    it works, and will not for ever, or not well
  bad     work stands still or is lost, or can be
  unseen  it could not be looked at: its role may not, or the schema is not there

Checks: ` + strings.Join(admin.CheckNames(), ", ") + `.

Exit codes: 0 nothing is bad; 3 something is bad, or, with --strict, is a warning; 1 an
error, a database that does not answer any more, or nothing could be looked at.`}
	output := outputFlag(cmd, "table", "json", "jsonl")
	strict := cmd.Flags().Bool("strict", false, "let a warning count as bad")
	skip := cmd.Flags().StringSlice("skip", nil, "leave out these `checks`")
	_ = cmd.RegisterFlagCompletionFunc("skip", cobra.FixedCompletions(admin.CheckNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		for _, name := range *skip {
			if !slices.Contains(admin.CheckNames(), name) {
				return usageError(fmt.Sprintf("--skip %s: there is no such check; there are %s", name, strings.Join(admin.CheckNames(), ", ")))
			}
		}
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		checks, lost := admin.Diagnose(cmd.Context(), pool, admin.Limits{}, *skip...)
		if len(checks) > 0 || lost == nil {
			if err := writeChecks(cmd, *output, checks); err != nil {
				return err
			}
		}
		if lost != nil {
			return fmt.Errorf("after %d checks: %w", len(checks), lost)
		}
		switch worst := admin.Worst(checks); {
		case worst == admin.Bad || worst == admin.Warn && *strict:
			return failure{errors.New(countChecks(checks)), exitPartly}
		case worst == admin.Unseen:
			return errors.New("nothing could be looked at: " + countChecks(checks))
		}
		fmt.Fprintln(cmd.ErrOrStderr(), countChecks(checks))
		return nil
	})
	return cmd
}

func writeChecks(cmd *cobra.Command, output string, checks []admin.Check) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json":
		return writeJSON(out, checks)
	case "jsonl":
		return writeRows(cmd, output, checks, nil, nil)
	}
	t := newTable(out, painted(out, bold, "STATE"), "CHECK", "FOUND")
	for _, c := range checks {
		t.row(stateCell(out, c.State), c.Name, cell(c.Found, wide))
		if c.Do != "" {
			t.row(painted(out, bold, ""), "", "  do: "+cell(c.Do, wide))
		}
	}
	return t.Flush()
}

func stateCell(w io.Writer, s admin.Health) string {
	return painted(w, map[admin.Health]colour{admin.OK: green, admin.Warn: yellow, admin.Bad: red, admin.Unseen: bold}[s], string(s))
}

func countChecks(checks []admin.Check) string {
	n := map[admin.Health]int{}
	for _, c := range checks {
		n[c.State]++
	}
	return fmt.Sprintf("%d bad, %d warnings, %d ok, %d unseen", n[admin.Bad], n[admin.Warn], n[admin.OK], n[admin.Unseen])
}
