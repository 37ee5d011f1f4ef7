package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) doubtResolveCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "resolve TYPE [ENTITY...] --as done|not-applied", Short: "Say whether effects in doubt happened",
		Long: `Say whether effects in doubt happened.

  --as done         it happened: the entity is done
  --as not-applied  it surely did not: the entity is due again at once; a request, when
                    its client sends it again

A request that a dead server left (see 'stranded') may be named as well: no message
brings it again, only its client.

Look at the world first. To say "not applied" of an effect that did happen is to have it
twice. An entity that has changed since it was shown (another operator, a done-check) is
left alone; --fence makes sure of that from the moment when it was listed.`,
		Example: `  oncemore doubt resolve payment 4711 --as done --reason "is on the statement of May 3"
  oncemore doubt resolve payment --all --since 2h --as not-applied --reason "the gateway was down"`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: p.completeOpen((*admin.Operator).InDoubt)}
	m := p.mutates(cmd, true)
	m.sends(cmd)
	s := selectsOpen(cmd)
	as := &format{of: []string{"done", "not-applied"}}
	cmd.Flags().Var(as, "as", "done|not-applied; required")
	_ = cmd.RegisterFlagCompletionFunc("as", cobra.FixedCompletions(as.of, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = m.run(func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error) {
		return m.resolve(cmd.Context(), op, s, as.value)
	}, func(cmd *cobra.Command, args []string) error {
		if as.value == "" {
			return usageError("say --as done or --as not-applied")
		}
		return s.read(cmd, args)
	})
	return cmd
}

func (m *mutation) resolve(ctx context.Context, op *admin.Operator, s *openSelection, as string) (*proposal, error) {
	shown, err := op.InDoubt(ctx, s.Selection)
	if err != nil {
		return nil, err
	}
	s.bind(shown)
	done := as == "done"
	out := open("resolve", shown)
	out.what = "resolve " + several(len(shown.Entries), "entity", "entities") + " of " + shown.Type
	if done {
		out.what += " as done"
		out.then = []string{"They will count as done for ever, and will not be done again unless forced."}
	} else {
		out.what += " as not applied"
		when := "at once"
		if shown.Requests {
			when = "when their clients send them again"
		}
		out.then = []string{"Their effects will be had " + when + ". If one of them did happen, it happens twice."}
	}
	out.do = func(ctx context.Context) (*admin.Result, error) { return op.Resolve(ctx, shown, done, m.reason) }
	return out, nil
}
