package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"
)

// A Type is what the ledger knows of a job type. It has its ID from [Ledger.Register], or
// [Ledger.Declare].
type Type struct {
	ID      int32
	Name    string
	Effect  Effect
	Version int           // of the code; a higher one than the fact's makes it stale where the effect may repeat
	Timeout time.Duration // of one attempt; a Keyed horizon ends so much earlier
	Checked bool          // it has a done-check

	// Requests: its work comes as requests (package ledgerhttp). Only a client sends one again: no
	// message carries it, and no worker would take one.
	Requests bool

	ResultTTL time.Duration // of results, not of facts; 0: [DefaultResultTTL]; negative: 100 years
}

// A Want is one item as the ledger sees it: what a fact must satisfy to count as
// done.
type Want struct {
	Entity        string
	Fingerprint   int64 // of the arguments; 0: unknown, fits all
	SourceVersion int64 // of what the work is made from; 0: not versioned
	Run           int64 // the run that asks; 0: none
	Epoch         int64 // 0: any fact will do
}

// A Fact is the permanent record that work is done.
type Fact struct {
	Entity        string
	CompletedAt   time.Time
	Fingerprint   int64
	Epoch         int64
	Run           int64
	Attempts      int
	Version       int
	SourceVersion int64
	Evidence      Evidence
}

// Evidence says how the ledger knows.
type Evidence byte

const (
	SameTx     Evidence = 't' // committed together with the effect
	Reported   Evidence = 'r' // the job returned without an error
	DoneCheck  Evidence = 'c' // the done-check said so
	Adopted    Evidence = 'a' // recorded by the app for work it did itself
	ByOperator Evidence = 'o' // an operator resolved it
)

// Trouble is why an open entity is not simply being worked, as the claim has it. What is then
// decided about it is a [Reason], and the [State] of a settlement brings it there.
type Trouble string

const (
	NoTrouble Trouble = ""
	Retrying  Trouble = "retrying" // another attempt is due at NotBefore
	FailedFor Trouble = "failed"   // no attempt is left, or the job said that none would help
	Doubtful  Trouble = "in_doubt" // the effect may or may not have happened
)

// An Open is a row of the claim table: an entity between missing and done.
type Open struct {
	Entity         string
	Fence          int64 // changes with every change of the row
	Owner          int64 // the worker that holds it; 0: nobody
	OwnerDeadAt    time.Time
	ClaimedAt      time.Time // by its holder; of what nobody holds, when the last attempt ended that may have had an effect
	FirstClaimedAt time.Time // of the oldest attempt whose effect is not known to be absent; zero: there is none
	NotBefore      time.Time
	Attempts       int
	Trouble        Trouble
	Fingerprint    int64
	Epoch          int64
	SourceVersion  int64
	Run            int64
	Args           string
	Error          string
}

// Held tells whether a living worker works on it.
func (o *Open) Held() bool { return o.Owner != 0 && o.OwnerDeadAt.IsZero() }

// Abandoned tells whether its worker died over it.
func (o *Open) Abandoned() bool { return o.Owner != 0 && !o.OwnerDeadAt.IsZero() }

// A Reason says why an item is to run, or not to.
type Reason string

const (
	Missing      Reason = "missing"       // run: no fact, no claim
	Retry        Reason = "retry"         // run: an earlier attempt did not complete it
	StaleVersion Reason = "stale_version" // run: the code has a higher Version than the fact
	StaleSource  Reason = "stale_source"  // run: the source has a higher version than the fact
	Forced       Reason = "forced"        // run: asked for under a higher epoch than the fact's
	Done         Reason = "done"          // a fact satisfies what is wanted
	Ongoing      Reason = "ongoing"       // a living worker has it
	Waiting      Reason = "waiting"       // open, and its next attempt is not due
	Failed       Reason = "failed"        // open, and no attempt is left
	InDoubt      Reason = "in_doubt"      // open, and nobody may guess
	Conflict     Reason = "conflict"      // the same entity with other arguments
)

// Reasons is every reason there is, those that run first.
var Reasons = []Reason{Missing, Retry, StaleVersion, StaleSource, Forced, Done, Ongoing, Waiting, Failed, InDoubt, Conflict}

// Run tells whether an item with this reason is to be run.
func (r Reason) Run() bool {
	switch r {
	case Missing, Retry, StaleVersion, StaleSource, Forced:
		return true
	}
	return false
}

// Decide tells what is to happen with a wanted item, given its fact and its claim
// (nil where there is none) and the server's time. It is pure, and it is the only
// place that decides: workers, plans and lists all ask it.
//
// In order: a fact that satisfies the want ends the matter, whatever else is open
// (an epoch, a code version and a source version can each leave it unsatisfied).
// Then doubt and living owners outrank everything that is asked for, force included.
// What nobody holds is run again as its effect class allows.
func Decide(t *Type, w Want, f *Fact, o *Open, now time.Time) Reason {
	run := Missing
	if f != nil {
		run = staleness(t, w, f)
		if run == Done || run == Conflict {
			return run
		}
	}
	if o == nil {
		return run
	}
	newer := w.Epoch > o.Epoch || w.SourceVersion > o.SourceVersion
	switch {
	case o.Trouble == Doubtful:
		return InDoubt
	case differ(w.Fingerprint, o.Fingerprint) && !newer:
		return Conflict
	case o.Held():
		return Ongoing
	case now.Before(o.NotBefore):
		return Waiting
	case o.Trouble == FailedFor && !newer && !o.calledBy(w):
		return Failed
	}
	if again := afterInterruption(t, o, now); again != Retry {
		return again
	}
	switch {
	case w.Epoch > o.Epoch:
		return Forced
	case o.Attempts == 0 && f == nil:
		return Missing
	case o.Attempts == 0:
		return run
	}
	return Retry
}

