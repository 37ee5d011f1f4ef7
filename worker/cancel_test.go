package worker_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// visitsGivenUp: the visits of the mailing have failed for good.
const visitsGivenUp = `SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'failed' AND job_type = (SELECT id FROM oncemore.job_type WHERE name = 'mailing'))`

// cancelLost cancels a run whose visits were given up, twice, as who is not sure does.
func cancelLost(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	eventuallyRow(t, pool, "its visits are given up", visitsGivenUp)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := worker.CancelRun(ctx, tx, 1, "wrong text"); err != nil {
			return err
		}
		return worker.CancelRun(ctx, tx, 1, "wrong text, I said")
	})
	eventuallyRow(t, pool, "the run has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run WHERE id = 1`)
	if ask(t, pool, `SELECT `+heldBack) {
		t.Error("a message is held back for a century")
	}
}

// The source of a mailing names 10,000 letters, and then fails for good. Cancelling it needs
// no source; and when that is mended, the next call is a run of its own.
func TestARunWhoseVisitsWereGivenUpEndsWhenItIsCancelled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var mended atomic.Bool
	letters := newGate()
	src := jobs.Seq(func(_ context.Context, after string) iter.Seq2[letter, error] {
		return func(yield func(letter, error) bool) {
			switch {
			case mended.Load():
				yield(letter{1}, nil)
				return
			case after != "":
				yield(letter{}, errTrouble)
				return
			}
			for n := 100_000; n < 110_000; n++ {
				if !yield(letter{n}, nil) {
					return
				}
			}
		}
	})
	set := newSet(t, jobs.Job[mailing]{Policy: jobs.Policy{Backoff: quickly, Attempts: 3}, FanOut: func(mailing) jobs.Source { return src }},
		jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{PackSize: 10, Limit: jobs.Limit{Running: 2}}, Do: func(ctx context.Context, l letter) error {
			if l.N == 1 {
				return nil
			}
			return letters.pass(ctx, l.Entity())
		}})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, quietly(t))
	cancelLost(t, pool)
	close(letters.open)
	eventuallyRow(t, pool, "what was begun is done", quiet)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.run`); n != 1 {
		t.Errorf("cancelling it has begun it again: %d runs", n)
	}
	mended.Store(true)
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 2); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("called again: %s", got)
	}
	mustStop(t, w)
}

// Nor does it need a FanOut that works, or that this program has the letters.
func TestACancelledRunEndsWhateverItsFanOutDoes(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]func() jobs.Source{
		"it panics":                  func() jobs.Source { panic("no such event") },
		"it names what is not there": func() jobs.Source { return jobs.SQL[page](`SELECT '1' AS entity, 1 AS id, 0 AS source_version`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var broken atomic.Bool
			letters := newGate()
			named := jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 200) n`)
			set := newSet(t, jobs.Job[mailing]{Policy: jobs.Policy{Backoff: quickly, Attempts: 3}, FanOut: func(mailing) jobs.Source {
				if broken.Load() {
					return fails()
				}
				return named
			}}, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{PackSize: 1, Limit: jobs.Limit{Running: 2}},
				Do: func(ctx context.Context, l letter) error { return letters.pass(ctx, l.Entity()) }})
			enqueue(t, pgq(pool), mailing{1})
			w := begin(t, pool, set, quietly(t))
			within(t, "a letter is being worked", letters.entered)
			broken.Store(true)
			cancelLost(t, pool)
			close(letters.open)
			eventuallyRow(t, pool, "what was begun is done", quiet)
			mustStop(t, w)
		})
	}
}

