package worker_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A worker has died, its message is back, and nobody has declared it dead yet: for the
// ledger it is still at work. Acknowledging the message then would strand the claim.
func TestAMessageThatComesBackBeforeItsHolderIsDeclaredDeadIsNotLost(t *testing.T) {
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(context.Context, letter) error { return nil }})
	w, err := worker.New(t.Context(), pool, set, worker.Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `
INSERT INTO oncemore.worker (name, expires) VALUES ('frozen', clock_timestamp() + interval '1 hour');
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), w.id, now(), 0, 0, 0, 0, t.id, 1, '7', '{"n":7}' FROM oncemore.worker w, oncemore.job_type t WHERE t.name = 'letter'`); err != nil {
		t.Fatal(err)
	}
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), letter{7}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	await := func(what, query string) {
		t.Helper()
		for limit := time.Now().Add(30 * time.Second); count(t, pool, query) == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("after 30 s: not yet: %s", what)
			}
		}
	}
	await("the message waits for later", `SELECT count(*) FROM oncemore.message WHERE deferred > 0`)
	if _, err := pool.Exec(t.Context(), `UPDATE oncemore.worker SET dead_at = clock_timestamp() WHERE name = 'frozen'`); err != nil {
		t.Fatal(err)
	}
	await("the letter is done", `SELECT count(*) FROM oncemore.ledger WHERE entity = '7'`)
	await("the message is gone", `SELECT 1 - least(1, count(*)) FROM oncemore.message`)
}
