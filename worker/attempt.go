package worker

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// notTried wraps errors of the checks: the attempt failed before it could have an effect.
type notTried struct{ error }

func (e notTried) Unwrap() error { return e.error }

// A panicError is a panic of a body, with its stack.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.value, e.stack) }

// begin makes the context of an attempt on it.
func (l *life) begin(it *item) *attemptContext {
	o := it.outcome("")
	it.began = time.Now()
	ctx := &attemptContext{Context: l.jobs, timeout: it.kind.Erased.Timeout, deadline: it.began.Add(it.kind.Erased.Timeout),
		attempt: jobs.Attempt{JobType: it.kind.name, KeyType: it.kind.KeyType, Entity: it.Entity, Number: o.Attempts, Run: it.Run, Epoch: o.Epoch}}
	it.attempt.Store(nil)
	if !it.claim.Won {
		it.attempt.Store(ctx)
		if it.parcel.lost.Load() {
			ctx.lose(ErrMessageLost)
		}
	}
	return ctx
}

// do runs the body once.
func (l *life) do(it *item) error {
	ctx := l.begin(it)
	defer ctx.end()
	err := l.guard([]*item{it}, func() error { return it.kind.Erased.Do(ctx, it.args) })
	it.end.note, it.end.result = ctx.attempt.Noted(), ctx.attempt.Returned(it.Entity)
	return err
}

// check runs a ready-check or a done-check. A done-check may return the result of what is done.
func (l *life) check(it *item, name string, f func(context.Context, jobs.Args) (bool, error)) (answer bool, result []byte, err error) {
	ctx := l.begin(it)
	defer ctx.end()
	it.asking.Store(true)
	defer it.asking.Store(false)
	err = l.guard([]*item{it}, func() error { answer, err = f(ctx, it.args); return err })
	if err != nil {
		return false, nil, fmt.Errorf("%s-check: %w", name, err)
	}
	return answer, ctx.attempt.Returned(it.Entity), nil
}

// errExited is how an attempt ends whose body ended its goroutine.
var errExited = errors.New("the body ended its goroutine (runtime.Goexit, which t.FailNow and t.Fatal call)")

// guard runs a body, or a check, of items. It turns a panic into an error, and lets the
// watch see how long the body runs. A body that ends its goroutine never returns here:
// its items are judged on the way out, and the slot sees to itself.
func (l *life) guard(its []*item, f func() error) (err error) {
	first := its[0]
	first.slot.since.Store(first.began.UnixNano())
	returned := false
	defer func() {
		first.slot.since.Store(0)
		if v := recover(); v != nil {
			err = &panicError{v, debug.Stack()}
			return
		}
		if returned {
			return
		}
		for _, it := range its {
			if it.asking.Load() {
				l.judge(it, notTried{errExited})
			} else {
				l.judge(it, errExited)
			}
		}
	}()
	err = f()
	returned = true
	return err
}

// judge says how an attempt ends that returned err, by the meaning of the error and by
// the effect class.
func (l *life) judge(it *item, err error) {
	if err == nil {
		l.finish(it, ledger.Completed, nil)
		return
	}
	var before notTried
	untried := errors.As(err, &before)
	means := jobs.Meant(err)
	absent := means.NotApplied || untried
	k := it.kind
	o := it.outcome("")
	if !it.claim.Won && it.standing.Open != nil {
		o.Attempts++ // an attempt that got no further than its checks counts as well
	}
	safe := absent || k.Effect().MayRepeat()
	delay := means.After
	if delay < 0 {
		delay = k.Erased.Backoff(max(1, o.Attempts))
	}
	if !safe {
		delay = max(delay, k.Effect().Settle())
	}
	switch {
	case !safe && k.Effect() == ledger.Once:
		o.State = ledger.Unclear
	case means.Permanent:
		o.State = ledger.GaveUp
	case safe && l.interrupted(it, err):
		// Not its fault, and not charged.
		l.finish(it, ledger.Returned, err)
		return
	case o.Attempts >= k.Erased.Attempts:
		o.State = ledger.GaveUp
		err = fmt.Errorf("attempt %d of %d: %w", o.Attempts, k.Erased.Attempts, err)
	default:
		o.State, o.Delay = ledger.ToRetry, delay
	}
	o.Absent = absent
	it.end.outcome, it.end.err = o, err
	if o.State == ledger.ToRetry {
		it.carryOn(o.Delay)
	}
	l.endItem(it)
}

