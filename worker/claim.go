package worker

import (
	"context"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// recordTime is far more than any statement of ours takes on a database that is there, with the wait
// for a connection in a pool that is too small. One that was cut off without a word says nothing for
// a quarter of an hour, and nobody may wait for that.
const recordTime = 2 * time.Minute

// recording is the context of one thing that is read or written down.
func (l *life) recording() (context.Context, context.CancelFunc) {
	return context.WithTimeout(l.record, recordTime)
}

// A claimRequest waits for the answer of a claim that many share.
type claimRequest struct {
	it     *item
	answer chan error
}

// claimOne claims it, if it needs a claim, together with whatever else wants one now. It
// returns true when the work is ours to do; else the item has ended.
func (l *life) claimOne(it *item) bool {
	if !it.needsClaim() {
		return true
	}
	r := &claimRequest{it: it, answer: make(chan error, 1)}
	l.claims[it.kind].add(r)
	if err := <-r.answer; err != nil {
		l.giveBack([]*item{it}, err)
		return false
	}
	if it.claim.Won {
		return true
	}
	l.outrun(it)
	return false
}

// needsClaim: all do, but a first delivery of work that may repeat and is plainly missing.
// Outside the database two versions of a source must not be worked side by side: the older
// could write last.
func (it *item) needsClaim() bool {
	k, st := it.kind, &it.standing
	return !k.Effect().MayRepeat() || k.Erased.FanOut != nil || it.Received > 1 || it.Epoch != 0 || it.want.SourceVersion != 0 && k.Erased.Do != nil ||
		st.Reason != ledger.Missing || st.Open != nil
}

// claimAll claims for all requests of one kind in one statement. An entity that is asked
// for twice is claimed once; the other request is outrun.
func (l *life) claimAll(k *kind, rs []*claimRequest) {
	cs := make([]ledger.Candidate, 0, len(rs))
	asked := make(map[string]bool, len(rs))
	first := make([]*claimRequest, 0, len(rs))
	for _, r := range rs {
		if asked[r.it.Entity] {
			r.answer <- nil
			continue
		}
		asked[r.it.Entity] = true
		first = append(first, r)
		cs = append(cs, ledger.Candidate{Want: r.it.want, Standing: r.it.standing, Args: string(r.it.raw)})
	}
	for _, r := range first {
		l.hands.take(k, r.it.Entity)
	}
	ctx, cancel := l.recording()
	defer cancel()
	claims, err := l.ledger.Claim(ctx, &k.Type, l.lease.ID, cs)
	for i, r := range first {
		if err == nil {
			r.it.claim = claims[i]
		}
		if !r.it.claim.Won {
			l.hands.drop(k, r.it.Entity)
		}
		r.answer <- err
	}
	if err != nil {
		l.hands.lose()
		l.log.Warn("claiming failed: the messages come again", "type", k.name, "items", len(first), "error", err)
	}
}

// outrun ends an item that somebody else was faster with. What the ledger says of it now
// decides how: it may be done, or in other hands, or due again in a moment.
func (l *life) outrun(it *item) {
	ctx, cancel := l.recording()
	defer cancel()
	standings, err := l.ledger.Look(ctx, &it.kind.Type, []ledger.Want{it.want})
	if err != nil {
		l.giveBack([]*item{it}, err)
		return
	}
	it.standing = standings[0]
	if o := it.standing.Open; it.claim.Won && o != nil && o.Fence == it.claim.Fence {
		// We have the claim, and somebody without one inserted the fact first, or is about to.
		// Our body did not begin. A claim that a living worker holds would be in everybody's
		// way, so it goes: swept when the fact is all that it stands for, given back when there is
		// more to do, or the fact may yet not come.
		if it.standing.Reason != ledger.Done || it.standing.Carry {
			l.finish(it, ledger.Returned, nil) // its message comes again
			return
		}
		it.standing.Sweep = true
	}
	if it.standing.Reason.Run() {
		it.end = ending{reason: ledger.Ongoing, send: it.later(0)}
		if it.inbox.fifo {
			it.end.send, it.end.hold = nil, heldFor
		} else if it.parcel.lost.Load() {
			it.end = ending{keep: true} // as in decideIdle
		}
	} else {
		l.decideIdle(it)
	}
	l.endItem(it)
}
