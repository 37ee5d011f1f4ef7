package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/jobs/cron"
	"github.com/oncemore-jobs/oncemore/queue"
)

// A Schedule calls something again by the clock. Each of its ticks starts one run: it
// enqueues Args, or asks for Rerun.
//
// Those of [Config.Schedules] are declared by the program: its workers write them to the
// database when they start, and say every few minutes that they still have them. When the
// spec or the zone has changed, ticks count from then on. One that is taken out of the
// code stops within a quarter of an hour after the last program that had it, is listed as
// orphaned, and can be deleted; put back, it is caught up as after an outage. Of two
// versions of a program the one that runs last wins. Schedules of the database alone are
// an operator's, see package admin.
//
// Any number of processes may run, and none of them leads. Each schedule is ticked by the
// workers that have its job, with the database's clock.
type Schedule struct {
	Name string // is for ever, as that of a job type
	Spec string // see [cron.Parse]: "30 2 * * *", "@hourly", "@every 90s"
	Zone string // of the IANA database, in which Spec is read; "": UTC

	// Args are enqueued by each tick. A fan-out plans again, and skips what is done. Any other
	// job is done again: its message carries an epoch of the tick, since a fact of an earlier
	// tick would otherwise be enough for ever. In strings of Args, and of the entity that is
	// made of them, {tick} stands for the tick in UTC (2026-03-29T01:00:00Z) and {date} for
	// its date in Zone (2026-03-29): with them each tick can have an entity of its own.
	Args jobs.Args
	// Rerun is asked for by each tick, instead of Args: what its selection picks then is
	// worked. Its By, Origin, Delay, Schedule and Tick are ignored.
	Rerun *Order

	// CatchUp says what becomes of the ticks of a time in which no worker ran; "":
	// [CatchUpLatest]. A tick that is not a minute late yet counts as on time.
	CatchUp CatchUp
	// CatchUpMost bounds [CatchUpAll] to the newest so many, and how many ticks
	// [OverlapQueue] keeps; 0: 100, at most 1000.
	CatchUpMost int
	// MaxAge is when it is too late for a tick to start; 0: never.
	MaxAge time.Duration

	// Jitter delays each start by up to so much, always the same for the same tick, so that
	// the schedules of many do not all begin at midnight. The tick stays that of the spec.
	Jitter time.Duration
	// Overlap says what becomes of a tick while what the last one started has not ended: is
	// waiting, being worked, or in doubt about the same entity. What failed has ended. "":
	// [OverlapSkip], and with [CatchUpAll] OverlapQueue, which that needs.
	Overlap Overlap
}

// A CatchUp is what becomes of ticks that are late.
type CatchUp string

const (
	CatchUpLatest CatchUp = "latest" // one start makes up for all of them, unless a tick that is on time does
	CatchUpNone   CatchUp = "none"   // they are missed
	CatchUpAll    CatchUp = "all"    // each is started, one after the other
)

// An Overlap is what becomes of a tick while the last one's work goes on.
type Overlap string

const (
	OverlapSkip  Overlap = "skip"  // it is skipped, and the next one is asked again
	OverlapQueue Overlap = "queue" // it waits, and starts when that has ended
)

const (
	defaultCatchUpMost = 100
	maxCatchUpMost     = 1000
)

// A storedSchedule is a row of oncemore.schedule, or what is to become one.
type storedSchedule struct {
	Name, Spec, Zone, JobType string
	Entity, Args, Rerun       *string
	CatchUp                   CatchUp
	CatchUpMost               int
	MaxAge, Jitter            float64 // seconds
	Overlap                   Overlap
	FromCode, Orphan          bool
	Paused, Error             *string
	Cursor                    time.Time
	LastStarted               *time.Time
}

// A storedRerun is an [Order] in the column rerun.
type storedRerun struct {
	Selection   json.RawMessage `json:"selection"`
	Reason      string          `json:"reason,omitempty"`
	Rate        float64         `json:"rate,omitempty"`
	Canary      int64           `json:"canary,omitempty"`
	CanaryShare float64         `json:"canary_share,omitempty"`
}

// Check says what is wrong with s, in words for its author. set is the program's jobs;
// nil: not known here, and then less can be checked.
func (s Schedule) Check(set *jobs.Set) error {
	_, err := s.store(set)
	return err
}

