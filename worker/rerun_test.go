package worker_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

func rerun(t testing.TB, pool *pgxpool.Pool, o worker.Order) (opened worker.Opened) {
	t.Helper()
	err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) (err error) {
		opened, err = worker.OpenRerun(t.Context(), tx, pgq(pool), o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return opened
}

func lettersFrom(query string, do func(context.Context, letter) error) jobs.Job[letter] {
	return jobs.Job[letter]{Effect: jobs.Repeatable, Do: do, Source: jobs.SQL[letter](query)}
}

func TestARerunDoesWhatIsMissingAndNothingElse(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var done tally
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 5000) n`, func(_ context.Context, l letter) error {
		done.add(l.Entity())
		return nil
	}))
	w := begin(t, pool, set, quietly(t))
	adopt(t, pool, `SELECT n::text FROM generate_series(1, 4000) n`)
	opened := rerun(t, pool, worker.Order{Type: "letter", By: "anna", Reason: "the outage of Friday"})
	if opened.Joined || opened.Run == 0 {
		t.Errorf("opened: %+v", opened)
	}
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if done.sum() != 1000 {
		t.Errorf("%d letters were written, want the 1,000 that were missing", done.sum())
	}
	if got := text(t, pool, `SELECT format('%s planned, %s skipped, %s sent', items, skipped, sent) FROM oncemore.run`); got != "1000 planned, 4000 skipped, 1000 sent" {
		t.Errorf("the run says %s", got)
	}
	eventuallyRow(t, pool, "nothing is left over", `SELECT NOT EXISTS (SELECT FROM oncemore.claim) AND NOT EXISTS (SELECT FROM oncemore.message)`)
}

// quietly is a configuration that does not log each of thousands of letters.
func quietly(t testing.TB) worker.Config {
	return worker.Config{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
}

func text(t testing.TB, pool *pgxpool.Pool, query string, args ...any) (s string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// adopt records letters as done by what was there before.
func adopt(t testing.TB, pool *pgxpool.Pool, entities string) {
	t.Helper()
	mustExec(t, pool, `INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity)
SELECT 0, (SELECT id FROM oncemore.job_type WHERE name = 'letter'), 0, 'a', e FROM (`+entities+`) AS x(e)`)
}

func control(t testing.TB, pool *pgxpool.Pool, f func(ctx context.Context, tx pgx.Tx) error) {
	t.Helper()
	if err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error { return f(t.Context(), tx) }); err != nil {
		t.Fatal(err)
	}
}

const story = `SELECT string_agg(kind, ' ' ORDER BY id) FROM oncemore.run_event WHERE run = $1`

// What has failed gets all its attempts anew, by the same call that an operator would make
// after mending the cause; by class, so that other failures are left for another day.
func TestARerunOfWhatFailedTriesJustThatAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var mended atomic.Bool
	var worked tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Source: jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 20) n`),
		Do: func(_ context.Context, l letter) error {
			worked.add(l.Entity())
			if l.N%10 == 3 && !mended.Load() {
				return jobs.Permanent(jobs.NotApplied(errTrouble))
			}
			return nil
		}})
	w := begin(t, pool, set, worker.Config{})
	rerun(t, pool, worker.Order{Type: "letter"})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 2, in doubt 0, not ready 0" {
		t.Errorf("the first run: %s", got)
	}
	mended.Store(true)
	failed := plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}
	rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Reasons: failed.Reasons, Entities: []string{"3", "4"}}})
	if got := awaitRun(t, pool, 2); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run of one: %s", got)
	}
	if got := standing(t, pool, "13"); got != "failed 1" {
		t.Errorf("letter 13, which was not asked for, is %q", got)
	}
	rerun(t, pool, worker.Order{Type: "letter", Selection: failed})
	if got := awaitRun(t, pool, 3); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run of the rest: %s", got)
	}
	mustStop(t, w)
	if worked.sum() != 22 || worked.of("3") != 2 || worked.of("13") != 2 {
		t.Errorf("worked: %v", worked.n)
	}
}

