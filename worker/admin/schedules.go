package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs/cron"
)

// A Schedule is one as it stands in the database.
type Schedule struct {
	Name        string          `json:"name"`
	Spec        string          `json:"spec"`
	Zone        string          `json:"zone"`
	Type        string          `json:"job_type"`
	Entity      string          `json:"entity,omitempty"` // a tick enqueues it; empty: it asks for a re-run
	Args        json.RawMessage `json:"args,omitempty"`
	Rerun       json.RawMessage `json:"rerun,omitempty"`
	CatchUp     string          `json:"catch_up"`
	CatchUpMost int             `json:"catch_up_most"`
	MaxAge      float64         `json:"max_age_seconds"` // 0: any age
	Jitter      float64         `json:"jitter_seconds"`
	Overlap     string          `json:"overlap"`
	FromCode    bool            `json:"from_code"`   // declared by programs
	DeclaredAt  time.Time       `json:"declared_at"` // for the last time
	Orphaned    bool            `json:"orphaned"`    // no program declares it any more: it does not tick
	Paused      *string         `json:"paused"`      // why; nil: it is not
	Error       *string         `json:"error"`       // why it does not tick; nil: it does
	Cursor      time.Time       `json:"cursor"`      // every tick until here is decided
	Waiting     int             `json:"waiting"`     // ticks that are to start when another one's work has ended
	Last        *Tick           `json:"last"`        // the newest tick; nil: there was none
	Next        *time.Time      `json:"next"`        // the next tick; nil: there will be none
	State       string          `json:"state"`       // in words; "ok"

	health Health // of State
	do     string // about it
}

// A Tick is what became of one tick of a schedule.
type Tick struct {
	Tick    time.Time `json:"tick"`
	At      time.Time `json:"at"`      // when that was decided
	Outcome string    `json:"outcome"` // started | queued | skipped | missed
	ByHand  bool      `json:"by_hand"`
	Type    string    `json:"job_type,omitempty"` // of what was started
	Entity  string    `json:"entity,omitempty"`
	Run     int64     `json:"run,omitempty"` // 0: none, or that of a fan-out, which is found by its entity
	Detail  string    `json:"detail,omitempty"`
}

// ErrNoSchedule says that there is no schedule of this name.
var ErrNoSchedule = errors.New("there is no such schedule")

// Schedules lists all schedules by name.
func Schedules(ctx context.Context, tx pgx.Tx) (*List[Schedule], error) {
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, fmt.Errorf("list the schedules: %w", err)
	}
	rows, err := readSchedules(ctx, tx, "", now)
	if err != nil {
		return nil, err
	}
	return &List[Schedule]{Now: now, Of: Count{N: int64(len(rows)), Is: Exact}, Rows: rows}, nil
}

// FindSchedule finds one by its name. The error wraps [ErrNoSchedule] and names those that
// there are.
func FindSchedule(ctx context.Context, tx pgx.Tx, name string) (*Schedule, error) {
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, fmt.Errorf("find schedule %q: %w", name, err)
	}
	all, err := readSchedules(ctx, tx, name, now)
	if err != nil || len(all) == 1 {
		return first(all), err
	}
	rows, err := tx.Query(ctx, `SELECT name FROM oncemore.schedule ORDER BY name LIMIT 20`)
	if err != nil {
		return nil, fmt.Errorf("find schedule %q: %w", name, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case err != nil:
		return nil, fmt.Errorf("find schedule %q: %w", name, err)
	case len(names) == 0:
		return nil, fmt.Errorf("%q: %w, nor any other", name, ErrNoSchedule)
	}
	return nil, fmt.Errorf("%q: %w; there are: %s", name, ErrNoSchedule, strings.Join(names, ", "))
}

func first[T any](all []T) *T {
	if len(all) == 0 {
		return nil
	}
	return &all[0]
}

// Ticks returns the newest ticks of a schedule, the newest first.
func Ticks(ctx context.Context, tx pgx.Tx, name string, limit int) ([]Tick, error) {
	ticks, err := rowsOf[Tick](ctx, tx, ticksSQL, name, limit)
	if err != nil {
		return nil, fmt.Errorf("list the ticks of schedule %q: %w", name, err)
	}
	return ticks, nil
}

// NextTimes are the next n ticks of a spec in a zone after t. It asks no database.
func NextTimes(spec, zone string, t time.Time, n int) ([]time.Time, error) {
	s, err := cron.Parse(spec, zone)
	if err != nil {
		return nil, err
	}
	return s.Upcoming(t, n), nil
}

