package admin

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// Stats are how many entities were completed, and when: facts that are there, and those
// that were replaced since. They come from the ledger alone. Quarters of an hour that are
// closed are summed once (see [worker.RollUp]), later ones are counted as they are now.
type Stats struct {
	Now     time.Time     `json:"now"`  // the database's clock
	Type    string        `json:"type"` // empty: all
	By      By            `json:"by"`
	Zone    string        `json:"zone"`  // that days and hours are of
	Since   time.Time     `json:"since"` // the window, in whole hours or days
	Until   time.Time     `json:"until"`
	Done    int64         `json:"done"`              // in all buckets
	Counted *time.Time    `json:"counted,omitempty"` // up to here: later ones are too many to count now, until they are summed; null: all
	Buckets []StatsBucket `json:"buckets"`           // without gaps, in order
}

// By is what a bucket of [Stats] is.
type By string

const (
	ByHour        By = "hour"
	ByDay         By = "day"
	ByWeekdayHour By = "weekday-hour" // the same hour of the same day of all weeks, from Monday at 0 on
)

// A StatsBucket is an hour, a day, or all hours at the same time of the week.
type StatsBucket struct {
	Start   time.Time     `json:"start,omitzero"` // of the hour or day, in the zone
	Open    bool          `json:"open,omitempty"` // it has not ended
	Weekday *time.Weekday `json:"weekday,omitempty"`
	Hour    *int          `json:"hour,omitempty"`
	Hours   int           `json:"hours,omitempty"` // so many hours of the window are at this time of the week
	Done    int64         `json:"done"`
}

// Mean is how many were completed in an hour at this time of the week.
func (b *StatsBucket) Mean() float64 { return float64(b.Done) / float64(max(1, b.Hours)) }

// A StatsQuery says what to count. Only By is required.
type StatsQuery struct {
	Type string // by any of its names; "": all
	By   By
	Zone string // of the IANA database; "": UTC

	// Window is widened to whole hours or days. Without a beginning it is the last 24 hours,
	// 30 days, or, by weekday and hour, 28 days of hours that have ended.
	Window
}

// usual is how long a window is of which nothing is said, and bucketsMost how long a list.
var usual = map[By]time.Duration{ByHour: 24 * time.Hour, ByDay: 30 * 24 * time.Hour, ByWeekdayHour: 28 * 24 * time.Hour}

const bucketsMost = 10_000

// ErrStats says that a [StatsQuery] makes no sense.
var ErrStats = errors.New("these statistics cannot be made")

// ReadStats counts completions. What has not been summed yet is counted if tx's statement
// timeout allows it; see [Stats].Counted.
func ReadStats(ctx context.Context, tx pgx.Tx, set *jobs.Set, q StatsQuery) (*Stats, error) {
	if usual[q.By] == 0 {
		return nil, fmt.Errorf("by %q: %w: want %s, %s or %s", q.By, ErrStats, ByHour, ByDay, ByWeekdayHour)
	}
	zone, err := time.LoadLocation(q.Zone)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStats, err)
	}
	types, err := wanted(ctx, tx, set, q.Type)
	if err != nil {
		return nil, err
	}
	s := &Stats{By: q.By, Zone: zone.String()}
	for _, t := range types {
		if q.Type != "" {
			s.Type = t.Name
		}
	}
	if s.Now, err = serverTime(ctx, tx); err != nil {
		return nil, err
	}
	if err := s.lay(q, zone); err != nil {
		return nil, err
	}
	return s, s.count(ctx, tx, idsOf(types), zone)
}

// lay lays out the window and its empty buckets.
func (s *Stats) lay(q StatsQuery, zone *time.Location) error {
	now := s.Now.In(zone)
	since, until := q.Since.In(zone), q.Until.In(zone)
	if q.Until.IsZero() || until.After(now) {
		until = now
	}
	if q.Since.IsZero() {
		since = until.Add(-usual[q.By])
	}
	if within := now.Add(-q.Within); q.Within > 0 && (q.Since.IsZero() || within.After(since)) {
		since = within
	}
	since = s.By.start(since)
	if end := s.By.start(until); s.By == ByWeekdayHour && until.Equal(now) {
		until = end // an hour that goes on would count as a poor one
	} else if end.Before(until) {
		until = s.By.next(end)
	}
	if !since.Before(until) {
		return fmt.Errorf("%w: the window from %s to %s is empty", ErrStats, since.Format(time.RFC3339), until.Format(time.RFC3339))
	}
	s.Since, s.Until = since, until
	if s.By == ByWeekdayHour {
		for i := range 7 * 24 {
			day, hour := time.Weekday((i/24+1)%7), i%24
			s.Buckets = append(s.Buckets, StatsBucket{Weekday: &day, Hour: &hour})
		}
		for at := since; at.Before(until); at = s.By.next(at) {
			s.Buckets[timeOfWeek(at)].Hours++
		}
		return nil
	}
	for at := since; at.Before(until); at = s.By.next(at) {
		if len(s.Buckets) == bucketsMost {
			return fmt.Errorf("%w: more than %d buckets; narrow the window", ErrStats, bucketsMost)
		}
		s.Buckets = append(s.Buckets, StatsBucket{Start: at, Open: s.By.next(at).After(now)})
	}
	return nil
}

