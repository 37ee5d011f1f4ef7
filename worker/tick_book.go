package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

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

// write records what was noted. A tick that is recorded already stays as it is, unless it was given
// up at a time that is yet to come.
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
	// What was given up at a time that is yet to come, by a database whose clock was ahead, is not given
	// up. What started has.
	givenUpAheadSQL = `t.outcome IN ('skipped', 'missed') AND t.at > excluded.at`

	noteTicksSQL = `
/* schedule: note ticks */
INSERT INTO oncemore.schedule_tick AS t (schedule, tick, outcome, detail, at)
SELECT $1, u.tick, u.outcome, u.detail, $5 FROM unnest($2::timestamptz[], $3::text[], $4::text[]) AS u (tick, outcome, detail)
ON CONFLICT (schedule, tick) DO UPDATE SET outcome = excluded.outcome, detail = excluded.detail, at = excluded.at
WHERE ` + givenUpAheadSQL

	lateTicksSQL = `
/* schedule: give up ticks */
UPDATE oncemore.schedule_tick SET outcome = 'missed', at = $3, detail = 'it waited until it was too late: ' || detail
WHERE schedule = $1 AND tick = ANY ($2::timestamptz[]) AND outcome = 'queued'`
)
