package worker

import "time"

// SetStuckGrace sets how long a body may ignore the end of its context. Call it before Run.
func (w *Worker) SetStuckGrace(d time.Duration) { w.stuckGrace = d }
