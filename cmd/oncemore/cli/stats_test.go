package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func TestStatsAnswerHowManyADayAndWhatAreThePeakHours(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	withLetters(t, pool, jobs.Repeatable, nil, letter{1})
	// Mondays at nine, and a few at night; the window is two weeks of November 2025, from a Monday on.
	do(t, pool, `INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, completed_at)
		SELECT 1, t.id, 1, 'r', 'past ' || n, CASE WHEN n <= 2000 THEN timestamptz '2025-11-03 08:10Z' WHEN n <= 4000 THEN '2025-11-10 08:50Z' ELSE timestamptz '2025-11-04 23:30Z' + interval '1 day' * (n % 4) END
		FROM oncemore.job_type t CROSS JOIN generate_series(1, 4040) n WHERE t.name = 'letter';
		UPDATE oncemore.completions_watermark SET closed = NULL`)
	window := []string{"--since", "2025-11-03", "--until", "2025-11-16T23:00:00Z", "--zone", "Europe/Berlin", "--database-url", dsn}
	stats := func(args ...string) answer {
		t.Helper()
		a := call(t, Options{}, append(append([]string{"stats", "letter"}, args...), window...)...)
		if a.code != 0 {
			t.Fatalf("%+v", a)
		}
		return a
	}

	a := stats("--by", "day", "--roll-up")
	if !strings.HasPrefix(a.out, "DAY             DONE\nMon 2025-11-03  2,000\nTue 2025-11-04  0\nWed 2025-11-05  10\n") || strings.Count(a.out, "\n") != 15 {
		t.Errorf("the table of days:\n%s", a.out)
	}
	if !strings.Contains(a.err, "4,040 of letter done since 2025-11-03 00:00 (Europe/Berlin), 289 a day") || !strings.Contains(a.err, "The most: Mon 2025-11-03 (2,000), Mon 2025-11-10 (2,000)") {
		t.Errorf("in words: %s", a.err)
	}
	a = stats("--by", "day", "-o", "plot")
	days := strings.Split(a.out, "\n")
	if len(days) != 15 || len(days[0]) != 79 || days[0] != "Mon 2025-11-03 2,000 "+strings.Repeat("#", 58) || days[1] != "Tue 2025-11-04     0" || days[2] != "Wed 2025-11-05    10 #" {
		t.Errorf("the plot of days:\n%s", a.out)
	}

	a = stats("--by", "weekday-hour")
	hours := strings.Split(a.out, "\n")
	if len(hours) != 26 || strings.Join(strings.Fields(hours[0]), " ") != "HOUR MON TUE WED THU FRI SAT SUN" ||
		strings.Join(strings.Fields(hours[10]), " ") != "09:00 2,000 0 0 0 0 0 0" || strings.Join(strings.Fields(hours[1]), " ") != "00:00 0 0 5.0 5.0 5.0 5.0 0" {
		t.Errorf("the table of the week:\n%s", a.out)
	}
	if !strings.Contains(a.err, "The most: Mon 09:00 (2,000 an hour), Wed 00:00 (5.0 an hour)") {
		t.Errorf("in words: %s", a.err)
	}
	a = stats("--by", "weekday-hour", "-o", "plot")
	if want := `    00 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16 17 18 19 20 21 22 23
Mon                            @@@
Tue
Wed ...
Thu ...
Fri ...
Sat ...
Sun
    an hour:  .. to 333  :: to 667  ++ to 1,000  ** to 1,333  ## to 1,667  @@ to 2,000
`; a.out != want {
		t.Errorf("the plot of the week:\n%s\nwant\n%s", a.out, want)
	}

	found := decodeJSON[admin.Stats](t, stats("--by", "hour", "-o", "json").out)
	if found.Done != 4040 || len(found.Buckets) != 14*24 || found.Buckets[9].Done != 2000 || found.Buckets[9].Start.Format(time.RFC3339) != "2025-11-03T09:00:00+01:00" {
		t.Errorf("%+v", found.Buckets[9])
	}
	if lines := stats("-o", "jsonl").out; strings.Count(lines, "\n") != 14 || !strings.HasPrefix(lines, `{"start":"2025-11-03T00:00:00+01:00","done":2000}`) {
		t.Errorf("lines of JSON:\n%s", lines)
	}
	// The letter of today, in the day that goes on.
	a = call(t, Options{}, "stats", "-o", "plot", "--database-url", dsn)
	if lines := strings.Split(strings.TrimSpace(a.out), "\n"); len(lines) != 31 || !strings.Contains(lines[30], " 1+ :::::") || !strings.Contains(a.err, "1 of all types done") {
		t.Errorf("%+v", a)
	}
}

func TestStatsThatCannotBeMadeAreErrorsOfUsage(t *testing.T) {
	t.Parallel()
	dsn, _ := database(t)
	for _, args := range [][]string{{"--by", "month"}, {"--zone", "Europe/Belrin"}, {"--since", "-1h"}, {"--by", "hour", "--since", "1970-01-01"}, {"-o", "svg"}} {
		if a := call(t, Options{}, append([]string{"stats", "--database-url", dsn}, args...)...); a.code != 2 || a.out != "" {
			t.Errorf("%q: %+v", args, a)
		}
	}
	if a := call(t, Options{}, "stats", "parcel", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "no worker has registered this job type") {
		t.Errorf("%+v", a)
	}
}

// What a terminal shows, at any width.
func TestAPlotFitsTheTerminal(t *testing.T) {
	for _, width := range []int{20, 30, 80, 200} {
		b := blocks
		b.width = width
		week := &admin.Stats{By: admin.ByWeekdayHour}
		for i := range 7 * 24 {
			day, hour := time.Weekday((i/24+1)%7), i%24
			week.Buckets = append(week.Buckets, admin.StatsBucket{Weekday: &day, Hour: &hour, Hours: 2, Done: int64(i)})
		}
		days := &admin.Stats{By: admin.ByDay}
		for i := range 9 {
			days.Buckets = append(days.Buckets, admin.StatsBucket{Start: time.Date(2025, 11, 1+i, 0, 0, 0, 0, time.UTC), Done: int64(i), Open: i == 8})
		}
		plain := func(s string) string { return s }
		for _, line := range append(heat(week, b, plain)[:8], bars(days, b, plain)...) {
			if n := len([]rune(line)); n >= max(width, 30) {
				t.Errorf("%d columns in a terminal of %d: %q", n, width, line)
			}
		}
		if lines := bars(days, b, plain); width == 80 && (!strings.HasSuffix(lines[8], " 8+ "+strings.Repeat("░", 61)) || !strings.HasSuffix(lines[4], " 4 "+strings.Repeat("█", 30)+"▌") || strings.ContainsAny(lines[0], "█▏")) {
			t.Errorf("the bars:\n%s", strings.Join(lines, "\n"))
		}
	}
}