// staleness compares a want with the fact alone: Done and Conflict end the matter.
func staleness(t *Type, w Want, f *Fact) Reason {
	switch {
	case w.Epoch > f.Epoch:
		return Forced
	case w.SourceVersion > f.SourceVersion:
		return StaleSource
	case t.wanted() > f.Version:
		return StaleVersion
	case differ(w.Fingerprint, f.Fingerprint):
		return Conflict
	}
	return Done
}

// wanted is the least version of the code that a fact must have: none where the effect may not
// repeat, since a new program is no reason for another effect.
func (t *Type) wanted() int {
	if t.Effect.MayRepeat() {
		return t.Version
	}
	return 0
}

// afterInterruption says what the effect class allows after attempts whose effect is
// unknown: Retry, Waiting or InDoubt. FirstClaimedAt is the evidence that there was
// one; jobs.NotApplied erases it.
func afterInterruption(t *Type, o *Open, now time.Time) Reason {
	if o.FirstClaimedAt.IsZero() {
		return Retry
	}
	switch t.Effect.class {
	case classOnce:
		return InDoubt
	case classVerifiable:
		if now.Before(t.settled(o)) {
			return Waiting
		}
	case classKeyed:
		if !t.insideHorizon(o, now) && !t.Checked {
			return InDoubt
		}
	}
	return Retry
}

// settled is when the done-check may be believed about the last attempt on o, which is over.
func (t *Type) settled(o *Open) time.Time {
	if o.Abandoned() {
		return o.OwnerDeadAt.Add(t.Effect.Settle())
	}
	return o.ClaimedAt.Add(t.Effect.Settle())
}

// insideHorizon tells whether an attempt that starts now would end while the provider
// still knows our key.
func (t *Type) insideHorizon(o *Open, now time.Time) bool {
	return now.Before(o.FirstClaimedAt.Add(t.Effect.duration - t.Timeout))
}

// MustVerify tells whether an attempt on o may only be made after the done-check said
// that the effect is absent; when it cannot tell, the entity is in doubt.
func MustVerify(t *Type, o *Open, now time.Time) bool {
	if o == nil || o.FirstClaimedAt.IsZero() {
		return false
	}
	switch t.Effect.class {
	case classVerifiable:
		return true
	case classKeyed:
		return !t.insideHorizon(o, now)
	}
	return false
}

// Covers tells whether the claim o stands for all that w asks: its holder, or its next
// attempt, does w's work too, so that a message that carries w may be acknowledged.
func (o *Open) Covers(w Want) bool {
	return o.Epoch >= w.Epoch && o.SourceVersion >= w.SourceVersion && !differ(o.Fingerprint, w.Fingerprint)
}

// calledBy tells whether the failed claim o is due again for w: a run has called it, and has written
// itself into the claim, with all its attempts before it. Until a worker takes it over, with the
// message of a run in hand, it stays what it is, a failure that is listed. So nothing is lost where
// that message comes to nothing, because its arguments are others by now, say. Of two runs that have
// called it, either's message will do: the other would end without it.
func (o *Open) calledBy(w Want) bool {
	return o.Trouble == FailedFor && o.Attempts == 0 && o.Run != 0 && w.Run != 0
}

// CalledSQL is true of a claim c that a run has called again, the one that is in it, and that was
// not tried since: see calledBy.
const CalledSQL = `(c.trouble = 'failed' AND c.attempts = 0)`

// listed tells whether the claim o must stay beside the fact f for who looks after failures and
// doubts: it is about other arguments, which f says nothing of, and no message brings them again.
// What is being worked, or retried, has one, and is then seen to be a conflict.
func (o *Open) listed(f *Fact) bool {
	return (o.Trouble == FailedFor || o.Trouble == Doubtful) && differ(o.Fingerprint, f.Fingerprint)
}

// Fingerprints differ only where both are known and were made by the same rule, which
// the upper bits name: a later rule must not turn every fact into a conflict.
func differ(a, b int64) bool { return a != b && a != 0 && b != 0 && a>>56 == b>>56 }

// FirstName is the name of a job type that effect keys are made of: the oldest of its aliases, if it
// has any. So a new name makes no new work for a provider.
func FirstName(name string, aliases []string) string {
	if len(aliases) > 0 {
		return aliases[0]
	}
	return name
}

// EffectKey is the key that an outside provider can know repeats by: the same for
// every attempt on (job type, entity) in one epoch, another one for forced work. 32
// hexadecimal digits.
func EffectKey(jobType, entity string, epoch int64) string {
	h := sha256.New()
	h.Write([]byte(jobType))
	h.Write([]byte{0})
	h.Write([]byte(entity))
	h.Write([]byte{0})
	h.Write(strconv.AppendInt(nil, epoch, 10))
	return hex.EncodeToString(h.Sum(nil)[:16])
}
