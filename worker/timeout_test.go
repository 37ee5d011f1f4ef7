package worker_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Worker A runs a body, in its only slot, that does not notice the end of its context. The
// body is fenced off, and A lets go of what it has no slot for, so that worker B can make
// the next attempt; when A's body reports success after all, that
// changes nothing and is kept as evidence of a possible double effect.
func TestABodyThatIgnoresItsTimeoutIsFencedOffAndItsLateSuccessIsDisputed(t *testing.T) {
	for name, class := range map[string]jobs.Effect{"Repeatable": jobs.Repeatable, "Keyed": jobs.Keyed(time.Hour)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			g := newGate()
			job := func(body func(context.Context, letter) error) *jobs.Set {
				return newSet(t, jobs.Job[letter]{Effect: class, Do: body, Policy: jobs.Policy{Timeout: 50 * time.Millisecond, Backoff: quickly}})
			}
			enqueue(t, pgq(pool), letter{1})
			a := beginImpatient(t, pool, job(func(_ context.Context, l letter) error {
				return g.pass(context.Background(), l.Entity()) // deaf
			}), worker.Config{Slots: 1})
			within(t, "A's body has begun", g.entered)
			eventually(t, "A's health says that it is stuck", func() bool {
				err := a.Health()
				return err != nil && strings.Contains(err.Error(), `letter "1"`)
			})
			var number int
			b := begin(t, pool, job(func(ctx context.Context, _ letter) error { number = jobs.Current(ctx).Number; return nil }), worker.Config{})
			eventuallyRow(t, pool, "B has completed it", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
			mustStop(t, b)
			if number != 2 {
				t.Errorf("B's attempt was number %d, want 2", number)
			}
			if err := a.Health(); err == nil {
				t.Error("A is healthy while its body is stuck")
			}
			close(g.open)
			eventuallyRow(t, pool, "A's late success is disputed", `SELECT count(*) = 1 FROM oncemore.attempt WHERE outcome = 'disputed'`)
			eventually(t, "A is healthy again", func() bool { return a.Health() == nil })
			mustStop(t, a)
			if got := standing(t, pool, "1"); got != "done r 2" {
				t.Errorf("%q, want B's completion to stand", got)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'retrying' AND error_class = 'timeout'`); n != 1 {
				t.Errorf("%d attempts are recorded as timed out, want 1", n)
			}
		})
	}
}

// A check is no attempt: one that hangs leaves nothing behind, whatever the class.
func TestI4NoBlindRepeatACheckThatHangsIsNotAnAttempt(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(j *jobs.Job[letter], check func(context.Context, letter) (bool, error)){
		"Ready": func(j *jobs.Job[letter], check func(context.Context, letter) (bool, error)) { j.Ready = check },
		"Done": func(j *jobs.Job[letter], check func(context.Context, letter) (bool, error)) {
			j.Done = func(ctx context.Context, l letter) (bool, error) { ok, err := check(ctx, l); return !ok, err }
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			g := newGate()
			var runs, asked tally
			j := jobs.Job[letter]{Effect: jobs.Once, Policy: jobs.Policy{Timeout: 50 * time.Millisecond, Backoff: quickly},
				Do: func(_ context.Context, l letter) error { runs.add(l.Entity()); return nil }}
			spoil(&j, func(ctx context.Context, l letter) (bool, error) {
				if asked.add(l.Entity()) == 1 {
					return true, g.pass(context.Background(), l.Entity()) // deaf
				}
				return true, nil
			})
			enqueue(t, pgq(pool), letter{1})
			w := beginImpatient(t, pool, newSet(t, j), worker.Config{})
			eventuallyRow(t, pool, "another slot has done it, or it stays in doubt", `
SELECT NOT EXISTS (SELECT FROM oncemore.message) AND (EXISTS (SELECT FROM oncemore.ledger) OR EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'in_doubt'))`)
			close(g.open)
			mustStop(t, w)
			if got := standing(t, pool, "1"); !strings.HasPrefix(got, "done r") || runs.of("1") != 1 {
				t.Errorf("%q after %d runs, want it done once", got, runs.of("1"))
			}
		})
	}
}

func TestABodyInATransactionThatIgnoresItsTimeoutLeavesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE effect (n int)`)
	g := newGate()
	var tries tally
	set := newSet(t, jobs.Job[letter]{Policy: jobs.Policy{Timeout: 3 * time.Second, Backoff: quickly}, DoTx: func(ctx context.Context, tx pgx.Tx, l letter) error {
		if _, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, l.N); err != nil {
			return err
		}
		if tries.add(l.Entity()) > 1 {
			return nil
		}
		<-g.open
		return nil // and it believes that all is well
	}})
	enqueue(t, pgq(pool), letter{1})
	w := beginImpatient(t, pool, set, worker.Config{})
	inTx := `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction')`
	eventually(t, "the body is in its transaction", func() bool { return tries.of("1") == 1 && ask(t, pool, inTx) })
	eventuallyRow(t, pool, "past its timeout and the grace the server has ended that", `SELECT NOT (`+inTx+`)`)
	close(g.open)
	eventuallyRow(t, pool, "it is done", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM effect`); n != 1 || tries.of("1") != 2 {
		t.Errorf("%d effects after %d tries, want one after two", n, tries.of("1"))
	}
}
