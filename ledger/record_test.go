package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

func TestRecordAdoptsWhatTheAppDidItself(t *testing.T) {
	w := newWorld(t, ledger.Once)
	w.in(func(tx pgx.Tx) {
		fresh, err := ledger.Record(t.Context(), tx, w.kind, plain("b"), plain("a"))
		w.ok(err)
		w.want("fresh", fmt.Sprint(fresh), "[true true]")
	})
	w.in(func(tx pgx.Tx) {
		fresh, err := ledger.Record(t.Context(), tx, w.kind, plain("c"), plain("a"))
		w.ok(err)
		w.want("fresh, in the order asked", fmt.Sprint(fresh), "[true false]")
	})
	w.want("a", w.reason("a"), ledger.Done)
	w.want("evidence", w.look(plain("a")).Fact.Evidence, ledger.Adopted)
}

func TestRecordRefusesAnEntityNamedTwice(t *testing.T) {
	w := newWorld(t, ledger.Once)
	tx := w.begin()
	if _, err := ledger.Record(t.Context(), tx, w.kind, plain("a"), plain("a")); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("got %v", err)
	}
}

// Postgres would refuse such a name too, and with it the app's transaction.
func TestRecordRefusesWhatIsNoNameAndTheTransactionGoesOn(t *testing.T) {
	w := newWorld(t, ledger.Once)
	w.in(func(tx pgx.Tx) {
		for _, entity := range []string{"", "a\x00", "a\xff", strings.Repeat("a", 513)} {
			if _, err := ledger.Record(t.Context(), tx, w.kind, plain("a"), plain(entity)); err == nil {
				t.Errorf("%.10q was recorded", entity)
			}
		}
		fresh, err := ledger.Record(t.Context(), tx, w.kind, plain("b"))
		w.ok(err)
		w.want("fresh", fmt.Sprint(fresh), "[true]")
	})
	w.want("facts", w.facts(), 1)
}

// One look is one caller's: what Postgres refuses of it is that caller's error alone.
func TestALookForWhatIsNoNameFailsAlone(t *testing.T) {
	w := newWorld(t, ledger.Once)
	if _, err := w.Look(t.Context(), w.kind, []ledger.Want{plain("a"), plain("a\x00")}); err == nil {
		t.Error("it was found")
	}
	w.want("a", w.reason("a"), ledger.Missing)
}

func TestI3InTransactionEffectsHappenOnceARecordedFactRollsBackWithItsEffect(t *testing.T) {
	w := newWorld(t, ledger.Once)
	w.exec(`CREATE TABLE effect (x int)`)
	tx := w.begin()
	_, err := ledger.Record(t.Context(), tx, w.kind, plain("e"))
	w.ok(err)
	_, err = tx.Exec(t.Context(), `INSERT INTO effect VALUES (1)`)
	w.ok(err)
	w.ok(tx.Rollback(t.Context()))
	w.want("e", w.reason("e"), ledger.Missing)
	w.want("effects", value[int](w, `SELECT count(*) FROM effect`), 0)
}

func TestI2OneCompletionOfTwoAppsThatRecordTheSame(t *testing.T) {
	for _, first := range []string{"commits", "rolls back"} {
		t.Run("the first "+first, func(t *testing.T) {
			w := newWorld(t, ledger.Once)
			one, two := w.begin(), w.begin()
			fresh, err := ledger.Record(t.Context(), one, w.kind, plain("e"))
			w.ok(err)
			w.want("the first is fresh", fresh[0], true)
			answer := make(chan bool)
			go func() {
				fresh, err := ledger.Record(t.Context(), two, w.kind, plain("e"))
				answer <- err == nil && fresh[0]
			}()
			w.awaitBlocked(1)
			if first == "commits" {
				w.ok(one.Commit(t.Context()))
			} else {
				w.ok(one.Rollback(t.Context()))
			}
			w.want("the second is fresh", <-answer, first == "rolls back")
		})
	}
}

func (w *world) hold(tx pgx.Tx, outs ...*ledger.Outcome) []bool {
	w.Helper()
	mine, err := ledger.Hold(w.Context(), tx, w.kind, time.Minute, outs)
	w.ok(err)
	return mine
}

