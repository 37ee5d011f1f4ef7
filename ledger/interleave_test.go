package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// These tests play the table of doc.go, in its order: two workers, a and b, and one
// entity. What is in tables of their own, and what waits, is in the other files.

func TestEveryInterleavingThatIsPromisedIsPlayed(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var tests string
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tests += string(b)
	}
	rows := regexp.MustCompile(`//\s+(Test\w+)\n`).FindAllStringSubmatch(string(doc), -1)
	if len(rows) < 30 {
		t.Errorf("the table has %d rows", len(rows))
	}
	for _, row := range rows {
		if !regexp.MustCompile(`func ` + row[1] + `\(`).MatchString(tests) {
			t.Errorf("nothing plays %s", row[1])
		}
	}
}

const e = "234/17"

// two is a world with two workers.
func two(t *testing.T, effect ledger.Effect) (w *world, a, b int64) {
	w = newWorld(t, effect)
	return w, w.worker(), w.worker()
}

// done checks that e is done, once, and that no claim is left.
func (w *world) done(epoch int64) *ledger.Fact {
	w.Helper()
	st := w.look(forced(e, epoch))
	if st.Reason != ledger.Done || st.Open != nil || st.Fact.Epoch != epoch {
		w.Fatalf("%s is %s: fact %+v, claim %+v", e, st.Reason, st.Fact, st.Open)
	}
	return st.Fact
}

// settling is a settlement that is not committed.
func (w *world) settling(worker int64, outs ...*ledger.Outcome) pgx.Tx {
	w.Helper()
	tx, b := w.begin(), &pgx.Batch{}
	ledger.Settle(b, w.kind, worker, outs)
	w.ok(tx.SendBatch(w.Context(), b).Close())
	return tx
}

func completed(want ledger.Want, c ledger.Claim) *ledger.Outcome {
	return ended(want, c, ledger.Completed)
}

var claimless ledger.Claim

func TestClaimAfterAnotherClaim(t *testing.T) {
	w, a, b := two(t, ledger.Once)
	seen := w.look(plain(e))
	w.claim(b, plain(e))
	w.want("a has it", w.claimAs(a, plain(e), seen).Won, false)
	w.want("a looks again", w.reason(e), ledger.Ongoing)
}

func TestClaimDuringAnotherClaim(t *testing.T) {
	for _, commit := range []bool{true, false} {
		t.Run(fmt.Sprint("committed ", commit), func(t *testing.T) {
			w, _, b := two(t, ledger.Once)
			seen := w.look(plain(e))
			tx := w.begin() // a's claim, as far as its insert
			_, err := tx.Exec(t.Context(), `INSERT INTO oncemore.claim (fence, owner, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
				VALUES (nextval('oncemore.fence'), 1, 1, 0, 0, 0, $1, 1, $2, '')`, w.kind.ID, e)
			w.ok(err)
			answer := make(chan bool)
			go func() { answer <- w.claimAs(b, plain(e), seen).Won }()
			w.awaitBlocked(1)
			if commit {
				w.ok(tx.Commit(t.Context()))
			} else {
				w.ok(tx.Rollback(t.Context()))
			}
			w.want("b has it", <-answer, !commit)
		})
	}
}

func TestClaimAfterACompletion(t *testing.T) {
	w, a, b := two(t, ledger.Once)
	seen := w.look(plain(e))
	w.settle(b, completed(plain(e), w.claim(b, plain(e))))
	w.want("a has it", w.claimAs(a, plain(e), seen).Won, false)
	w.done(0)
}

// The same, while B's completion is not committed: A's insert waits for it, in a transaction that
// has looked already. A second look with those eyes would not see the fact.
func TestClaimDuringACompletion(t *testing.T) {
	for _, commit := range []bool{true, false} {
		t.Run(fmt.Sprint("committed ", commit), func(t *testing.T) {
			w, a, b := two(t, ledger.Once)
			seen := w.look(plain(e))
			c := w.claim(b, plain(e))
			tx := w.settling(b, completed(plain(e), c))
			answer := make(chan bool)
			go func() { answer <- w.claimAs(a, plain(e), seen).Won }()
			w.awaitBlocked(1)
			if commit {
				w.ok(tx.Commit(t.Context()))
			} else {
				w.ok(tx.Rollback(t.Context()))
			}
			w.want("a has it", <-answer, false)
			if commit {
				w.done(0)
			} else {
				w.want("it is b's still", w.reason(e), ledger.Ongoing)
			}
		})
	}
}

