package worker_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// wasNote makes all that is in the database of letters that of notes, as the job type was called
// before a deploy.
func wasNote(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	mustExec(t, pool, `UPDATE oncemore.job_type SET name = replace(name, 'letter', 'note')`)
	mustExec(t, pool, `UPDATE oncemore.message SET type = replace(type, 'letter', 'note')`)
}

// itsCarrierHasANumber has the carriers of re-runs under the new name there already, as the release
// before made them: with a number of their own.
func itsCarrierHasANumber(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	mustExec(t, pool, `INSERT INTO oncemore.job_type (name, id, effect) VALUES ('oncemore.rerun.letter', nextval('oncemore.job_type_id'), 'Repeatable')`)
}

func renamedLetters(do func(context.Context, letter) error) jobs.Job[letter] {
	j := lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 3) n`, do)
	j.Aliases = []string{"note"}
	return j
}

// A re-run goes on when a deploy gives its job type another name, and is found by the new one.
func TestARerunGoesOnWhenItsTypeIsRenamed(t *testing.T) {
	for name, cancelled := range map[string]bool{"to its end": false, "and can be cancelled": true, "under a number of its own": false, "under a number of its own, cancelled": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own := strings.HasPrefix(name, "under")
			pool := pgtest.Pool(t)
			var done tally
			do := func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }
			before := begin(t, pool, newSet(t, lettersFrom(`SELECT n::text AS entity, n FROM generate_series(1, 3) n`, do)), quietly(t))
			rerun(t, pool, worker.Order{Type: "letter", Delay: time.Hour})
			mustStop(t, before)
			wasNote(t, pool)
			if own {
				itsCarrierHasANumber(t, pool)
			}

			w := begin(t, pool, newSet(t, renamedLetters(do)), quietly(t))
			if !own {
				if again := rerun(t, pool, worker.Order{Type: "letter"}); !again.Joined || again.Run != 1 {
					t.Errorf("asked for by the new name: %+v", again)
				}
			}
			want := "ended, complete=t, failed 0, in doubt 0, not ready 0"
			if cancelled {
				want = "ended, complete=f, failed 0, in doubt 0, not ready 0"
				control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, 1, "wrong text") })
			} else {
				mustExec(t, pool, `UPDATE oncemore.message SET visible_at = now()`)
			}
			eventuallyRow(t, pool, "the run has ended", `SELECT ended_at IS NOT NULL FROM oncemore.run WHERE id = 1`)
			mustStop(t, w)
			if got := lastRun(t, pool); got != want {
				t.Errorf("the run: %s", got)
			}
			if n := done.sum(); cancelled != (n == 0) {
				t.Errorf("%d letters were written", n)
			}
		})
	}
}

// What a fan-out sent under a name of before is its own as well: cancelled it takes that back, and
// else it does not send it twice.
func TestAFanOutKnowsWhatItSentBeforeItsTypeWasRenamed(t *testing.T) {
	for _, cancelled := range []bool{false, true} {
		t.Run(map[bool]string{false: "to its end", true: "cancelled"}[cancelled], func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var done tally
			do := func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }
			query := `SELECT n::text AS entity, n FROM generate_series(1, 3) n`
			g := newGate()
			before := begin(t, pool, newSet(t, mailingOf(query), lettersFrom(query, func(ctx context.Context, l letter) error {
				if err := g.pass(ctx, l.Entity()); err != nil {
					return err
				}
				return errTrouble
			})), quietly(t))
			enqueue(t, pgq(pool), mailing{1})
			within(t, "a letter is being worked", g.entered)
			control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.PauseRun(ctx, tx, 1, "a deploy") })
			mustStop(t, before)
			wasNote(t, pool)
			var sent int
			if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM oncemore.message WHERE run = 1 AND type = 'note'`).Scan(&sent); err != nil || sent == 0 {
				t.Fatal(sent, err)
			}

			if cancelled {
				mustExec(t, pool, `DELETE FROM oncemore.claim c USING oncemore.job_type t WHERE t.id = c.job_type AND t.name = 'note'`)
				control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.CancelRun(ctx, tx, 1, "wrong text") })
			}
			w := begin(t, pool, newSet(t, mailingOf(query), renamedLetters(do)), quietly(t))
			if !cancelled {
				control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ResumeRun(ctx, tx, 1) })
			}
			eventuallyRow(t, pool, "the run has ended", `SELECT ended_at IS NOT NULL FROM oncemore.run WHERE id = 1`)
			eventuallyRow(t, pool, "nothing is on its way", `SELECT NOT EXISTS (SELECT FROM oncemore.message)`)
			mustStop(t, w)
			if n := done.sum(); cancelled && n != 0 || !cancelled && n != 3 {
				t.Errorf("%d letters were written", n)
			}
			if resent := text(t, pool, `SELECT resent::text FROM oncemore.run WHERE id = 1`); resent != "0" {
				t.Errorf("%s packs were sent again", resent)
			}
		})
	}
}
