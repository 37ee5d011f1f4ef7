package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) statusCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show what is done, open and missing, the queues, workers and runs", Args: cobra.NoArgs,
		Long: `Show what is done, open and missing by job type, the queues, the workers, the newest
runs, and what is parked.

With --check the exit code says whether everything is done, for cron and CI:

  0  all is done: nothing is missing, open, parked, or queued in Postgres
  3  something failed, is in doubt, stranded or parked, or a source has rows without
     an entity: somebody must act
  4  something is missing or still in work
  1  an error; also, where neither 3 nor 4 holds, a source that could not be asked

3 comes before 4. A job type whose source nobody here knows has nothing missing. Of a
program with the application's jobs, their sources in Go are walked, and what no worker has
registered yet counts too, as does what a raised version of the code makes stale: without the
jobs that is not known, and it is said where it could be. Whether schedules stand still is told by 'doctor'.`}
	output := outputFlag(cmd, "table", "json")
	check := cmd.Flags().Bool("check", false, "let the exit code say whether everything is done")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		set, err := p.set(cmd.Context(), pool)
		if err != nil {
			return err
		}
		s, err := admin.ReadStatus(cmd.Context(), pool, set, admin.StatusOptions{Walk: *check})
		if err != nil {
			return err
		}
		if *output == "json" {
			err = writeJSON(cmd.OutOrStdout(), s)
		} else {
			err = writeStatus(cmd, s)
		}
		tellStale(cmd, s)
		if err != nil || !*check {
			return err
		}
		return checked(cmd, s)
	})
	return cmd
}

// tellStale names the types of which more may be to do than is counted, also where all seems done.
func tellStale(cmd *cobra.Command, s *admin.Status) {
	var types []string
	for _, ty := range s.Types {
		if ty.StaleUnknown {
			types = append(types, ty.Type)
		}
	}
	if len(types) > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", strings.Join(types, ", "), admin.NewerUnknown)
	}
}

// checked is the verdict on s, as the error that has its exit code.
func checked(cmd *cobra.Command, s *admin.Status) error {
	verdict, why := s.Verdict()
	story := "Not all is done: " + strings.Join(why, "; ") + "."
	switch verdict {
	case admin.AllDone:
		fmt.Fprintln(cmd.ErrOrStderr(), "All is done.")
		return nil
	case admin.Troubled:
		return failure{errors.New(story), exitPartly}
	case admin.Unfinished:
		return failure{errors.New(story), exitUndone}
	}
	return errors.New("it is not known whether all is done: " + strings.Join(why, "; "))
}

// writeStatus shows the tables that have rows.
func writeStatus(cmd *cobra.Command, s *admin.Status) error {
	out := cmd.OutOrStdout()
	t := newTable(out, "JOB TYPE", "DONE", "RUNNING", "RETRYING", "FAILED", "IN DOUBT", "STRANDED", "MISSING")
	for _, ty := range s.Types {
		missing := "?"
		if ty.Missing != nil {
			missing = ty.Missing.String()
		} else if ty.Unknown == admin.NoSource {
			missing = "-"
		}
		o := ty.Open
		t.row(ty.Type, ty.Done.String(), thousands(o.Running), thousands(o.Retrying), thousands(o.Failed), thousands(o.InDoubt), thousands(o.Stranded), missing)
		if missing == "?" {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: what is missing is not known: %s\n", ty.Type, ty.Unknown)
		}
		if ty.Nameless > 0 {
			fmt.Fprintln(cmd.ErrOrStderr(), admin.NamelessWords(ty.Type, ty.Nameless))
		}
		if ty.Unregistered {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: no worker has registered it in this database\n", ty.Type)
		}
	}
	if len(s.Types) == 0 {
		t.row("(no worker has registered a job type yet)")
	}
	if len(s.Queues) > 0 {
		t.row("")
		t.row("QUEUE", "READY", "HELD", "DELAYED", "ENTITIES", "OLDEST READY")
		for _, q := range s.Queues {
			oldest, more := "-", ""
			if q.Oldest != nil {
				oldest = ago(s.Now, s.Now.Add(-time.Duration(*q.Oldest*float64(time.Second))))
			}
			if q.Is == admin.AtLeast {
				more = "+"
			}
			t.row(quoted(q.Queue), thousands(q.Ready)+more, thousands(q.Held)+more, thousands(q.Delayed)+more, thousands(q.Entities)+more, oldest)
		}
	}
	if len(s.Workers) > 0 {
		t.row("")
		t.row("WORKER", "NAME", "STATE", "STARTED", "CLAIMS")
		for _, w := range s.Workers {
			t.row(fmt.Sprint(w.ID), cell(w.Name, narrow), workerState(w, s.Now), ago(s.Now, w.StartedAt), thousands(w.Claims))
		}
	}
	writeStatusRuns(t, s)
	if s.RunsUnknown != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "how far the runs are is not known: %s\n", s.RunsUnknown)
	}
	if len(s.Parked) > 0 {
		t.row("")
		t.row("PARKED", "TYPE", "INPUTS", "LAST")
		for _, k := range s.Parked {
			t.row(k.Reason, quoted(k.Type), thousands(k.Inputs), ago(s.Now, k.LastAt))
		}
	}
	return t.Flush()
}

// writeStatusRuns shows the runs. Why they wait is a column where one does.
func writeStatusRuns(t table, s *admin.Status) {
	if len(s.Runs) == 0 {
		return
	}
	waits := slices.ContainsFunc(s.Runs, func(r admin.Run) bool { return r.Waits != "" })
	columns := []string{"RUN", "OF", "STATE", "STARTED", "DONE", "OPEN", "FAILED", "IN DOUBT", "MISSING", "SKIPPED AS DONE"}
	if waits {
		columns = append(columns, "WAITS")
	}
	t.row("")
	t.row(columns...)
	for i := range s.Runs {
		r := &s.Runs[i]
		cells := []string{fmt.Sprint(r.ID), cell(runParent(r), narrow), string(r.State), ago(s.Now, r.StartedAt),
			thousands(r.Done) + " of " + thousands(r.Items), thousands(r.Open), thousands(r.Failed), thousands(r.InDoubt), thousands(r.Missing + r.NotSent), thousands(r.Skipped)}
		if waits {
			cells = append(cells, orDash(cell(r.Waits, narrow)))
		}
		t.row(cells...)
	}
}

func workerState(w admin.WorkerStatus, now time.Time) string {
	switch {
	case w.DeadAt != nil && w.Cause != nil:
		return *w.Cause + " " + ago(now, *w.DeadAt)
	case w.DeadAt != nil:
		return "dead " + ago(now, *w.DeadAt)
	case w.Overdue:
		return "lease lapsed"
	}
	return "living"
}

// runParent tells what a run is of.
func runParent(r *admin.Run) string {
	if r.Selection != nil {
		return "re-run of " + r.Type
	}
	return r.ParentType + " " + r.ParentEntity
}

// quoted shows a name that may be empty or hold anything.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