// B's process is frozen in its completion, of a force say. Whoever claims the entity, as it was seen
// before B's claim, must not wait for that, nor have all wait that it claims together with it.
func TestClaimIsBusyWhenACompletionIsFrozen(t *testing.T) {
	w, a, b := two(t, ledger.Once)
	seen := w.look(plain(e))
	c := w.claim(b, plain(e))
	tx := w.settling(b, completed(plain(e), c))
	_, err := w.Claim(t.Context(), w.kind, a, []ledger.Candidate{{Want: plain("234/18")}, {Want: plain(e), Standing: seen}, {Want: plain("9/9")}})
	w.want("it is busy", ledger.IsBusy(err), true)
	w.want("claims", w.opens(), 1)
	w.want("the next look says", w.reason(e), ledger.Ongoing)
	w.ok(tx.Commit(t.Context()))
	w.done(0)
}

func TestClaimOfStaleWorkAfterAnotherCompletion(t *testing.T) {
	w, a, b := two(t, ledger.Once)
	w.settle(a, completed(source(e, 5), w.claim(a, source(e, 5))))
	seen := w.look(source(e, 9))
	c := w.claim(b, source(e, 9))
	w.settle(b, completed(source(e, 9), c))
	// The epoch that a draws is the higher one, so that its fact would replace b's.
	w.want("a has work that is done", w.claimAs(a, source(e, 9), seen).Won, false)
	w.done(c.Epoch)
}

func TestClaimOfANewerSourceAfterAnAdoption(t *testing.T) {
	w, a, _ := two(t, ledger.Once)
	seen := w.look(source(e, 9))
	w.in(func(tx pgx.Tx) {
		_, err := ledger.Record(t.Context(), tx, w.kind, source(e, 5))
		w.ok(err)
	})
	w.want("a claim that could not become a fact", w.claimAs(a, source(e, 9), seen).Won, false)
	c := w.claim(a, source(e, 9))
	w.settle(a, completed(source(e, 9), c))
	w.want("the fact's source", w.done(c.Epoch).SourceVersion, int64(9))
}

func TestCompletionOfANewerSourceAfterAnAdoption(t *testing.T) {
	w, a, _ := two(t, ledger.Once)
	c := w.claim(a, source(e, 9))
	w.in(func(tx pgx.Tx) {
		_, err := ledger.Record(t.Context(), tx, w.kind, source(e, 5))
		w.ok(err)
	})
	w.settle(a, completed(source(e, 9), c))
	// The output is of source 9. If the fact went on saying 5, a later call would have the
	// effect once more.
	st := w.look(source(e, 9))
	w.want("the reason", st.Reason, ledger.Done)
	w.want("the fact's source", st.Fact.SourceVersion, int64(9))
}

func TestLookDuringACompletion(t *testing.T) {
	w, a, _ := two(t, ledger.Once)
	stopped, entities := make(chan bool), make(chan string)
	go func() {
		defer close(stopped)
		for entity := range entities {
			for {
				r := w.reason(entity)
				if r != ledger.Ongoing && r != ledger.Done {
					t.Errorf("%s is %s", entity, r)
				}
				if r == ledger.Done {
					break
				}
			}
		}
	}()
	for i := range 100 {
		entity := fmt.Sprint(e, "/", i)
		c := w.claim(a, plain(entity))
		entities <- entity
		w.settle(a, completed(plain(entity), c))
	}
	close(entities)
	<-stopped
}

func TestHoldDuringAnotherHold(t *testing.T) {
	for _, commit := range []bool{true, false} {
		t.Run(fmt.Sprint("committed ", commit), func(t *testing.T) {
			w, _, _ := two(t, ledger.InTransaction)
			ta, tb := w.begin(), w.begin()
			w.want("it is a's", w.hold(ta, completed(plain(e), claimless))[0], true)
			answer := make(chan bool)
			go func() { answer <- w.hold(tb, completed(plain(e), claimless))[0] }()
			w.awaitBlocked(1)
			if commit {
				w.ok(ta.Commit(t.Context()))
			} else {
				w.ok(ta.Rollback(t.Context()))
			}
			w.want("it is b's", <-answer, !commit)
			w.ok(tb.Commit(t.Context()))
			w.done(0)
		})
	}
}

