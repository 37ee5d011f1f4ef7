package cli

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) statsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "stats [TYPE]", Short: "Count what was completed, by hour, day, or hour of the week", Args: cobra.MaximumNArgs(1),
		Long: `Count the completions of a job type, or of all: how many a day, and what are the peak hours.

It counts facts, those that were replaced since included. Workers sum them up a quarter of
an hour at a time, once it is closed; the rest is counted now. So it takes as long in a ledger
of years as in one of days. --roll-up sums up first, where no worker does.

Without --since it shows the last 24 hours, 30 days, or the hours of the last 28 days.`,
		Example: `  oncemore stats invitation --by day --zone Europe/Berlin
  oncemore stats --by weekday-hour -o plot`,
		ValidArgsFunction: p.completeTypes}
	output := outputFlag(cmd, "table", "json", "jsonl", "plot")
	by := &format{value: string(admin.ByDay), of: []string{string(admin.ByHour), string(admin.ByDay), string(admin.ByWeekdayHour)}}
	cmd.Flags().Var(by, "by", strings.Join(by.of, "|"))
	_ = cmd.RegisterFlagCompletionFunc("by", cobra.FixedCompletions(by.of, cobra.ShellCompDirectiveNoFileComp))
	q := admin.StatsQuery{}
	cmd.Flags().StringVar(&q.Zone, "zone", "UTC", "the time `zone` of days and hours, and of --since and --until where they name none")
	var w windowFlags
	w.add(cmd, "completions")
	rollUp := cmd.Flags().Bool("roll-up", false, "sum up what is closed first; the one thing here that writes")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) (err error) {
		if q.By = admin.By(by.value); len(args) > 0 {
			q.Type = args[0]
		}
		if q.Window, err = w.window(); err != nil {
			return err
		}
		zone, err := time.LoadLocation(q.Zone)
		if err != nil {
			return usageError("--zone: " + err.Error())
		}
		q.Since, q.Until = inZone(w.since, q.Since, zone), inZone(w.until, q.Until, zone)
		s, err := p.stats(cmd, q, *rollUp)
		if errors.Is(err, admin.ErrStats) {
			return usageError(err.Error())
		} else if err != nil {
			return err
		}
		return writeStats(cmd, *output, s)
	})
	return cmd
}

// inZone takes what was said without a zone for a time in zone.
func inZone(said string, t time.Time, zone *time.Location) time.Time {
	if _, err := time.Parse(time.RFC3339, said); t.IsZero() || err == nil || strings.HasSuffix(said, "Z") {
		return t
	}
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, zone)
}

// stats reads them, after having brought them up to date where it is asked to.
func (p *program) stats(cmd *cobra.Command, q admin.StatsQuery, rollUp bool) (s *admin.Stats, err error) {
	ctx := cmd.Context()
	pool, err := p.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	set, err := p.set(ctx, pool)
	if err != nil {
		return nil, err
	}
	for more := rollUp; more; {
		r, err := worker.RollUp(ctx, pool)
		if err != nil {
			return nil, err
		}
		if more = r.More; more {
			fmt.Fprintf(cmd.ErrOrStderr(), "summed up to %s\n", stamp(r.Closed))
		} else if r.Waiting > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "summed up to %s; later ones wait for %d transactions that are open\n", stamp(r.Closed), r.Waiting)
		}
	}
	err = reading(ctx, pool, lookTime, func(tx pgx.Tx) (err error) {
		s, err = admin.ReadStats(ctx, tx, set, q)
		return err
	})
	return s, err
}

func writeStats(cmd *cobra.Command, output string, s *admin.Stats) (err error) {
	out := cmd.OutOrStdout()
	switch {
	case output == "json":
		err = writeJSON(out, s)
	case output == "plot":
		err = plotStats(out, s)
	case output == "table" && s.By == admin.ByWeekdayHour:
		err = weekTable(out, s)
	default:
		err = writeRows(cmd, output, s.Buckets, []string{strings.ToUpper(string(s.By)), "DONE"}, func(b *admin.StatsBucket) []string {
			return []string{label(s, b), doneCell(s, b)}
		})
	}
	for _, line := range summary(s) {
		fmt.Fprintln(cmd.ErrOrStderr(), line)
	}
	return err
}

