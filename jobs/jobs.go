// Package jobs gives queue and ledger a type.
//
// A [Job] is a struct literal: what to do with one entity, whether it is ready, how to
// see that it is done, and what a crash in the middle may mean. A [Set] is the jobs that
// a worker knows, checked when it is made. [Args] carry the identity of the work, so that
// a producer links no job body.
package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// Effect is the class of an effect outside the database: what an interrupted attempt may
// mean. See [ledger.Effect].
type Effect = ledger.Effect

// The effect classes; see package ledger for each.
var (
	Repeatable = ledger.Repeatable
	Once       = ledger.Once
)

// Keyed is for a provider that ignores repeats of our effect key; see [ledger.Keyed].
func Keyed(horizon time.Duration) Effect { return ledger.Keyed(horizon) }

// Verifiable is for an effect that Done can see; see [ledger.Verifiable].
func Verifiable(settle time.Duration) Effect { return ledger.Verifiable(settle) }

// A Job is how to do the work that A names. Exactly one of Do, DoTx, DoMany and FanOut
// is set.
//
// Bodies get a context that ends at the timeout, at shutdown, or when the worker may no
// longer act; one that ignores it may be overtaken. A panic is a failed attempt.
type Job[A Args] struct {
	// Ready tells whether the work can be done at all yet; nil means always. Work that is
	// not ready is no failure. With a Source it is left for a later call, which finds it if the source
	// names it then; without one it comes again, up to a bound, and is then listed. What a run sent is
	// counted at its end as not ready. An error,
	// a panic or a timeout is a failed attempt, which had no effect.
	Ready func(ctx context.Context, a A) (bool, error)

	// Done looks at the world for the effect: true records the fact without doing
	// anything. It is asked before every attempt. An error, a panic or a timeout means "cannot
	// tell": where an earlier attempt may have had its effect, the work is then in doubt; else
	// it is a failed attempt, which had no effect.
	//
	// Ready and Done have Policy.Timeout each, beside that of the body.
	Done func(ctx context.Context, a A) (bool, error)

	// Do makes an effect outside the database; Effect is required with it.
	Do func(ctx context.Context, a A) error
	// DoTx makes its effect through tx, which is committed together with the fact, or not
	// at all. tx refuses Commit and Rollback.
	DoTx func(ctx context.Context, tx pgx.Tx, a A) error
	// DoMany is DoTx for many entities at once. When it fails, everything is rolled back
	// and it is called again with halves, down to the entity that fails. It gets what one
	// message names: up to PackSize of a fan-out, 10 to 1,000 of a re-run, which finds out how many
	// are good, and one of what was enqueued singly. Policy.Timeout is for all of them.
	DoMany func(ctx context.Context, tx pgx.Tx, as []A) error
	// FanOut names the entities of another job type to be worked: a run. It is never "done":
	// calling it again plans again, and what has a fact is skipped.
	FanOut func(a A) Source

	Effect Effect
	// Source names every entity that should be done, for what is missing. Of a type that has one a
	// message ends when the work is not ready: it is missing until somebody calls it again.
	Source Source

	Policy
}

// Policy is how a job type is to be run. The zero Policy has sensible values.
type Policy struct {
	Version  int           // of the code; raise it to have finished work done again, where the effect may repeat
	Queue    string        // the Postgres queue of the worker that a fan-out of this type is sent to; "": the default one. Producers choose theirs themselves
	Priority int           // of messages that a fan-out sends; higher first, -100 to 100
	Timeout  time.Duration // of one attempt; 0: a minute
	Attempts int           // before the entity is listed as failed; 0: 10
	PackSize int           // entities in one message of a fan-out, up to [queue.MaxItems]; 0: 100. About a second of work is good
	Aliases  []string      // earlier names of this job type, the oldest first: their facts and messages are still its own, and effect keys are made of the first

	Limit      Limit // of each worker
	FleetLimit Limit // of all workers of the database together

	// ResultTTL is how long what a body returns ([Attempt.Return]) is kept; 0: a week; negative:
	// 100 years. The fact stays: that a result has expired does not have the work done again.
	ResultTTL time.Duration

	// Backoff is how long to wait after the given attempt (1 is the first); nil means
	// [DefaultBackoff].
	Backoff func(attempt int) time.Duration
}

// A Limit bounds how a job type is worked. The zero Limit bounds nothing.
//
// A limit across the fleet holds while workers die: what a dead one was granted is given
// to others when it has been declared dead, and not before. It does not hold back a body
// that its worker can no longer stop: a frozen process that wakes up, or a body that
// ignores the end of its context.
type Limit struct {
	Running int     // bodies at once, their checks included, one for a whole DoMany; 0: no bound
	Rate    float64 // entities begun in a second, evenly, retries included; 0: no bound
}