func TestI3InTransactionEffectsHappenOnceWhenAClaimMeetsAFirstDelivery(t *testing.T) {
	for _, first := range []string{"a", "b"} {
		t.Run(first+" commits first", func(t *testing.T) {
			w, _, b := two(t, ledger.InTransaction)
			w.exec(`CREATE TABLE effect (who text)`)
			effect := func(tx pgx.Tx, who string) {
				_, err := tx.Exec(t.Context(), `INSERT INTO effect VALUES ($1)`, who)
				w.ok(err)
			}
			ta, tb := w.begin(), w.begin()
			c := ledger.Claim{}
			if first == "a" {
				w.want("it is a's", w.hold(ta, completed(plain(e), claimless))[0], true)
				effect(ta, "a")
				c = w.claim(b, plain(e)) // the second look cannot see a's fact
				w.ok(ta.Commit(t.Context()))
				w.want("it is b's", w.hold(tb, completed(plain(e), c))[0], false)
				w.ok(tb.Rollback(t.Context()))
				st := w.look(plain(e))
				w.want("with b's claim beside it", st.Reason, ledger.Done)
			} else {
				c = w.claim(b, plain(e))
				w.want("it is b's", w.hold(tb, completed(plain(e), c))[0], true)
				effect(tb, "b")
				answer := make(chan bool)
				go func() { answer <- w.hold(ta, completed(plain(e), claimless))[0] }()
				w.awaitBlocked(1)
				w.ok(tb.Commit(t.Context()))
				w.want("it is a's", <-answer, false)
				w.ok(ta.Rollback(t.Context()))
				w.done(0)
			}
			w.want("facts", w.facts(), 1)
			w.want("effects", value[string](w, `SELECT string_agg(who, ',') FROM effect`), first)
		})
	}
}

func TestClaimlessFailureAfterACompletion(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	w.settle(a, completed(plain(e), claimless))
	w.settle(b, failed(plain(e), claimless, ledger.ToRetry))
	st := w.look(plain(e))
	w.want("e", st.Reason, ledger.Done)
	w.want("sweep", st.Sweep, true)
	w.ok(w.Sweep(t.Context(), w.kind, []*ledger.Open{st.Open}))
	w.done(0)
}

func TestClaimlessFailureDuringAClaim(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	w.claim(a, plain(e))
	rows := w.rows()
	late := failed(plain(e), claimless, ledger.GaveUp)
	w.settle(b, late)
	w.want("refused", late.Refused, true)
	w.want("rows changed", w.rows() != rows, false)
	w.want("e", w.reason(e), ledger.Ongoing)
}

// Of two who fail for one entity without a claim, with other arguments, in one settlement or one
// after the other, one is kept.
func TestClaimlessFailureAfterAnotherClaimlessFailure(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	other := plain(e)
	other.Fingerprint = otherArgs
	first, twin, second := failed(plain(e), claimless, ledger.GaveUp), failed(other, claimless, ledger.GaveUp), failed(other, claimless, ledger.GaveUp)
	w.settle(a, first, twin)
	w.settle(b, second)
	w.want("refused", fmt.Sprint(first.Refused, twin.Refused, second.Refused), "false true true")
	w.want("the first", w.reason(e), ledger.Failed)
	w.want("the other", w.look(other).Reason, ledger.Conflict)
}

func TestClaimlessFailureOfANewerSourceDuringAClaim(t *testing.T) {
	w, a, b := two(t, ledger.InTransaction)
	c := w.claim(a, source(e, 5))
	late := failed(source(e, 9), claimless, ledger.GaveUp)
	w.settle(b, late)
	w.want("refused", late.Refused, true)
	w.settle(a, completed(source(e, 5), c))
	w.want("b looks again", w.look(source(e, 9)).Reason, ledger.StaleSource)
}

func TestCompletionAfterAnAdoption(t *testing.T) {
	w, a, _ := two(t, ledger.Once)
	c := w.claim(a, plain(e))
	w.in(func(tx pgx.Tx) {
		fresh, err := ledger.Record(t.Context(), tx, w.kind, plain(e))
		w.ok(err)
		w.want("fresh", fresh[0], true)
	})
	w.settle(a, completed(plain(e), c))
	w.want("evidence", w.done(0).Evidence, ledger.Adopted)
}

