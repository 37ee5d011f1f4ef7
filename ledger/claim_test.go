package ledger_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Eight workers want the same 200 entities, each in an order of its own.
func TestI2OneCompletionEachEntityIsClaimedOnce(t *testing.T) {
	w := newWorld(t, ledger.Once)
	const workers, entities = 8, 200
	var mu sync.Mutex
	winners := map[string]int{}
	fences := map[int64]bool{}
	var wg sync.WaitGroup
	for range workers {
		me := w.worker()
		cs := make([]ledger.Candidate, entities)
		for i, n := range rand.Perm(entities) {
			cs[i] = ledger.Candidate{Want: plain(fmt.Sprint("e", n)), Standing: ledger.Standing{Reason: ledger.Missing}, Args: `{}`}
		}
		wg.Go(func() {
			for pack := range slices.Chunk(cs, 40) {
				won, err := w.Claim(t.Context(), w.kind, me, pack)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for i, c := range won {
					if c.Won {
						winners[pack[i].Entity]++
						fences[c.Fence] = true
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for e, n := range winners {
		w.want("winners of "+e, n, 1)
	}
	w.want("entities claimed", len(winners), entities)
	w.want("different fences", len(fences), entities)
	w.want("deadlocks", value[int64](w, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`), int64(0))
}

// The same race for claims whose owner has died, again and again.
func TestI2OneCompletionEachAbandonedClaimIsTakenOverOnce(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	const workers, entities = 8, 200
	dead := w.worker()
	wants := make([]ledger.Want, entities)
	for i := range wants {
		wants[i] = plain(fmt.Sprint("e", i))
		w.claim(dead, wants[i])
	}
	w.die(dead)
	sts, err := w.Look(t.Context(), w.kind, wants)
	w.ok(err)
	var mu sync.Mutex
	winners := map[string]int{}
	var wg sync.WaitGroup
	for range workers {
		me := w.worker()
		cs := make([]ledger.Candidate, entities)
		for i, n := range rand.Perm(entities) {
			cs[i] = ledger.Candidate{Want: wants[n], Standing: sts[n], Args: `{}`}
		}
		wg.Go(func() {
			for pack := range slices.Chunk(cs, 50) {
				won, err := w.Claim(t.Context(), w.kind, me, pack)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for i, c := range won {
					if c.Won {
						winners[pack[i].Entity]++
						w.want("attempts with the dead worker's", c.Attempts, 2)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for e, n := range winners {
		w.want("winners of "+e, n, 1)
	}
	w.want("entities taken over", len(winners), entities)
}

func TestClaimAnswersInTheOrderAsked(t *testing.T) {
	w := newWorld(t, ledger.Once)
	a, b := w.worker(), w.worker()
	w.claim(a, plain("m"))
	var cs []ledger.Candidate
	for _, e := range []string{"z", "m", "a"} {
		cs = append(cs, ledger.Candidate{Want: plain(e), Args: `{}`})
	}
	won, err := w.Claim(t.Context(), w.kind, b, cs)
	w.ok(err)
	w.want("z, m, a", fmt.Sprint(won[0].Won, won[1].Won, won[2].Won), "true false true")
	w.want("the fence of z", won[0].Fence, w.look(plain("z")).Open.Fence)
	w.want("the fence of a", won[2].Fence, w.look(plain("a")).Open.Fence)
}

// Not the time that has passed makes a claim free, but its owner's death.
func TestATakeoverNeedsADeclaredDeath(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	held := w.claim(a, plain("e"))
	w.exec(`UPDATE oncemore.worker SET expires = clock_timestamp() - interval '1 day' WHERE id = $1`, a)
	w.want("with its lease long over", w.reason("e"), ledger.Ongoing)
	w.die(a)
	c := w.claim(b, plain("e"))
	if c.Fence == held.Fence || c.Attempts != 2 {
		t.Errorf("taken over as %+v from %+v", c, held)
	}
	w.want("now", w.reason("e"), ledger.Ongoing)
}

func TestAChangedFenceLosesTheTakeover(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	c := w.claim(a, plain("e"))
	w.die(a)
	seen := w.look(plain("e"))
	w.settle(a, failed(plain("e"), c, ledger.GaveUp)) // the dead worker's last word, and a new fence
	w.want("won", w.claimAs(b, plain("e"), seen).Won, false)
	w.want("look again", w.reason("e"), ledger.Failed)
}

// Every change of a claim draws a new fence, so that comparing it compares the row.
func TestEveryChangeOfAClaimDrawsANewFence(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	seen := map[int64]string{}
	fence := func(after string) {
		t.Helper()
		f := w.look(plain("e")).Open.Fence
		if seen[f] != "" {
			t.Errorf("the fence after %s is that after %s", after, seen[f])
		}
		seen[f] = after
	}
	for _, state := range []ledger.State{ledger.ToRetry, ledger.Returned, ledger.ToRetry} {
		c := w.claim(a, plain("e"))
		fence("a claim")
		w.settle(a, failed(plain("e"), c, state))
		fence(string(state))
	}
	w.die(a)
	c := w.claim(w.worker(), plain("e"))
	fence("a takeover")
	w.settle(a, failed(plain("e"), c, ledger.Unclear))
	fence("doubt")
}

func TestStaleWorkIsClaimedUnderAHigherEpochThanItsFact(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	w.settle(a, ended(source("e", 5), ledger.Claim{}, ledger.Completed))
	w.want("an older source", w.look(source("e", 4)).Reason, ledger.Done)
	w.want("a newer source", w.look(source("e", 9)).Reason, ledger.StaleSource)
	c := w.claim(a, source("e", 9))
	if c.Epoch == 0 {
		t.Fatal("under the fact's own epoch nothing could replace it")
	}
	w.want("the old fact stands meanwhile", w.look(source("e", 5)).Reason, ledger.Done)
	w.settle(a, ended(source("e", 9), c, ledger.Completed))
	f := w.look(source("e", 9)).Fact
	if f.SourceVersion != 9 || f.Epoch != c.Epoch {
		t.Errorf("the fact is %+v", f)
	}
	w.kind.Version = 2
	w.want("newer code", w.reason("e"), ledger.StaleVersion)
	next := w.claim(a, source("e", 9))
	if next.Epoch <= c.Epoch {
		t.Errorf("epoch %d after %d", next.Epoch, c.Epoch)
	}
}

// What a claim stands for is what its holder does: a message that wants more may not be
// acknowledged because of it.
func TestATakeoverStandsForWhatItsHolderDoes(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	w.claim(a, source("e", 9))
	w.die(a)
	c := w.claim(b, source("e", 5)) // an older message is there first
	if o := w.look(source("e", 9)).Open; o.Covers(source("e", 9)) || !o.Covers(source("e", 5)) {
		t.Errorf("the claim of source 5 stands for %+v", o)
	}
	w.settle(b, ended(source("e", 5), c, ledger.Completed))
	w.want("the newer source is still to be done", w.look(source("e", 9)).Reason, ledger.StaleSource)
}

// An interrupted attempt on an older source may have had its effect under its key. The
// newer source is other work: under the same key a provider would take it for a repeat.
func TestI4NoBlindRepeatANewerSourceHasAKeyOfItsOwn(t *testing.T) {
	w := newWorld(t, ledger.Keyed(24*time.Hour))
	a := w.worker()
	first := w.claim(a, source("e", 5))
	w.die(a)
	b := w.worker()
	repeat := w.claim(b, source("e", 5))
	w.want("epoch of a repeat", repeat.Epoch, first.Epoch)
	w.die(b)
	newer := w.claim(w.worker(), source("e", 6))
	if newer.Epoch <= first.Epoch {
		t.Errorf("the newer source is tried under epoch %d, like the older one", newer.Epoch)
	}
}

// The evidence of the first attempt stays through takeovers, with its time.
func TestI4NoBlindRepeatEvidenceSurvivesTakeovers(t *testing.T) {
	w := newWorld(t, ledger.Keyed(24*time.Hour))
	a := w.worker()
	w.claim(a, plain("e"))
	first := w.look(plain("e")).Open
	w.want("the first attempt is the evidence", first.FirstClaimedAt, first.ClaimedAt)
	for range 3 {
		w.die(a)
		a = w.worker()
		w.claim(a, plain("e"))
	}
	o := w.look(plain("e")).Open
	w.want("first claimed", o.FirstClaimedAt, first.FirstClaimedAt)
	w.want("attempts", o.Attempts, 4)
	if !o.ClaimedAt.After(first.ClaimedAt) {
		t.Error("the last attempt has no time of its own")
	}
	w.die(a)
	w.exec(`UPDATE oncemore.claim SET first_claimed_at = first_claimed_at - interval '24 hours'`)
	w.want("past the horizon", w.reason("e"), ledger.InDoubt)
}

func TestI9TimeIsTheDatabasesInEveryRow(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	before := value[time.Time](w, `SELECT clock_timestamp()`)
	c := w.claim(a, plain("e"))
	o := w.look(plain("e")).Open
	w.settle(a, failed(plain("e"), c, ledger.ToRetry))
	w.settle(a, ended(plain("f"), ledger.Claim{}, ledger.Completed))
	f := w.look(plain("f")).Fact
	at := value[time.Time](w, `SELECT at FROM oncemore.attempt`)
	after := value[time.Time](w, `SELECT clock_timestamp()`)
	for what, when := range map[string]time.Time{"claimed": o.ClaimedAt, "first claimed": o.FirstClaimedAt, "completed": f.CompletedAt, "attempted": at} {
		if when.Before(before) || when.After(after) {
			t.Errorf("%s at %s, which is not between %s and %s by the server's clock", what, when, before, after)
		}
	}
}
