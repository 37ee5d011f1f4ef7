package worker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
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
	lookAgain  = time.Minute   // when a schedule is in trouble, or an orphan
	lookSoon   = time.Second   // when a tick waits for the end of another one's work
	onTime     = time.Minute   // so late, a tick is not late
	recorded   = 1000          // ticks of one outage are recorded at most
	kept       = 10_000        // ticks of a schedule
	firstLook  = 1 * time.Hour // into the past, for ticks
	maxTrouble = 1000          // bytes
)

// passing errors are of the moment or of the connection, and say nothing about a schedule.
func passing(err error) bool {
	pg, is := errors.AsType[*pgconn.PgError](err)
	if !is {
		return pgconn.Timeout(err) || errors.Is(err, pgx.ErrTxClosed) || errors.Is(err, pgx.ErrTxCommitRollback)
	}
	switch pg.Code[:2] {
	case "08", "40", "53", "58", "25", "26", "XX":
		return true
	case "57":
		return pg.Code != "57014" // a statement that takes too long is the schedule's own trouble
	}
	return false
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
WHERE s.next_at <= $1 AND s.job_type = ANY ($2::text[]) AND isfinite(s.cursor)
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

	sweepTicksSQL = `
/* schedule: sweep */
DELETE FROM oncemore.schedule_tick WHERE schedule = $1 AND outcome <> 'queued'
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

// A tickBook gathers what is to be recorded of ticks that start nothing now.
type tickBook struct {
	*ticked
	p        *plannedSchedule
	now      time.Time
	ticks    []time.Time
	outcomes []string
	details  []string
	late     []time.Time // that were queued, and are too old now
}

func (b *tickBook) note(tick time.Time, outcome, detail string) {
	b.ticks, b.outcomes, b.details = append(b.ticks, tick), append(b.outcomes, outcome), append(b.details, detail)
	switch outcome {
	case "missed":
		b.Missed++
	case "skipped":
		b.Skipped++
	case "queued":
		b.Queued++
	}
}

// tooOld tells whether a tick may not start any more.
func (b *tickBook) tooOld(tick time.Time) bool {
	return b.p.maxAge > 0 && b.now.Sub(tick) > b.p.maxAge
}

// sort returns the ticks that are to start, by what the schedule says of those that are
// late, and notes the others as missed.
func (b *tickBook) sort(ticks []time.Time, more bool) (starts []due) {
	for i, tick := range ticks {
		late, last := b.now.Sub(tick) > onTime, i == len(ticks)-1
		why := ""
		switch {
		case b.tooOld(tick):
			why = "no worker ran, and now it is too late for it"
		case !late:
		case b.p.CatchUp == CatchUpNone:
			why = "no worker ran"
		case b.p.CatchUp == CatchUpLatest && !last:
			why = "no worker ran; a later tick makes up for it"
		case b.p.CatchUp == CatchUpAll && len(ticks)-i > b.p.CatchUpMost:
			why = fmt.Sprintf("no worker ran; only the newest %d are caught up", b.p.CatchUpMost)
		}
		if why == "" {
			starts = append(starts, due{tick: tick})
			continue
		}
		if i == 0 && more {
			why += "; so were all before it, since " + b.p.Cursor.UTC().Format(time.RFC3339)
		}
		b.note(tick, "missed", why)
	}
	return starts
}

// startOne starts the first that may start, where what the last one started has ended.
// The others wait, or are skipped. It returns what it started, and whether any are left
// that wait.
func (w *Worker) startOne(ctx context.Context, tx pgx.Tx, b *tickBook, waiting, starts []due) (started *time.Time, left bool, err error) {
	queue := b.p.Overlap == OverlapQueue
	var line []due
	for _, d := range waiting {
		if !d.byHand && b.tooOld(d.tick) {
			b.late = append(b.late, d.tick)
			b.Missed++
			continue
		}
		line = append(line, d)
	}
	if queue {
		line, starts = append(line, starts...), nil
	}
	if len(line)+len(starts) == 0 {
		return nil, false, nil
	}
	busy, err := w.busy(ctx, tx, b.p, b.now)
	if err != nil {
		return nil, false, err
	}
	if len(line) > 0 && busy == "" {
		if started, err = w.start(ctx, tx, b, line[0]); err != nil {
			return nil, false, err
		}
		line = line[1:]
		busy = "another tick has just been started"
	}
	for i, d := range line {
		switch {
		case d.queued:
		case i < b.p.CatchUpMost:
			b.note(d.tick, "queued", busy)
		default:
			b.note(d.tick, "missed", fmt.Sprintf("%d others wait already: %s", b.p.CatchUpMost, busy))
		}
	}
	for _, d := range starts {
		if busy != "" {
			b.note(d.tick, "skipped", busy)
			continue
		}
		if started, err = w.start(ctx, tx, b, d); err != nil {
			return nil, false, err
		}
		busy = "another tick has just been started"
	}
	return started, len(line) > 0, nil
}

// write records what was noted. A tick that is recorded already stays as it is.
func (b *tickBook) write(ctx context.Context, tx pgx.Tx) error {
	batch := &pgx.Batch{}
	if len(b.ticks) > 0 {
		batch.Queue(noteTicksSQL, b.p.Name, b.ticks, b.outcomes, b.details, b.now)
	}
	if len(b.late) > 0 {
		batch.Queue(lateTicksSQL, b.p.Name, b.late, b.now)
	}
	return tx.SendBatch(ctx, batch).Close()
}

const (
	noteTicksSQL = `
/* schedule: note ticks */
INSERT INTO oncemore.schedule_tick (schedule, tick, outcome, detail, at)
SELECT $1, u.tick, u.outcome, u.detail, $5 FROM unnest($2::timestamptz[], $3::text[], $4::text[]) AS u (tick, outcome, detail)
ON CONFLICT (schedule, tick) DO NOTHING`

	lateTicksSQL = `
/* schedule: give up ticks */
UPDATE oncemore.schedule_tick SET outcome = 'missed', at = $3, detail = 'it waited until it was too late: ' || detail
WHERE schedule = $1 AND tick = ANY ($2::timestamptz[]) AND outcome = 'queued'`
)

// queuedTicks are those that wait, in order.
func queuedTicks(ctx context.Context, tx pgx.Tx, schedule string) ([]due, error) {
	rows, err := tx.Query(ctx, `SELECT t.tick, t.by_hand FROM oncemore.schedule_tick t WHERE t.schedule = $1 AND t.outcome = 'queued' ORDER BY t.tick`, schedule)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (due, error) {
		d := due{queued: true}
		return d, row.Scan(&d.tick, &d.byHand)
	})
}

// busy says why what was started last has not ended; empty: it has. p would start its work
// for a tick at now.
func (w *Worker) busy(ctx context.Context, tx pgx.Tx, p *plannedSchedule, now time.Time) (why string, err error) {
	if p.LastStarted == nil {
		return "", nil
	}
	entity := ""
	if p.Entity != nil {
		entity = p.message(now).Items[0].Entity
	}
	err = tx.QueryRow(ctx, busySQL, p.Name, *p.LastStarted, entity).Scan(&why)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", nil // swept away
	}
	if err == nil && why != "" {
		why = fmt.Sprintf("the tick of %s %s", p.LastStarted.UTC().Format(time.RFC3339), why)
	}
	return why, err
}

// A message is gone when its work is a fact, or a claim, or went into another message, and
// that is of the same epoch. A fan-out's claim is there until its run has ended. What failed
// will not be tried again by itself, so it has ended; and a doubt stands in the way of its
// own entity alone.
const busySQL = `
SELECT CASE
       WHEN EXISTS (SELECT FROM oncemore.run r WHERE r.id = t.run AND r.ended_at IS NULL) THEN 'goes on as run ' || t.run
       WHEN EXISTS (SELECT FROM oncemore.message m WHERE m.id = t.message)
         OR EXISTS (SELECT FROM oncemore.message m WHERE m.epoch = t.epoch AND m.run IS NULL) THEN 'waits in the queue, or is being worked'
       WHEN c.entity IS NULL OR c.owner IS NULL AND (c.trouble = 'failed' OR c.trouble = 'in_doubt' AND c.entity <> $3) THEN ''
       WHEN c.owner IS NULL AND c.trouble = 'in_doubt' THEN 'is in doubt'
       ELSE 'is being worked, or waits for its next attempt' END
FROM oncemore.schedule_tick t
LEFT JOIN LATERAL (SELECT c.entity, c.owner, c.trouble FROM oncemore.claim c
                   WHERE c.job_type = (SELECT j.id FROM oncemore.job_type j WHERE j.name = t.job_type) AND c.entity = t.entity OFFSET 0) c ON t.run IS NULL
WHERE t.schedule = $1 AND t.tick = $2`

// start starts a tick, unless it was started before; then it returns nil.
func (w *Worker) start(ctx context.Context, tx pgx.Tx, b *tickBook, d due) (*time.Time, error) {
	var epoch *int64
	var entity *string
	p := b.p
	m := p.messageOf(d.tick)
	if m != nil {
		entity = &m.Items[0].Entity
	}
	// First the record: it is what makes the tick ours.
	err := tx.QueryRow(ctx, startTickSQL, p.Name, d.tick, d.byHand, b.now, p.job.Type, entity, m != nil && p.job.FanOut == nil).Scan(&epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	delay := max(0, d.tick.Add(p.delay(d)).Sub(b.now))
	if m == nil {
		o := *p.order
		o.By, o.Origin, o.Schedule, o.Tick, o.Delay = "schedule "+p.Name, "schedule", p.Name, d.tick, delay
		opened, err := w.openRerun(ctx, tx, o)
		if err != nil {
			return nil, err
		}
		b.Started++
		_, err = tx.Exec(ctx, ranTickSQL, p.Name, d.tick, opened.Run)
		return &d.tick, err
	}
	if epoch != nil {
		m.Epoch = *epoch
	}
	m.Delay = delay
	if err := w.carrier(w.kinds[p.JobType]).Tx(tx).Send(ctx, *m); err != nil {
		return nil, err
	}
	b.Started++
	_, err = tx.Exec(ctx, sentTickSQL, p.Name, d.tick)
	return &d.tick, err
}

const (
	startTickSQL = `
/* schedule: start a tick */
INSERT INTO oncemore.schedule_tick AS t (schedule, tick, outcome, by_hand, at, job_type, entity, epoch)
VALUES ($1, $2, 'started', $3, $4, $5, $6, CASE WHEN $7 THEN nextval('oncemore.epoch') END)
ON CONFLICT (schedule, tick) DO UPDATE SET outcome = 'started', at = excluded.at, job_type = excluded.job_type, entity = excluded.entity, epoch = excluded.epoch,
    detail = CASE WHEN t.by_hand THEN t.detail ELSE '' END
WHERE t.outcome = 'queued'
RETURNING t.epoch`

	ranTickSQL = `/* schedule: run of a tick */ UPDATE oncemore.schedule_tick SET run = $3 WHERE schedule = $1 AND tick = $2`

	// The message was the last that this session has sent.
	sentTickSQL = `
/* schedule: message of a tick */
UPDATE oncemore.schedule_tick SET message = currval(pg_get_serial_sequence('oncemore.message', 'id')) WHERE schedule = $1 AND tick = $2`
)

// delay is the jitter of a tick: the same whoever asks. What somebody asked for begins at
// once.
func (p *plannedSchedule) delay(d due) time.Duration {
	if p.jitter <= 0 || d.byHand {
		return 0
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", p.Name, d.tick.Unix()))
	return time.Duration(binary.BigEndian.Uint64(sum[:]) % uint64(p.jitter+1))
}
