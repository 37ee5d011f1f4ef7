package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) runsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "runs", Short: "List, follow, pause and stop runs", Args: cobra.NoArgs,
		Long: `List, follow, pause and stop runs: fan-outs and re-runs. A run lives in the database and is
worked by whatever workers there are, so no command has to stay for it.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(p.runsLsCommand(), p.runsShowCommand(), p.runsWatchCommand(), p.runsPauseCommand(), p.runsResumeCommand(),
		p.runsCancelCommand(), p.runsRateCommand(), p.runsStopAllCommand(), p.runsReleaseCommand())
	return cmd
}

func (p *program) runsLsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ls [TYPE]", Short: "List runs, the newest first", Args: cobra.MaximumNArgs(1),
		Long: `List runs, the newest first. The counts of those that go on are of now, those of the
others are of their end.`, ValidArgsFunction: p.completeTypes}
	l := listFlags(cmd)
	var f admin.RunFilter
	cmd.Flags().BoolVar(&f.Going, "going", false, "those that have not ended")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err != nil {
			return err
		}
		if len(args) > 0 {
			f.Type = args[0]
		}
		var list *admin.List[admin.Run]
		var brakes []admin.Brake
		err = p.look(cmd.Context(), lookTime, func(tx pgx.Tx, _ *jobs.Set) (err error) {
			if brakes, err = admin.Brakes(cmd.Context(), tx); err != nil {
				return err
			}
			list, err = admin.ListRuns(cmd.Context(), tx, f, page)
			return err
		})
		if err != nil {
			return badPage(err)
		}
		columns := []string{"RUN", "TYPE", "STATE", "STARTED", "DONE", "OPEN", "FAILED", "IN DOUBT", "NOT READY", "NOT SENT", "OF", "BY", "WAITS"}
		err = writeList(cmd, l, list, "runs", columns, func(r *admin.Run) []string {
			return []string{fmt.Sprint(r.ID), cell(r.Type, wide), string(r.State), when(list.Now, r.StartedAt),
				thousands(r.Done) + " of " + thousands(r.Items), thousands(r.Open), thousands(r.Failed), thousands(r.InDoubt), thousands(r.Missing), thousands(r.NotSent),
				cell(runOf(r), narrow), orDash(cell(r.By, narrow)), orDash(cell(r.Waits, narrow))}
		})
		tellBrakes(cmd.ErrOrStderr(), p.Name, brakes)
		return err
	})
	return cmd
}

// runOf tells what a run is of: the selection, or the fan-out.
func runOf(r *admin.Run) string {
	if r.Selection != nil {
		return r.How
	}
	return "fan-out " + r.ParentType + " " + r.ParentEntity
}

// tellBrakes says what stops runs: who looks at them will wonder.
func tellBrakes(w io.Writer, name string, bs []admin.Brake) {
	for _, b := range bs {
		what, which := "all re-runs are", ""
		if b.Type != "" {
			what, which = "re-runs of "+b.Type+" are", " --type "+shellQuoted(b.Type)
		}
		fmt.Fprintf(w, "%s stopped since %s by %s: %s; to let them go on: %s runs release%s\n", what, stamp(b.At), b.Actor, orDash(cell(b.Reason, narrow)), name, which)
	}
}

func (p *program) runsShowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "show RUN", Short: "Tell all about one run: its plan, how far it is, its history, failures", Args: cobra.ExactArgs(1),
		ValidArgsFunction: p.completeRuns(false)}
	output := outputFlag(cmd, "table", "json")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		id, err := runID(args[0])
		if err != nil {
			return err
		}
		var s *admin.RunStory
		err = p.look(cmd.Context(), time.Minute, func(tx pgx.Tx, _ *jobs.Set) (err error) {
			s, err = admin.ShowRun(cmd.Context(), tx, id)
			return err
		})
		if err != nil {
			return err
		}
		if *output == "json" {
			return writeJSON(cmd.OutOrStdout(), s)
		}
		return writeRun(cmd.OutOrStdout(), s)
	})
	return cmd
}

func writeRun(w io.Writer, s *admin.RunStory) error {
	t := newTable(w, "RUN", fmt.Sprint(s.ID))
	said := func(name, value string) {
		if value != "" {
			t.row(name, value)
		}
	}
	said("TYPE", cell(s.Type, wide))
	said("OF", cell(runOf(&s.Run), wide))
	said("STATE", string(s.State))
	said("WAITS", cell(s.Waits, wide))
	said("SO FAR", s.Words())
	if !s.State.Over() {
		said("SENT", fmt.Sprintf("%s of %s; %s on the way or not ready", thousands(s.Items-s.NotSent), thousands(s.Items), thousands(s.Missing)))
		pace, eta := "–", "–"
		if s.Pace > 0 {
			pace = perSecond(s.Pace)
		}
		if s.ETA != nil {
			eta = span(*s.ETA)
		}
		said("PACE", pace)
		said("TIME LEFT", eta)
	}
	if s.Rate > 0 {
		said("RATE", fmt.Sprintf("%g a second at most", s.Rate))
	}
	if s.Canary > 0 {
		said("CANARY", fmt.Sprintf("the first %s, of which %g%% may fail", thousands(s.Canary), 100*s.Share))
	}
	said("PLAN", planWords(&s.Run))
	if s.Epoch > 0 {
		said("EPOCH", fmt.Sprint(s.Epoch))
	}
	said("BY", cell(s.By, wide))
	said("REASON", cell(s.Reason, wide))
	said("FROM", cell(s.Origin, wide))
	said("SCHEDULE", cell(s.Schedule, wide))
	if s.Tick != nil {
		said("TICK", stamp(*s.Tick))
	}
	said("STARTED", stamp(s.StartedAt)+" ("+when(s.Now, s.StartedAt)+")")
	if s.PlannedAt != nil {
		said("PLANNED", stamp(*s.PlannedAt))
	}
	if s.EndedAt != nil {
		said("ENDED", stamp(*s.EndedAt))
	}
	if len(s.History) > 0 {
		t.row("")
		t.row("AT", "WHAT", "DETAIL")
		for _, e := range s.History {
			t.row(stamp(e.At), e.Kind, orDash(cell(e.Detail, wide)))
		}
	}
	if len(s.Failures) > 0 {
		t.row("")
		t.row("ENTITY", "STATE", "CLASS", "ERROR")
		for _, f := range s.Failures {
			t.row(cell(quoted(f.Entity), wide), reasonWords(ledger.Reason(f.State)), orDash(cell(f.Class, wide)), orDash(cell(f.Error, narrow)))
		}
	}
	return t.Flush()
}

// planWords is what the planning saw: "900 missing, 100 retry; skipped 4,000 done".
func planWords(r *admin.Run) string {
	var picked, left []string
	for _, reason := range ledger.Reasons {
		seen, took := r.Seen.Seen[reason], r.Seen.Picked[reason]
		if took > 0 {
			picked = append(picked, thousands(took)+" "+reasonWords(reason))
		}
		if seen > took {
			left = append(left, thousands(seen-took)+" "+reasonWords(reason))
		}
	}
	words := strings.Join(picked, ", ")
	if len(left) > 0 {
		words += "; left alone: " + strings.Join(left, ", ")
	}
	return strings.TrimPrefix(words, "; ")
}

func (p *program) runsWatchCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "watch RUN", Short: "Follow a run to its end", Args: cobra.ExactArgs(1),
		Long: `Follow a run to its end: a bar on a terminal, a line in each --interval elsewhere. Ctrl-C
ends the watching; the run goes on in the workers.

Exit codes: 0 when it is complete, 3 when it has ended with some failed, in doubt or not
ready, or was cancelled.`, ValidArgsFunction: p.completeRuns(true)}
	output := outputFlag(cmd, "table", "json", "jsonl")
	interval := cmd.Flags().Duration("interval", lineEvery, "between two lines, where it is no terminal")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		id, err := runID(args[0])
		if err != nil {
			return err
		}
		if *interval <= 0 {
			return usageError("--interval must be positive")
		}
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		r, err := p.watch(cmd, pool, id, *interval, *output)
		if err == nil && *output == "json" {
			err = writeJSON(cmd.OutOrStdout(), r)
		}
		if err != nil {
			return err
		}
		return p.verdict(cmd, r)
	})
	return cmd
}

func runID(arg string) (int64, error) {
	id, err := strconv.ParseInt(arg, 10, 64)
	if err != nil || id <= 0 {
		return 0, usageError(fmt.Sprintf("%q is no run: they are numbers, see 'runs ls'", arg))
	}
	return id, nil
}

func writeLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }
