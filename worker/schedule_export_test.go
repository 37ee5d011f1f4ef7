package worker

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Ticked is what one Tick came to.
type Ticked = ticked

// Tick decides what is due at now of one schedule, as the worker's loop does.
func (w *Worker) Tick(ctx context.Context, tx pgx.Tx, now time.Time) (*Ticked, error) {
	return w.tick(ctx, tx, now)
}

// SetOpenRerun replaces what opens the re-runs of ticks.
func (w *Worker) SetOpenRerun(f func(context.Context, pgx.Tx, Order) (Opened, error)) {
	w.openRerun = f
}

// BusySQL asks whether what a tick started has ended.
const BusySQL = busySQL
