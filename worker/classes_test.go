package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

var errTrouble = errors.New("some trouble")

// endings are the ways in which an attempt ends without success. All but the last two
// succeed at their second attempt.
var endings = map[string]func(ctx context.Context) error{
	"error":                 func(context.Context) error { return errTrouble },
	"panic":                 func(context.Context) error { panic("some trouble") },
	"timeout":               func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	"not applied":           func(context.Context) error { return jobs.NotApplied(errTrouble) },
	"retry after":           func(context.Context) error { return jobs.RetryAfter(time.Millisecond, errTrouble) },
	"permanent":             func(context.Context) error { return jobs.Permanent(errTrouble) },
	"permanent not applied": func(context.Context) error { return jobs.Permanent(jobs.NotApplied(errTrouble)) },
	"stopped":               func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	"stopped, says why":     func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) },
	"stopped not applied":   func(ctx context.Context) error { <-ctx.Done(); return jobs.NotApplied(ctx.Err()) },
	"always":                func(context.Context) error { return errTrouble },
	"always not applied":    func(context.Context) error { return fmt.Errorf("refused: %w", jobs.NotApplied(errTrouble)) },
}

// What is promised for each class and ending: where the entity ends up with how many
// attempts charged, and how often the body ran.
var promises = func() map[string]map[string]string {
	m := map[string]map[string]string{}
	for class, evidence := range map[string]string{"InTransaction": "t", "Repeatable": "r", "Keyed": "r", "Verifiable": "r", "Once": "r"} {
		again, uncharged := "done "+evidence+" 2, 2 runs", "done "+evidence+" 1, 2 runs"
		p := map[string]string{
			"error": again, "panic": again, "timeout": again, "not applied": again, "retry after": again,
			"permanent": "failed 1, 1 runs", "permanent not applied": "failed 1, 1 runs",
			"stopped": uncharged, "stopped, says why": uncharged, "stopped not applied": uncharged,
			"always": "failed 3, 3 runs", "always not applied": "failed 3, 3 runs",
		}
		switch class {
		case "Keyed", "Verifiable":
			// Whether the effect happened is not known, so the attempt counts.
			p["stopped"], p["stopped, says why"] = again, again
		case "Once":
			for ending := range p {
				switch ending {
				case "not applied", "permanent not applied", "stopped not applied", "always not applied":
				default:
					p[ending] = "in_doubt 1, 1 runs"
				}
			}
		}
		m[class] = p
	}
	return m
}()

func TestI4NoBlindRepeatTheClassDecidesWhatFollowsAnAttempt(t *testing.T) {
	for class, promised := range promises {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var runs tally
			body := func(ctx context.Context, e errand) error {
				if n := runs.add(e.What); n == 1 || e.What == "always" || e.What == "always not applied" {
					return endings[e.What](ctx)
				}
				return nil
			}
			j := jobs.Job[errand]{Policy: jobs.Policy{Attempts: 3, Backoff: quickly, Timeout: 3 * time.Second}}
			switch class {
			case "InTransaction":
				j.DoTx = func(ctx context.Context, _ pgx.Tx, e errand) error { return body(ctx, e) }
			case "Repeatable":
				j.Effect, j.Do = jobs.Repeatable, body
			case "Keyed":
				j.Effect, j.Do = jobs.Keyed(time.Hour), body
			case "Verifiable":
				j.Effect, j.Do = jobs.Verifiable(time.Millisecond), body
				j.Done = func(context.Context, errand) (bool, error) { return false, nil }
			case "Once":
				j.Effect, j.Do = jobs.Once, body
			}
			set := newSet(t, j)

			// A worker is stopped in the middle of some of them, so soon that it was not their timeout.
			stopped := []jobs.Args{errand{"stopped"}, errand{"stopped, says why"}, errand{"stopped not applied"}}
			enqueue(t, pgq(pool), stopped...)
			j.Timeout = time.Minute
			first := begin(t, pool, newSet(t, j), worker.Config{Grace: time.Millisecond})
			eventually(t, "those to be stopped have begun", func() bool { return runs.sum() == len(stopped) })
			mustStop(t, first)

			for ending := range endings {
				if runs.of(ending) == 0 {
					enqueue(t, pgq(pool), errand{ending})
				}
			}
			second := begin(t, pool, set, worker.Config{})
			eventuallyRow(t, pool, "every errand is done, failed or in doubt", `
SELECT (SELECT count(*) FROM oncemore.ledger) + (SELECT count(*) FROM oncemore.claim WHERE trouble IN ('failed', 'in_doubt')) = $1
   AND NOT EXISTS (SELECT FROM oncemore.message)`, len(endings))
			mustStop(t, second)
			for ending := range endings {
				if got := fmt.Sprintf("%s, %d runs", standing(t, pool, ending), runs.of(ending)); got != promised[ending] {
					t.Errorf("%s: %q ended as %q, promised is %q", class, ending, got, promised[ending])
				}
			}
		})
	}
}

