package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// An openSelection selects open entities by flags and arguments.
type openSelection struct {
	admin.Selection
	all    bool
	window windowFlags
	fence  int64
}

// selectsOpen adds the flags to cmd.
func selectsOpen(cmd *cobra.Command) *openSelection {
	s := &openSelection{}
	flags := cmd.Flags()
	flags.BoolVar(&s.all, "all", false, "all that match, instead of entities by name")
	flags.StringVar(&s.Class, "class", "", "with --all: those whose last error is of this `class`")
	s.window.add(cmd, "with --all: those that got there")
	flags.IntVar(&s.Limit, "limit", 0, fmt.Sprintf("with --all: the first so many, by entity (0: all, up to %s)", thousands(admin.MaxAct)))
	flags.Int64Var(&s.fence, "fence", 0, "with one ENTITY: only if it still has the `fence` that it was listed with")
	return s
}

// read is what the flags and the arguments, a type and entities, say.
func (s *openSelection) read(cmd *cobra.Command, args []string) (err error) {
	s.Type, s.Entities = args[0], args[1:]
	narrowed := slices.ContainsFunc([]string{"class", "since", "until", "limit"}, cmd.Flags().Changed)
	switch {
	case s.all == (len(s.Entities) > 0):
		return usageError("name entities, or say --all for all that match: one of the two")
	case !s.all && narrowed:
		return usageError("--class, --since, --until and --limit are for --all")
	case s.Limit < 0:
		return usageError("--limit must not be negative")
	case s.fence != 0 && len(s.Entities) != 1:
		return usageError("--fence is of one ENTITY")
	}
	s.Window, err = s.window.window()
	return err
}

// bind lets through what still has the fence that was given.
func (s *openSelection) bind(shown *admin.Shown) {
	if s.fence == 0 || len(shown.Entries) == 0 || shown.Entries[0].Fence == s.fence {
		return
	}
	shown.Absent = append(shown.Absent, admin.Left{What: shown.Entries[0].Entity, Why: "has changed since it was listed with that fence"})
	shown.Entries = nil
}

// open begins a proposal about open entities.
func open(action string, shown *admin.Shown) *proposal {
	sample := sampleOf(shown.Entries)
	table := rows{{"ENTITY", "STATE", "ATTEMPTS", "SINCE", "CLASS", "ERROR"}}
	for _, e := range sample {
		table = append(table, []string{cell(quoted(e.Entity), wide), e.State, fmt.Sprint(e.Attempts), stamp(e.At), orDash(cell(e.Class, wide)), orDash(cell(e.Error, narrow))})
	}
	return &proposal{Action: action, Type: shown.Type, Matched: len(shown.Entries), More: shown.More, Sample: sample, Left: shown.Absent, rows: table}
}

// completeTime is as long as a person waits for a shell to complete a word.
const completeTime = time.Second

// completeOpen helps a shell with a type, then with its entities that are in a state, in
// the second that a person waits.
func (p *program) completeOpen(show func(*admin.Operator, context.Context, admin.Selection) (*admin.Shown, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return p.completeTypes(cmd, args, begun)
		}
		const none = cobra.ShellCompDirectiveNoFileComp
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTime)
		defer cancel()
		pool, err := p.connect(ctx)
		if err != nil {
			return nil, none
		}
		defer pool.Close()
		shown, err := show(&admin.Operator{Pool: pool}, ctx, admin.Selection{Type: args[0], Prefix: begun, Limit: 100})
		if err != nil {
			return nil, none
		}
		var names []string
		for _, e := range shown.Entries {
			if !slices.Contains(args[1:], e.Entity) && quoted(e.Entity) == e.Entity {
				names = append(names, cobra.CompletionWithDesc(e.Entity, e.State+" "+cell(e.Error, narrow)))
			}
		}
		return names, none
	}
}
