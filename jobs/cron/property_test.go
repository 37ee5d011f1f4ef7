package cron_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The zones have hours and half hours, both hemispheres, changes at midnight, changes four
// times a year, a day that was left out, and none at all.
var zones = []string{"America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "Asia/Kathmandu", "Pacific/Apia"}

// A field is some values of a part of the clock.
type field struct {
	text   string
	values []int
}

func drawField(t *rapid.T, what string, low, high int, star bool) field {
	if star {
		switch rapid.IntRange(0, 2).Draw(t, what+" kind") {
		case 0:
			return field{"*", span(low, high, 1)}
		case 1:
			step := rapid.IntRange(2, high-low).Draw(t, what+" step")
			return field{fmt.Sprintf("*/%d", step), span(low, high, step)}
		}
	}
	if rapid.Bool().Draw(t, what+" range") {
		from := rapid.IntRange(low, high).Draw(t, what+" from")
		to := rapid.IntRange(from, high).Draw(t, what+" to")
		return field{fmt.Sprintf("%d-%d", from, to), span(from, to, 1)}
	}
	values := rapid.SliceOfN(rapid.IntRange(low, high), 1, 3).Draw(t, what)
	return field{strings.Trim(strings.ReplaceAll(fmt.Sprint(values), " ", ","), "[]"), values}
}

func span(from, to, step int) (out []int) {
	for v := from; v <= to; v += step {
		out = append(out, v)
	}
	return out
}

// A spec that knows by itself which readings it names.
type spec struct{ minute, hour, dom, month, dow field }

func drawSpec(t *rapid.T) spec {
	star := rapid.Bool().Draw(t, "repeats within the day")
	s := spec{minute: drawField(t, "minute", 0, 59, star), hour: drawField(t, "hour", 0, 23, star),
		dom: field{"*", nil}, month: field{"*", nil}, dow: field{"*", nil}}
	if rapid.IntRange(0, 3).Draw(t, "days of the month") == 0 {
		s.dom = drawField(t, "dom", 1, 31, false)
	}
	if rapid.IntRange(0, 3).Draw(t, "weekdays") == 0 {
		s.dow = drawField(t, "dow", 0, 6, false)
	}
	return s
}

func (s spec) String() string {
	return strings.Join([]string{s.minute.text, s.hour.text, s.dom.text, s.month.text, s.dow.text}, " ")
}

func (s spec) fixed() bool { return !strings.Contains(s.minute.text+s.hour.text, "*") }

func (s spec) names(reading time.Time) bool {
	dom, dow := slices.Contains(s.dom.values, reading.Day()), slices.Contains(s.dow.values, int(reading.Weekday()))
	day := dom || dow || s.dom.values == nil && s.dow.values == nil
	return day && slices.Contains(s.minute.values, reading.Minute()) && slices.Contains(s.hour.values, reading.Hour())
}

// reading is what the zone's clock shows, labelled UTC.
func reading(t time.Time, loc *time.Location) time.Time {
	l := t.In(loc)
	return time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), l.Second(), 0, time.UTC)
}

// byTheMinute looks at the zone's clock once a minute, as somebody who sits before it with
// the list of times: that is the rule, without any arithmetic about zones.
func byTheMinute(s spec, loc *time.Location, from, to time.Time) (due []time.Time) {
	high := reading(from, loc)
	for t := from.Add(-26 * time.Hour); !t.After(from); t = t.Add(time.Minute) {
		if r := reading(t, loc); r.After(high) {
			high = r
		}
	}
	for t := from.Add(time.Minute); !t.After(to); t = t.Add(time.Minute) {
		now := reading(t, loc)
		if !s.fixed() {
			if s.names(now) {
				due = append(due, t)
			}
			continue
		}
		passed := false
		for ; high.Before(now); high = high.Add(time.Minute) {
			passed = passed || s.names(high.Add(time.Minute))
		}
		if passed {
			due = append(due, t)
		}
	}
	return due
}

// For any spec, in seven zones, about each time that a clock was set in this century: what
// Next says is what somebody sees who watches the clock.
func TestEveryTickComesOnceAsTheClockOnTheWallSays(t *testing.T) {
	changes := map[string][]time.Time{}
	for _, zone := range zones {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		for at := time.Date(2000, 1, 1, 0, 0, 0, 0, loc); ; {
			_, end := at.ZoneBounds()
			if end.IsZero() || end.Year() > 2035 {
				break
			}
			changes[zone] = append(changes[zone], end.UTC())
			at = end
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s, zone := drawSpec(t), rapid.SampledFrom(zones).Draw(t, "zone")
		around := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
		if len(changes[zone]) > 0 {
			around = rapid.SampledFrom(changes[zone]).Draw(t, "change")
		}
		from := around.Add(-time.Duration(rapid.IntRange(0, 3000).Draw(t, "minutes before")) * time.Minute)
		to := around.Add(50 * time.Hour)
		parsed, err := parseAny(s.String(), zone)
		if err != nil {
			t.Skip(err) // 31 of no month
		}
		want := byTheMinute(s, parsed.Zone(), from, to)
		var got []time.Time
		for at := parsed.Next(from); !at.After(to) && !at.IsZero(); at = parsed.Next(at) {
			got = append(got, at)
		}
		if !slices.EqualFunc(got, want, time.Time.Equal) {
			t.Fatalf("%s in %s from %s to %s:\n got %s\nwant %s", s, zone, from, to, got, want)
		}
	})
}

// Wherever one asks, the answer is later, and asking from anywhere before it gives the same.
func TestNextIsLaterAndLeavesNothingOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, zone := drawSpec(t).String(), rapid.SampledFrom(zones).Draw(t, "zone")
		if rapid.IntRange(0, 9).Draw(t, "every") == 0 {
			s = fmt.Sprintf("@every %ds", rapid.IntRange(1, 100_000).Draw(t, "seconds"))
		}
		parsed, err := parseAny(s, zone)
		if err != nil {
			t.Skip(err)
		}
		from := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "from"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanoseconds"))
		next := parsed.Next(from)
		if !next.After(from) || next.Nanosecond() != 0 {
			t.Fatalf("%s in %s: %s is followed by %s", s, zone, from, next)
		}
		between := from.Add(time.Duration(rapid.Int64Range(0, int64(next.Sub(from))-1).Draw(t, "between")))
		if again := parsed.Next(between); !again.Equal(next) {
			t.Fatalf("%s in %s: from %s the next is %s, from %s it is %s", s, zone, from, next, between, again)
		}
	})
}
