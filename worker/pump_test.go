package worker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// Why a run waits has the numbers of the moment in it: the run shows the newest, and its
// history does not fill with them.
func TestARunThatWaitsForLongTellsItsHistoryOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE lag AS SELECT 1 AS behind`)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 100) n`, func(context.Context, letter) error { return nil }))
	config := quietly(t)
	// now() has the microsecond, so that no two readings agree.
	config.Throttles = []throttle.Signal{throttle.SQL("the standby", `SELECT behind, 'it is behind at ' || now() FROM lag`)}
	w := begin(t, pool, set, config)
	opened := rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "it waits", `SELECT waits LIKE 'the standby: %' FROM oncemore.run`)
	first := text(t, pool, `SELECT waits FROM oncemore.run`)
	eventuallyRow(t, pool, "it waits for another reason of the same signal", `SELECT waits LIKE 'the standby: %' AND waits <> $1 FROM oncemore.run`, first)
	mustExec(t, pool, `UPDATE lag SET behind = 0`)
	awaitRun(t, pool, 1)
	mustStop(t, w)
	if got := text(t, pool, story, opened.Run); got != "opened planned waiting going ended" {
		t.Errorf("its history: %s", got)
	}
}

// A slow rate makes small batches, whose share of the fixed costs is large. That is no
// reason to make batches smaller yet: none of them took long.
func TestBatchesThatAreSmallForWantOfRateDoNotShrinkTheOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Source: jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 60) n`),
		Policy: jobs.Policy{PackSize: 100},
		DoMany: func(ctx context.Context, tx pgx.Tx, _ []letter) error {
			_, err := tx.Exec(ctx, `SELECT pg_sleep(0.03)`)
			return err
		}})
	w := begin(t, pool, set, quietly(t))
	rerun(t, pool, worker.Order{Type: "letter", Rate: 20})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if n := count(t, pool, `SELECT batch FROM oncemore.run`); n < 100 {
		t.Errorf("batches shrank from 100 to %d", n)
	}
}

// One a second. Many visits come between two letters, and send nothing: what the rate lets
// through in the time between is counted once all the same.
func TestALowRateIsHeededThoughManyVisitsSendNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 4) n`, func(context.Context, letter) error { return nil }))
	w := begin(t, pool, set, quietly(t))
	rerun(t, pool, worker.Order{Type: "letter", Rate: 1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if !ask(t, pool, `SELECT sent_at - planned_at >= interval '4 seconds' FROM oncemore.run`) {
		t.Errorf("4 letters at 1 a second were sent in %s", text(t, pool, `SELECT (sent_at - planned_at)::text FROM oncemore.run`))
	}
}

// The first ten of a thousand are not ready: that is no reason to send the rest.
func TestACanaryOfWhichNothingComesStopsTheRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var worked tally
	letters := lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 1000) n ORDER BY n`, func(_ context.Context, l letter) error {
		worked.add(l.Entity())
		if l.N == 1 {
			return jobs.Permanent(errTrouble)
		}
		return nil
	})
	letters.Ready = func(_ context.Context, l letter) (bool, error) { return l.N <= 4, nil }
	w := begin(t, pool, newSet(t, letters), quietly(t))
	opened := rerun(t, pool, worker.Order{Type: "letter", Canary: 10, CanaryShare: 0.5})
	eventuallyRow(t, pool, "the canary is judged", `SELECT EXISTS (SELECT FROM oncemore.run_event WHERE kind = 'canary')`)
	if got := text(t, pool, `SELECT coalesce(paused, 'not paused') FROM oncemore.run_control`); got != "canary: 1 of the first 10 failed, 6 were not ready or are parked" {
		t.Errorf("paused: %s", got)
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, opened.Run, "too early") })
	eventuallyRow(t, pool, "it has ended", `SELECT cancelled FROM oncemore.run`)
	mustStop(t, w)
	if n := count(t, pool, `SELECT sent FROM oncemore.run`); n != 10 || worked.sum() != 4 {
		t.Errorf("%d were sent, %d worked", n, worked.sum())
	}
}

// After an outage what has failed is tried again, the first five first. That they had failed says
// nothing about how they fare now: here the worker has its hands full for a while.
func TestACanaryOfWhatHadFailedIsJudgedWhenItHasBeenTriedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var up atomic.Bool
	g := newGate()
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n ORDER BY n`, func(ctx context.Context, l letter) error {
		if !up.Load() {
			return jobs.Permanent(errTrouble)
		}
		return nil
	}), jobs.Job[note]{Effect: jobs.Repeatable, Do: func(ctx context.Context, n note) error { return g.pass(ctx, n.Text) }})
	config := quietly(t)
	config.Slots = 1
	w := begin(t, pool, set, config)
	rerun(t, pool, worker.Order{Type: "letter"})
	awaitRun(t, pool, 1)
	up.Store(true)
	enqueue(t, pgq(pool), note{ID: 1})
	within(t, "it has its hands full", g.entered)
	opened := rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}, Canary: 5})
	eventually(t, "the run has looked at its canary", func() bool {
		return ask(t, pool, `SELECT waits LIKE 'the canary%' OR EXISTS (SELECT FROM oncemore.run_event WHERE kind = 'canary') FROM oncemore.run WHERE id = $1`, opened.Run)
	})
	close(g.open)
	if got := awaitRun(t, pool, opened.Run); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
}

