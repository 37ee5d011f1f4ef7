package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) retryCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "retry TYPE [ENTITY...]", Short: "Give what failed, or is stranded, all its attempts anew",
		Long: `Give what failed, or is stranded, all its attempts anew, due at once.

It asks for another attempt and decides nothing: the worker that takes it decides as
always, so that an effect which may have happened is repeated only as its class allows.
What is in doubt is never touched: see 'doubt resolve'. What is missing was never tried:
call it again. Requests have no attempts to be given: their clients send them again.

Mend the cause first, and try a few: --all --class timeout --limit 10.`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: p.completeOpen((*admin.Operator).Retryable)}
	m := p.mutates(cmd, false)
	m.sends(cmd)
	s := selectsOpen(cmd)
	cmd.RunE = m.run(func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error) {
		shown, err := op.Retryable(cmd.Context(), s.Selection)
		if err != nil {
			return nil, err
		}
		s.bind(shown)
		out := open("retry", shown)
		out.what = "retry " + several(len(shown.Entries), "entity", "entities") + " of " + shown.Type
		out.then = []string{"They get all their attempts anew, and are due at once."}
		out.do = func(ctx context.Context) (*admin.Result, error) { return op.Retry(ctx, shown, m.reason) }
		return out, nil
	}, s.read)
	return cmd
}
