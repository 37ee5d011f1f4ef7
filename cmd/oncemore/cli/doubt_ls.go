package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) doubtLsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ls [TYPE]", Short: "List what is in doubt, and what is to be done about it", Args: cobra.MaximumNArgs(1),
		Long: `List what is in doubt: effects that may or may not have happened, and that their class
does not allow to be guessed about. Where there is a done-check, workers ask it again; else
somebody has to find out, and to say so with 'doubt resolve'.

FENCE is for 'doubt resolve --fence': it changes with every change of the entity.`,
		ValidArgsFunction: p.completeTypes}
	l, f := listFlags(cmd), filterFlags(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err == nil {
			err = f.read(args)
		}
		if err != nil {
			return err
		}
		return p.listOpens(cmd, l, page, f.Filter, admin.Doubts, "in doubt", doubtColumns, doubtCells)
	})
	return cmd
}

var doubtColumns = []string{"TYPE", "ENTITY", "SINCE", "EFFECT", "ATTEMPTS", "WORKER", "FENCE", "ERROR", "TO DO"}

func doubtCells(o *admin.Open, now time.Time) []string {
	return []string{cell(o.Type, wide), cell(o.Entity, wide), when(now, o.Since), o.Effect, fmt.Sprint(o.Attempts), ownerCell(o.Owner),
		fmt.Sprint(o.Fence), orDash(cell(o.Error, narrow)), o.Next}
}

// ownerCell names the worker that has something, or had it last.
func ownerCell(w *admin.Owner) string {
	if w == nil {
		return "-"
	}
	return cell(fmt.Sprintf("%d %s", w.ID, w.Name), narrow)
}
