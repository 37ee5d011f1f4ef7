package ledger_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

func TestACompletionMovesTheEntityFromClaimToLedger(t *testing.T) {
	w := newWorld(t, ledger.Once)
	w.kind.Version = 3
	a := w.worker()
	want := ledger.Want{Entity: "e", Fingerprint: someArgs, SourceVersion: 12, Run: 8, Epoch: 5}
	o := ended(want, w.claim(a, want), ledger.Completed)
	o.Evidence = ledger.DoneCheck
	w.settle(a, o)
	w.want("claims", w.opens(), 0)
	f := *w.look(want).Fact
	f.CompletedAt = time.Time{}
	w.want("the fact", f, ledger.Fact{Entity: "e", Fingerprint: someArgs, SourceVersion: 12, Run: 8, Epoch: 5, Attempts: 1, Version: 3, Evidence: ledger.DoneCheck})
	w.want("attempts worth a row", value[int](w, `SELECT count(*) FROM oncemore.attempt`), 0)
}

func TestI2OneCompletionALostFenceCompletesNothing(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	late := ended(plain("e"), w.claim(a, plain("e")), ledger.Completed)
	ontime := ended(plain("neighbour"), w.claim(a, plain("neighbour")), ledger.Completed)
	w.die(a)
	w.claim(b, plain("e"))
	w.settle(a, late, ontime)
	w.want("refused", late.Refused, true)
	w.want("the neighbour is refused", ontime.Refused, false)
	w.want("e", w.reason("e"), ledger.Ongoing)
	w.want("the neighbour", w.reason("neighbour"), ledger.Done)
	w.want("disputed", value[string](w, `SELECT entity || ' ' || fence || ' ' || worker || ' ' || error_class FROM oncemore.attempt WHERE outcome = 'disputed'`),
		fmt.Sprintf("e %d %d late", late.Fence, a))
}

func TestTheFirstInsertOfAFactIsTheCompletionOfWorkWithoutAClaim(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	mine := ended(plain("e"), ledger.Claim{}, ledger.Completed)
	mine.Run = 1
	w.settle(a, mine)
	theirs := ended(plain("e"), ledger.Claim{}, ledger.Completed)
	theirs.Run, theirs.Attempts = 2, 7
	rows := w.rows()
	w.settle(b, theirs)
	w.want("refused", theirs.Refused, false)
	if after := w.rows(); after != rows {
		t.Errorf("the second one changed the fact from %s to %s", rows, after)
	}
}

func TestAnEntityStaysOpenWithAllThatAnotherAttemptNeeds(t *testing.T) {
	for _, c := range []struct {
		state   ledger.State
		delay   time.Duration
		trouble ledger.Trouble
		reason  ledger.Reason
		retried bool
	}{
		{ledger.ToRetry, 0, ledger.Retrying, ledger.Retry, true},
		{ledger.ToRetry, time.Hour, ledger.Retrying, ledger.Waiting, true},
		{ledger.GaveUp, 0, ledger.FailedFor, ledger.Failed, false},
		{ledger.Unclear, 0, ledger.Doubtful, ledger.InDoubt, false},
		{ledger.Returned, 0, ledger.Retrying, ledger.Missing, false},
	} {
		t.Run(fmt.Sprint(c.state, c.delay), func(t *testing.T) {
			w := newWorld(t, ledger.Repeatable)
			a := w.worker()
			want := ledger.Want{Entity: "claimed", Fingerprint: someArgs, SourceVersion: 12, Run: 8}
			claimed := failed(want, w.claim(a, want), c.state)
			claimed.Delay = c.delay
			want.Entity = "first delivery"
			first := failed(want, ledger.Claim{}, c.state) // without a claim
			first.Delay, first.Args = c.delay, `{"a":1}`
			for _, o := range []*ledger.Outcome{claimed, first} {
				if c.state == ledger.Returned {
					o.Attempts = 0 // the attempt does not count
				}
			}
			w.settle(a, claimed, first)
			for _, o := range []*ledger.Outcome{claimed, first} {
				st := w.look(o.Want)
				got := st.Open
				if st.Reason != c.reason || got.Trouble != c.trouble || got.Owner != 0 || got.NotBefore.IsZero() == c.retried {
					t.Errorf("%s is %s: %+v", o.Entity, st.Reason, got)
				}
				if got.Fingerprint != someArgs || got.SourceVersion != 12 || got.Run != 8 || got.Args != o.Args || got.Attempts != o.Attempts || got.Error != o.Error {
					t.Errorf("%s does not keep what it needs: %+v", o.Entity, got)
				}
			}
			w.want("attempts", w.attempts(string(c.state)), 2)
		})
	}
}