// Nothing finishes the work of a dead worker but what any delivery does: look, claim,
// settle.
func TestI10RecoveryIsTheNormalPath(t *testing.T) {
	for _, effect := range []ledger.Effect{ledger.InTransaction, ledger.Repeatable, ledger.Keyed(time.Hour), ledger.Verifiable(0)} {
		t.Run(effect.String(), func(t *testing.T) {
			w, a, b := two(t, effect)
			lost := w.claim(a, plain(e))
			w.want("while a lives", w.reason(e), ledger.Ongoing)
			w.die(a)
			st := w.look(plain(e))
			w.want("when a is dead", st.Reason, ledger.Retry)
			w.want("to be verified", st.Verify, effect == ledger.Verifiable(0))
			c := w.claim(b, plain(e))
			w.want("attempts", c.Attempts, lost.Attempts+1)
			w.want("the epoch, and so the effect key", c.Epoch, lost.Epoch)
			w.settle(b, completed(plain(e), c))
			w.done(0)
		})
	}
}

func TestTakeoverAfterAnotherTakeover(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	w.claim(a, plain(e))
	w.die(a)
	seen := w.look(plain(e))
	w.want("b has it", w.claimAs(b, plain(e), seen).Won, true)
	w.want("c has it", w.claimAs(w.worker(), plain(e), seen).Won, false)
	w.want("c looks again", w.reason(e), ledger.Ongoing)
}

func TestTakeoverAfterALateCompletion(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	c := w.claim(a, plain(e))
	w.die(a)
	seen := w.look(plain(e))
	late := completed(plain(e), c)
	w.settle(a, late)
	w.want("refused", late.Refused, false)
	w.want("b has it", w.claimAs(b, plain(e), seen).Won, false)
	w.done(0)
}

func TestLateCompletionByAFencedWorker(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	late := completed(plain(e), w.claim(a, plain(e)))
	w.die(a)
	mine := completed(plain(e), w.claim(b, plain(e)))
	mine.Run = 2
	w.settle(a, late)
	w.want("a is refused", late.Refused, true)
	w.want("after that", w.reason(e), ledger.Ongoing)
	w.settle(b, mine)
	w.want("the fact is b's", w.done(0).Run, int64(2))
	w.settle(a, late)
	w.want("still b's", w.done(0).Run, int64(2))
	w.want("disputed", w.attempts("disputed"), 2)
}

func TestLateFailureByAFencedWorker(t *testing.T) {
	for _, s := range []ledger.State{ledger.ToRetry, ledger.GaveUp, ledger.Unclear, ledger.Returned, ledger.Ended} {
		t.Run(string(s), func(t *testing.T) {
			w, a, b := two(t, ledger.Repeatable)
			late := failed(plain(e), w.claim(a, plain(e)), s)
			w.die(a)
			w.claim(b, plain(e))
			rows := w.rows()
			w.settle(a, late)
			w.want("refused", late.Refused, true)
			w.want("rows changed", w.rows() != rows, false)
			w.want("disputed, though it tells of no effect", w.attempts("disputed"), 0)
		})
	}
}

