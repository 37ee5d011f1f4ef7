package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
)

// countMost bounds exact counts: past it, "more than" is told.
const countMost = 10_000

func (p *program) missingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "missing TYPE", Short: "List the entities of a job type that are neither open nor done", Args: cobra.ExactArgs(1),
		Long: fmt.Sprintf(`List the entities that a job type's source names and that are neither open nor done.

A done entity counts as missing again when its fact is stale. Up to %s are counted. The
database is only read.`, thousands(countMost)),
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
		m, err := p.missing(cmd, pool, args[0], *limit, *timeout)
		if err != nil {
			if timedOut(err) {
				return fmt.Errorf("%w: the source takes longer than %s; try a longer --timeout", err, *timeout)
			}
			return err
		}
		return m.write(cmd, *output)
	})
	return cmd
}

// missing is what the command found.
type missing struct {
	Type     string          `json:"type"`
	Missing  count           `json:"missing"`
	Entities []missingEntity `json:"entities"`
}

func (p *program) missing(cmd *cobra.Command, pool *pgxpool.Pool, name string, limit int, timeout time.Duration) (*missing, error) {
	ctx := cmd.Context()
	set, err := p.set(ctx, pool)
	if err != nil {
		return nil, err
	}
	m := &missing{Entities: []missingEntity{}}
	var t *jobType
	err = reading(ctx, pool, timeout, func(tx pgx.Tx) (err error) {
		if t, err = readType(ctx, tx, set, name); err != nil {
			return err
		}
		m.Type = t.Name
		if t.Query == "" && !t.source.IsZero() {
			return nil
		}
		if m.Missing, err = t.missingCount(ctx, tx, countMost); err != nil {
			return err
		}
		page, err := t.missingPage(ctx, tx, limit)
		m.Entities = append(m.Entities, page...)
		return err
	})
	if err == nil && t.Query == "" {
		var page []missingEntity
		page, m.Missing, err = t.missingInGo(ctx, pool, limit, countMost)
		m.Entities = append(m.Entities, page...)
	}
	return m, err
}

func (m *missing) write(cmd *cobra.Command, output string) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json":
		return writeJSON(out, m)
	case "jsonl":
		e := json.NewEncoder(out)
		for _, entity := range m.Entities {
			if err := e.Encode(entity); err != nil {
				return err
			}
		}
	default:
		t := newTable(out, "ENTITY", "REASON")
		for _, entity := range m.Entities {
			t.row(entity.Entity, entity.Reason)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s missing, %d listed\n", m.Missing, m.Type, len(m.Entities))
	return nil
}

// completeTypes helps a shell, in the time that a person waits for it.
func (p *program) completeTypes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	pool, err := p.connect(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer pool.Close()
	var names []string
	_ = reading(cmd.Context(), pool, time.Second, func(tx pgx.Tx) error {
		types, err := readTypes(cmd.Context(), tx, nil)
		for _, t := range types {
			names = append(names, t.Name)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}
