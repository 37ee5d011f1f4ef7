package worker

import "time"

// SetStuckGrace sets how long a body may ignore the end of its context. Call it before Run.
func (w *Worker) SetStuckGrace(d time.Duration) { w.stuckGrace = d }

// SetAwayFor sets how long a message stays away that came unasked. Call it before Run.
func (w *Worker) SetAwayFor(d time.Duration) { w.awayFor = d }

// SetRollEvery sets how often the statistics are brought up to date. Call it before Run.
func (w *Worker) SetRollEvery(d time.Duration) { w.rollEvery = d }
