package cli

import (
	"fmt"
	"slices"

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
	flags.StringVar(&s.Class, "class", "", "with --all: those whose last error is of this `class`"+asShown)
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
