package worker_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A producer gathers changes and sends them in one message, in which the same page is
// named with several revisions. It is worked once, as of the newest.
func TestI1NoLossOfTwoRevisionsInOneMessageTheNewerIsWorked(t *testing.T) {
	t.Parallel()
	for name, job := range map[string]func(do func(context.Context, page) error) jobs.Job[page]{
		"Once": func(do func(context.Context, page) error) jobs.Job[page] {
			return jobs.Job[page]{Effect: jobs.Once, Do: do}
		},
		"DoTx": func(do func(context.Context, page) error) jobs.Job[page] {
			return jobs.Job[page]{DoTx: func(ctx context.Context, _ pgx.Tx, p page) error { return do(ctx, p) }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			var worked tally
			set := newSet(t, job(func(_ context.Context, p page) error { worked.add(fmt.Sprint(p.ID, " of ", p.Revision)); return nil }))
			sendMessages(t, pgq(pool), together(t, page{1, 5}, page{2, 7}, page{1, 6}, page{2, 3}, page{1, 4}))
			run(t, pool, set, worker.Config{}, func() bool {
				return ask(t, pool, `SELECT count(*) = 2 AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.ledger`)
			})
			if got := fmt.Sprint(worked.n); got != "map[1 of 6:1 2 of 7:1]" {
				t.Errorf("worked: %s, want page 1 of revision 6 and page 2 of 7, once each", got)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE (entity, source_version) IN (('1', 6), ('2', 7))`); n != 2 {
				t.Errorf("%d facts are of the newest revisions, want both", n)
			}
		})
	}
}