func TestACancelledRunEndsInAProgramThatHasItsParentAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	letters := newGate()
	parent := jobs.Job[mailing]{Policy: jobs.Policy{Backoff: quickly, Attempts: 3}, FanOut: func(mailing) jobs.Source {
		return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 20) n`)
	}}
	enqueue(t, pgq(pool), mailing{1})
	config := quietly(t)
	config.Slots, config.Grace = 2, time.Millisecond
	first := begin(t, pool, newSet(t, parent, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{PackSize: 1},
		Do: func(ctx context.Context, l letter) error { return letters.pass(ctx, l.Entity()) }}), config)
	within(t, "a letter is being worked", letters.entered)
	mustStop(t, first)
	second := begin(t, pool, newSet(t, parent), quietly(t))
	cancelLost(t, pool)
	mustStop(t, second)
}

// A re-run that cannot be planned, since its source fails, has nothing to take back.
func TestARerunWhoseSourceFailsEndsWhenItIsCancelled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	src := jobs.Seq(func(context.Context, string) iter.Seq2[letter, error] {
		return func(yield func(letter, error) bool) { yield(letter{}, errTrouble) }
	})
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Source: src, Do: func(context.Context, letter) error { return nil }})
	w := begin(t, pool, set, quietly(t))
	opened := rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "a visit has failed", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE attempts > 0 AND owner IS NULL)`)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, opened.Run, "wrong type") })
	eventuallyRow(t, pool, "it has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run`)
	mustStop(t, w)
}

func TestARunThatIsToBeginLaterEndsNowWhenItIsCancelledAndBeginsNoSoonerWhenItIsPaused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := begin(t, pool, newSet(t, lettersFrom(`SELECT 1::text AS entity, 1 AS n`, func(context.Context, letter) error { return nil })), quietly(t))
	opened := rerun(t, pool, worker.Order{Type: "letter", Delay: time.Hour})
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := worker.PauseRun(ctx, tx, opened.Run, "a look first"); err != nil {
			return err
		}
		return worker.ResumeRun(ctx, tx, opened.Run)
	})
	if !ask(t, pool, `SELECT visible_at > now() + interval '50 minutes' FROM oncemore.message`) {
		t.Error("that it was paused has it begin sooner")
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		return worker.CancelRun(ctx, tx, opened.Run, "not tonight")
	})
	eventuallyRow(t, pool, "it has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run`)
	eventuallyRow(t, pool, "nothing of it waits", quiet)
	mustStop(t, w)
}

// Who asks for the same while a run is being cancelled must not believe that it is done.
func TestARerunThatIsBeingCancelledIsNotJoined(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var worked tally
	made := newWorker(t, pool, newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 20) n`, func(_ context.Context, l letter) error {
		worked.add(l.Entity())
		return nil
	})), quietly(t))
	first := rerun(t, pool, worker.Order{Type: "letter"})
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, first.Run, "wrong text") })
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := worker.OpenRerun(t.Context(), tx, pgq(pool), worker.Order{Type: "letter"})
		return err
	})
	if !errors.Is(err, worker.ErrCancelling) || !strings.Contains(err.Error(), "run 1 of the same is being cancelled: ask again") {
		t.Errorf("asked for while it is being cancelled: %v", err)
	}
	w := runWorker(t, made)
	eventuallyRow(t, pool, "it has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run`)
	if again := rerun(t, pool, worker.Order{Type: "letter"}); again.Joined {
		t.Errorf("asked for after that: %+v", again)
	}
	if got := awaitRun(t, pool, 2); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" || worked.sum() != 20 {
		t.Errorf("%d letters were written, and the run: %s", worked.sum(), got)
	}
	mustStop(t, w)
}

// The same for the tick of a schedule, which nobody sees being refused.
func TestATickWaitsForTheEndOfARunOfTheSameThatIsBeingCancelled(t *testing.T) {
	s := worker.Schedule{Name: "again", Spec: "@hourly", Rerun: &worker.Order{Type: "errand"}, Overlap: worker.OverlapQueue}
	c := newClockwork(t, s)
	byHand := rerun(t, c.pool, worker.Order{Type: "errand"})
	control(t, c.pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, byHand.Run, "wrong list") })
	c.say(time.Hour, "13:00 queued")
	if got := text(t, c.pool, `SELECT detail FROM oncemore.schedule_tick`); got != "run 1 of the same is being cancelled" {
		t.Errorf("it says why: %q", got)
	}
	mustExec(t, c.pool, `UPDATE oncemore.run SET ended_at = clock_timestamp(), cancelled = true`)
	c.say(time.Hour+2*time.Second, "13:00 started")
	if !ask(t, c.pool, `SELECT run = 2 FROM oncemore.schedule_tick`) {
		t.Error("its run is not one of its own")
	}
}