func (l Limit) valid() bool {
	return l.Running >= 0 && (l.Rate == 0 || l.Rate >= 1.0/(24*60*60) && l.Rate <= 1e6)
}

// DefaultBackoff doubles from one second to five minutes, give or take a fifth.
func DefaultBackoff(attempt int) time.Duration {
	d := 5 * time.Minute
	if attempt < 10 {
		d = min(d, time.Second<<max(0, attempt-1))
	}
	return d - d/5 + rand.N(2*d/5)
}

// Erased is a Job on plain Args: all that the engine ever sees. Policy has no zero values
// left.
type Erased struct {
	Type    string
	KeyType string // see [Attempt]
	Decode  func(entity string, raw []byte) (Input, error)
	Parse   func(raw []byte) (Args, error) // the arguments alone; refuses fields that they do not have
	Knows   func(raw []byte) error         // does only that, to find misspelt columns

	Ready, Done func(ctx context.Context, a Args) (bool, error)
	Do          func(ctx context.Context, a Args) error
	DoTx        func(ctx context.Context, tx pgx.Tx, a Args) error
	DoMany      func(ctx context.Context, tx pgx.Tx, as []Args) error
	FanOut      func(a Args) Source

	Effect Effect
	Source Source
	Policy
}

// A Definition is a [Job] of any type.
type Definition interface{ erase() (*Erased, error) }

// A Set is the jobs that a worker knows.
type Set struct {
	byName map[string]*Erased // by type and alias
	types  []string
}

// ReservedPrefix begins the names of job types that are this library's own.
const ReservedPrefix = "oncemore."

// NewSet checks the definitions and puts them together. Its error has a sentence for each
// mistake, all of them at once.
func NewSet(ds ...Definition) (*Set, error) {
	s := &Set{byName: map[string]*Erased{}}
	var mistakes []error
	for _, d := range ds {
		e, err := d.erase()
		if err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		for _, name := range append([]string{e.Type}, e.Aliases...) {
			if strings.HasPrefix(name, ReservedPrefix) {
				mistakes = append(mistakes, fmt.Errorf("job type %q begins with %q, which is kept for this library's own", name, ReservedPrefix))
			}
			if s.byName[name] != nil {
				mistakes = append(mistakes, fmt.Errorf("job type %q is defined twice: a name, or an alias, belongs to one job", name))
			}
			s.byName[name] = e
		}
		s.types = append(s.types, e.Type)
	}
	slices.Sort(s.types)
	return s, errors.Join(mistakes...)
}

// Lookup returns the job of a type, or of an alias.
func (s *Set) Lookup(jobType string) (*Erased, bool) {
	e, ok := s.byName[jobType]
	return e, ok
}

// Types are the names of the job types, in order.
func (s *Set) Types() []string { return slices.Clone(s.types) }

// Names are the names of the job types and their aliases, in order.
func (s *Set) Names() []string { return slices.Sorted(maps.Keys(s.byName)) }

// typeName asks the zero value; "" when that is not possible.
func typeName[A Args]() (name string) {
	defer func() { _ = recover() }()
	var zero A
	return zero.JobType()
}

func (j Job[A]) erase() (*Erased, error) {
	e := &Erased{Type: typeName[A](), Effect: j.Effect, Source: j.Source, Policy: j.Policy}
	e.KeyType = ledger.FirstName(e.Type, j.Aliases)
	e.Policy.fill()
	if j.DoTx != nil || j.DoMany != nil || j.FanOut != nil {
		e.Effect = ledger.InTransaction
	}
	if err := j.check(e); err != nil {
		return nil, err
	}
	name := e.Type
	e.Decode = func(entity string, raw []byte) (Input, error) { return decode[A](name, entity, raw) }
	e.Parse = func(raw []byte) (_ Args, err error) {
		var a A
		defer func() {
			if v := recover(); v != nil {
				err = panicked(v)
			}
		}()
		d := json.NewDecoder(bytes.NewReader(raw))
		d.DisallowUnknownFields()
		err = d.Decode(&a)
		return a, err
	}
	e.Knows = func(raw []byte) error { _, err := e.Parse(raw); return err }
	e.Ready, e.Done = eraseCheck(j.Ready), eraseCheck(j.Done)
	if j.Do != nil {
		e.Do = func(ctx context.Context, a Args) error { return j.Do(ctx, a.(A)) }
	}
	if j.DoTx != nil {
		e.DoTx = func(ctx context.Context, tx pgx.Tx, a Args) error { return j.DoTx(ctx, tx, a.(A)) }
	}
	if j.DoMany != nil {
		e.DoMany = func(ctx context.Context, tx pgx.Tx, as []Args) error {
			typed := make([]A, len(as))
			for i, a := range as {
				typed[i] = a.(A)
			}
			return j.DoMany(ctx, tx, typed)
		}
	}
	if j.FanOut != nil {
		e.FanOut = func(a Args) Source { return j.FanOut(a.(A)) }
	}
	return e, nil
}

