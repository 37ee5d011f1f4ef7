package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// completeTime is as long as a person waits for a shell to complete a word.
var completeTime = time.Second

// complete helps a shell with the words that the database has, as far as it has them in
// that time.
func (p *program) complete(cmd *cobra.Command, words func(context.Context, *pgxpool.Pool) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
	defer cancel()
	pool, err := p.connect(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer pool.Close()
	found, _ := words(ctx, pool)
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeOne helps with the one argument that a command has.
func (p *program) completeOne(words func(context.Context, pgx.Tx) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return p.complete(cmd, func(ctx context.Context, pool *pgxpool.Pool) (found []string, err error) {
			err = reading(ctx, pool, completeTime, func(tx pgx.Tx) (err error) {
				found, err = words(ctx, tx)
				return err
			})
			return found, err
		})
	}
}

// completeTypes helps with a job type.
func (p *program) completeTypes(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return p.completeOne(func(ctx context.Context, tx pgx.Tx) (names []string, err error) {
		types, err := admin.Types(ctx, tx, nil)
		for _, t := range types {
			if !t.Internal() {
				names = append(names, t.Name)
			}
		}
		return names, err
	})(cmd, args, begun)
}

// completeRuns helps with the number of a run.
func (p *program) completeRuns(going bool) cobra.CompletionFunc {
	return p.completeOne(func(ctx context.Context, tx pgx.Tx) (numbers []string, err error) {
		list, err := admin.ListRuns(ctx, tx, admin.RunFilter{Going: going}, admin.Page{Limit: 50})
		if err != nil {
			return nil, err
		}
		for _, r := range list.Rows {
			numbers = append(numbers, cobra.CompletionWithDesc(fmt.Sprint(r.ID), r.Type+" "+string(r.State)))
		}
		return numbers, nil
	})
}

// completeSchedules helps with the name of a schedule.
func (p *program) completeSchedules(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return p.completeOne(func(ctx context.Context, tx pgx.Tx) (names []string, err error) {
		list, err := admin.Schedules(ctx, tx)
		if err != nil {
			return nil, err
		}
		for _, s := range list.Rows {
			names = append(names, cobra.CompletionWithDesc(s.Name, strings.TrimSpace(s.Spec+" "+s.Zone)))
		}
		return names, nil
	})(cmd, args, begun)
}

// completeOpen helps with a type, then with its entities that are in a state.
func (p *program) completeOpen(show func(*admin.Operator, context.Context, admin.Selection) (*admin.Shown, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return p.completeTypes(cmd, args, begun)
		}
		return p.complete(cmd, func(ctx context.Context, pool *pgxpool.Pool) (names []string, err error) {
			shown, err := show(&admin.Operator{Pool: pool}, ctx, admin.Selection{Type: args[0], Prefix: begun, Limit: 100})
			if err != nil {
				return nil, err
			}
			for _, e := range shown.Entries {
				if !slices.Contains(args[1:], e.Entity) && quoted(e.Entity) == e.Entity {
					names = append(names, cobra.CompletionWithDesc(e.Entity, e.State+" "+cell(e.Error, narrow)))
				}
			}
			return names, nil
		})
	}
}
