package cli

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// lookTime bounds each query of the commands that list.
const lookTime = 10 * time.Second

// An openFilter is the flags that narrow a list of open entities down.
type openFilter struct {
	admin.Filter
	window windowFlags
}

// asShown tells how the class of an error is written.
const asShown = " (as 'failures' shows it: timeout, panic, or a Go type such as '*pgconn.PgError')"

func filterFlags(cmd *cobra.Command) *openFilter {
	f := &openFilter{}
	cmd.Flags().StringVar(&f.Class, "class", "", "those whose last error is of this `class`"+asShown)
	f.window.add(cmd, "those that got there")
	return f
}

func (f *openFilter) read(args []string) (err error) {
	if len(args) > 0 {
		f.Type = args[0]
	}
	f.Window, err = f.window.window()
	return err
}

func (p *program) failuresCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "failures [TYPE]", Short: "Group failed attempts by error class, or list what has failed", Args: cobra.MaximumNArgs(1),
		Long: `Group the attempts that failed by job type and error class: how many, since when and until
when, what of their entities is failed, retrying or in doubt now, and one as a sample.
Without --since and --until it looks at the last 7 days.

With --list it lists the entities that are failed now: no attempt is left, or the job said
that none would help. 'retry' gives them all their attempts anew.`,
		Example: `  oncemore failures --since 2h
  oncemore failures payment --list --class timeout`,
		ValidArgsFunction: p.completeTypes}
	l, f := listFlags(cmd), filterFlags(cmd)
	list := cmd.Flags().Bool("list", false, "list the entities instead")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err == nil {
			err = f.read(args)
		}
		if err != nil {
			return err
		}
		if *list {
			return p.listOpens(cmd, l, page, f.Filter, admin.Failed, "failed", failedColumns, failedCells)
		}
		if l.after != "" {
			return usageError("--after is for --list")
		}
		if f.Window == (admin.Window{}) {
			f.Within = 7 * 24 * time.Hour
		}
		var found *admin.Failures
		err = p.look(cmd.Context(), lookTime, func(tx pgx.Tx, set *jobs.Set) (err error) {
			found, err = admin.GroupFailures(cmd.Context(), tx, set, f.Filter, page.Limit)
			return err
		})
		if err != nil {
			return err
		}
		return writeFailures(cmd, *l.output, found)
	})
	return cmd
}

func writeFailures(cmd *cobra.Command, output string, found *admin.Failures) error {
	var err error
	if output == "json" {
		err = writeJSON(cmd.OutOrStdout(), found)
	} else {
		columns := []string{"TYPE", "CLASS", "ATTEMPTS", "LAST HOUR", "FIRST", "LAST", "FAILED", "RETRYING", "IN DOUBT", "SAMPLE", "ERROR"}
		err = writeRows(cmd, output, found.Rows, columns, func(g *admin.Failure) []string {
			return []string{cell(g.Type, wide), orDash(cell(g.Class, wide)), thousands(g.Attempts), thousands(g.LastHour),
				when(found.Now, g.FirstAt), when(found.Now, g.LastAt), orMore(g.Failed), orMore(g.Retrying), orMore(g.InDoubt),
				cell(g.Entity, narrow), cell(g.Error, narrow)}
		})
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d of %s groups of failures listed\n", len(found.Rows), found.Of)
	if found.Others.N > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s entities are failed that these do not show: see 'failures --list'\n", found.Others)
	}
	return err
}

// orMore is a count in a column: "7+" is 7 or more.
func orMore(c admin.Count) string {
	if c.Is == admin.AtLeast {
		return thousands(c.N) + "+"
	}
	return thousands(c.N)
}

// listOpens is the body of the commands that list open entities.
func (p *program) listOpens(cmd *cobra.Command, l *listing, page admin.Page, f admin.Filter, read openReader, what string,
	columns []string, cells func(*admin.Open, time.Time) []string) error {
	var list *admin.List[admin.Open]
	err := p.look(cmd.Context(), lookTime, func(tx pgx.Tx, set *jobs.Set) (err error) {
		list, err = read(cmd.Context(), tx, set, f, page)
		return err
	})
	if err != nil {
		return badPage(err)
	}
	return writeList(cmd, l, list, what, columns, func(o *admin.Open) []string { return cells(o, list.Now) })
}

var failedColumns = []string{"TYPE", "ENTITY", "SINCE", "ATTEMPTS", "CLASS", "ERROR"}

func failedCells(o *admin.Open, now time.Time) []string {
	return []string{cell(o.Type, wide), cell(o.Entity, wide), when(now, o.Since), fmt.Sprint(o.Attempts), orDash(cell(o.Class, wide)), cell(o.Error, narrow)}
}
