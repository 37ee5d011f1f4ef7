package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// recheck asks the done-checks again about what is in doubt: a provider that could not be
// asked a minute ago may know the answer now. Any number of workers may ask; resolving
// compares the fence that was read.
func (l *life) recheck(ctx context.Context) {
	tick := time.NewTicker(l.config.Recheck)
	defer tick.Stop()
	after := map[*kind]string{}
	adopt := func() {
		l.inTime(ctx, "claims whose answers were lost are not found: their work waits", l.adopt)
		l.inTime(ctx, "claims of done work stay until it is asked for again", l.sweepMoot)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.hands.lost:
			select {
			case <-ctx.Done():
			case <-time.After(adoptAfter):
				adopt()
			}
			continue
		case <-tick.C:
		}
		adopt()
		l.inTime(ctx, "expired results stay until the next round", l.expireResults)
		l.inTime(ctx, "runs that are cancelled do not end until the next round", l.endCancelled)
		for name, k := range l.kinds {
			if name == k.name && k.Checked && !k.Effect().MayRepeat() && k.asking.Load() == 0 { // else one was left behind, and still runs
				after[k] = l.recheckKind(ctx, k, after[k])
			}
		}
	}
}

// inTime calls f for no longer than anything is read or written down, and says what is left where
// it fails.
func (l *life) inTime(ctx context.Context, left string, f func(context.Context) error) {
	limit, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	if err := f(limit); err != nil && ctx.Err() == nil {
		l.log.Warn(left, "error", err)
	}
}

// sweepMoot removes what is left beside facts by workers that died between two looks of a
// claim, or that adopt gave back there.
func (l *life) sweepMoot(ctx context.Context) error {
	var types []*ledger.Type
	for name, k := range l.kinds {
		if name == k.name {
			types = append(types, &k.Type)
		}
	}
	return l.ledger.SweepMoot(ctx, types)
}

// expireResults deletes results that have expired, in small steps.
func (l *life) expireResults(ctx context.Context) error {
	const most = 1000
	for {
		if n, err := l.ledger.ExpireResults(ctx, most); err != nil || n < most {
			return err
		}
	}
}

// One round is bounded, so that a provider in trouble is not asked without end; and the
// next one begins behind it, so that a few that never get an answer do not stand in the
// way of the others.
const (
	recheckMost   = 200 // entities of a type in one round
	recheckErrors = 5   // in a row end the round: the provider is away
)

// recheckKind makes one round over what is in doubt of k, behind the entity after. It
// returns where the next round begins.
func (l *life) recheckKind(ctx context.Context, k *kind, after string) string {
	doubts, err := l.doubts(ctx, k, after)
	if err != nil {
		if ctx.Err() == nil {
			l.log.Warn("listing doubts failed", "type", k.name, "error", err)
		}
		return after
	}
	silent := 0
	for _, o := range doubts {
		done, result, err := l.askAgain(ctx, k, o)
		if errors.Is(err, errDeaf) {
			l.log.Error("a done-check ignores the end of its context: nothing of its type is asked again until it ends", "type", k.name, "entity", o.Entity, "timeout", k.Erased.Timeout)
			return o.Entity
		}
		if err != nil {
			if silent++; silent == recheckErrors || ctx.Err() != nil {
				return o.Entity
			}
			continue // it stays listed, and is asked about again
		}
		silent = 0
		if !done && k.Effect() == ledger.Once {
			continue // it was not seen yet, which is no proof: nothing says how long that may take
		}
		verdict := ledger.Verdict{Done: done, Evidence: ledger.DoneCheck, By: "done-check", Why: "asked again by " + l.config.Name, Result: result}
		if err := l.resolve(ctx, k, o, verdict); errors.Is(err, ledger.ErrChanged) {
			continue // another worker, or an operator, was faster
		} else if err != nil {
			l.log.Warn("doubt not resolved", "type", k.name, "entity", o.Entity, "error", err)
			continue
		}
		l.log.Info(fmt.Sprintf("%s was in doubt: the done-check says done=%t", k.name, done), "type", k.name, "entity", o.Entity, "outcome", "resolved")
	}
	if len(doubts) < recheckMost {
		return "" // from the beginning
	}
	return doubts[len(doubts)-1].Entity
}

// doubts reads what one round of k asks about.
func (l *life) doubts(ctx context.Context, k *kind, after string) (doubts []*ledger.Open, err error) {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	for o, err := range l.ledger.Opens(ctx, &k.Type, ledger.Doubtful, after, recheckMost) {
		if err != nil {
			return nil, err
		}
		doubts = append(doubts, o)
	}
	return doubts, nil
}

// askAgain asks the done-check about o. The check may ask for the effect key, as it may
// when an attempt asks it.
func (l *life) askAgain(ctx context.Context, k *kind, o *ledger.Open) (done bool, result []byte, err error) {
	in, err := k.Erased.Decode(o.Entity, []byte(o.Args))
	if err != nil {
		return false, nil, err
	}
	limit, cancel := context.WithTimeout(ctx, k.Erased.Timeout)
	defer cancel()
	attempt := &jobs.Attempt{JobType: k.name, KeyType: k.KeyType, Entity: o.Entity, Number: o.Attempts, Run: o.Run, Epoch: o.Epoch}
	k.asking.Add(1)
	answers := make(chan answer, 1)
	go func() {
		defer k.asking.Add(-1)
		a := answer{err: errExited} // where the check ends its goroutine
		defer func() {
			if v := recover(); v != nil {
				a.err = fmt.Errorf("panic: %v", v)
			}
			answers <- a
		}()
		a.done, a.err = k.Erased.Done(jobs.NewContext(limit, attempt), in.Args)
		a.result = attempt.Returned(o.Entity)
	}()
	var a answer
	select {
	case a = <-answers:
	case <-limit.Done():
		select {
		case a = <-answers:
		case <-time.After(l.stuckGrace):
			return false, nil, errDeaf
		}
	}
	return a.done, a.result, a.err
}

// An answer is what a done-check says when it is asked again. Whoever asks looks after more than
// this one: so neither a panic, nor the end of its goroutine, nor a check that never ends may be
// the end of that.
type answer struct {
	done   bool
	result []byte
	err    error
}

var errDeaf = errors.New("the done-check ignores the end of its context")

// resolve ends a doubt, and sends the message of another attempt in the same transaction.
func (l *life) resolve(ctx context.Context, k *kind, o *ledger.Open, v ledger.Verdict) error {
	ctx, cancel := context.WithTimeout(ctx, recordTime)
	defer cancel()
	return inTx(ctx, l.pool, func(tx pgx.Tx) error {
		if err := ledger.Resolve(ctx, tx, &k.Type, o, v); err != nil {
			return err
		}
		if v.Done {
			return nil
		}
		b := &pgx.Batch{}
		again := []queue.Message{k.carrier(o)}
		l.pg.SendBatch(b, again...)
		holdSent(b, again)
		return tx.SendBatch(ctx, b).Close()
	})
}
