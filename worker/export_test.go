package worker

import (
	"context"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// SetStuckGrace sets how long a body may ignore the end of its context. Call it before Run.
func (w *Worker) SetStuckGrace(d time.Duration) { w.stuckGrace = d }

// SetAwayFor sets how long a message stays away that came unasked. Call it before Run.
func (w *Worker) SetAwayFor(d time.Duration) { w.awayFor = d }

// SetRollEvery sets how often the statistics are brought up to date. Call it before Run.
func (w *Worker) SetRollEvery(d time.Duration) { w.rollEvery = d }

// Negotiate makes one bid for permits of a job type, as the worker of an id does in which so
// many bodies run. It returns how many may.
func (w *Worker) Negotiate(ctx context.Context, jobType string, id int64, running, bodies int) (int, error) {
	l := &life{Worker: w, lease: &ledger.Lease{ID: id}}
	n, _, err := l.negotiate(ctx, w.kinds[jobType], bid{running: running, bodies: bodies})
	return n, err
}
