package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/jobs/cron"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A ticked is what one call of tick came to.
type ticked struct {
	Schedule                         string // whose turn it was; "": none is due
	Started, Queued, Skipped, Missed int
	Trouble                          error // the schedule is disabled for it
	News                             bool  // it was not disabled for this before
}

// tick decides what is due at now of one schedule, in tx, which is READ COMMITTED. Any
// number of processes may do it at once: who has locked the row of a schedule decides for
// it, and the others pass on to the next one.
//
// What a tick starts, what is recorded of it, and the move of the cursor are one
// transaction. A crash before its commit costs nothing: the next one who comes finds
// everything as it was. After it the tick is behind the cursor for good.
//
// The trouble of one schedule is its own: it is undone, the row says why, and the others
// go on. An error is of the database, and leaves nothing.
func (w *Worker) tick(ctx context.Context, tx pgx.Tx, now time.Time) (*ticked, error) {
	r, err := w.takeDue(ctx, tx, now)
	if errors.Is(err, pgx.ErrNoRows) {
		return &ticked{}, nil
	} else if err != nil {
		return nil, fmt.Errorf("look for a schedule that is due: %w", err)
	}
	t := &ticked{Schedule: r.Name}
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return w.decide(ctx, tx, r, now, t) })
	if err == nil {
		return t, nil
	}
	err = fmt.Errorf("tick schedule %q: %w", r.Name, err)
	if ctx.Err() != nil || passing(err) {
		return nil, err
	}
	t = &ticked{Schedule: r.Name, Trouble: err, News: r.Error == nil || *r.Error != complaint(err)}
	if _, err := tx.Exec(ctx, disableSQL, r.Name, complaint(err), now.Add(lookAgain)); err != nil {
		return nil, errors.Join(t.Trouble, err)
	}
	return t, nil
}

const (
	lookAgain  = time.Minute        // when a schedule is in trouble, or an orphan
	lookSoon   = time.Second        // when a tick waits for the end of another one's work
	onTime     = time.Minute        // so late, a tick is not late
	recorded   = maxCatchUpMost + 1 // ticks of one outage, at most
	kept       = 10_000             // ticks of a schedule
	firstLook  = 1 * time.Hour      // into the past, for ticks
	maxTrouble = 1000               // bytes
)

// passing errors are of the moment or of the connection, and say nothing about a schedule.
func passing(err error) bool {
	pg, is := errors.AsType[*pgconn.PgError](err)
	if !is {
		return pgconn.Timeout(err) || errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, pgx.ErrTxCommitRollback)
	}
	return ledger.OfTheMoment(pg) && pg.Code != "57014" // a statement that takes too long is the schedule's own trouble
}

func complaint(err error) string { return ledger.Sanitize(err.Error(), maxTrouble) }

// takeDue locks a schedule that is due and that this worker can tick, or returns
// pgx.ErrNoRows.
func (w *Worker) takeDue(ctx context.Context, tx pgx.Tx, now time.Time) (*storedSchedule, error) {
	r := &storedSchedule{}
	err := tx.QueryRow(ctx, takeDueSQL, now, w.set.Names()).Scan(&r.Name, &r.Spec, &r.Zone, &r.JobType, &r.Entity, &r.Args, &r.Rerun, &r.CatchUp, &r.CatchUpMost,
		&r.MaxAge, &r.Jitter, &r.Overlap, &r.Orphan, &r.Paused, &r.Error, &r.Cursor, &r.LastStarted)
	return r, err
}

const (
	takeDueSQL = `
/* schedule: take */
SELECT s.name, s.spec, s.zone, s.job_type, s.entity, s.args, s.rerun, s.catch_up, s.catch_up_most,
       extract(epoch FROM s.max_age)::float8, extract(epoch FROM s.jitter)::float8, s.overlap,
       s.from_code AND s.declared_at < $1::timestamptz - interval '1 minute' * ` + orphanMinutes + `, s.paused, s.error, s.cursor, s.last_started
FROM oncemore.schedule s
WHERE s.next_at <= $1 AND s.job_type = ANY ($2::text[])
ORDER BY s.next_at, s.name
LIMIT 1 FOR UPDATE SKIP LOCKED`

	// The cursor stays: when the trouble is over, what was missed is caught up.
	disableSQL = `/* schedule: disable */ UPDATE oncemore.schedule SET error = $2, next_at = $3 WHERE name = $1`
)