const (
	schedulesSQL = `
SELECT s.name, s.spec, s.zone, s.job_type, coalesce(s.entity, ''), s.args, s.rerun, s.catch_up, s.catch_up_most,
       extract(epoch FROM s.max_age)::float8, extract(epoch FROM s.jitter)::float8, s.overlap, s.from_code, s.declared_at,
       s.from_code AND s.declared_at < clock_timestamp() - interval '15 minutes', s.paused, s.error, s.cursor,
       (SELECT count(*) FROM oncemore.schedule_tick q WHERE q.schedule = s.name AND q.outcome = 'queued'), l.tick, coalesce(l.outcome, '')
FROM oncemore.schedule s
LEFT JOIN LATERAL (SELECT t.tick, t.outcome FROM oncemore.schedule_tick t WHERE t.schedule = s.name ORDER BY t.tick DESC LIMIT 1) l ON true
WHERE $1 = '' OR s.name = $1
ORDER BY s.name`

	ticksSQL = `
SELECT t.tick, t.at, t.outcome, t.by_hand, coalesce(t.job_type, ''), coalesce(t.entity, ''), coalesce(t.run, 0), t.detail
FROM oncemore.schedule_tick t WHERE t.schedule = $1 ORDER BY t.tick DESC LIMIT $2`
)

func readSchedules(ctx context.Context, tx pgx.Tx, name string, now time.Time) ([]Schedule, error) {
	rows, err := tx.Query(ctx, schedulesSQL, name)
	if err != nil {
		return nil, fmt.Errorf("list the schedules: %w", err)
	}
	out := []Schedule{}
	for rows.Next() {
		var s Schedule
		var args, rerun *string
		var last Tick
		var lastTick *time.Time
		if err := rows.Scan(&s.Name, &s.Spec, &s.Zone, &s.Type, &s.Entity, &args, &rerun, &s.CatchUp, &s.CatchUpMost, &s.MaxAge, &s.Jitter, &s.Overlap,
			&s.FromCode, &s.DeclaredAt, &s.Orphaned, &s.Paused, &s.Error, &s.Cursor, &s.Waiting, &lastTick, &last.Outcome); err != nil {
			return nil, fmt.Errorf("list the schedules: %w", err)
		}
		s.Args, s.Rerun = asJSON(args), asJSON(rerun)
		if lastTick != nil {
			last.Tick = *lastTick
			s.Last = &last
		}
		s.judge(now)
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list the schedules: %w", err)
	}
	return out, nil
}

// asJSON is text of a row that is JSON, or a string of it where somebody wrote another.
func asJSON(text *string) json.RawMessage {
	if text == nil {
		return nil
	}
	if json.Valid([]byte(*text)) {
		return json.RawMessage(*text)
	}
	quoted, _ := json.Marshal(*text)
	return quoted
}

const (
	overdue = 2 * time.Minute // a tick should have been decided for long
	ahead   = time.Minute     // a cursor lies not in the future but after the clock was wrong
)

// judge says when s ticks next, and what is the matter with it. One that is paused is well:
// somebody wants it so.
func (s *Schedule) judge(now time.Time) {
	c, err := cron.Parse(s.Spec, s.Zone)
	behind := false
	if err == nil {
		behind = !c.Next(s.Cursor).IsZero() && now.Sub(c.Next(s.Cursor)) > overdue
		from := now
		if s.Cursor.After(now) { // what lies before it is decided, and does not tick again
			from = s.Cursor
		}
		if next := c.Next(from); !next.IsZero() && s.Paused == nil && !s.Orphaned {
			s.Next = &next
		}
	}
	const mend = "mend it, or the job that it names: workers look again every minute"
	s.health = OK
	switch {
	case s.Paused != nil:
		s.State = "paused: " + *s.Paused
	case s.Error != nil:
		s.State, s.health, s.do = "in trouble: "+*s.Error, Bad, mend
	case err != nil:
		s.State, s.health, s.do = "in trouble: "+err.Error(), Bad, mend
	case s.Orphaned:
		s.health, s.do = Warn, "start the program that declares it, or 'schedules rm' it"
		s.State = fmt.Sprintf("orphaned: no program declares it since %s; declare it, or delete it", s.DeclaredAt.UTC().Format(time.RFC3339))
		if behind { // whether it was taken out of the code, or all who have it are down: nobody does what is due
			s.health = Bad
			s.State += fmt.Sprintf(". Its tick of %s is overdue", c.Next(s.Cursor).UTC().Format(time.RFC3339))
		}
	case s.Cursor.Sub(now) > ahead:
		s.health, s.do = Bad, "'schedules pause' and then 'schedules resume' it: it ticks again from then on"
		s.State = fmt.Sprintf("ahead: it is decided until %s, and stands still until then: the database's clock was ahead; pause and resume it", s.Cursor.UTC().Format(time.RFC3339))
	case behind:
		s.State, s.health, s.do = "overdue: no worker runs that has the job "+s.Type, Bad, "start a worker that has the job"
	default:
		s.State = "ok"
	}
}