func TestTakeoverDoesNotWaitForAFrozenTransaction(t *testing.T) {
	w, a, b := two(t, ledger.InTransaction)
	c := w.claim(a, plain(e))
	free := w.claim(a, plain("free"))
	w.die(a)
	seen, other := w.look(plain(e)), w.look(plain("free"))
	frozen := w.begin()
	w.want("it is a's", w.hold(frozen, completed(plain(e), c))[0], true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // not for ever, if it does wait
	defer cancel()
	won, err := w.Claim(ctx, w.kind, b, []ledger.Candidate{{Want: plain(e), Standing: seen}, {Want: plain("free"), Standing: other}})
	w.ok(err)
	w.want("b has it", won[0].Won, false)
	w.want("b has the other one", won[1].Won && won[1].Fence != free.Fence, true)
	w.ok(frozen.Commit(t.Context()))
	w.done(0)
}

func TestTakeoverAfterAFailure(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	first := failed(plain(e), w.claim(a, plain(e)), ledger.ToRetry)
	w.settle(a, first)
	seen := w.look(plain(e))
	w.want("due at once", seen.Reason, ledger.Retry)
	second := failed(plain(e), w.claim(a, plain(e)), ledger.ToRetry)
	second.Delay = time.Hour
	w.settle(a, second)
	w.want("b has what it saw", w.claimAs(b, plain(e), seen).Won, false)
	w.want("b looks again", w.reason(e), ledger.Waiting)
	w.exec(`UPDATE oncemore.claim SET not_before = clock_timestamp()`)
	w.want("attempts when it is due", w.claim(b, plain(e)).Attempts, 3)
}

func TestResolveAfterAnotherResolve(t *testing.T) {
	for _, done := range []bool{true, false} {
		w := newWorld(t, ledger.Once)
		o := w.inDoubtAs(e)
		answers := make(chan error)
		for range 2 {
			go func() {
				answers <- w.resolve(o, ledger.Verdict{Done: done, Evidence: ledger.ByOperator, By: "ann"})
			}()
		}
		one, two := <-answers, <-answers
		if (one == nil) == (two == nil) || one != nil && !errors.Is(one, ledger.ErrChanged) || two != nil && !errors.Is(two, ledger.ErrChanged) {
			t.Errorf("done %t: %v and %v", done, one, two)
		}
		w.want("resolved", w.attempts("resolved"), 1)
	}
}

func TestTakeoverAfterAResolve(t *testing.T) {
	w, _, b := two(t, ledger.Once)
	o := w.inDoubtAs(e)
	tx := w.begin()
	w.ok(ledger.Resolve(t.Context(), tx, w.kind, o, ledger.Verdict{Evidence: ledger.ByOperator, By: "ann"}))
	w.want("before the commit", w.reason(e), ledger.InDoubt)
	w.ok(tx.Commit(t.Context()))
	w.settle(b, completed(plain(e), w.claim(b, plain(e))))
	w.done(0)
}

func TestResolveAfterALateCompletion(t *testing.T) {
	w, a, _ := two(t, ledger.Once)
	c := w.claim(a, plain(e))
	w.die(a)
	o := w.look(plain(e)).Open
	w.settle(a, completed(plain(e), c))
	if err := w.resolve(o, ledger.Verdict{Evidence: ledger.ByOperator, By: "ann"}); !errors.Is(err, ledger.ErrChanged) {
		t.Errorf("got %v", err)
	}
	w.want("evidence", w.done(0).Evidence, ledger.Reported)
}

func TestLateCompletionAfterAResolve(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprint("done ", done), func(t *testing.T) {
			w, a, _ := two(t, ledger.Once)
			late := completed(plain(e), w.claim(a, plain(e)))
			w.die(a)
			w.ok(w.resolve(w.look(plain(e)).Open, ledger.Verdict{Done: done, Evidence: ledger.ByOperator, By: "ann"}))
			rows := w.rows()
			w.settle(a, late)
			w.want("refused", late.Refused, true)
			w.want("disputed", w.attempts("disputed"), 1)
			w.want("rows changed", w.rows() != rows, false)
		})
	}
}

func TestForcedDuringAClaim(t *testing.T) {
	w, a, b := two(t, ledger.Once)
	c := w.claim(a, plain(e))
	w.want("while a has it", w.look(forced(e, 7)).Reason, ledger.Ongoing)
	w.settle(a, completed(plain(e), c))
	w.want("then", w.look(forced(e, 7)).Reason, ledger.Forced)
	w.settle(b, completed(forced(e, 7), w.claim(b, forced(e, 7))))
	w.done(7)
	w.want("archived", value[int](w, `SELECT count(*) FROM oncemore.ledger_history WHERE epoch IS NULL`), 1)
}

func TestForcedAfterAHigherEpoch(t *testing.T) {
	w, a, b := two(t, ledger.Once)
	seen := w.look(forced(e, 7))
	w.settle(b, completed(forced(e, 8), w.claim(b, forced(e, 8))))
	w.want("a has it", w.claimAs(a, forced(e, 7), seen).Won, false)
	w.want("a looks again", w.look(forced(e, 7)).Reason, ledger.Done)
	w.done(8)
}

func TestLateCompletionOfALowerEpoch(t *testing.T) {
	w, a, b := two(t, ledger.Repeatable)
	late := completed(plain(e), w.claim(b, plain(e)))
	w.die(b)
	w.settle(a, completed(forced(e, 7), w.claim(a, forced(e, 7))))
	rows := w.rows()
	w.settle(b, completed(plain(e), claimless))
	w.settle(b, late)
	w.want("refused", late.Refused, true)
	w.want("rows changed", w.rows() != rows, false)
	w.done(7)
}