func TestAnEndedClaimGoesAndLeavesNoFact(t *testing.T) {
	w := newWorld(t, ledger.InTransaction)
	a := w.worker()
	o := ended(plain("e"), w.claim(a, plain("e")), ledger.Ended)
	w.settle(a, o)
	w.want("e", w.reason("e"), ledger.Missing)
	w.settle(a, o)
	w.want("refused the second time", o.Refused, true)
}

// jobs.NotApplied speaks for its own attempt alone.
func TestI4NoBlindRepeatAbsentErasesOnlyItsOwnEvidence(t *testing.T) {
	w := newWorld(t, ledger.Keyed(24*time.Hour))
	a, b := w.worker(), w.worker()
	absent := func(worker int64, c ledger.Claim) {
		o := failed(plain("e"), c, ledger.ToRetry)
		o.Absent = true
		w.settle(worker, o)
		w.want("refused", o.Refused, false)
	}
	absent(a, w.claim(a, plain("e")))
	w.want("evidence of the only attempt, absent", w.look(plain("e")).Open.FirstClaimedAt.IsZero(), true)

	c := w.claim(a, plain("e"))
	w.die(a) // this one may have had its effect
	before := w.look(plain("e")).Open.FirstClaimedAt
	absent(b, w.claim(b, plain("e")))
	w.want("evidence after a later one, absent", w.look(plain("e")).Open.FirstClaimedAt, before)

	// Whoever only saw the claim made no attempt under it, and can take nothing back.
	absent(b, ledger.Claim{Fence: w.look(plain("e")).Open.Fence, Attempts: 9})
	w.want("evidence after a check that failed", w.look(plain("e")).Open.FirstClaimedAt, before)
	w.want("stale fence", c.Fence == w.look(plain("e")).Open.Fence, false)

	// The same where the claim's only attempt, by another worker, is the evidence.
	w.settle(b, failed(plain("f"), w.claim(b, plain("f")), ledger.ToRetry))
	only := w.look(plain("f")).Open
	check := failed(plain("f"), ledger.Claim{Fence: only.Fence, Attempts: 2}, ledger.ToRetry)
	check.Absent = true
	w.settle(b, check)
	w.want("evidence of the only attempt after a check that failed", w.look(plain("f")).Open.FirstClaimedAt, only.FirstClaimedAt)
}

func TestForcedWorkArchivesTheFactThatItReplaces(t *testing.T) {
	w := newWorld(t, ledger.Once)
	a := w.worker()
	w.settle(a, ended(plain("e"), w.claim(a, plain("e")), ledger.Completed))
	first := w.look(plain("e")).Fact
	for _, epoch := range []int64{7, 8} {
		w.want("forced", w.look(forced("e", epoch)).Reason, ledger.Forced)
		w.settle(a, ended(forced("e", epoch), w.claim(a, forced("e", epoch)), ledger.Completed))
		w.want("again", w.look(forced("e", epoch)).Reason, ledger.Done)
	}
	w.want("facts", w.facts(), 1)
	w.want("history", value[string](w, `SELECT string_agg(coalesce(epoch, 0)::text, ',' ORDER BY archived_at) FROM oncemore.ledger_history`), "0,7")
	w.want("its time", value[time.Time](w, `SELECT completed_at FROM oncemore.ledger_history WHERE epoch IS NULL`).Equal(first.CompletedAt), true)
}

