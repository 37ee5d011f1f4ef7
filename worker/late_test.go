package worker_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A was declared dead while it wrote the first revision of a page, for a run; B has written the
// second meanwhile. So A's late word may mean that the first lies over the second, and the page is
// to be written once more. When that is not ready yet it comes again, as work of its own does: the
// run has the fact that it wants, and would not send it.
func TestI1NoLossWhatWasWrittenLateIsWrittenAgainThoughItIsNotReadyAtFirst(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	var ready atomic.Bool
	ready.Store(true)
	var written tally
	job := jobs.Job[page]{Effect: jobs.Repeatable, Ready: func(context.Context, page) (bool, error) { return ready.Load(), nil }}
	deaf, prompt := job, job
	deaf.Do = func(_ context.Context, p page) error { return g.pass(context.Background(), p.Entity()) }
	prompt.Do = func(_ context.Context, p page) error { written.add(fmt.Sprint(p.Revision)); return nil }

	old := together(t, page{1, 1})
	old.Run = 1
	sendMessages(t, pgq(pool), old)
	// Its lease is so long that it hears of its death late.
	a := begin(t, pool, newSet(t, deaf), worker.Config{Lease: time.Minute})
	within(t, "A writes the first", g.entered)
	mustExec(t, pool, `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'`)
	other := memqueue.New()
	b := begin(t, pool, newSet(t, prompt), worker.Config{Queues: map[string]queue.Queue{"other": other}})
	enqueue(t, other, page{1, 2})
	eventuallyRow(t, pool, "B has written the second", `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE source_version = 2)`)
	first := count(t, pool, `SELECT coalesce(epoch, 0) FROM oncemore.ledger`)

	ready.Store(false)
	close(g.open)
	eventuallyRow(t, pool, "A's word is disputed, and the page is to be written again when it is ready", `
SELECT EXISTS (SELECT FROM oncemore.attempt WHERE outcome = 'disputed') AND EXISTS (SELECT FROM oncemore.message WHERE deferred >= 1)`)
	mustStop(t, a)
	ready.Store(true)
	eventuallyRow(t, pool, "the last that was written is the second", `
SELECT EXISTS (SELECT FROM oncemore.ledger WHERE source_version = 2 AND epoch > $1) AND NOT EXISTS (SELECT FROM oncemore.message)`, first)
	mustStop(t, b)
	if n := written.of("2"); n != 2 || written.sum() != 2 {
		t.Errorf("written: %v, want the second twice", written.n)
	}
}
