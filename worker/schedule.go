package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/jobs"
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
	// An operator's transaction may have one of them, and what is due is not ticked meanwhile.
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
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
