package worker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

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
// for a tick at now. A run of the same that is being cancelled, whoever began it, is not to be
// joined: a tick that did would be lost with it.
func (w *Worker) busy(ctx context.Context, tx pgx.Tx, p *plannedSchedule, now time.Time) (why string, err error) {
	if p.order != nil {
		err := tx.QueryRow(ctx, cancellingSQL, rerunPrefix+p.job.Type, p.order.Selection.Key()).Scan(&why)
		if err == nil || !errors.Is(err, pgx.ErrNoRows) {
			return why, err
		}
	}
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
       WHEN EXISTS (SELECT FROM oncemore.run r WHERE r.id = t.run AND r.ended_at IS NULL
                    AND NOT EXISTS (SELECT FROM oncemore.claim f WHERE f.job_type = r.parent_type AND f.entity = r.parent_entity
                                    AND f.owner IS NULL AND f.trouble = 'failed')) THEN 'goes on as run ' || t.run
       WHEN EXISTS (SELECT FROM oncemore.message m WHERE m.id = t.message)
         OR EXISTS (SELECT FROM oncemore.message m WHERE m.epoch = t.epoch AND m.run IS NULL) THEN 'waits in the queue, or is being worked'
       WHEN c.entity IS NULL OR c.owner IS NULL AND (c.trouble = 'failed' OR c.trouble = 'in_doubt' AND c.entity <> $3) THEN ''
       WHEN c.owner IS NULL AND c.trouble = 'in_doubt' THEN 'is in doubt'
       ELSE 'is being worked, or waits for its next attempt' END
FROM oncemore.schedule_tick t
LEFT JOIN LATERAL (SELECT c.entity, c.owner, c.trouble FROM oncemore.claim c
                   WHERE c.job_type = (SELECT j.id FROM oncemore.job_type j WHERE j.name = t.job_type) AND c.entity = t.entity OFFSET 0) c ON t.run IS NULL
WHERE t.schedule = $1 AND t.tick = $2`

const cancellingSQL = `
SELECT 'run ' || r.id || ' of the same is being cancelled'
FROM oncemore.run r JOIN oncemore.run_control c ON c.run = r.id
WHERE r.parent_type = (SELECT t.id FROM oncemore.job_type t WHERE t.name = $1) AND r.parent_entity = $2 AND r.ended_at IS NULL AND c.cancelled IS NOT NULL`

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
WHERE t.outcome = 'queued' OR ` + givenUpAheadSQL + `
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