// The reason is for people. That there is none takes nothing from the order.
func TestWhatIsOrderedWithoutAReasonIsDoneAsWell(t *testing.T) {
	whileHeld(t, jobs.Repeatable, func(t *testing.T, h *held) {
		control(t, h.pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, h.run, "") })
		h.letGo()
		eventuallyRow(t, h.pool, "the run has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`, h.run)
		eventuallyRow(t, h.pool, "nothing goes on", quiet)
		control(t, h.pool, func(ctx context.Context, tx pgx.Tx) error { return worker.SetBrake(ctx, tx, "", "", "anna") })
		rerun(t, h.pool, worker.Order{Type: "letter"})
		eventuallyRow(t, h.pool, "the next run waits, or is over", `SELECT waits LIKE 'all runs are stopped%' OR ended_at IS NOT NULL FROM oncemore.run ORDER BY id DESC LIMIT 1`)
		if n := count(t, h.pool, `SELECT sent FROM oncemore.run ORDER BY id DESC LIMIT 1`); n > 0 {
			t.Errorf("%d letters were sent though all runs are stopped", n)
		}
		control(t, h.pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ReleaseBrake(ctx, tx, "") })
		eventuallyRow(t, h.pool, "it is complete", `SELECT complete FROM oncemore.run ORDER BY id DESC LIMIT 1`)
	})
}

// A brake may be set by a name that the job type had then, or has now.
func TestTheKillSwitchOfAJobTypeHoldsByAnyOfItsNames(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := begin(t, pool, newSet(t, lettersFrom(`SELECT 1::text AS entity, 1 AS n`, func(context.Context, letter) error { return nil })), quietly(t))
	mustExec(t, pool, `INSERT INTO oncemore.job_type (name, id, effect, seen_at) SELECT 'note', id, effect, seen_at - interval '1 day' FROM oncemore.job_type WHERE name = 'letter'`)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		return worker.SetBrake(ctx, tx, "note", "a look first", "anna")
	})
	rerun(t, pool, worker.Order{Type: "letter"})
	eventuallyRow(t, pool, "it waits, or is over", `SELECT waits LIKE 'all runs are stopped%' OR ended_at IS NOT NULL FROM oncemore.run`)
	if got := lastRun(t, pool); !strings.HasPrefix(got, "goes on") {
		t.Errorf("the run: %s", got)
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ReleaseBrake(ctx, tx, "letter") })
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("released: %s", got)
	}
	mustStop(t, w)
}

// anOldMailing is a fan-out to one letter, which is being worked and then fails once. It has gone on for so
// long that it is visited every half a minute.
func anOldMailing(t *testing.T) (pool *pgxpool.Pool, w *running, worked *tally, fail func()) {
	t.Helper()
	pool = pgtest.Pool(t)
	letters := newGate()
	worked = &tally{}
	set := newSet(t, mailingOf(`SELECT 1::text AS entity, 1 AS n`), jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{Backoff: quickly},
		Do: func(ctx context.Context, l letter) error {
			worked.add(l.Entity())
			if worked.sum() > 1 {
				return nil
			}
			if err := letters.pass(ctx, l.Entity()); err != nil {
				return err
			}
			return errTrouble
		}})
	enqueue(t, pgq(pool), mailing{1})
	w = begin(t, pool, set, quietly(t))
	within(t, "the letter is being worked", letters.entered)
	mustExec(t, pool, `UPDATE oncemore.run SET started_at = started_at - interval '1 hour'`)
	return pool, w, worked, func() { close(letters.open) }
}

