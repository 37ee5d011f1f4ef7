package cli

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) schedulesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "schedules", Short: "List what is called again by the clock, and pause, resume or run it", Args: cobra.NoArgs,
		Long: `List what is called again by the clock, and pause, resume or run it.

A schedule has a spec (cron), a time zone, and what each of its ticks starts: a job, or a
re-run of what a selection picks. Workers that have the job tick it, by the database's
clock; none of them leads. A tick starts one run, or none: it is skipped where the one
before goes on, and missed where no worker ran, as the schedule says.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(p.schedulesLsCommand(), p.schedulesShowCommand(), p.schedulesNextCommand())
	cmd.AddCommand(p.schedulesActCommands()...)
	return cmd
}

func (p *program) schedulesLsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Short: "List the schedules, with their next and last ticks", Args: cobra.NoArgs}
	output := outputFlag(cmd, "table", "json", "jsonl")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		var list *admin.List[admin.Schedule]
		err := p.look(cmd.Context(), lookTime, func(tx pgx.Tx, _ *jobs.Set) (err error) {
			list, err = admin.Schedules(cmd.Context(), tx)
			return err
		})
		if err != nil {
			return err
		}
		columns := []string{"NAME", "SPEC", "ZONE", "STARTS", "NEXT", "LAST", "STATE"}
		return writeList(cmd, &listing{output: output}, list, "schedules", columns, func(s *admin.Schedule) []string {
			return []string{cell(quoted(s.Name), wide), cell(s.Spec, narrow), s.Zone, cell(starts(s), narrow), nextCell(list.Now, s), lastCell(list.Now, s), cell(s.State, narrow)}
		})
	})
	return cmd
}

// starts tells what a tick of s starts.
func starts(s *admin.Schedule) string {
	if s.Rerun != nil {
		return "re-run of " + s.Type
	}
	return s.Type + " " + quoted(s.Entity)
}

func nextCell(now time.Time, s *admin.Schedule) string {
	if s.Next == nil {
		return "-"
	}
	return when(now, *s.Next)
}

func lastCell(now time.Time, s *admin.Schedule) string {
	if s.Last == nil {
		return "-"
	}
	return s.Last.Outcome + " " + ago(now, s.Last.Tick) + " ago"
}

// A shownSchedule is what show prints as JSON.
type shownSchedule struct {
	admin.Schedule
	Ticks    []admin.Tick `json:"ticks"`
	Upcoming []time.Time  `json:"upcoming"`
}

func (p *program) schedulesShowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "show NAME", Short: "Show a schedule, its last ticks and its next times", Args: cobra.ExactArgs(1), ValidArgsFunction: p.completeSchedules}
	output := outputFlag(cmd, "table", "json")
	ticks := cmd.Flags().Int("ticks", 10, "how many of the last ticks")
	next := cmd.Flags().Int("next", 5, "how many of the next times")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if *ticks < 0 || *next < 0 || *next > maxNext {
			return usageError(fmt.Sprintf("--ticks and --next must not be negative, and --next is at most %d", maxNext))
		}
		var s shownSchedule
		var now time.Time
		err := p.look(cmd.Context(), lookTime, func(tx pgx.Tx, _ *jobs.Set) error {
			found, err := admin.FindSchedule(cmd.Context(), tx, args[0])
			if err != nil {
				return err
			}
			s.Schedule = *found
			if s.Ticks, err = admin.Ticks(cmd.Context(), tx, found.Name, *ticks); err != nil {
				return err
			}
			return tx.QueryRow(cmd.Context(), `SELECT clock_timestamp()`).Scan(&now)
		})
		if err != nil {
			return err
		}
		s.Upcoming = []time.Time{}
		if s.Next != nil {
			// What cannot be parsed is told by the state.
			if times, err := admin.NextTimes(s.Spec, s.Zone, now, *next); err == nil {
				s.Upcoming = times
			}
		}
		if *output == "json" {
			return writeJSON(cmd.OutOrStdout(), s)
		}
		return writeSchedule(cmd, now, &s)
	})
	return cmd
}

func writeSchedule(cmd *cobra.Command, now time.Time, s *shownSchedule) error {
	out := cmd.OutOrStdout()
	from := "the database"
	if s.FromCode {
		from = "the code; last declared " + ago(now, s.DeclaredAt) + " ago"
	}
	catchUp := s.CatchUp
	if catchUp == "all" {
		catchUp += fmt.Sprintf(", at most %d", s.CatchUpMost)
	}
	if s.MaxAge > 0 {
		catchUp += ", not older than " + duration(s.MaxAge)
	}
	t := newTable(out, "SCHEDULE", cell(quoted(s.Name), wide))
	for _, line := range [][]string{
		{"spec", s.Spec + "  " + s.Zone}, {"starts", starts(&s.Schedule)}, {"with", string(s.Args) + string(s.Rerun)}, {"from", from},
		{"catch-up", catchUp}, {"overlap", s.Overlap}, {"jitter", duration(s.Jitter)}, {"waiting", fmt.Sprint(s.Waiting)}, {"state", s.State},
	} {
		t.row(line[0], cell(line[1], wide))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(s.Ticks) > 0 {
		fmt.Fprintln(out)
		t := newTable(out, "TICK", "OUTCOME", "DECIDED", "STARTED", "WHY")
		for _, k := range s.Ticks {
			t.row(stamp(k.Tick), k.Outcome, stamp(k.At), orDash(startedCell(&k)), orDash(cell(k.Detail, narrow)))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(s.Upcoming) > 0 {
		fmt.Fprintln(out)
		return writeTimes(cmd, s.Zone, now, s.Upcoming)
	}
	return nil
}

func startedCell(k *admin.Tick) string {
	switch {
	case k.Run != 0:
		return fmt.Sprintf("run %d", k.Run)
	case k.Type != "":
		return cell(k.Type+" "+quoted(k.Entity), narrow)
	}
	return ""
}

func duration(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).String()
}

// maxNext bounds how many times are computed.
const maxNext = 1000

func (p *program) schedulesNextCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "next NAME | --spec SPEC [--zone ZONE]", Short: "Preview the next times of a schedule, or of a spec that is to become one", Args: cobra.MaximumNArgs(1),
		Long: `Preview the next times of a schedule, or of a spec that is to become one, which needs no