// A due is a tick that is to be decided, or was put off.
type due struct {
	tick   time.Time
	byHand bool
	queued bool // it is recorded as that
}

// decide decides everything that is due of r.
func (w *Worker) decide(ctx context.Context, tx pgx.Tx, r *storedSchedule, now time.Time, t *ticked) error {
	p, err := r.plan(w.set.Lookup)
	if err != nil {
		return err
	}
	waiting, err := queuedTicks(ctx, tx, r.Name)
	if err != nil {
		return err
	}
	book := &tickBook{p: p, now: now, ticked: t}
	cursor := r.Cursor
	var starts []due
	if r.Paused != nil || r.Orphan {
		waiting = slices.DeleteFunc(waiting, func(d due) bool { return !d.byHand })
	} else {
		var ticks []time.Time
		var more bool
		if ticks, more = latestTicks(p.cron, r.Cursor, now); len(ticks) > 0 {
			cursor = ticks[len(ticks)-1]
		}
		starts = book.sort(ticks, more)
	}
	started, left, err := w.startOne(ctx, tx, book, waiting, starts)
	if err != nil {
		return err
	}
	if err := book.write(ctx, tx); err != nil {
		return err
	}
	var next *time.Time // nil: never
	sooner := func(u time.Time) {
		if next == nil || u.Before(*next) {
			next = &u
		}
	}
	switch {
	case r.Orphan:
		sooner(now.Add(lookAgain))
	case r.Paused == nil:
		if u := p.cron.Next(cursor); !u.IsZero() {
			sooner(u)
		}
	}
	if left {
		sooner(now.Add(lookSoon))
	}
	var moved int
	err = tx.QueryRow(ctx, moveSQL, r.Name, r.Cursor, r.Spec, r.Zone, cursor, next, started).Scan(&moved)
	if errors.Is(err, pgx.ErrNoRows) {
		return errors.New("the row was changed while it was locked")
	} else if err != nil {
		return err
	}
	if cursor.Truncate(time.Hour).After(r.Cursor) {
		_, err = tx.Exec(ctx, sweepTicksSQL, r.Name, kept)
	}
	return err
}

const (
	moveSQL = `
/* schedule: move the cursor */
UPDATE oncemore.schedule SET cursor = $5, next_at = coalesce($6::timestamptz, 'infinity'), last_started = coalesce($7, last_started), error = NULL
WHERE name = $1 AND cursor = $2 AND spec = $3 AND zone = $4
RETURNING 1`

	// The tick that was started last stays, however long ago: its row is what tells that its
	// work goes on.
	sweepTicksSQL = `
/* schedule: sweep */
DELETE FROM oncemore.schedule_tick WHERE schedule = $1 AND outcome <> 'queued'
AND tick IS DISTINCT FROM (SELECT s.last_started FROM oncemore.schedule s WHERE s.name = $1)
AND tick < (SELECT t.tick FROM oncemore.schedule_tick t WHERE t.schedule = $1 ORDER BY t.tick DESC OFFSET $2 LIMIT 1)`
)

// latestTicks are the ticks behind the cursor until now, the newest so many as are
// recorded; more tells that there are others before them. After a long outage of a
// schedule that ticks often, it does not walk over all of them.
func latestTicks(s cron.Schedule, cursor, now time.Time) (ticks []time.Time, more bool) {
	for span := firstLook; ; span *= 4 {
		from := now.Add(-span)
		whole := !from.After(cursor) || span <= 0
		if whole {
			from = cursor
		}
		ticks = ticks[:0]
		for u := s.Next(from); !u.IsZero() && !u.After(now); u = s.Next(u) {
			ticks = append(ticks, u)
		}
		if n := len(ticks) - recorded; n > 0 {
			return ticks[n:], true
		}
		if whole {
			return ticks, false
		}
	}
}
