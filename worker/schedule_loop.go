package worker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// How often a worker looks for schedules that are due: when the next one is, but also now
// and then, since others may add some.
const (
	lookLatest = 3 * time.Second
	lookFailed = 4 * time.Second
	spread     = 50 * time.Millisecond // so that a large fleet does not ask all at once: the first one ticks, and the others see it
)

// schedule ticks what is due, while the worker lives. Everybody looks, and nobody leads:
// who is gone is not missed.
func (l *life) schedule(ctx context.Context) {
	declared := time.Time{}
	for ctx.Err() == nil {
		if len(l.declared) > 0 && time.Since(declared) > declareEvery {
			if err := l.declare(ctx); err != nil {
				if ctx.Err() == nil {
					l.log.Warn("schedules not declared", "error", err)
				}
				pause(ctx, lookFailed)
				continue // not before they are: the database may have older ones
			}
			declared = time.Now()
		}
		wait, err := l.tickAll(ctx)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("schedules not ticked", "error", err)
			wait = lookFailed/2 + rand.N(lookFailed)
		}
		pause(ctx, wait)
	}
}

// tickAll ticks all that is due, and returns how long there is nothing to do.
func (l *life) tickAll(ctx context.Context) (time.Duration, error) {
	for {
		wait, err := l.nextTick(ctx)
		if err != nil {
			return 0, err
		}
		if wait > 0 {
			return wait + rand.N(spread), nil
		}
		t, err := l.tickOnce(ctx)
		if err != nil {
			return 0, err
		}
		if t.Schedule == "" { // others are at it
			return lookSoon/20 + rand.N(lookSoon/10), nil
		}
		l.reportTick(t)
	}
}

// tickOnce ticks one schedule, by the database's clock.
func (l *life) tickOnce(ctx context.Context) (t *ticked, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = inTx(ctx, l.pool, func(tx pgx.Tx) error {
		var now time.Time
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
			return err
		}
		t, err = l.tick(ctx, tx, now)
		return err
	})
	return t, err
}

func (l *life) reportTick(t *ticked) {
	switch {
	case t.Trouble != nil && t.News:
		l.log.Error("schedule is disabled until its trouble is over", "schedule", t.Schedule, "error", t.Trouble)
	case t.Trouble != nil:
	case t.Missed > 0:
		l.log.Warn("ticks of a schedule were missed", "schedule", t.Schedule, "missed", t.Missed, "started", t.Started, "queued", t.Queued, "skipped", t.Skipped)
	case t.Started+t.Skipped+t.Queued > 0:
		l.log.Debug("schedule ticked", "schedule", t.Schedule, "started", t.Started, "queued", t.Queued, "skipped", t.Skipped)
	}
}

// nextTick is how long it is until the next schedule is due, within bounds; not more than 0
// means now.
func (l *life) nextTick(ctx context.Context) (wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	most := lookLatest - rand.N(lookLatest/3) // so that not all look at once
	if err = l.pool.QueryRow(ctx, nextTickSQL, l.set.Names(), most).Scan(&wait); err != nil {
		return 0, fmt.Errorf("look when the next schedule is due: %w", err)
	}
	return wait, nil
}

const nextTickSQL = `
SELECT greatest(n.now, least(n.now + $2::interval, (SELECT min(s.next_at) FROM oncemore.schedule s WHERE s.job_type = ANY ($1::text[])))) - n.now
FROM (SELECT clock_timestamp() AS now) n`