func TestHoldTellsWhoseEffectItIsInTheOrderGiven(t *testing.T) {
	w := newWorld(t, ledger.InTransaction)
	a := w.worker()
	w.settle(a, ended(plain("done"), ledger.Claim{}, ledger.Completed))
	held, lost, stale := w.claim(a, plain("held")), w.claim(a, plain("lost")), w.claim(a, plain("stale"))
	w.die(a)
	w.claim(w.worker(), plain("lost"))
	w.in(func(tx pgx.Tx) {
		_, err := ledger.Record(t.Context(), tx, w.kind, plain("stale")) // under the claim's own epoch
		w.ok(err)
	})
	tx := w.begin()
	none := ledger.Claim{}
	mine := w.hold(tx, ended(plain("stale"), stale, ledger.Completed), ended(plain("new"), none, ledger.Completed), ended(plain("lost"), lost, ledger.Completed),
		ended(plain("held"), held, ledger.Completed), ended(plain("done"), none, ledger.Completed))
	w.want("mine", fmt.Sprint(mine), "[false true false true false]")
	w.ok(tx.Commit(t.Context()))
	for entity, want := range map[string]ledger.Reason{"new": ledger.Done, "held": ledger.Done, "lost": ledger.Ongoing, "done": ledger.Done} {
		w.want(entity, w.reason(entity), want)
	}
}

func TestHoldIsBusyWhenPatienceEnds(t *testing.T) {
	w := newWorld(t, ledger.InTransaction)
	frozen, tx := w.begin(), w.begin()
	w.hold(frozen, ended(plain("e"), ledger.Claim{}, ledger.Completed))
	begin := time.Now()
	_, err := ledger.Hold(t.Context(), tx, w.kind, 50*time.Millisecond, []*ledger.Outcome{ended(plain("e"), ledger.Claim{}, ledger.Completed)})
	if !errors.Is(err, ledger.ErrBusy) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("busy after %s", took)
	}
	w.ok(frozen.Commit(t.Context()))
	w.want("e", w.reason("e"), ledger.Done)
}

var settings = []string{"lock_timeout", "enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"}

func settingsOf(t *testing.T, tx pgx.Tx) string {
	t.Helper()
	var all []string
	for _, s := range settings {
		var v string
		if err := tx.QueryRow(t.Context(), `SELECT current_setting($1)`, s).Scan(&v); err != nil {
			t.Fatal(err)
		}
		all = append(all, s+"="+v)
	}
	return strings.Join(all, " ")
}

func TestTheAppsTransactionGoesOnWithItsOwnSettings(t *testing.T) {
	w := newWorld(t, ledger.InTransaction)
	a := w.worker()
	c := w.claim(a, plain("e"))
	doubt := failed(plain("doubt"), w.claim(a, plain("doubt")), ledger.Unclear)
	w.settle(a, doubt)
	o := w.look(plain("doubt")).Open
	w.in(func(tx pgx.Tx) {
		before := settingsOf(t, tx)
		w.hold(tx, ended(plain("e"), c, ledger.Completed), ended(plain("f"), ledger.Claim{}, ledger.Completed))
		w.want("settings after Hold", settingsOf(t, tx), before)
		w.ok(ledger.Resolve(t.Context(), tx, w.kind, o, ledger.Verdict{Done: true, Evidence: ledger.ByOperator}))
		w.want("settings after Resolve", settingsOf(t, tx), before)
	})
}

// A restore of the worker's own transaction is not enough: a pooled connection lives on.
func TestRunBatchLeavesTheConnectionAsItWas(t *testing.T) {
	w := newWorld(t, ledger.InTransaction)
	w.pool.Reset()
	before := value[string](w, `SELECT current_setting('enable_seqscan') || current_setting('transaction_isolation')`)
	for range 5 {
		w.look(plain("e"))
	}
	for _, c := range w.pool.AcquireAllIdle(t.Context()) {
		var now string
		w.ok(c.QueryRow(t.Context(), `SELECT current_setting('enable_seqscan') || current_setting('transaction_isolation')`).Scan(&now))
		c.Release()
		w.want("settings", now, before)
	}
}

// resolve resolves in a transaction of its own.
func (w *world) resolve(o *ledger.Open, v ledger.Verdict) error {
	return pgx.BeginFunc(context.WithoutCancel(w.Context()), w.pool, func(tx pgx.Tx) error { return ledger.Resolve(w.Context(), tx, w.kind, o, v) })
}

