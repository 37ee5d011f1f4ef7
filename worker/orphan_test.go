package worker_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
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
			orphan(t, pool, 7)
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

// orphan makes a claim of letter n as one whose answer was lost: held by the living worker,
// and nobody in its process has it.
func orphan(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), w.id, now(), 0, 0, 0, 0, t.id, 1, $1::text, format('{"n":%s}', $1) FROM oncemore.worker w, oncemore.job_type t WHERE t.name = 'letter'`, strconv.Itoa(n))
}

// Its message may come to other workers again and again, who put it off longer each time,
// because its owner lives.
func TestI1AClaimWhoseAnswerWasLostIsGivenBackThoughItsMessageComesToOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	working, rest := make(chan bool), make(chan bool)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error {
		working <- true
		<-rest
		return nil
	}})
	begin(t, pool, set, worker.Config{Recheck: 10 * time.Millisecond})
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), letter{1}); err != nil {
		t.Fatal(err)
	}
	<-working // it holds a claim that is somebody's
	orphan(t, pool, 7)
	const returned = `SELECT count(*) FROM oncemore.claim WHERE entity = '7' AND owner IS NULL AND trouble = 'retrying' AND attempts = 0 AND first_claimed_at IS NULL`
	eventually(t, "it is given back, as if it had not been", func() bool { return count(t, pool, returned) == 1 })
	if n := count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE entity = '1' AND owner IS NOT NULL`); n != 1 {
		t.Error("the claim of what is being worked was given back as well")
	}
	close(rest)
	eventually(t, "the other is done", func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE entity = '1'`) == 1 })
	if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt`); n != 1 {
		t.Errorf("%d entries among the attempts, want that of what was given back", n)
	}
}