// interrupted tells whether err came of the end of the worker, its lease or its message, and
// says nothing of the work.
func (l *life) interrupted(it *item, err error) bool {
	canceled := errors.Is(err, context.Canceled)
	lost := it.parcel.lost.Load() && !it.claim.Won
	return l.jobs.Err() != nil && (canceled || errors.Is(err, context.Cause(l.jobs))) ||
		lost && (canceled || errors.Is(err, ErrMessageLost))
}

// Effect is the class of the kind.
func (k *kind) Effect() ledger.Effect { return k.Type.Effect }

// finish ends an attempt in a state that needs no judging.
func (l *life) finish(it *item, s ledger.State, err error) {
	it.end.err = err
	if s == ledger.Returned {
		it.end.keep = true
		if !it.claim.Won {
			l.endItem(it) // nothing was claimed: the message alone comes again
			return
		}
	}
	o := it.outcome(s)
	if s == ledger.Returned {
		o.Attempts--
		o.Absent = true // it did not begin, or left nothing, or may be repeated
		if it.kind.Erased.FanOut != nil && it.standing.Open == nil {
			// Somebody else may have ended its run meanwhile: then no message comes again, and
			// nothing may be left open. One that does come needs nothing of this.
			o.State = ledger.Ended
		}
	}
	it.end.outcome = o
	l.endItem(it)
}

// errorClass groups errors for lists: the type of the innermost one.
func errorClass(err error) string {
	if _, ok := errors.AsType[*panicError](err); ok {
		return "panic"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return reflect.TypeOf(err).String()
		}
		err = next
	}
}

var errClogged = errors.New("every slot has a body that ignores the end of its context")

// watchEvery is how often at least the watch looks.
const watchEvery = time.Second

// watch fences off bodies that ignore the end of their context: their attempt is judged
// as a timeout, so that the work goes on elsewhere. The slot stays theirs, and Health says
// so. What they still report is refused, and kept as disputed. When no slot is left, what
// waits for one is given back, and nothing more is received: others can do it.
func (l *life) watch(ctx context.Context) {
	tick := time.NewTicker(min(watchEvery, l.stuckGrace))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			l.watched.Store(now.UnixNano())
			stuck := l.slots.overdue(now, l.stuckGrace)
			for _, task := range stuck {
				for _, it := range task {
					l.fenceOff(it)
				}
			}
			clogged := len(stuck) >= l.config.Slots
			if clogged {
				l.slots.shed(func(its []*item) { l.giveBack(its, errClogged) })
			}
			if l.clogged.Swap(clogged) && !clogged {
				for _, b := range l.inboxes {
					b.freed()
				}
			}
		}
	}
}

func (l *life) fenceOff(it *item) {
	asking := it.asking.Load()
	if it.ended.Load() || it.kind.Erased.Do == nil && !asking {
		return // inside a transaction the transaction itself is the fence
	}
	// A copy is judged: the body's goroutine still owns the original, and finds it ended.
	shadow := &item{parcel: it.parcel, Entity: it.Entity, raw: it.raw, args: it.args, want: it.want, standing: it.standing, claim: it.claim, slot: it.slot, recorded: it.recorded}
	if !it.ended.CompareAndSwap(false, true) {
		return
	}
	l.log.Error("body ignores the end of its context: fenced off", "type", it.kind.name, "entity", it.Entity, "timeout", it.kind.Erased.Timeout)
	err := fmt.Errorf("%w: the attempt ignored its timeout of %s and was fenced off", context.DeadlineExceeded, it.kind.Erased.Timeout)
	if asking {
		err = notTried{err}
	}
	l.judge(shadow, err)
}