// What fails in a paused run is tried again when the run goes on, and not before; however
// rarely the run is visited.
func TestAPausedRunBeginsNoFurtherAttempt(t *testing.T) {
	t.Parallel()
	pool, w, worked, fail := anOldMailing(t)
	before := count(t, pool, `SELECT visits FROM oncemore.run`)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.PauseRun(ctx, tx, 1, "the mailer is down") })
	eventuallyRow(t, pool, "a visit has seen it, and the next is far", `SELECT visits > $1 FROM oncemore.run`, before)
	fail()
	eventually(t, "its next attempt is held back, or was made", func() bool { return worked.sum() > 1 || ask(t, pool, `SELECT `+heldBack) })
	if worked.sum() > 1 {
		t.Error("another attempt was made while the run was paused")
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, 1) })
	eventuallyRow(t, pool, "the letter is written", `SELECT count(*) = 1 FROM oncemore.ledger`)
	mustStop(t, w)
}

// When a paused run has been cancelled, nobody could resume it.
func TestWhatFailsAfterAPausedRunWasCancelledIsTriedAgain(t *testing.T) {
	t.Parallel()
	pool, w, worked, fail := anOldMailing(t)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error {
		if err := worker.PauseRun(ctx, tx, 1, "the mailer is down"); err != nil {
			return err
		}
		return worker.CancelRun(ctx, tx, 1, "wrong text")
	})
	eventuallyRow(t, pool, "the run has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run`)
	fail()
	eventually(t, "it is tried again, or held back", func() bool { return worked.sum() > 1 || ask(t, pool, `SELECT `+heldBack) })
	eventuallyRow(t, pool, "the letter is written", `SELECT count(*) = 1 AND NOT `+heldBack+` FROM oncemore.ledger`)
	mustStop(t, w)
}

// Of each pack one letter had failed before. The call that tries them again is the wrong one, and
// is cancelled: what had failed carries nothing on, so the packs are taken back, and it is listed
// as before.
func TestACancelledRunTakesBackWhatHadFailedAsWell(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE named AS SELECT n FROM generate_series(2, 1000, 2) n`)
	var up atomic.Bool
	g := newGate()
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM named ORDER BY n`),
		jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{PackSize: 2, Limit: jobs.Limit{Running: 4}}, Do: func(ctx context.Context, l letter) error {
			if !up.Load() {
				return jobs.Permanent(errTrouble)
			}
			return g.pass(ctx, l.Entity())
		}})
	w := begin(t, pool, set, quietly(t))
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 500, in doubt 0, not ready 0" {
		t.Fatalf("the first call: %s", got)
	}
	up.Store(true)
	mustExec(t, pool, `INSERT INTO named SELECT n FROM generate_series(1, 1000, 2) n`)
	enqueue(t, pgq(pool), mailing{1})
	within(t, "a letter is being worked", g.entered)
	wrong := count(t, pool, `SELECT max(id) FROM oncemore.run`)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, wrong, "wrong text") })
	eventually(t, "the run has ended", func() bool {
		return ask(t, pool, `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`, wrong)
	})
	close(g.open)
	eventuallyRow(t, pool, "what was begun is done", quiet)
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = 'letter')`); n > 700 { // a worker has at most some hundred packs in hand
		t.Errorf("%d letters of the cancelled run were written", n)
	}
	if !ask(t, pool, `SELECT count(*) >= 50 AND bool_and(trouble = 'failed') FROM oncemore.claim`) {
		t.Error("what had failed is not listed any more")
	}
}

// The visit that is under way when the run is cancelled is the last that is tried, and it fails.
func TestARunEndsThatIsCancelledDuringTheLastVisitThatIsTried(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	reading := newGate()
	src := jobs.Seq(func(ctx context.Context, after string) iter.Seq2[letter, error] {
		return func(yield func(letter, error) bool) {
			if after != "" {
				_ = reading.pass(ctx, "the rest")
				yield(letter{}, errTrouble)
				return
			}
			for n := 100_000; n < 110_000; n++ {
				if !yield(letter{n}, nil) {
					return
				}
			}
		}
	})
	set := newSet(t, jobs.Job[mailing]{Policy: jobs.Policy{Attempts: 1}, FanOut: func(mailing) jobs.Source { return src }},
		jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(context.Context, letter) error { return nil }})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, quietly(t))
	within(t, "the rest of the source is read", reading.entered)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, 1, "wrong text") })
	close(reading.open)
	eventuallyRow(t, pool, "the run has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run`)
	eventuallyRow(t, pool, "nothing is left", quiet)
	mustStop(t, w)
}