func TestI4NoBlindRepeatAnEffectThatTheCheckFindsIsRecordedAndNotHadAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const settle = 400 * time.Millisecond
	var effects tally
	var asked atomic.Pointer[time.Time] // when it was asked after the effect
	var ended atomic.Pointer[time.Time]
	set := newSet(t, jobs.Job[letter]{
		Effect: jobs.Verifiable(settle), Policy: jobs.Policy{Backoff: quickly},
		Done: func(_ context.Context, l letter) (bool, error) {
			now := time.Now()
			if ended.Load() != nil {
				asked.Store(&now)
			}
			return effects.of(l.Entity()) > 0, nil
		},
		Do: func(_ context.Context, l letter) error {
			effects.add(l.Entity())
			now := time.Now()
			ended.Store(&now)
			return errors.New("the connection broke after the server had accepted it")
		},
	})
	awaitDone(t, pool, set, worker.Config{}, 1, letter{1})
	if got := standing(t, pool, "1"); got != "done c 1" || effects.of("1") != 1 {
		t.Errorf("%q after %d effects, want it recorded by the done-check after one", got, effects.of("1"))
	}
	if passed := asked.Load().Sub(*ended.Load()); passed < settle {
		t.Errorf("the check was believed %v after the attempt, before the world had settled (%v)", passed, settle)
	}
}

// The last attempt failed, and is tried anew at once, by an operator or since the fan-out was
// called again. The mail server takes a while to show what it took: here for as long as it takes
// to see that nobody asks, whatever the machine is busy with.
func TestI4NoBlindRepeatWhatFailedIsNotAskedAboutBeforeItsEffectCanBeSeen(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const settle = time.Hour
	var effects tally
	var shows atomic.Bool
	set := newSet(t, jobs.Job[letter]{
		Effect: jobs.Verifiable(settle), Policy: jobs.Policy{Backoff: quickly},
		Done: func(context.Context, letter) (bool, error) { return shows.Load(), nil },
		Do: func(_ context.Context, l letter) error {
			effects.add(l.Entity())
			return jobs.Permanent(errors.New("the server said something that nobody understands"))
		},
	})
	enqueue(t, pgq(pool), letter{1})
	w := begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "it has failed, and no message is left", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'failed') AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustExec(t, pool, `UPDATE oncemore.claim SET trouble = 'retrying', attempts = 0, not_before = NULL, fence = nextval('oncemore.fence')`)
	enqueue(t, pgq(pool), letter{1})
	eventually(t, "it is put off, or had once more", func() bool {
		return effects.of("1") > 1 || ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.message WHERE lock = 0)`)
	})
	if got := standing(t, pool, "1"); effects.of("1") != 1 || got != "retrying 0" {
		t.Fatalf("%q after %d effects, want it to wait after one", got, effects.of("1"))
	}
	shows.Store(true)
	mustExec(t, pool, `UPDATE oncemore.claim SET claimed_at = claimed_at - $1::interval`, settle)
	mustExec(t, pool, `UPDATE oncemore.message SET visible_at = visible_at - $1::interval`, settle)
	eventuallyRow(t, pool, "it is done", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, w)
	if got := standing(t, pool, "1"); effects.of("1") != 1 || !strings.HasPrefix(got, "done c") {
		t.Errorf("%q after %d effects, want it found by the done-check after one", got, effects.of("1"))
	}
}

func TestI4NoBlindRepeatWhatTheCheckCannotTellIsInDoubtUntilItCan(t *testing.T) {
	for verdict, want := range map[bool]string{true: "done c 1, 1 runs", false: "done r 2, 2 runs"} {
		t.Run(fmt.Sprintf("done=%t", verdict), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var runs tally
			var knows atomic.Bool
			set := newSet(t, jobs.Job[letter]{
				Effect: jobs.Verifiable(time.Millisecond), Policy: jobs.Policy{Backoff: quickly},
				Done: func(ctx context.Context, l letter) (bool, error) {
					if key := jobs.Current(ctx).EffectKey(); key != jobs.Current(jobs.NewContext(ctx, &jobs.Attempt{JobType: "letter", Entity: l.Entity()})).EffectKey() {
						t.Errorf("the check is asked with effect key %s, which no attempt had", key)
					}
					switch {
					case runs.of(l.Entity()) == 0:
						return false, nil
					case !knows.Load():
						return false, errors.New("the provider is down")
					}
					return verdict, nil
				},
				Do: func(_ context.Context, l letter) error {
					if runs.add(l.Entity()) == 1 {
						return errTrouble
					}
					knows.Store(true)
					return nil
				},
			})
			enqueue(t, pgq(pool), letter{1})
			w := begin(t, pool, set, worker.Config{Recheck: 20 * time.Millisecond})
			eventuallyRow(t, pool, "it is in doubt, and no message will bring it back", `
SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'in_doubt') AND NOT EXISTS (SELECT FROM oncemore.message)`)
			if n := runs.of("1"); n != 1 {
				t.Errorf("it ran %d times while nobody could tell", n)
			}
			knows.Store(true)
			eventuallyRow(t, pool, "it is done", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
			mustStop(t, w)
			if got := fmt.Sprintf("%s, %d runs", standing(t, pool, "1"), runs.of("1")); got != want {
				t.Errorf("%q, want %q", got, want)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'resolved' AND error LIKE '%done-check%'`); n != 1 {
				t.Errorf("%d attempts say who resolved it", n)
			}
		})
	}
}

