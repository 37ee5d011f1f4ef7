package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// An openReader reads a page of open entities.
type openReader func(context.Context, pgx.Tx, *jobs.Set, admin.Filter, admin.Page) (*admin.List[admin.Open], error)

func (p *program) strandedCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "stranded [TYPE]", Short: "List what dead workers have left behind", Args: cobra.MaximumNArgs(1),
		Long: `List the claims whose worker is dead, and for how long. Most are taken over within seconds,
when their messages come again. What stays has lost its message (a retention limit, a
dead-letter queue): 'retry' sends one. A request comes again with its client; who knows
what became of it says so with 'doubt resolve'.`,
		ValidArgsFunction: p.completeTypes}
	l := listFlags(cmd)
	f := &openFilter{}
	f.window.add(cmd, "those whose worker died")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err == nil {
			err = f.read(args)
		}
		if err != nil {
			return err
		}
		return p.listOpens(cmd, l, page, f.Filter, admin.Stranded, "stranded", strandedColumns, strandedCells)
	})
	return cmd
}

var strandedColumns = []string{"TYPE", "ENTITY", "SINCE", "EFFECT", "ATTEMPTS", "WORKER", "TO DO"}

func strandedCells(o *admin.Open, now time.Time) []string {
	return []string{cell(o.Type, wide), cell(o.Entity, wide), when(now, o.Since), o.Effect, fmt.Sprint(o.Attempts), ownerCell(o.Owner), o.Next}
}