// Whoever selects what is in doubt says that it did not happen.
func TestARerunOfWhatIsInDoubtIsAVerdictAndIsKept(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var mended atomic.Bool
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error {
		if !mended.Load() {
			return errTrouble
		}
		return nil
	}})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), letter{1}, letter{2})
	eventuallyRow(t, pool, "both are in doubt", `SELECT count(*) = 2 FROM oncemore.claim WHERE trouble = 'in_doubt'`)
	mended.Store(true)
	rerun(t, pool, worker.Order{Type: "letter", By: "anna", Reason: "the provider's log has nothing",
		Selection: plan.Selection{Reasons: []ledger.Reason{ledger.InDoubt}}})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'resolved' AND error LIKE '%anna%' AND error LIKE '%log has nothing%'`); n != 2 {
		t.Errorf("%d verdicts are kept, want 2", n)
	}
}

// The cache was wiped: everything is done again, and the ledger keeps both times.
func TestAForcedRerunDoesItAllAgainAndArchivesTheFacts(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var worked tally
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 50) n`, func(ctx context.Context, l letter) error {
		worked.add(l.Entity())
		return nil
	}))
	w := begin(t, pool, set, worker.Config{})
	rerun(t, pool, worker.Order{Type: "letter"})
	awaitRun(t, pool, 1)
	rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Force: true}})
	if got := awaitRun(t, pool, 2); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the forced run: %s", got)
	}
	mustStop(t, w)
	if worked.sum() != 100 || worked.of("7") != 2 {
		t.Errorf("%d letters were written, want each of 50 twice", worked.sum())
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger l JOIN oncemore.ledger_history h USING (job_type, entity) WHERE l.epoch > 0 AND h.epoch IS NULL`); n != 50 {
		t.Errorf("%d facts have their former one in the history, want 50", n)
	}
}

// Of a thousand letters with a mistake in them only the first ten are sent.
func TestACanaryStopsARunWhoseFirstFail(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var mended atomic.Bool
	var worked tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Source: jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 1000) n ORDER BY n`),
		Do: func(_ context.Context, l letter) error {
			worked.add(l.Entity())
			if !mended.Load() && l.N%2 == 0 {
				return errTrouble
			}
			return nil
		}})
	w := begin(t, pool, set, quietly(t))
	opened := rerun(t, pool, worker.Order{Type: "letter", Canary: 10, CanaryShare: 0.2})
	eventuallyRow(t, pool, "it is paused", `SELECT coalesce(paused, '') = 'canary: 5 of the first 10 failed' FROM oncemore.run_control`)
	eventuallyRow(t, pool, "and says so", `SELECT waits LIKE 'paused: canary%' FROM oncemore.run`)
	if n := count(t, pool, `SELECT sent FROM oncemore.run`); n != 10 {
		t.Errorf("%d were sent", n)
	}
	mended.Store(true)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, opened.Run) })
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if got := text(t, pool, story, opened.Run); got != "opened planned canary waiting resumed going ended" && got != "opened planned waiting canary resumed going ended" {
		t.Errorf("its history: %s", got)
	}
}

func TestACanaryThatLivesLetsTheRestFollow(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Source: jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 3000) n`),
		DoMany: func(_ context.Context, _ pgx.Tx, ls []letter) error {
			for _, l := range ls {
				if l.N == 7 {
					return jobs.Permanent(errTrouble)
				}
			}
			return nil
		}})
	w := begin(t, pool, set, quietly(t))
	opened := rerun(t, pool, worker.Order{Type: "letter", Canary: 1000, CanaryShare: 0.01})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 1, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if got := text(t, pool, story, opened.Run); !strings.Contains(got, "canary") {
		t.Errorf("its history: %s", got)
	}
}

// A run of 2,000 letters, of which the first few are being worked until they are let go.
type held struct {
	pool   *pgxpool.Pool
	worker *running
	run    int64
	worked tally
	letGo  func()
}

// whileHeld tells a story of a re-run, and the same of a fan-out.
func whileHeld(t *testing.T, effect jobs.Effect, story func(t *testing.T, h *held)) {
	t.Parallel()
	for _, name := range []string{"a re-run", "a fan-out"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := &held{pool: pgtest.Pool(t), run: 1}
			begun, open := make(chan struct{}), make(chan struct{})
			h.letGo = func() { close(open) }
			var once sync.Once
			named := jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 2000) n`)
			set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return named }},
				jobs.Job[letter]{Effect: effect, Source: named, Policy: jobs.Policy{PackSize: 2, Limit: jobs.Limit{Running: 4}}, Do: func(ctx context.Context, l letter) error {
					h.worked.add(l.Entity())
					once.Do(func() { close(begun) })
					select {
					case <-open:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}})
			h.worker = begin(t, h.pool, set, quietly(t))
			if name == "a fan-out" {
				enqueue(t, pgq(h.pool), mailing{1})
			} else {
				rerun(t, h.pool, worker.Order{Type: "letter"})
			}
			within(t, "a letter is being worked", begun)
			story(t, h)
			mustStop(t, h.worker)
			if h.worked.sum() != 2000 {
				t.Errorf("%d letters were written, want 2,000", h.worked.sum())
			}
		})
	}
}

