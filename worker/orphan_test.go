package worker_test

import (
	"context"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// The answer to a claim is lost: the claim stands in the table under the living worker's
// id, and nobody in its process has it. Nobody else may take it while that worker lives, so
// the worker itself must find it when the message comes again.
func TestI1AClaimWhoseAnswerWasLostIsTakenUpByItsOwnWorker(t *testing.T) {
	pool := pgtest.Pool(t)
	var done tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }})
	sent := false
	run(t, pool, set, crashConfig(pool), func() bool {
		if !sent {
			if count(t, pool, `SELECT count(*) FROM oncemore.worker`) == 0 {
				return false
			}
			_, err := pool.Exec(t.Context(), `
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), w.id, now(), 0, 0, 0, 0, t.id, 1, '7', '{"n":7}' FROM oncemore.worker w, oncemore.job_type t WHERE t.name = 'letter'`)
			if err != nil {
				t.Fatal(err)
			}
			if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), letter{7}, letter{7}); err != nil {
				t.Fatal(err)
			}
			sent = true
		}
		return count(t, pool, `SELECT count(*) FROM oncemore.ledger`) == 1 && count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0
	})
	if done.n["7"] != 1 {
		t.Errorf("the letter was worked %d times, want once", done.n["7"])
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.claim`); n != 0 {
		t.Errorf("%d claims are left", n)
	}
}
