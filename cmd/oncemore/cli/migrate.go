package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/migrations"
)

func (p *program) migrateCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "migrate", Short: "Bring the database's schema up to this program", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "up", Short: "Apply what is missing; many may run at once", Args: cobra.NoArgs, RunE: run(p.migrateUp)},
		p.migrateStatusCommand(),
		&cobra.Command{Use: "sql", Short: "Print the whole schema, for those who apply it by hand", Args: cobra.NoArgs,
			RunE: run(func(cmd *cobra.Command, _ []string) error {
				_, err := fmt.Fprint(cmd.OutOrStdout(), migrations.SQL())
				return err
			})},
	)
	return cmd
}

func (p *program) migrateUp(cmd *cobra.Command, _ []string) error {
	pool, err := p.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer pool.Close()
	applied, err := migrations.Up(cmd.Context(), pool)
	for _, m := range applied {
		fmt.Fprintf(cmd.ErrOrStderr(), "applied %d %s\n", m.Version, m.Name)
	}
	if err != nil || len(applied) > 0 {
		return err
	}
	_, err = migrations.Status(cmd.Context(), pool)
	if newer, is := errors.AsType[*migrations.NewerError](err); is {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: there is nothing to do\n", newer)
		return nil
	}
	if err == nil {
		fmt.Fprintln(cmd.ErrOrStderr(), "the schema is current")
	}
	return err
}

func (p *program) migrateStatusCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "List the migrations and when they were applied", Args: cobra.NoArgs}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		all, err := migrations.Status(cmd.Context(), pool)
		if _, newer := errors.AsType[*migrations.NewerError](err); err != nil && !newer {
			return err
		}
		var e error
		if *output == "json" {
			type row struct {
				Version   int64  `json:"version"`
				Name      string `json:"name"`
				AppliedAt any    `json:"applied_at"` // null: not applied
			}
			rows := make([]row, len(all))
			for i, m := range all {
				rows[i] = row{m.Version, m.Name, nil}
				if !m.AppliedAt.IsZero() {
					rows[i].AppliedAt = m.AppliedAt
				}
			}
			e = writeJSON(cmd.OutOrStdout(), rows)
		} else {
			t := newTable(cmd.OutOrStdout(), "VERSION", "NAME", "APPLIED")
			for _, m := range all {
				applied := "no"
				if !m.AppliedAt.IsZero() {
					applied = m.AppliedAt.UTC().Format("2006-01-02 15:04:05Z")
				}
				t.row(fmt.Sprint(m.Version), m.Name, applied)
			}
			e = t.Flush()
		}
		return errors.Join(err, e)
	})
	return cmd
}