func eraseCheck[A Args](check func(context.Context, A) (bool, error)) func(context.Context, Args) (bool, error) {
	if check == nil {
		return nil
	}
	return func(ctx context.Context, a Args) (bool, error) { return check(ctx, a.(A)) }
}

func (p *Policy) fill() {
	if p.Timeout == 0 {
		p.Timeout = time.Minute
	}
	if p.Attempts == 0 {
		p.Attempts = 10
	}
	if p.PackSize == 0 {
		p.PackSize = 100
	}
	p.Backoff = steady(p.Backoff)
}

// steady is a Backoff that has an answer when the job's own panics: it is asked when an attempt
// has failed, and how that one ended must be recorded.
func steady(own func(attempt int) time.Duration) func(int) time.Duration {
	if own == nil {
		return DefaultBackoff
	}
	return func(attempt int) (d time.Duration) {
		defer func() {
			if recover() != nil {
				d = DefaultBackoff(attempt)
			}
		}()
		return own(attempt)
	}
}

// check says what is wrong with a definition, and why that matters.
func (j Job[A]) check(e *Erased) error {
	kind := reflect.TypeFor[A]()
	if kind.Kind() == reflect.Pointer || kind.Kind() == reflect.Interface {
		return fmt.Errorf("args %v: use the struct itself, not a pointer or an interface: JobType is asked of the zero value, and the arguments must not change under the ledger", kind)
	}
	if err := queue.CheckName("job type", e.Type); err != nil {
		return fmt.Errorf("args %v have no usable job type, the name that the ledger keeps for ever: %w", kind, err)
	}
	bodies := 0
	for _, set := range []bool{j.Do != nil, j.DoTx != nil, j.DoMany != nil, j.FanOut != nil} {
		if set {
			bodies++
		}
	}
	outside := j.Do != nil
	given := j.Effect != Effect{}
	_, sourced := any(*new(A)).(Sourced)
	switch {
	case bodies != 1:
		return fmt.Errorf("job %s has %d bodies: set exactly one of Do, DoTx, DoMany and FanOut", e.Type, bodies)
	case outside && !given:
		return fmt.Errorf("job %s has an effect outside the database and does not say its class. What may a crash in the middle mean? "+
			"jobs.Repeatable: doing it again changes nothing; jobs.Keyed(horizon): the provider ignores repeats of our key; "+
			"jobs.Verifiable(settle): Done can see it; jobs.Once: nobody can tell, an operator decides", e.Type)
	case !outside && given:
		return fmt.Errorf("job %s works inside a transaction and needs no Effect: it happens with the fact or not at all", e.Type)
	case outside && !j.Effect.Valid():
		return fmt.Errorf("job %s: effect %s: its duration must be positive (of Verifiable: not negative)", e.Type, j.Effect)
	case j.Effect.NeedsCheck() && j.Done == nil:
		return fmt.Errorf("job %s is Verifiable but has no Done: what would be asked after a crash?", e.Type)
	case j.Version != 0 && !e.Effect.MayRepeat():
		return fmt.Errorf("job %s has a Version, but its effect %s may not be repeated unasked; leave it 0, and force a run where it must be done again", e.Type, e.Effect)
	case j.Version < 0 || j.Attempts < 0 || j.Timeout < 0 || j.PackSize < 0 || j.PackSize > queue.MaxItems || j.Priority < -100 || j.Priority > 100:
		return fmt.Errorf("job %s: a policy is out of bounds: Version, Attempts and Timeout are not negative, PackSize is at most %d, Priority is from -100 to 100", e.Type, queue.MaxItems)
	case !j.Limit.valid() || !j.FleetLimit.valid():
		return fmt.Errorf("job %s: a limit is out of bounds: Running is not negative, Rate is from one in a day to a million in a second; 0 is no limit", e.Type)
	case !j.Source.IsZero() && j.Source.JobType() != e.Type:
		return fmt.Errorf("job %s has a Source of %q: it must name its own entities", e.Type, j.Source.JobType())
	case j.FanOut != nil && (j.Ready != nil || j.Done != nil):
		return fmt.Errorf("job %s fans out and has checks of its own: a run has no end to check; put them on the job it sends", e.Type)
	case sourced && !carriesVersion(kind):
		return fmt.Errorf("job %s: args %v have SourceVersion but no JSON field %q to carry it: every change would look like other arguments", e.Type, kind, sourceVersion)
	}
	return nil
}

func carriesVersion(kind reflect.Type) bool {
	if kind.Kind() != reflect.Struct {
		return false
	}
	for _, f := range reflect.VisibleFields(kind) {
		tag := f.Tag.Get("json")
		if tag == sourceVersion || (len(tag) > len(sourceVersion) && tag[:len(sourceVersion)+1] == sourceVersion+",") {
			return true
		}
	}
	return false
}