// start is the beginning of the hour or day that t is in, in t's zone. Zones are not all
// off by whole hours, and where clocks are set at midnight a day may begin at one.
func (by By) start(t time.Time) time.Time {
	if by != ByDay {
		return t.Add(-time.Duration(t.Minute())*time.Minute - time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
	}
	midnight := time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, t.Location())
	if midnight.Day() != t.Day() {
		return midnight.Add(time.Hour) // there is none; this was the one before it was skipped
	}
	return midnight
}

// next is the beginning of the one after.
func (by By) next(start time.Time) time.Time {
	if by == ByDay {
		return by.start(time.Date(start.Year(), start.Month(), start.Day()+1, 12, 0, 0, 0, start.Location()))
	}
	return start.Add(time.Hour)
}

// timeOfWeek is the index of a bucket, from Monday at 0 on.
func timeOfWeek(t time.Time) int { return (int(t.Weekday())+6)%7*24 + t.Hour() }

// count fills the buckets: from the sums up to where they go, and from the ledger behind.
func (s *Stats) count(ctx context.Context, tx pgx.Tx, types []int32, zone *time.Location) error {
	var closed *time.Time
	if err := tx.QueryRow(ctx, `SELECT closed FROM oncemore.completions_watermark`).Scan(&closed); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look how far the statistics are: %w", err)
	}
	live := s.Since
	if closed != nil && closed.After(live) {
		live = *closed
		if live.After(s.Until) {
			live = s.Until
		}
		if err := s.add(ctx, tx, zone, summedSQL, types, s.Since, live); err != nil {
			return fmt.Errorf("read the statistics: %w", err)
		}
	}
	if !live.Before(s.Until) {
		return nil
	}
	// In a transaction of its own, so that what is summed can be shown if this takes too long.
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return s.add(ctx, tx, zone, liveSQL, types, live, s.Until) })
	if TimedOut(err) && ctx.Err() == nil {
		live = live.In(zone)
		s.Counted, err = &live, nil
	}
	if err != nil {
		return fmt.Errorf("count what was completed since %s: %w", live.Format(time.RFC3339), err)
	}
	return nil
}

func (s *Stats) add(ctx context.Context, tx pgx.Tx, zone *time.Location, query string, types []int32, since, until time.Time) error {
	rows, err := tx.Query(ctx, query, types, since, until)
	if err != nil {
		return err
	}
	var at time.Time
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&at, &n}, func() error {
		s.Buckets[s.index(at.In(zone))].Done += n
		s.Done += n
		return nil
	})
	return err
}

// index is that of the bucket which a time of the window belongs to.
func (s *Stats) index(at time.Time) int {
	if s.By == ByWeekdayHour {
		return timeOfWeek(at)
	}
	return sort.Search(len(s.Buckets), func(i int) bool { return s.Buckets[i].Start.After(at) }) - 1
}

const (
	summedSQL = `
SELECT quarter, sum(n)::bigint FROM oncemore.completions_quarter
WHERE job_type = ANY ($1) AND quarter >= $2 AND quarter < $3 GROUP BY quarter`

	// "+ 0" keeps the planner from walking all of a type by the primary key: the time narrows
	// it down by far more.
	liveSQL = `
SELECT date_bin('15 minutes', f.completed_at, timestamptz '2000-01-01 00:00Z'), count(*) FROM (
    SELECT completed_at FROM oncemore.ledger WHERE job_type + 0 = ANY ($1) AND completed_at >= $2 AND completed_at < $3
    UNION ALL
    SELECT completed_at FROM oncemore.ledger_history WHERE job_type + 0 = ANY ($1) AND completed_at >= $2 AND completed_at < $3
) f GROUP BY 1`
)