// A fact that is there already fails the settlement whole, however often it is tried: it may be of
// other arguments, so who settles must look. What is left when that is taken out is recorded.
func TestAFactThatSomebodyElseRecordedDoesNotFailItsNeighbours(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	w.settle(a, ended(plain("taken"), ledger.Claim{}, ledger.Completed))
	outs := []*ledger.Outcome{ended(plain("taken"), ledger.Claim{}, ledger.Completed), ended(plain("twice"), ledger.Claim{}, ledger.Completed),
		ended(plain("twice"), ledger.Claim{}, ledger.Completed), ended(plain("claimed"), w.claim(a, plain("claimed")), ledger.Completed)}
	run := func() error {
		return w.RunBatch(t.Context(), func(b *pgx.Batch) { ledger.Settle(b, w.kind, a, outs) })
	}
	for range 2 {
		w.want("is taken", ledger.IsTaken(run()), true)
		w.want("facts", w.facts(), 1)
		for _, o := range outs {
			o.Again = true
		}
	}
	outs = w.untaken(outs)
	w.ok(run())
	w.want("facts", w.facts(), 3)
	w.want("claims", w.opens(), 0)
	w.want("another error is taken", ledger.IsTaken(errors.New("taken")), false)
}

// Two deliveries of one entity asked the done-check about the same abandoned claim, and
// both bring the same answer in one settlement.
func TestTwoAnswersUnderOneFenceCountAsOne(t *testing.T) {
	w := newWorld(t, ledger.Verifiable(0))
	a, b := w.worker(), w.worker()
	w.claim(a, plain("e"))
	w.die(a)
	seen := ledger.Claim{Fence: w.look(plain("e")).Open.Fence}
	one, two, other := ended(plain("e"), seen, ledger.Completed), ended(plain("e"), seen, ledger.Completed), ended(plain("e"), ledger.Claim{Fence: seen.Fence + 1}, ledger.Completed)
	w.settle(b, one, other, two)
	w.want("e", w.reason("e"), ledger.Done)
	w.want("refused", fmt.Sprint(one.Refused, two.Refused, other.Refused), "false false true")
	w.settle(b, one, two)
	w.want("refused later", fmt.Sprint(one.Refused, two.Refused), "true true")
}

func TestBadDataDoesNotFailItsNeighbours(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	long := strings.Repeat("ü", 256) // as long as an entity may be
	var outs []*ledger.Outcome
	for i, text := range []string{"a\x00b", "a\xffb", strings.Repeat("ü", 5000), strings.Repeat("x", 1999) + "ü"} {
		entity := fmt.Sprint(long[:len(long)-2], i)
		for _, c := range []ledger.Claim{w.claim(a, plain(entity)), {}} {
			o := failed(plain(entity), c, ledger.ToRetry)
			if !c.Won {
				o.Entity = "first " + entity[10:]
			}
			o.Error, o.Class = text, text
			outs = append(outs, o)
		}
	}
	outs = append(outs, ended(plain(long), w.claim(a, plain(long)), ledger.Completed), ended(plain("é\U0001F600"), ledger.Claim{}, ledger.Completed))
	w.settle(a, outs...)
	w.want("facts", w.facts(), 2)
	w.want("long", w.reason(long), ledger.Done)
	w.want("open", w.opens(), 8)
	w.want("attempts", w.attempts("retrying"), 8)
	w.want("bytes of the longest error, of the longest class", value[bool](w,
		`SELECT max(octet_length(error)) <= 2000 AND max(octet_length(error)) > 1990 AND max(octet_length(error_class)) <= 200 FROM oncemore.attempt`), true)
}

func FuzzSanitizeMakesTextThatPostgresTakes(f *testing.F) {
	f.Add("a\x00b\xff\xc3", 3)
	f.Add("üüü", 4)
	f.Fuzz(func(t *testing.T, s string, most int) {
		most = max(3, most)
		got := ledger.Sanitize(s, most)
		if len(got) > most || !utf8.ValidString(got) || strings.Contains(got, "\x00") {
			t.Errorf("%q in %d bytes became %q", s, most, got)
		}
	})
}

