package cli

import (
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) disputedCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "disputed [TYPE]", Short: "List successes that came too late: effects that may have happened twice", Args: cobra.MaximumNArgs(1),
		Long: `List successes that were reported after their claim was lost, the newest first. They were
refused: somebody else may have done the same meanwhile. Look at the world whether it
happened twice; 'ledger show TYPE ENTITY' tells the whole story.`,
		ValidArgsFunction: p.completeTypes}
	l := listFlags(cmd)
	f := &openFilter{}
	f.window.add(cmd, "those that came")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err == nil {
			err = f.read(args)
		}
		if err != nil {
			return err
		}
		var list *admin.List[admin.Disputed]
		err = p.look(cmd.Context(), lookTime, func(tx pgx.Tx, set *jobs.Set) (err error) {
			list, err = admin.DisputedCompletions(cmd.Context(), tx, set, f.Filter, page)
			return err
		})
		if err != nil {
			return badPage(err)
		}
		return writeList(cmd, l, list, "disputed", []string{"TYPE", "ENTITY", "AT", "AGO", "ATTEMPT", "WORKER", "NOW", "WHY"}, func(d *admin.Disputed) []string {
			now := d.Place
			if d.DoneAt != nil {
				now += " since " + stamp(*d.DoneAt)
			}
			return []string{cell(d.Type, wide), cell(d.Entity, wide), stamp(d.At), when(list.Now, d.At), fmt.Sprint(d.Number), ownerCell(d.Worker), now, cell(d.Error, narrow)}
		})
	})
	return cmd
}