// While it is paused nothing of it begins; then it goes on where it was.
func TestAPausedRunBeginsNothingUntilItIsResumed(t *testing.T) {
	whileHeld(t, jobs.Repeatable, func(t *testing.T, h *held) {
		control(t, h.pool, func(ctx context.Context, tx pgx.Tx) error {
			return worker.PauseRun(ctx, tx, h.run, "the mailer is down")
		})
		h.letGo()
		eventuallyRow(t, h.pool, "what was on its way is done", `SELECT NOT EXISTS (SELECT FROM oncemore.message WHERE type = 'letter' AND visible_at < now() + interval '50 years')
			AND NOT EXISTS (SELECT FROM oncemore.claim c JOIN oncemore.job_type t ON t.id = c.job_type AND t.name = 'letter')`)
		before := h.worked.sum()
		if before > 1000 {
			t.Fatal("more was begun than a worker has in hand")
		}
		if n := count(t, h.pool, `SELECT count(*) FROM oncemore.ledger`); n != int64(before) {
			t.Errorf("%d were worked, %d are done", before, n)
		}
		control(t, h.pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, h.run) })
		if got := awaitRun(t, h.pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
			t.Errorf("the run: %s", got)
		}
	})
}

// What has not begun is missing again, and another run finds it.
func TestACancelledRunLeavesWhatHasNotBegunMissing(t *testing.T) {
	whileHeld(t, jobs.Once, func(t *testing.T, h *held) {
		control(t, h.pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, h.run, "wrong text") })
		h.letGo()
		eventuallyRow(t, h.pool, "the run has ended", `SELECT cancelled AND NOT complete AND ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`, h.run)
		eventuallyRow(t, h.pool, "nothing goes on", quiet)
		if done := count(t, h.pool, `SELECT count(*) FROM oncemore.ledger`); done == 0 || done > 1000 {
			t.Errorf("%d are done of what a cancelled run began", done)
		}
		rerun(t, h.pool, worker.Order{Type: "letter", Reason: "right text"})
		eventuallyRow(t, h.pool, "the next run is complete", `SELECT complete FROM oncemore.run ORDER BY id DESC LIMIT 1`)
	})
}

func TestTheSameRerunAskedForTwiceIsOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n`, func(context.Context, letter) error { return nil }))
	newWorker(t, pool, set, worker.Config{}) // registers
	var together errgroup.Group
	runs := make([]worker.Opened, 8)
	for i := range runs {
		together.Go(func() error {
			return pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) (err error) {
				runs[i], err = worker.OpenRerun(t.Context(), tx, pgq(pool), worker.Order{Type: "letter"})
				return err
			})
		})
	}
	if err := together.Wait(); err != nil {
		t.Fatal(err)
	}
	joined := 0
	for _, o := range runs {
		if o.Run != runs[0].Run {
			t.Errorf("runs %d and %d", o.Run, runs[0].Run)
		}
		if o.Joined {
			joined++
		}
	}
	if joined != 7 || count(t, pool, `SELECT count(*) FROM oncemore.message`) != 1 {
		t.Errorf("%d of 8 joined", joined)
	}
	other := rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Prefix: "1"}})
	if other.Joined || other.Run == runs[0].Run {
		t.Error("another selection joined")
	}
	w := begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "both end", `SELECT count(*) = 2 FROM oncemore.run WHERE complete`)
	mustStop(t, w)
}

// A rate of 200 a second.
func TestARunHeedsItsRateAndAChangeOfIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 10000) n`, func(context.Context, letter) error { return nil }))
	w := begin(t, pool, set, quietly(t))
	opened := rerun(t, pool, worker.Order{Type: "letter", Rate: 200})
	eventuallyRow(t, pool, "it sends", `SELECT sent > 300 FROM oncemore.run`)
	if !ask(t, pool, `SELECT sent <= 200 * (1 + extract(epoch FROM clock_timestamp() - planned_at)) FROM oncemore.run`) {
		t.Error("more was sent than the rate lets through")
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.SetRate(ctx, tx, opened.Run, 0) })
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
}

// The signal says wait, and the history tells why.
func TestASignalHoldsARunUpAndItsHistorySaysWhy(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE lag AS SELECT 1 AS behind`)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 100) n`, func(context.Context, letter) error { return nil }))
	config := quietly(t)
	config.Throttles = []throttle.Signal{throttle.SQL("the standby", `SELECT behind, 'it is behind' FROM lag`)}
	w := begin(t, pool, set, config)
	opened := rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "it waits", `SELECT waits LIKE 'the standby: %it is behind%' FROM oncemore.run`)
	if n := count(t, pool, `SELECT sent FROM oncemore.run`); n != 0 {
		t.Errorf("%d were sent all the same", n)
	}
	mustExec(t, pool, `UPDATE lag SET behind = 0`)
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if got := text(t, pool, story, opened.Run); got != "opened planned waiting going ended" {
		t.Errorf("its history: %s", got)
	}
}

func TestTheKillSwitchStopsEveryRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 100) n`, func(context.Context, letter) error { return nil }))
	w := begin(t, pool, set, quietly(t))
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		return worker.SetBrake(ctx, tx, "", "migration tonight", "anna")
	})
	rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "it waits", `SELECT waits LIKE '%migration tonight%' AND sent = 0 FROM oncemore.run`)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ReleaseBrake(ctx, tx, "") })
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
}

// 25,000 entities of a source in Go are planned in three visits, and what is open of the
// type and named by no source is planned with them, once.
func TestARerunOverASourceInGoPlansInPiecesAndFindsWhatIsOpen(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var n atomic.Int64
	n.Store(25_000)
	var mended atomic.Bool
	var worked tally
	src := inGo(&n, func(string) {})
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Source: src, Do: func(_ context.Context, l letter) error {
		worked.add(l.Entity())
		if !mended.Load() {
			return jobs.Permanent(errTrouble)
		}
		return nil
	}})
	w := begin(t, pool, set, quietly(t))
	enqueue(t, pgq(pool), letter{7}, letter{100_007})
	eventuallyRow(t, pool, "two have failed", `SELECT count(*) = 2 FROM oncemore.claim WHERE trouble = 'failed'`)
	mended.Store(true)
	rerun(t, pool, worker.Order{Type: "letter", Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Missing, ledger.Failed}}})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if n := count(t, pool, `SELECT items FROM oncemore.run`); n != 25_001 {
		t.Errorf("the plan has %d items, want 25,001", n)
	}
	if worked.of("7") != 2 || worked.of("100007") != 2 || worked.sum() != 25_003 {
		t.Errorf("7 worked %d times, 100007 %d times, %d in all", worked.of("7"), worked.of("100007"), worked.sum())
	}
}

// The stale are open while they are done again, though their old facts stand.
func TestI6ARunIsNotCompleteWhileItsStaleWorkHasFailed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE doc AS SELECT n AS id, 1::bigint AS revision FROM generate_series(1, 10) n`)
	var broken atomic.Bool
	set := newSet(t, jobs.Job[page]{Effect: jobs.Repeatable, Source: jobs.SQL[page](`SELECT id::text AS entity, id, revision AS source_version FROM doc`),
		Do: func(_ context.Context, p page) error {
			if p.ID == 3 && broken.Load() {
				return jobs.Permanent(errTrouble)
			}
			return nil
		}})
	w := begin(t, pool, set, worker.Config{})
	rerun(t, pool, worker.Order{Type: "page"})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the first run: %s", got)
	}
	broken.Store(true)
	mustExec(t, pool, `UPDATE doc SET revision = 2 WHERE id IN (3, 4)`)
	rerun(t, pool, worker.Order{Type: "page"})
	if got := awaitRun(t, pool, 2); got != "ended, complete=f, failed 1, in doubt 0, not ready 0" {
		t.Errorf("the run of what is stale: %s", got)
	}
	if got := text(t, pool, `SELECT seen FROM oncemore.run WHERE id = 2`); !strings.Contains(got, `"stale_source":2`) {
		t.Errorf("it saw %s", got)
	}
	mustStop(t, w)
}

// The source could not be read for so long that its visits were given up.
func TestARerunWhoseVisitsHaveFailedGoesOnWhenItIsAskedForAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, wanted)
	set := newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM wanted`, func(context.Context, letter) error { return nil }))
	w := begin(t, pool, set, worker.Config{})
	mustExec(t, pool, `ALTER TABLE wanted RENAME TO unwanted`)
	first := rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "a visit has failed", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE attempts > 0 AND owner IS NULL)`)
	mustExec(t, pool, `WITH m AS (DELETE FROM oncemore.message) UPDATE oncemore.claim SET trouble = 'failed', attempts = 10, not_before = NULL, fence = nextval('oncemore.fence')`)
	mustExec(t, pool, `ALTER TABLE unwanted RENAME TO wanted`)
	again := rerun(t, pool, worker.Order{Type: "letter"})
	if !again.Joined || again.Run != first.Run {
		t.Errorf("asked for again: %+v", again)
	}
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
}