// What had failed is called again, and is not ready: it is put off, and the canary is not kept
// waiting until it is.
func TestACanaryOfWhatHadFailedAndIsNotReadyStopsTheRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var again atomic.Bool
	letters := lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n ORDER BY n`, func(context.Context, letter) error { return jobs.Permanent(errTrouble) })
	letters.Ready = func(context.Context, letter) (bool, error) { return !again.Load(), nil }
	w := begin(t, pool, newSet(t, letters), quietly(t))
	rerun(t, pool, worker.Order{Type: "letter"})
	awaitRun(t, pool, 1)
	again.Store(true)
	opened := rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}, Canary: 5})
	eventually(t, "the canary has stopped the run", func() bool {
		return ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.run_control WHERE run = $1 AND paused LIKE 'canary: 5 of the first 5 failed%')`, opened.Run)
	})
	mustStop(t, w)
}

// What failed a moment ago cannot be asked about yet: its effect may still be on the way. It is put
// off until it can, and the canary is judged by what becomes of it then.
func TestACanaryOfWhatFailedAMomentAgoIsJudgedWhenThatHasSettled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var up atomic.Bool
	letters := lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n ORDER BY n`, func(context.Context, letter) error {
		if !up.Load() {
			return jobs.Permanent(errTrouble)
		}
		return nil
	})
	letters.Effect = jobs.Verifiable(6 * time.Second)
	letters.Done = func(context.Context, letter) (bool, error) { return false, nil }
	w := begin(t, pool, newSet(t, letters), quietly(t))
	rerun(t, pool, worker.Order{Type: "letter"})
	awaitRun(t, pool, 1)
	up.Store(true)
	opened := rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}, Canary: 5})
	if got := awaitRun(t, pool, opened.Run); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	if got := text(t, pool, `SELECT string_agg(detail, '; ') FROM oncemore.run_event WHERE run = 2 AND kind = 'canary'`); got != "0 of the first 5 failed: the rest follows" {
		t.Errorf("the canary: %s", got)
	}
	mustStop(t, w)
}

// Facts of an older version of the code say nothing about how the first have fared.
func TestACanaryIsNotJudgedByFactsOfAnOlderVersion(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	letters := lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 100) n ORDER BY n`, func(context.Context, letter) error { return nil })
	letters.Version = 2
	letters.Ready = func(_ context.Context, l letter) (bool, error) { return false, nil }
	w := begin(t, pool, newSet(t, letters), quietly(t))
	adopt(t, pool, `SELECT n::text FROM generate_series(1, 100) n`)
	rerun(t, pool, worker.Order{Type: "letter", Canary: 10})
	eventuallyRow(t, pool, "the canary is judged", `SELECT EXISTS (SELECT FROM oncemore.run_event WHERE kind = 'canary')`)
	mustStop(t, w)
	if got := text(t, pool, `SELECT coalesce(paused, 'not paused') FROM oncemore.run_control`); got != "canary: 0 of the first 10 failed, 10 were not ready or are parked" {
		t.Errorf("paused: %s", got)
	}
}

// What is done of an older source has not been done as the run wants it: that the fact is there
// says nothing about how the first have fared.
func TestACanaryIsNotJudgedByFactsOfAnOlderSource(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ready bool
		want  string
	}{
		"not ready": {false, "canary: 0 of the first 5 failed, 5 were not ready or are parked"},
		"failed":    {true, "canary: 5 of the first 5 failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			docs(t, pool, 20, `1`)
			set := newSet(t, jobs.Job[page]{Effect: jobs.Repeatable, Source: jobs.SQL[page](docsSQL),
				Ready: func(_ context.Context, p page) (bool, error) { return p.Revision == 1 || c.ready, nil },
				Do: func(_ context.Context, p page) error {
					if p.Revision == 2 {
						return jobs.Permanent(errTrouble)
					}
					return nil
				}})
			w := begin(t, pool, set, quietly(t))
			rerun(t, pool, worker.Order{Type: "page"})
			if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
				t.Errorf("the first run: %s", got)
			}
			mustExec(t, pool, `UPDATE doc SET revision = 2`)
			opened := rerun(t, pool, worker.Order{Type: "page", Canary: 5})
			eventuallyRow(t, pool, "the canary is judged", `SELECT EXISTS (SELECT FROM oncemore.run_event WHERE kind = 'canary')`)
			mustStop(t, w)
			if got := text(t, pool, `SELECT coalesce(paused, 'not paused') FROM oncemore.run_control WHERE run = $1`, opened.Run); got != c.want {
				t.Errorf("paused: %s", got)
			}
			if n := count(t, pool, `SELECT sent FROM oncemore.run WHERE id = $1`, opened.Run); n != 5 {
				t.Errorf("%d were sent, want the first 5", n)
			}
		})
	}
}