// store makes the row of s.
func (s Schedule) store(set *jobs.Set) (*storedSchedule, error) {
	r, err := s.row()
	if err == nil {
		_, err = r.plan(func(name string) (*jobs.Erased, bool) {
			if set == nil {
				return nil, true
			}
			return set.Lookup(name)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w", s.Name, err)
	}
	return r, nil
}

func (s Schedule) row() (*storedSchedule, error) {
	if err := queue.CheckName("name of a schedule", s.Name); err != nil {
		return nil, err
	}
	r := &storedSchedule{Name: s.Name, Spec: s.Spec, Zone: s.Zone, CatchUp: s.CatchUp, CatchUpMost: s.CatchUpMost, Overlap: s.Overlap,
		MaxAge: s.MaxAge.Seconds(), Jitter: s.Jitter.Seconds()}
	if r.Zone == "" {
		r.Zone = "UTC"
	}
	if r.CatchUp == "" {
		r.CatchUp = CatchUpLatest
	}
	if r.CatchUpMost == 0 {
		r.CatchUpMost = defaultCatchUpMost
	}
	if r.Overlap == "" {
		r.Overlap = OverlapSkip
		if r.CatchUp == CatchUpAll {
			r.Overlap = OverlapQueue
		}
	}
	switch {
	case (s.Args == nil) == (s.Rerun == nil):
		return nil, errors.New("set one of Args and Rerun: what is it that a tick starts?")
	case s.Args != nil:
		it, err := jobs.NewItem(s.Args)
		if err != nil {
			return nil, err
		}
		args := string(it.Args)
		r.JobType, r.Entity, r.Args = s.Args.JobType(), &it.Entity, &args
	default:
		o := s.Rerun
		selection, err := json.Marshal(o.Selection)
		if err != nil {
			return nil, fmt.Errorf("encode the selection: %w", err)
		}
		raw, err := json.Marshal(storedRerun{selection, o.Reason, o.Rate, o.Canary, o.CanaryShare})
		if err != nil {
			return nil, fmt.Errorf("encode the re-run: %w", err)
		}
		text := string(raw)
		r.JobType, r.Rerun = o.Type, &text
	}
	return r, nil
}

// A plannedSchedule is a row that was found to be right.
type plannedSchedule struct {
	*storedSchedule
	cron   cron.Schedule
	job    *jobs.Erased // nil: not known here
	order  *Order       // nil: it enqueues
	maxAge time.Duration
	jitter time.Duration
}

// plan checks a row, whoever wrote it.
func (r *storedSchedule) plan(lookup func(string) (*jobs.Erased, bool)) (*plannedSchedule, error) {
	p := &plannedSchedule{storedSchedule: r, maxAge: seconds(r.MaxAge), jitter: seconds(r.Jitter)}
	var err error
	if p.cron, err = cron.Parse(r.Spec, r.Zone); err != nil {
		return nil, err
	}
	var known bool
	if p.job, known = lookup(r.JobType); !known {
		return nil, fmt.Errorf("no job %q is registered", r.JobType)
	}
	switch {
	case !slices.Contains([]CatchUp{CatchUpNone, CatchUpLatest, CatchUpAll}, r.CatchUp):
		return nil, fmt.Errorf("catch-up %q: want none, latest or all", r.CatchUp)
	case !slices.Contains([]Overlap{OverlapSkip, OverlapQueue}, r.Overlap):
		return nil, fmt.Errorf("overlap %q: want skip or queue", r.Overlap)
	case r.CatchUp == CatchUpAll && r.Overlap == OverlapSkip:
		return nil, errors.New("catch-up all starts what was missed one after the other, so its overlap must be queue: with skip the first of them would have the others skipped")
	case r.CatchUpMost < 1 || r.CatchUpMost > maxCatchUpMost:
		return nil, fmt.Errorf("catch-up of %d ticks: want 1 to %d", r.CatchUpMost, maxCatchUpMost)
	case p.maxAge < 0 || p.jitter < 0:
		return nil, errors.New("the maximum age and the jitter must not be negative")
	case (r.Entity == nil) != (r.Args == nil) || (r.Args == nil) == (r.Rerun == nil):
		return nil, errors.New("a row has either entity and args, or rerun")
	}
	if r.Rerun != nil {
		p.order, err = r.readRerun(p.job)
		return p, err
	}
	// Tried with some tick, so that what is wrong is said now and not at night.
	m := p.message(time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC))
	if err := m.Check(); err != nil {
		return nil, err
	}
	if p.job != nil {
		if _, err := p.job.Decode(m.Items[0].Entity, m.Items[0].Args); err != nil {
			return nil, fmt.Errorf("what a tick of it would enqueue as %s cannot be worked: %w", r.JobType, err)
		}
	}
	return p, nil
}

func (r *storedSchedule) readRerun(job *jobs.Erased) (*Order, error) {
	if job != nil && job.FanOut != nil {
		return nil, fmt.Errorf("%s fans out, and cannot be re-run: set Args, which call it again", r.JobType)
	}
	var in storedRerun
	o := &Order{Type: r.JobType}
	if err := json.Unmarshal([]byte(*r.Rerun), &in); err != nil {
		return nil, fmt.Errorf("decode the re-run: %w", err)
	}
	if err := json.Unmarshal(in.Selection, &o.Selection); err != nil {
		return nil, fmt.Errorf("decode the selection of the re-run: %w", err)
	}
	o.Reason, o.Rate, o.Canary, o.CanaryShare = in.Reason, in.Rate, in.Canary, in.CanaryShare
	return o, o.check()
}

// messageOf is what a tick sends, but for its epoch and delay; nil where it asks for a re-run.
func (p *plannedSchedule) messageOf(tick time.Time) *queue.Message {
	if p.order != nil {
		return nil
	}
	m := p.message(tick)
	return &m
}

func (p *plannedSchedule) message(tick time.Time) queue.Message {
	r := strings.NewReplacer("{tick}", tick.UTC().Format(time.RFC3339), "{date}", tick.In(p.cron.Zone()).Format(time.DateOnly))
	m := queue.Message{Type: p.JobType, Items: []queue.Item{{Entity: r.Replace(*p.Entity), Args: json.RawMessage(r.Replace(*p.Args))}}}
	if p.job != nil {
		m.Type, m.Priority = p.job.Type, p.job.Priority
	}
	return m
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// checkSchedules makes the rows of what the program declares.
func (w *Worker) checkSchedules() error {
	var mistakes []error
	names := map[string]bool{}
	for _, s := range w.config.Schedules {
		r, err := s.store(w.set)
		if err == nil && names[s.Name] {
			err = fmt.Errorf("schedule %q is declared twice", s.Name)
		}
		if err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		names[s.Name], r.FromCode = true, true
		w.declared = append(w.declared, r)
	}
	return errors.Join(mistakes...)
}

// declare writes what the program declares.
func (w *Worker) declare(ctx context.Context) error {
	// By name, so that two programs never wait for each other.
	rows := slices.SortedFunc(slices.Values(w.declared), func(a, b *storedSchedule) int { return strings.Compare(a.Name, b.Name) })
	b := &pgx.Batch{}
	for _, r := range rows {
		b.Queue(putScheduleSQL, r.put()...)
	}
	if err := w.pool.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("declare %d schedules: %w", len(rows), err)
	}
	return nil
}

// PutSchedule writes s to the database in tx, for an operator: set may be nil. What is
// declared by programs is not touched, and false is returned. The cursor of a schedule
// that is there is kept, unless its spec or its zone changes.
func PutSchedule(ctx context.Context, tx pgx.Tx, set *jobs.Set, s Schedule) (bool, error) {
	r, err := s.store(set)
	if err != nil {
		return false, err
	}
	var tag pgconn.CommandTag
	if tag, err = tx.Exec(ctx, putScheduleSQL, r.put()...); err != nil {
		return false, fmt.Errorf("write schedule %q: %w", s.Name, err)
	}
	return tag.RowsAffected() > 0, nil
}

func (r *storedSchedule) put() []any {
	return []any{r.Name, r.Spec, r.Zone, r.JobType, r.Entity, r.Args, r.Rerun, string(r.CatchUp), r.CatchUpMost, seconds(r.MaxAge), seconds(r.Jitter), string(r.Overlap), r.FromCode}
}

// What the code declares takes over what an operator wrote, and never the other way round.
// A pause is an operator's, and stays. When nothing changes but the time of the declaration,
// nothing is to be looked at again.
const putScheduleSQL = `
/* schedule: put */
INSERT INTO oncemore.schedule AS s (name, spec, zone, job_type, entity, args, rerun, catch_up, catch_up_most, max_age, jitter, overlap, from_code)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (name) DO UPDATE
SET spec = excluded.spec, zone = excluded.zone, job_type = excluded.job_type, entity = excluded.entity, args = excluded.args, rerun = excluded.rerun,
    catch_up = excluded.catch_up, catch_up_most = excluded.catch_up_most, max_age = excluded.max_age, jitter = excluded.jitter, overlap = excluded.overlap,
    from_code = excluded.from_code, declared_at = clock_timestamp(),
    next_at = CASE WHEN s.error IS NOT NULL OR s.declared_at < clock_timestamp() - interval '1 minute' * ` + orphanMinutes + ` THEN '-infinity' ELSE s.next_at END
WHERE excluded.from_code OR NOT s.from_code`

// A schedule from the code is an orphan when no program has declared it for so long.
const (
	orphanMinutes = "15"
	declareEvery  = 5 * time.Minute
)
