package ledger_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Two deliveries that need no claim meet: the one of the newer source fails for good and is
// listed, the one of the older source completes. What is listed stands for more than the
// fact does, so it stays, whoever looks.
func TestI1NoLossAFactOfAnOlderSourceSweepsNoClaimAway(t *testing.T) {
	w, a, b := two(t, ledger.InTransaction)
	w.settle(b, failed(source(e, 9), claimless, ledger.GaveUp))
	w.settle(a, completed(source(e, 5), claimless))
	st := w.look(source(e, 5))
	w.want("the older source", st.Reason, ledger.Done)
	w.want("to be swept", st.Sweep, false)
	w.want("the newer source", w.look(source(e, 9)).Reason, ledger.Failed)
	w.want("an even newer source", w.look(source(e, 11)).Reason.Run(), true)
}

// The work is done, by the first delivery that its worker met; that died before it could
// look again, or was never told that it had the claim, and has given it back. Whoever calls
// only for what is missing never looks at it.
func TestWhatIsLeftBesideFactsIsSweptWhereNobodyLivingHoldsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Repeatable)
	dead, living := w.worker(), w.worker()
	claims := map[string]int64{"done": dead, "not done": dead, "held": living}
	for entity, owner := range claims {
		w.claimAs(owner, plain(entity), ledger.Standing{})
	}
	back := plain("given back")
	w.settle(living, ended(back, w.claimAs(living, back, ledger.Standing{}), ledger.Returned))
	newer := plain("newer")
	newer.SourceVersion = 2
	w.claimAs(dead, newer, ledger.Standing{})
	w.exec(`INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity) SELECT 0, $1, 1, 'r', e FROM unnest('{done,held,newer,given back}'::text[]) e`, w.kind.ID)
	w.die(dead)
	w.sweepMoot(&ledger.Type{ID: w.kind.ID + 1})
	w.want("claims, when another type is swept", w.opens(), 5)
	w.sweepMoot(&ledger.Type{ID: w.kind.ID + 1, Version: 7, Effect: ledger.Repeatable}, w.kind)
	w.want("claims", w.opens(), 3)
	w.want("of what is done and not held", value[bool](w, `SELECT EXISTS (SELECT FROM oncemore.claim WHERE entity = ANY ('{done,given back}'))`), false)
}

// Two deliveries with other arguments meet, and need no claim: one has failed for good, or is in
// doubt, and the other completes. The fact does not answer what is listed, so that stays listed,
// whoever looks. What has a message to carry it is parked when that comes, and nothing is lost.
func TestI8AFactOfOtherArgumentsSweepsNothingAwayThatIsListed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.InTransaction)
	a := w.worker()
	for entity, state := range map[string]ledger.State{"failed": ledger.GaveUp, "in doubt": ledger.Unclear, "retrying": ledger.ToRetry, "failed of the same": ledger.GaveUp} {
		other := plain(entity)
		if other.Fingerprint = otherArgs; entity == "failed of the same" {
			other.Fingerprint = someArgs
		}
		w.settle(a, failed(other, claimless, state))
		w.settle(a, completed(plain(entity), claimless))
		st := w.look(plain(entity))
		w.want("what is asked for of "+entity, st.Reason, ledger.Done)
		w.want("to be swept of "+entity, st.Sweep, entity == "retrying" || entity == "failed of the same")
	}
	w.sweepMoot(w.kind)
	w.want("left", value[string](w, `SELECT string_agg(entity, ', ' ORDER BY entity) FROM oncemore.claim`), "failed, in doubt")
}

func (w *world) sweepMoot(types ...*ledger.Type) { w.Helper(); w.ok(w.SweepMoot(w.Context(), types)) }

// The code has a new version, so what is done is wanted again. A first delivery of that fails
// before it has a claim (its ready-check did), and leaves a claim without an epoch of its own beside
// the fact of the old version. That fact does not answer it: what failed stays listed, and what
// waits for another attempt goes on counting them. Where the effect may not be repeated, a new
// version makes nothing stale, and such a claim is moot.
func TestI1NoLossAFactOfAnOlderVersionSweepsNoFailureAway(t *testing.T) {
	t.Parallel()
	for _, effect := range []ledger.Effect{ledger.Repeatable, ledger.InTransaction, ledger.Once} {
		w := newWorld(t, effect)
		a := w.worker()
		for _, state := range []ledger.State{ledger.GaveUp, ledger.ToRetry} {
			w.settle(a, completed(plain(string(state)), claimless))
			w.settle(a, failed(plain(string(state)), claimless, state))
		}
		w.kind.Version = 2
		w.sweepMoot(w.kind)
		if !effect.MayRepeat() {
			w.want("left of what may not be repeated", w.opens(), 0)
			continue
		}
		w.want("what failed", w.reason(string(ledger.GaveUp)), ledger.Failed)
		w.want("what is tried again", w.reason(string(ledger.ToRetry)), ledger.Retry)
		w.kind.Version = 0
		w.sweepMoot(w.kind)
		w.want("left, when the old version is all that is wanted", w.opens(), 0)
	}
}