// inDoubtAs leaves an entity in doubt and returns it as it is shown.
func (w *world) inDoubtAs(entity string) *ledger.Open {
	w.Helper()
	a := w.worker()
	w.settle(a, failed(plain(entity), w.claim(a, plain(entity)), ledger.Unclear))
	return w.look(plain(entity)).Open
}

func TestAnOperatorResolvesADoubt(t *testing.T) {
	for _, c := range []struct {
		done   bool
		reason ledger.Reason
		said   string
	}{{true, ledger.Done, "done, says ann: it is in the outbox"}, {false, ledger.Retry, "not done, says ann: it is in the outbox"}} {
		t.Run(fmt.Sprint("done ", c.done), func(t *testing.T) {
			w := newWorld(t, ledger.Once)
			o := w.inDoubtAs("e")
			w.ok(w.resolve(o, ledger.Verdict{Done: c.done, Evidence: ledger.ByOperator, By: "ann", Why: "it is in the outbox"}))
			st := w.look(plain("e"))
			w.want("e", st.Reason, c.reason)
			if c.done {
				w.want("evidence", st.Fact.Evidence, ledger.ByOperator)
				w.want("claims", w.opens(), 0)
			} else {
				w.want("evidence of the attempt", st.Open.FirstClaimedAt.IsZero(), true)
				w.want("attempts", st.Open.Attempts, o.Attempts)
				w.want("arguments", st.Open.Args, o.Args)
			}
			w.want("the audit", value[string](w, `SELECT error_class || ': ' || error FROM oncemore.attempt WHERE outcome = 'resolved' AND worker IS NULL`), "in_doubt: "+c.said)
		})
	}
}

func TestResolveRefusesWhatHasChangedSinceItWasShown(t *testing.T) {
	w := newWorld(t, ledger.Once)
	o := w.inDoubtAs("e")
	w.exec(`UPDATE oncemore.claim SET fence = nextval('oncemore.fence')`)
	for _, done := range []bool{true, false} {
		rows := w.rows()
		if err := w.resolve(o, ledger.Verdict{Done: done, Evidence: ledger.ByOperator}); !errors.Is(err, ledger.ErrChanged) {
			t.Errorf("got %v", err)
		}
		if w.rows() != rows {
			t.Error("it changed something all the same")
		}
	}
	w.want("resolved", w.attempts("resolved"), 0)

	held := w.claim(w.worker(), plain("held"))
	if err := w.resolve(w.look(plain("held")).Open, ledger.Verdict{Done: true}); !errors.Is(err, ledger.ErrChanged) || held.Fence == 0 {
		t.Errorf("what a living worker holds: got %v", err)
	}
}

func TestResolveSettlesWhatADeadWorkerLeft(t *testing.T) {
	w := newWorld(t, ledger.Once)
	a := w.worker()
	c := w.claim(a, plain("e"))
	w.die(a)
	w.want("e", w.reason("e"), ledger.InDoubt)
	w.ok(w.resolve(w.look(plain("e")).Open, ledger.Verdict{Done: false, Evidence: ledger.ByOperator, By: "ann"}))
	w.want("e", w.reason("e"), ledger.Retry)
	late := ended(plain("e"), c, ledger.Completed)
	w.settle(a, late)
	w.want("the dead worker's word is refused", late.Refused, true)
}

func TestOpensListsInKeyOrderInPieces(t *testing.T) {
	w := newWorld(t, ledger.Once)
	a := w.worker()
	for i := range 7 {
		s := ledger.Unclear
		if i%2 == 1 {
			s = ledger.GaveUp
		}
		w.settle(a, failed(plain(fmt.Sprint("e", 6-i)), w.claim(a, plain(fmt.Sprint("e", 6-i))), s))
	}
	list := func(trouble ledger.Trouble, after string, limit int) (all string) {
		for o, err := range w.Opens(t.Context(), w.kind, trouble, after, limit) {
			w.ok(err)
			all += o.Entity + " "
		}
		return all
	}
	w.want("all", list(ledger.NoTrouble, "", 100), "e0 e1 e2 e3 e4 e5 e6 ")
	w.want("in doubt", list(ledger.Doubtful, "", 2), "e0 e2 ")
	w.want("then", list(ledger.Doubtful, "e2", 100), "e4 e6 ")
	for range w.Opens(t.Context(), w.kind, ledger.NoTrouble, "", 100) {
		break // a reader may stop; its connection goes back
	}
	w.want("acquired", w.pool.Stat().AcquiredConns(), int32(0))
}
