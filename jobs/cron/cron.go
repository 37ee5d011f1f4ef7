// Package cron says when a cron spec is due, in a time zone, also on the days when that
// zone's clock is set.
//
// Specs are those of github.com/robfig/cron/v3, whose parser and Next are used on clock
// readings alone. Zones are laid over them here, by the rule of ISC cron:
//
//   - A spec of fixed times (no * in the seconds, minutes and hours) is due at the first
//     instant at which the zone's clock reads its time, or a later one. So a time that the
//     clock jumps over is due once, where the jump ends, and one that comes twice is due
//     once, the first time.
//   - A spec that repeats within the day (a * there: every hour, every five minutes) follows
//     real time: it is due whenever the clock reads one of its times. An hour that comes
//     twice has it twice, and one that does not come not at all.
//   - "@every 90s" knows no clock: it counts from the Unix epoch, so that all processes
//     agree on its phase.
package cron

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// A Schedule is a parsed spec in a zone. Get one from [Parse]; the zero Schedule is never
// due.
type Schedule struct {
	spec  string
	loc   *time.Location
	clock *cron.SpecSchedule // on clock readings, which are labelled UTC; nil: every
	fixed bool               // clock names times of the day, which are due once a day each
	every time.Duration      // whole seconds; with clock nil
}

// Parse reads a spec and the name of an IANA time zone; "" is UTC.
//
// A spec has five fields (minute, hour, day of the month, month, weekday), six with the
// seconds first, or is one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly,
// @annually, and "@every 1h30m" in whole seconds. Where the day of the month and the
// weekday are both given, one of them is enough.
//
// It refuses what would surprise: a spec that never comes, steps that are longer than
// their field, a zone inside the spec, and the zone Local, which means something else on
// each machine.
func Parse(spec, zone string) (Schedule, error) {
	s := Schedule{spec: strings.TrimSpace(spec)}
	fail := func(err error) (Schedule, error) {
		return Schedule{}, fmt.Errorf("cron spec %q in zone %q: %w", spec, zone, err)
	}
	var err error
	if s.loc, err = location(zone); err != nil {
		return fail(err)
	}
	switch {
	case strings.HasPrefix(s.spec, "TZ=") || strings.HasPrefix(s.spec, "CRON_TZ="):
		return fail(errors.New("give the zone apart from the spec, without TZ= or CRON_TZ="))
	case strings.HasPrefix(s.spec, "@every"):
		s.every, err = parseEvery(strings.TrimPrefix(s.spec, "@every"))
	default:
		s.clock, s.fixed, err = parseClock(s.spec)
	}
	if err != nil {
		return fail(err)
	}
	if s.Next(time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return fail(errors.New("no such day ever comes: mind the days that the months have"))
	}
	return s, nil
}

func location(zone string) (*time.Location, error) {
	switch zone {
	case "":
		return time.UTC, nil
	case "Local":
		return nil, errors.New("the zone Local is another one on each machine: name one, as Europe/Berlin or UTC")
	}
	loc, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf(`%w: want a name of the IANA database, as Europe/Berlin or UTC; where the machine has no zones, import _ "time/tzdata" in the program`, err)
	}
	return loc, nil
}

func parseEvery(text string) (time.Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(text))
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w: want a duration, as @every 1h30m", err)
	case d < time.Second || d%time.Second != 0:
		return 0, errors.New("want a whole number of seconds, at least one, as @every 90s")
	}
	return d, nil
}

// parser is robfig's, without its zones.
var parser = cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

const want = `want five fields "minute hour day-of-month month weekday", six with the seconds first, or @hourly, @daily, @weekly, @monthly, @yearly, @every 90s`

func parseClock(spec string) (clock *cron.SpecSchedule, fixed bool, err error) {
	defer func() {
		if p := recover(); p != nil { // it does for some malformed specs
			clock, err = nil, fmt.Errorf("%v: %s", p, want)
		}
	}()
	parsed, err := parser.Parse(spec)
	if err != nil {
		if strings.Contains(err.Error(), "above maximum (6)") {
			return nil, false, fmt.Errorf("%w: weekdays are 0 to 6, and Sunday is 0 or SUN", err)
		}
		return nil, false, fmt.Errorf("%w: %s", err, want)
	}
	clock, is := parsed.(*cron.SpecSchedule)
	if !is {
		return nil, false, errors.New(want)
	}
	clock.Location = time.UTC
	if strings.HasPrefix(spec, "@") {
		return clock, spec != "@hourly", nil
	}
	fields := strings.Fields(spec)
	if len(fields) == 5 {
		fields = append([]string{"0"}, fields...)
	}
	if err := checkSteps(fields); err != nil {
		return nil, false, err
	}
	return clock, !strings.ContainsAny(strings.Join(fields[:3], ""), "*?"), nil
}

