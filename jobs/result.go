package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// ErrResultTooLarge is why [Attempt.Return] refuses a value.
var ErrResultTooLarge = errors.New("the result is too large")

var errMany = errors.New("a DoMany body works on many entities at once: say whose result it is, by ReturnFor")

// Return keeps v, as JSON, as the result of the work, for who waits for it (see [Await]). It
// is stored in the transaction that records the completion, and only if that is accepted:
// what a failed attempt returned, or one whose claim was lost, is dropped. The last call
// counts. A done-check may call it too, for work that it finds done.
//
// It refuses what is no JSON, and more than [ledger.MaxResult] bytes of it with an error
// that wraps [ErrResultTooLarge]; what was returned before stays then. Like Note, it must
// not be called after the body returned. Outside of a job it only checks. In a DoMany use
// ReturnFor.
func (a *Attempt) Return(v any) error {
	if a.Many {
		return errMany
	}
	return a.keep(a.Entity, v)
}

// ReturnFor is Return for one of the entities that a DoMany was given.
func (a *Attempt) ReturnFor(of Args, v any) error { return a.keep(of.Entity(), v) }

func (a *Attempt) keep(entity string, v any) error {
	raw, err := json.Marshal(v)
	switch {
	case err != nil:
	case len(raw) > ledger.MaxResult:
		err = fmt.Errorf("%w: %d bytes of JSON, allowed are %d; keep it where such things are kept, and return where", ErrResultTooLarge, len(raw), ledger.MaxResult)
	case !utf8.Valid(raw):
		err = errors.New("its JSON is not UTF-8")
	}
	if err != nil {
		return fmt.Errorf("return a result of %s %q: %w", a.JobType, entity, err)
	}
	if a.results == nil {
		a.results = map[string][]byte{}
	}
	a.results[entity] = raw
	return nil
}

// Returned is the result that was returned for an entity; nil: none.
func (a *Attempt) Returned(entity string) []byte { return a.results[entity] }

// Await waits until the work that a names is done, and returns its result as an R:
//
//	receipt, err := jobs.Await[Receipt](ctx, led, Charge{OrderID: 7})
//
// It enqueues nothing. Where a is made from a source, work from an older version of it does
// not count; where it was done with other arguments, that is a conflict. Its errors are those
// of [ledger.Ledger.Await]: work without a result ends with [ledger.ErrNoResult], which who
// only waits for the end may ignore.
func Await[R any, A Args](ctx context.Context, l *ledger.Ledger, a A) (result R, err error) {
	item, err := NewItem(a)
	if err != nil {
		return result, err
	}
	in, err := decode[A](a.JobType(), item.Entity, item.Args) // as a worker reads it
	if err != nil {
		return result, fmt.Errorf("await %s %q: %w", a.JobType(), item.Entity, err)
	}
	raw, err := l.Await(ctx, a.JobType(), ledger.Want{Entity: item.Entity, Fingerprint: in.Fingerprint, SourceVersion: in.SourceVersion})
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(raw, &result); err != nil {
		return result, fmt.Errorf("the result of %s %q is no %T: %w", a.JobType(), item.Entity, result, err)
	}
	return result, nil
}