// Whatever the order of their outcomes, settlements lock in key order.
func TestSettlementsOfOverlappingEntitiesDoNotDeadlock(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	const workers, loops, entities = 4, 200, 12
	var wg sync.WaitGroup
	for i := range workers {
		me := w.worker()
		wg.Go(func() {
			for n := range loops {
				var outs []*ledger.Outcome
				for e := range entities {
					if i%2 == 0 {
						e = entities - 1 - e
					}
					want := plain(fmt.Sprintf("%d/%d", n, e))
					o := ended(want, ledger.Claim{}, ledger.Completed)
					if e%3 == 0 {
						o = failed(want, ledger.Claim{}, ledger.ToRetry)
					}
					outs = append(outs, o)
				}
				if err := w.trySettle(t.Context(), me, outs...); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	w.want("facts", w.facts(), loops*entities*2/3)
	w.want("open", w.opens(), loops*entities/3)
	w.want("deadlocks", value[int64](w, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`), int64(0))
}

// One order of steps in which two settlements block each other for ever, if they lock in the
// order of their outcomes. Somebody else has b, so that both wait for it; what matters is who
// has a meanwhile.
func TestTwoSettlementsLockInKeyOrderWhateverOrderTheyAreGiven(t *testing.T) {
	w, me, _ := two(t, ledger.Repeatable)
	a, b := w.claim(me, plain("a")), w.claim(me, plain("b"))
	somebody := w.begin()
	_, err := somebody.Exec(t.Context(), `SELECT FROM oncemore.claim WHERE entity = 'b' FOR UPDATE`)
	w.ok(err)
	answers := make(chan error, 2)
	for i, outs := range [][]*ledger.Outcome{
		{completed(plain("b"), b), completed(plain("a"), a)},
		{completed(plain("a"), a), completed(plain("b"), b)},
	} {
		tx := w.begin()
		go func() {
			batch := &pgx.Batch{}
			batch.Queue(ledger.SteadyPlans)
			ledger.Settle(batch, w.kind, me, outs)
			err := tx.SendBatch(t.Context(), batch).Close()
			if err == nil {
				err = tx.Commit(t.Context())
			}
			answers <- err
		}()
		w.awaitBlocked(i + 1)
	}
	w.ok(somebody.Commit(t.Context()))
	for range 2 {
		w.ok(<-answers)
	}
	w.want("facts", w.facts(), 2)
}

// Many at once, under claims: two workers believe that they hold the same fences.
func TestI2OneCompletionOfTwoSettlementsUnderTheSameFences(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	const loops, entities = 200, 8
	a, b := w.worker(), w.worker()
	for n := range loops {
		var cs []ledger.Candidate
		for e := range entities {
			cs = append(cs, ledger.Candidate{Want: plain(fmt.Sprintf("%d/%d", n, e)), Args: `{}`})
		}
		won, err := w.Claim(t.Context(), w.kind, a, cs)
		w.ok(err)
		var up, down []*ledger.Outcome
		for i := range cs {
			up = append(up, ended(cs[i].Want, won[i], ledger.Completed))
			j := entities - 1 - i
			down = append(down, ended(cs[j].Want, won[j], ledger.Completed))
		}
		var wg sync.WaitGroup
		for worker, outs := range map[int64][]*ledger.Outcome{a: up, b: down} {
			wg.Go(func() {
				if err := w.trySettle(t.Context(), worker, outs...); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for i := range up {
			if up[i].Refused == down[entities-1-i].Refused {
				t.Fatalf("%s: both refused, or neither", up[i].Entity)
			}
		}
	}
	w.want("facts", w.facts(), loops*entities)
	w.want("disputed", w.attempts("disputed"), loops*entities)
	w.want("deadlocks", value[int64](w, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`), int64(0))
}

// Together with its outcome belongs what carries the work on; if one fails, so do both.
func TestASettlementIsAllOrNothingWithWhatBelongsToIt(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	o := failed(plain("e"), w.claim(a, plain("e")), ledger.ToRetry)
	err := w.RunBatch(t.Context(), func(b *pgx.Batch) {
		ledger.Settle(b, w.kind, a, []*ledger.Outcome{o})
		b.Queue(`SELECT 1 / 0`)
	})
	if err == nil {
		t.Fatal("no error")
	}
	w.want("e", w.reason("e"), ledger.Ongoing)
	w.want("attempts", w.attempts("retrying"), 0)
}