database: look there at the nights when the clock is set.`,
		Example: `  oncemore schedules next nightly -n 3
  oncemore schedules next --spec "30 2 * * *" --zone Europe/Berlin --from 2027-03-27`,
		ValidArgsFunction: p.completeSchedules}
	output := outputFlag(cmd, "table", "json")
	var spec, zone, from string
	flags := cmd.Flags()
	flags.StringVar(&spec, "spec", "", "a cron `spec`: five fields, six with the seconds first, or @daily, @every 90s, …")
	flags.StringVar(&zone, "zone", "UTC", "the time `zone` of --spec")
	flags.StringVar(&from, "from", "", "times after this `time` (default: now)")
	n := flags.IntP("number", "n", 10, "how many")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) (err error) {
		now := time.Now()
		switch {
		case (spec == "") == (len(args) == 0):
			return usageError("name a schedule, or say --spec: one of the two")
		case *n < 1 || *n > maxNext:
			return usageError(fmt.Sprintf("-n is from 1 to %d", maxNext))
		case len(args) > 0 && flags.Changed("zone"):
			return usageError("--zone is for --spec")
		}
		after := now
		if from != "" {
			if after, err = parseTime("--from", from); err != nil {
				return err
			}
		}
		if len(args) > 0 {
			err = p.look(cmd.Context(), lookTime, func(tx pgx.Tx, _ *jobs.Set) error {
				s, err := admin.FindSchedule(cmd.Context(), tx, args[0])
				if err != nil {
					return err
				}
				spec, zone = s.Spec, s.Zone
				return tx.QueryRow(cmd.Context(), `SELECT clock_timestamp()`).Scan(&now)
			})
			if err != nil {
				return err
			}
			if from == "" {
				after = now
			}
		}
		times, err := admin.NextTimes(spec, zone, after, *n)
		if err != nil {
			if len(args) == 0 {
				return usageError(err.Error())
			}
			return err
		}
		if *output == "json" {
			return writeJSON(cmd.OutOrStdout(), times)
		}
		return writeTimes(cmd, zone, now, times)
	})
	return cmd
}

// writeTimes writes times in their zone, and in UTC.
func writeTimes(cmd *cobra.Command, zone string, now time.Time, times []time.Time) error {
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return err
	}
	t := newTable(cmd.OutOrStdout(), "NEXT", "UTC", "IN")
	for _, u := range times {
		in := "-"
		if u.After(now) {
			in = ago(u, now)
		}
		t.row(u.In(loc).Format("Mon 2006-01-02 15:04:05 -07:00 MST"), stamp(u), in)
	}
	return t.Flush()
}