// checkSteps refuses a step that leaves a field with its first value alone: */70 minutes is
// not every 70 minutes, but every hour.
func checkSteps(fields []string) error {
	sizes := []int{60, 60, 24, 31, 12, 7}
	for i, field := range fields {
		for part := range strings.SplitSeq(field, ",") {
			_, step, _ := strings.Cut(part, "/")
			if n, err := strconv.Atoi(step); err == nil && n >= sizes[i] {
				return fmt.Errorf("the step %d in %q is longer than the field, which has %d values: a step begins anew with each %s; for a true interval say @every",
					n, part, sizes[i], []string{"minute", "hour", "day", "month", "year", "week"}[i])
			}
		}
	}
	return nil
}

// String is the spec and the zone.
func (s Schedule) String() string {
	if s.loc == nil {
		return ""
	}
	return s.spec + " " + s.loc.String()
}

// Zone is what the spec's times are read in.
func (s Schedule) Zone() *time.Location {
	if s.loc == nil {
		return time.UTC
	}
	return s.loc
}

// Next is the first tick after t, a whole second, in UTC. It is zero where there is none
// within some decades.
func (s Schedule) Next(t time.Time) time.Time {
	t = t.UTC()
	switch {
	case s.every > 0:
		period := int64(s.every / time.Second)
		n := t.Unix() / period
		if t.Unix()%period < 0 {
			n-- // before 1970
		}
		return time.Unix((n+1)*period, 0).UTC()
	case s.clock == nil:
		return time.Time{}
	case s.fixed:
		return s.nextFixed(t)
	}
	return s.nextRepeated(t)
}

// Upcoming are the next n ticks after t, fewer where there are no more.
func (s Schedule) Upcoming(t time.Time, n int) []time.Time {
	return slices.Collect(func(yield func(time.Time) bool) {
		for range n {
			if t = s.Next(t); t.IsZero() || !yield(t) {
				return
			}
		}
	})
}

// reading finds the next clock reading of the spec. Robfig's Next looks five years ahead,
// and 29 February may be eight years off.
func (s Schedule) reading(after time.Time) time.Time {
	for range 4 {
		if r := s.clock.Next(after); !r.IsZero() {
			return r
		}
		after = time.Date(after.Year()+5, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return time.Time{}
}

// A stretch is a time in which the zone's clock is not set.
type stretch struct {
	start, end time.Time     // zero: from ever, for ever
	offset     time.Duration // of its readings from UTC
}

// stretch finds the one that has t, which is in UTC, or a part of it.
func (s Schedule) stretch(t time.Time) stretch {
	l := t.In(s.loc)
	start, end := l.ZoneBounds()
	_, offset := l.Zone()
	if !end.IsZero() && !end.After(t) {
		// Where a zone's future is a rule, package time ends each stretch with the 365th day of
		// the year, also for times on the 366th.
		end = time.Date(t.Year()+1, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return stretch{start.UTC(), end.UTC(), time.Duration(offset) * time.Second}
}

// maxStretches bounds a search: zones set their clocks a few times a year.
const maxStretches = 400

// nextFixed waits for the clock's highest reading so far to pass the next one that is
// wanted. Set back, the clock repeats readings and passes none; set forward, it passes many
// at once.
func (s Schedule) nextFixed(t time.Time) time.Time {
	wanted := s.reading(s.highest(t))
	if wanted.IsZero() {
		return wanted
	}
	for at, n := t, 0; n < maxStretches; n++ {
		st := s.stretch(at)
		u := wanted.Add(-st.offset)
		if n > 0 && u.Before(st.start) {
			return st.start // jumped over
		}
		if st.end.IsZero() || u.Before(st.end) {
			return u
		}
		at = st.end
	}
	return time.Time{}
}

// highest is the highest reading that the clock has shown until t.
func (s Schedule) highest(t time.Time) time.Time {
	st := s.stretch(t)
	high := t.Add(st.offset)
	// No clock was ever set back by more than a day.
	for !st.start.IsZero() && t.Sub(st.start) < 25*time.Hour {
		last := st.start.Add(-time.Second)
		st = s.stretch(last)
		if r := last.Add(st.offset); r.After(high) {
			high = r
		}
	}
	return high
}

// nextRepeated looks at one stretch after the other for a reading that is wanted.
func (s Schedule) nextRepeated(t time.Time) time.Time {
	for after, at, n := t, t, 0; n < maxStretches; n++ {
		st := s.stretch(at)
		r := s.reading(after.Add(st.offset))
		if r.IsZero() {
			return r
		}
		u := r.Add(-st.offset)
		if st.end.IsZero() || u.Before(st.end) {
			return u
		}
		after, at = st.end.Add(-time.Second), st.end
	}
	return time.Time{}
}
