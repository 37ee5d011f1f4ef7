package ledger

import (
	"fmt"
	"time"
)

// An Effect is a job type's effect class: what it may mean that an attempt ended
// in anything but success, by an error, a panic, a timeout, a cancellation, or the
// death of the process. The zero Effect is no class; registration refuses it.
type Effect struct {
	class    effectClass
	duration time.Duration // Keyed: the horizon; Verifiable: the settling time
}

type effectClass byte

const (
	classNone effectClass = iota
	classInTx
	classRepeatable
	classKeyed
	classVerifiable
	classOnce
)

var (
	// InTransaction: the effect is in our Postgres, in the transaction that records
	// the fact; an attempt that did not commit left nothing. DoTx and DoMany have it
	// by themselves.
	InTransaction = Effect{class: classInTx}
	// Repeatable: doing it again changes nothing (rebuild the tags, PUT a file).
	Repeatable = Effect{class: classRepeatable}
	// Once: nobody can tell whether it happened, and it may not happen twice. Each
	// interrupted attempt waits, in doubt, for an operator. A done-check may end that by saying
	// that it did happen; that it did not is left to the operator, since nothing says when the
	// check may be believed (that is [Verifiable]).
	Once = Effect{class: classOnce}
)

// Keyed is for a provider that ignores repeats of our effect key for the horizon
// after the first attempt. Inside it, less the job's timeout, an interrupted
// attempt is made again under the same key; past it the done-check decides, and
// without one the entity is in doubt. A horizon that is not longer than the timeout is none.
func Keyed(horizon time.Duration) Effect { return Effect{classKeyed, horizon} }

// Verifiable is for an effect that the done-check can ask the world about. It is
// asked when settle has passed since the attempt ended, because a provider may
// take a moment to show what it accepted: done is recorded, not done runs again,
// and an error ("cannot tell") is in doubt.
func Verifiable(settle time.Duration) Effect { return Effect{classVerifiable, settle} }

// Valid tells whether e is one of the classes, with a sensible duration.
func (e Effect) Valid() bool {
	switch e.class {
	case classInTx, classRepeatable, classOnce:
		return e.duration == 0
	case classKeyed:
		return e.duration > 0
	case classVerifiable:
		return e.duration >= 0
	}
	return false
}

// MayRepeat tells whether the effect can be had again without being asked for: only
// then may a raised Version of the code make facts stale, and only then does a first
// delivery need no claim.
func (e Effect) MayRepeat() bool { return e.class == classInTx || e.class == classRepeatable }

// NeedsCheck tells whether the class rests on a done-check.
func (e Effect) NeedsCheck() bool { return e.class == classVerifiable }

// Settle is how long after an interrupted attempt the done-check may be believed.
func (e Effect) Settle() time.Duration {
	if e.class == classVerifiable {
		return e.duration
	}
	return 0
}

// String returns the class as it is written in code.
func (e Effect) String() string {
	switch e.class {
	case classInTx:
		return "InTransaction"
	case classRepeatable:
		return "Repeatable"
	case classKeyed:
		return fmt.Sprintf("Keyed(%s)", e.duration)
	case classVerifiable:
		return fmt.Sprintf("Verifiable(%s)", e.duration)
	case classOnce:
		return "Once"
	}
	return "none"
}
