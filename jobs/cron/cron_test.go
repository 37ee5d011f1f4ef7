package cron_test

import (
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs/cron"
)

func parse(t testing.TB, spec, zone string) cron.Schedule {
	t.Helper()
	s, err := cron.Parse(spec, zone)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parseAny(spec, zone string) (cron.Schedule, error) { return cron.Parse(spec, zone) }

func at(t testing.TB, rfc3339 string) time.Time {
	t.Helper()
	x, err := time.Parse(time.RFC3339, rfc3339)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// What happens to a schedule on the nights when the clock is set, as a table to look up.
func TestOnTheNightsWhenTheClockIsSet(t *testing.T) {
	for _, test := range []struct {
		what, spec, zone, from string
		want                   []string
	}{
		{"a time that is jumped over comes when the jump ends", "30 2 * * *", "America/New_York", "2026-03-07T12:00:00-05:00",
			[]string{"2026-03-08T03:00:00-04:00", "2026-03-09T02:30:00-04:00"}},
		{"a time that comes twice is taken the first time", "30 1 * * *", "America/New_York", "2026-10-31T12:00:00-04:00",
			[]string{"2026-11-01T01:30:00-04:00", "2026-11-02T01:30:00-05:00"}},
		{"asked between the two, it is over", "30 1 * * *", "America/New_York", "2026-11-01T01:10:00-05:00",
			[]string{"2026-11-02T01:30:00-05:00"}},
		{"the moment itself at which the repeated hour ends", "0 2 * * *", "America/New_York", "2026-11-01T01:30:00-04:00",
			[]string{"2026-11-01T02:00:00-05:00", "2026-11-02T02:00:00-05:00"}},
		{"the same in Europe", "30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+01:00",
			[]string{"2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"}},
		{"and in autumn", "30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00+02:00",
			[]string{"2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"}},
		{"a midnight that is not there", "0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00-03:00",
			[]string{"2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00"}},
		{"the same by a word", "@daily", "Africa/Cairo", "2026-04-23T12:00:00+02:00",
			[]string{"2026-04-24T01:00:00+03:00", "2026-04-25T00:00:00+03:00"}},
		{"a day whose midnight is not there has its hours", "0 */6 * * 0", "America/Sao_Paulo", "2018-11-03T12:00:00-03:00",
			[]string{"2018-11-04T06:00:00-02:00", "2018-11-04T12:00:00-02:00", "2018-11-04T18:00:00-02:00", "2018-11-11T00:00:00-02:00"}},
		{"half an hour is enough", "45 1,2 * * *", "Australia/Lord_Howe", "2026-10-03T23:00:00+10:30",
			[]string{"2026-10-04T01:45:00+10:30", "2026-10-04T02:45:00+11:00"}},
		{"half an hour that is jumped over", "15 2 * * *", "Australia/Lord_Howe", "2026-10-03T23:00:00+10:30",
			[]string{"2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"}},
		{"several times in one jump are one", "0,15,30,45 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00+01:00",
			[]string{"2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"}},
		{"and one with the time at which it ends", "0 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00:00+01:00",
			[]string{"2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"}},
		{"what repeats follows real time: twice in the hour that comes twice", "*/30 * * * *", "America/New_York", "2026-11-01T01:30:00-04:00",
			[]string{"2026-11-01T01:00:00-05:00", "2026-11-01T01:30:00-05:00", "2026-11-01T02:00:00-05:00"}},
		{"and not in one that does not come", "*/30 * * * *", "America/New_York", "2026-03-08T01:10:00-05:00",
			[]string{"2026-03-08T01:30:00-05:00", "2026-03-08T03:00:00-04:00"}},
		{"every minute of an hour that comes twice", "*/20 1 * * *", "America/New_York", "2026-11-01T01:39:00-04:00",
			[]string{"2026-11-01T01:40:00-04:00", "2026-11-01T01:00:00-05:00", "2026-11-01T01:20:00-05:00", "2026-11-01T01:40:00-05:00", "2026-11-02T01:00:00-05:00"}},
		{"every hour", "@hourly", "Europe/Berlin", "2026-10-25T02:30:00+02:00",
			[]string{"2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"}},
		{"a whole day that is not there", "0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00-10:00",
			[]string{"2011-12-31T00:00:00+14:00", "2011-12-31T12:00:00+14:00"}},
		{"no clock is set", "0 9 * * 1-5", "Asia/Kolkata", "2026-11-20T10:00:00+05:30", []string{"2026-11-23T09:00:00+05:30"}},
		{"the day of the month or the weekday", "0 0 13 * 5", "UTC", "2026-11-12T12:00:00Z",
			[]string{"2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z"}},
		{"a leap day behind a year that has none", "0 0 29 2 *", "UTC", "2096-03-01T00:00:00Z", []string{"2104-02-29T00:00:00Z"}},
		{"the last day of a leap year that is far away", "0 12 31 12 *", "Europe/Berlin", "2040-06-01T00:00:00+02:00",
			[]string{"2040-12-31T12:00:00+01:00", "2041-12-31T12:00:00+01:00"}},
		{"and what repeats on it", "0 */12 31 12 *", "Europe/Berlin", "2040-06-01T00:00:00+02:00",
			[]string{"2040-12-31T00:00:00+01:00", "2040-12-31T12:00:00+01:00", "2041-12-31T00:00:00+01:00"}},
		{"six fields have seconds", "*/20 59 23 * * *", "UTC", "2026-11-20T23:59:30Z",
			[]string{"2026-11-20T23:59:40Z", "2026-11-21T23:59:00Z"}},
		{"every counts from the epoch", "@every 7s", "Europe/Berlin", "1970-01-01T00:00:00Z",
			[]string{"1970-01-01T00:00:07Z", "1970-01-01T00:00:14Z"}},
		{"also before it", "@every 7s", "", "1969-12-31T23:59:54Z", []string{"1970-01-01T00:00:00Z"}},
		{"a part of a second is over", "@every 1s", "", "2026-11-20T23:59:30.5Z", []string{"2026-11-20T23:59:31Z", "2026-11-20T23:59:32Z"}},
	} {
		s := parse(t, test.spec, test.zone)
		got := s.Upcoming(at(t, test.from), len(test.want))
		var have []string
		for _, x := range got {
			have = append(have, x.In(s.Zone()).Format(time.RFC3339))
			if x.Location() != time.UTC {
				t.Errorf("%s: %s is not in UTC", test.what, x)
			}
		}
		want := strings.Join(test.want, " ")
		if s.Zone().String() != "UTC" && strings.HasPrefix(test.spec, "@every") {
			for i := range have {
				have[i] = got[i].Format(time.RFC3339)
			}
		}
		if strings.Join(have, " ") != want {
			t.Errorf("%s: %s after %s\n got %s\nwant %s", test.what, s, test.from, strings.Join(have, " "), want)
		}
	}
}

// Each of these either crashes robfig's parser, or means something else than it says.
func TestASpecThatWouldSurpriseIsRefusedAndTheErrorSaysWhatToDo(t *testing.T) {
	for _, test := range []struct{ spec, zone, says string }{
		{"TZ=0", "UTC", "apart from the spec"},
		{"TZ=", "UTC", "apart from the spec"},
		{"CRON_TZ=Europe/Berlin", "UTC", "apart from the spec"},
		{"CRON_TZ=Europe/Berlin 0 0 * * *", "", "apart from the spec"},
		{"", "UTC", "five fields"},
		{"* * * *", "UTC", "five fields"},
		{"0 0 0 0 0 0 0", "UTC", "five fields"},
		{"@often", "UTC", "@hourly"},
		{"@reboot", "UTC", "@hourly"},
		{"0 0 L * *", "UTC", "five fields"},
		{"H 0 * * *", "UTC", "five fields"},
		{"0 24 * * *", "UTC", "above maximum"},
		{"0 0 * * 7", "UTC", "Sunday is 0 or SUN"},
		{"0 0 30 2 *", "UTC", "no such day"},
		{"0 0 31 4,6,9,11 *", "Europe/Berlin", "no such day"},
		{"*/70 * * * *", "UTC", "@every"},
		{"0 */24 * * *", "UTC", "@every"},
		{"@every", "UTC", "a duration"},
		{"@every 0s", "UTC", "at least one"},
		{"@every -1h", "UTC", "at least one"},
		{"@every 500ms", "UTC", "whole number of seconds"},
		{"@every 1.5s", "UTC", "whole number of seconds"},
		{"@every soon", "UTC", "a duration"},
		{"0 0 * * *", "Local", "another one on each machine"},
		{"0 0 * * *", "Europe/Atlantis", "IANA"},
		{"0 0 * * *", "../etc/passwd", "IANA"},
		{"0 0 * * *\x00", "UTC", ""},
	} {
		s, err := cron.Parse(test.spec, test.zone)
		if err == nil {
			t.Errorf("%q in %q is accepted: next is %s", test.spec, test.zone, s.Next(time.Now()))
		} else if !strings.Contains(err.Error(), test.says) || !strings.HasPrefix(err.Error(), "cron spec ") {
			t.Errorf("%q in %q: %v; want it to say %q", test.spec, test.zone, err, test.says)
		}
	}
}

func TestTheZeroScheduleIsNeverDue(t *testing.T) {
	var s cron.Schedule
	if n := s.Next(time.Now()); !n.IsZero() || s.String() != "" || s.Upcoming(time.Now(), 3) != nil || s.Zone() != time.UTC {
		t.Errorf("%s, %q", n, s)
	}
}

func FuzzASpecIsRefusedOrComesLaterAndLater(f *testing.F) {
	for _, spec := range []string{"0 0 * * *", "TZ=0", "@every 1s", "*/5 1-3 * * MON", "1,2/3 ? L # *", "0 0 29 2 *"} {
		f.Add(spec, "Europe/Berlin")
	}
	f.Fuzz(func(t *testing.T, spec, zone string) {
		s, err := cron.Parse(spec, zone)
		if err != nil {
			return
		}
		from := time.Date(2026, 3, 28, 23, 0, 0, 0, time.UTC)
		for range 5 {
			next := s.Next(from)
			if !next.After(from) {
				t.Fatalf("%q in %q: %s is followed by %s", spec, zone, from, next)
			}
			from = next
		}
	})
}
