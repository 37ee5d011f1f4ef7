package matrix_test

import (
	"context"
	"time"

	"github.com/oncemore-jobs/oncemore/worker"
)

// Beside some work the statistics are brought up to date: a fact of two hours ago, which
// was replaced since, is summed once, whatever befalls that.
var statistics = scenario{shape: "statistics", class: "once", slots: 1, things: 1,
	prepare: `
INSERT INTO oncemore.ledger_history (job_type, entity, completed_at, fingerprint, attempts, evidence) VALUES (9999, 'past', now() - interval '2 hours', 0, 1, 'r');
DELETE FROM oncemore.completions_watermark`,
	steps: []step{{`SELECT EXISTS (SELECT FROM oncemore.job_type)`, func(w *world) { w.rollUp() }}},
	done:  `SELECT sum(n) = 1 FROM oncemore.completions_quarter WHERE job_type = 9999`,
}

// rollUp does so through the producer's proxy: again, until it is done.
func (w *world) rollUp() {
	w.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := worker.RollUp(ctx, w.writer)
		cancel()
		if ask[bool](w, `SELECT EXISTS (SELECT FROM oncemore.completions_watermark WHERE closed > now() - interval '30 minutes')`) {
			return
		}
		if time.Now().After(end) {
			w.Fatalf("the statistics stand still: %v", err)
		}
	}
}