// A provider is down, so the run is paused. Its done-check answers meanwhile: it was not done. The
// next attempt is the run's, and waits with it.
func TestAPausedRunBeginsNothingThatADoneCheckHasFound(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var knows atomic.Bool
	var tried tally
	g := newGate()
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM generate_series(1, 2) n`),
		jobs.Job[letter]{Effect: jobs.Verifiable(0), Policy: jobs.Policy{PackSize: 1, Backoff: quickly},
			Done: func(_ context.Context, l letter) (bool, error) {
				if l.N == 1 && tried.of("1") == 1 && !knows.Load() {
					return false, errTrouble
				}
				return false, nil
			},
			Do: func(ctx context.Context, l letter) error {
				tried.add(l.Entity())
				if l.N == 1 && tried.of("1") == 1 {
					return errTrouble
				}
				return g.pass(ctx, l.Entity())
			}})
	w := begin(t, pool, set, worker.Config{Recheck: 20 * time.Millisecond})
	enqueue(t, pgq(pool), mailing{7})
	eventually(t, "one is in doubt", func() bool { return standing(t, pool, "1") == "in_doubt 1" })
	mustExec(t, pool, `UPDATE oncemore.run SET started_at = started_at - interval '1 hour'`) // so its visits are rare
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.PauseRun(ctx, tx, 1, "the provider is down") })
	knows.Store(true)
	eventually(t, "the check has found out", func() bool { return standing(t, pool, "1") != "in_doubt 1" })
	eventuallyRow(t, pool, "its message is held back", `SELECT `+heldBack)
	if n := tried.of("1"); n != 1 {
		t.Errorf("it was tried %d times, and the run is paused", n)
	}
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, 1) })
	close(g.open)
	eventuallyRow(t, pool, "all is done", `SELECT count(*) = 2 FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = 'letter'`)
	mustStop(t, w)
}

// Somebody cancels a run while its last visit dies with its worker. Whoever takes that over gives the
// visits up, and sees nothing of it; the run ends all the same, and holds nothing back.
func TestARunEndsThatWasCancelledWhenItsLastVisitDied(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	letters := newGate()
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM generate_series(1, 3) n`), jobs.Job[letter]{Effect: jobs.Repeatable,
		Do: func(ctx context.Context, l letter) error { return letters.pass(ctx, l.Entity()) }})
	config := quietly(t)
	config.Recheck = 20 * time.Millisecond
	w := begin(t, pool, set, config)
	enqueue(t, pgq(pool), mailing{1})
	within(t, "a letter is being worked", letters.entered)
	mustStop(t, w)
	control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, 1, "wrong text") })
	mustExec(t, pool, `DELETE FROM oncemore.message WHERE type = 'mailing'`)
	mustExec(t, pool, `UPDATE oncemore.claim SET trouble = 'failed', attempts = 10, not_before = NULL, fence = nextval('oncemore.fence')
WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = 'mailing')`)
	if !ask(t, pool, `SELECT `+heldBack) {
		t.Error("nothing is held back")
	}
	close(letters.open)
	w = begin(t, pool, set, config)
	eventuallyRow(t, pool, "the run has ended", `SELECT cancelled AND ended_at IS NOT NULL FROM oncemore.run WHERE id = 1`)
	eventuallyRow(t, pool, "nothing is held back", `SELECT NOT (`+heldBack+`)`)
	mustStop(t, w)
}