func TestI4NoBlindRepeatAKeyIsNotTrustedPastItsHorizon(t *testing.T) {
	checks := map[string]struct {
		done func(context.Context, errand) (bool, error)
		want string
	}{
		"no check":          {nil, "in_doubt 1, 1 runs"},
		"found":             {func(context.Context, errand) (bool, error) { return true, nil }, "done c 1, 1 runs"},
		"found absent":      {func(context.Context, errand) (bool, error) { return false, nil }, "done r 2, 2 runs"},
		"check cannot tell": {func(context.Context, errand) (bool, error) { return false, errTrouble }, "in_doubt 1, 1 runs"},
	}
	for name, c := range checks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var runs tally
			j := jobs.Job[errand]{
				// The horizon is over, for an attempt that may take its whole timeout, after 200 ms.
				Effect: jobs.Keyed(300 * time.Millisecond),
				Policy: jobs.Policy{Timeout: 100 * time.Millisecond, Backoff: func(int) time.Duration { return 250 * time.Millisecond }},
				Do: func(_ context.Context, e errand) error {
					if runs.add(e.What) == 1 {
						return errTrouble
					}
					return nil
				},
			}
			if c.done != nil {
				j.Done = func(ctx context.Context, e errand) (bool, error) {
					if runs.of(e.What) == 0 {
						return false, nil
					}
					return c.done(ctx, e)
				}
			}
			enqueue(t, pgq(pool), errand{"pay"})
			w := begin(t, pool, newSet(t, j), worker.Config{})
			eventuallyRow(t, pool, "it is done or in doubt", `
SELECT NOT EXISTS (SELECT FROM oncemore.message) AND (EXISTS (SELECT FROM oncemore.ledger) OR EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'in_doubt'))`)
			mustStop(t, w)
			if got := fmt.Sprintf("%s, %d runs", standing(t, pool, "pay"), runs.of("pay")); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestI4NoBlindRepeatEveryAttemptInsideTheHorizonHasTheSameKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var keys tally
	set := newSet(t, jobs.Job[errand]{Effect: jobs.Keyed(time.Hour), Policy: jobs.Policy{Backoff: quickly}, Do: func(ctx context.Context, e errand) error {
		if keys.add(jobs.Current(ctx).EffectKey()) < 3 {
			return errTrouble
		}
		return nil
	}})
	awaitDone(t, pool, set, worker.Config{}, 1, errand{"pay"})
	if len(keys.n) != 1 || keys.sum() != 3 {
		t.Errorf("three attempts had the keys %v", keys.n)
	}
}