// weekTable shows the mean of each hour of the week: a column for each day.
func weekTable(out io.Writer, s *admin.Stats) error {
	columns := []string{"HOUR"}
	for _, day := range week {
		columns = append(columns, strings.ToUpper(day.String()[:3]))
	}
	t := newTable(out, columns...)
	for hour := range 24 {
		cells := []string{fmt.Sprintf("%02d:00", hour)}
		for day := range 7 {
			b := &s.Buckets[24*day+hour]
			if b.Hours == 0 || uncounted(s, s.Until) && b.Done == 0 {
				cells = append(cells, "-")
			} else {
				cells = append(cells, mean(b))
			}
		}
		t.row(cells...)
	}
	return t.Flush()
}

// week begins as the buckets do.
var week = []time.Weekday{time.Monday, time.Tuesday, time.Wednesday, time.Thursday, time.Friday, time.Saturday, time.Sunday}

// label is when a bucket is, in the zone of s.
func label(s *admin.Stats, b *admin.StatsBucket) string {
	switch s.By {
	case admin.ByDay:
		return b.Start.Format("Mon 2006-01-02")
	case admin.ByHour:
		return b.Start.Format("Mon 2006-01-02 15:04 -0700")
	}
	return fmt.Sprintf("%s %02d:00", b.Weekday.String()[:3], *b.Hour)
}

// doneCell marks what may still grow, and what is not known.
func doneCell(s *admin.Stats, b *admin.StatsBucket) string {
	switch {
	case uncounted(s, b.Start.Add(time.Nanosecond)) && b.Done == 0:
		return "?"
	case b.Open || s.Counted != nil && b.Done > 0 && uncounted(s, end(s, b)):
		return thousands(b.Done) + "+"
	}
	return thousands(b.Done)
}

// uncounted tells whether s ends before t.
func uncounted(s *admin.Stats, t time.Time) bool { return s.Counted != nil && s.Counted.Before(t) }

// end is about when a bucket ends.
func end(s *admin.Stats, b *admin.StatsBucket) time.Time {
	if s.By == admin.ByDay {
		return b.Start.Add(23 * time.Hour)
	}
	return b.Start.Add(time.Hour)
}

// mean is that of an hour of the week, short enough for a column.
func mean(b *admin.StatsBucket) string {
	switch m := b.Mean(); {
	case m == 0:
		return "0"
	case m < 10:
		return fmt.Sprintf("%.1f", m)
	default:
		return thousands(int64(m + 0.5))
	}
}

// summary answers in words: how many, how many a day, and when the most.
func summary(s *admin.Stats) (lines []string) {
	days := s.Until.Sub(s.Since).Hours() / 24
	if s.Until.After(s.Now) {
		days = s.Now.Sub(s.Since).Hours() / 24
	}
	of := "of all types"
	if s.Type != "" {
		of = "of " + cell(s.Type, wide)
	}
	lines = append(lines, fmt.Sprintf("%s %s done since %s (%s), %s a day", thousands(s.Done), of, s.Since.Format("2006-01-02 15:04"), s.Zone, aDay(float64(s.Done)/days)))
	if peaks := peaks(s, 3); len(peaks) > 0 {
		var words []string
		for _, b := range peaks {
			n := thousands(b.Done)
			if s.By == admin.ByWeekdayHour {
				n = mean(b) + " an hour"
			}
			words = append(words, fmt.Sprintf("%s (%s)", label(s, b), n))
		}
		lines = append(lines, "The most: "+strings.Join(words, ", "))
	}
	if s.Counted != nil {
		lines = append(lines, fmt.Sprintf("Not counted: what came after %s, since it is too much and not summed up yet. Workers do that, or --roll-up.", stamp(*s.Counted)))
	}
	return lines
}

func aDay(mean float64) string {
	if mean < 100 {
		return fmt.Sprintf("%.1f", mean)
	}
	return thousands(int64(mean + 0.5))
}

// peaks are the buckets with the most, up to so many, the highest first.
func peaks(s *admin.Stats, most int) (top []*admin.StatsBucket) {
	for i := range s.Buckets {
		if s.Buckets[i].Done > 0 {
			top = append(top, &s.Buckets[i])
		}
	}
	slices.SortStableFunc(top, func(a, b *admin.StatsBucket) int {
		switch {
		case a.Mean() > b.Mean():
			return -1
		case a.Mean() < b.Mean():
			return 1
		}
		return 0
	})
	return top[:min(most, len(top))]
}
