package jobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Errors with a meaning. A body returns any error to say "not this time"; these say more.
// They may wrap each other: Permanent(NotApplied(err)).

type (
	permanent  struct{ error }
	notApplied struct{ error }
	retryAfter struct {
		error
		d time.Duration
	}
)

func (e permanent) Unwrap() error  { return e.error }
func (e notApplied) Unwrap() error { return e.error }
func (e retryAfter) Unwrap() error { return e.error }

// Permanent says that no further attempt would help: the entity is listed as failed. For
// an effect of class Once say Permanent(NotApplied(err)), else it is in doubt.
// Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return permanent{err}
}

// NotApplied says that the effect surely did not happen, which makes any class retry: the
// connection was refused, the provider rejected the request. When in doubt do not say it.
// NotApplied(nil) is nil.
func NotApplied(err error) error {
	if err == nil {
		return nil
	}
	return notApplied{err}
}

// RetryAfter says when the next attempt may help, instead of the policy's backoff. It
// still counts as an attempt. A d below 0 is 0, and [Verifiable] waits for its settling time at
// least. It does not say that the effect did not happen: of class [Once] say RetryAfter(d,
// NotApplied(err)), else the work is in doubt. RetryAfter(d, nil) is nil.
func RetryAfter(d time.Duration, err error) error {
	if err == nil {
		return nil
	}
	return retryAfter{err, d}
}

// A Meaning is what an error of a body says beside its text.
type Meaning struct {
	Permanent  bool
	NotApplied bool
	After      time.Duration // of RetryAfter; negative: not said
}

// Meant reads the meaning of err.
func Meant(err error) Meaning {
	m := Meaning{After: -1}
	if _, ok := errors.AsType[permanent](err); ok {
		m.Permanent = true
	}
	if _, ok := errors.AsType[*ledger.ConflictError](err); ok {
		m.Permanent = true // the row has moved on: no attempt will find it as it was
	}
	if _, ok := errors.AsType[notApplied](err); ok {
		m.NotApplied = true
	}
	if r, ok := errors.AsType[retryAfter](err); ok {
		m.After = max(0, r.d)
	}
	return m
}

// An Attempt is what a body may know about itself. See [Current].
type Attempt struct {
	JobType string
	KeyType string // the first name that the type ever had; effect keys are made of it, so that a rename keeps them; empty: JobType
	Entity  string
	Number  int   // 1 for the first
	Run     int64 // the run that asked for it; 0: none
	Epoch   int64 // 0: not forced

	// Many: the body is a DoMany, and Entity is only the first of its entities.
	Many bool

	note    string
	results map[string][]byte // by entity
}

// EffectKey is the key to give to a provider that ignores repeats: the same for every attempt on
// this entity, but for work that was asked for anew: forced, of a newer SourceVersion, or of a tick
// with Args.
func (a *Attempt) EffectKey() string {
	return ledger.EffectKey(cmp.Or(a.KeyType, a.JobType), a.Entity, a.Epoch)
}

// Note keeps a sentence about this attempt: the log line of its outcome, and the way to
// say that it succeeded in a lesser way. It must not be called after the body returned.
func (a *Attempt) Note(format string, args ...any) { a.note = fmt.Sprintf(format, args...) }

// Noted returns the last note.
func (a *Attempt) Noted() string { return a.note }

type attemptKey struct{}

// NewContext returns a context in which [Current] is a.
func NewContext(ctx context.Context, a *Attempt) context.Context {
	return context.WithValue(ctx, attemptKey{}, a)
}

// AttemptKey is what [Current] asks a context's Value for. It lets the worker answer from
// a context of its own.
var AttemptKey any = attemptKey{}

// Current returns the attempt that ctx belongs to. Outside of a job it returns an empty
// one, whose effect key no provider should be given.
func Current(ctx context.Context) *Attempt {
	if a, ok := ctx.Value(attemptKey{}).(*Attempt); ok {
		return a
	}
	return &Attempt{}
}
