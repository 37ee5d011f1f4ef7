package ledger_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// An answer is what an Await returned.
type answer struct {
	value json.RawMessage
	err   error
}

// waiting is an Await that has begun, and has looked.
func (w *world) waiting(want ledger.Want) <-chan answer {
	w.Helper()
	answers := make(chan answer, 1)
	go func() {
		v, err := w.Await(w.Context(), w.kind.Name, want)
		answers <- answer{v, err}
	}()
	w.goesOn(answers)
	return answers
}

// goesOn sees that it waits still, some looks later.
func (w *world) goesOn(answers <-chan answer) {
	w.Helper()
	select {
	case a := <-answers:
		w.Fatalf("the waiting has ended: %s %v", a.value, a.err)
	case <-time.After(150 * time.Millisecond):
	}
}

func (w *world) told(answers <-chan answer, value string) {
	w.Helper()
	select {
	case a := <-answers:
		w.ok(a.err)
		w.want("the result", string(a.value), value)
	case <-time.After(20 * time.Second):
		w.Fatal("nobody was told")
	}
}

// undone awaits e and wants the waiting to end without a fact.
func (w *world) undone(want ledger.Want, reason ledger.Reason) *ledger.UndoneError {
	w.Helper()
	_, err := w.Await(w.Context(), w.kind.Name, want)
	u, is := errors.AsType[*ledger.UndoneError](err)
	if !is || u.Reason != reason || u.Err != nil {
		w.Fatalf("got %v, want it to be %s", err, reason)
	}
	return u
}

func TestAwaitReturnsTheResultOfWhatIsDone(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `{"id":7}`))
	w.told(one(w.Await(t.Context(), w.kind.Name, plain(e))), `{"id":7}`)
}

func one(v json.RawMessage, err error) <-chan answer {
	c := make(chan answer, 1)
	c <- answer{v, err}
	return c
}

// An alias names the same work.
func TestAwaitKnowsAliases(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `7`))
	w.register(&ledger.Type{Name: "invite", Effect: ledger.Once}, w.kind.Name)
	w.told(one(w.Await(t.Context(), "invite", plain(e))), `7`)
}

func TestAwaitSaysThatThereIsNoResult(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.settle(a, completed(plain("none"), w.claim(a, plain("none"))), returning(completed(plain(e), w.claim(a, plain(e))), `7`))
	_, err := w.Await(t.Context(), w.kind.Name, plain("none"))
	w.want("none was returned", errors.Is(err, ledger.ErrNoResult) && !errors.Is(err, ledger.ErrResultExpired), true)
	w.exec(`UPDATE oncemore.result SET expires_at = now()`)
	_, err = w.Await(t.Context(), w.kind.Name, plain(e))
	w.want("it has expired", errors.Is(err, ledger.ErrNoResult) && errors.Is(err, ledger.ErrResultExpired), true)
	_, err = w.ExpireResults(t.Context(), 10)
	w.ok(err)
	_, err = w.Await(t.Context(), w.kind.Name, plain(e))
	w.want("it is deleted", errors.Is(err, ledger.ErrNoResult) && !errors.Is(err, ledger.ErrResultExpired), true)

	// Done once more, and nothing returned: the result that is there is not of this fact.
	w.settle(a, returning(completed(plain("twice"), w.claim(a, plain("twice"))), `7`))
	w.settle(a, completed(forced("twice", 5), w.claim(a, forced("twice", 5))))
	_, err = w.Await(t.Context(), w.kind.Name, plain("twice"))
	w.want("it is of another epoch", errors.Is(err, ledger.ErrNoResult), true)
}

func TestAwaitEndsAtOnceWhereNothingWouldComeByItself(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.settle(a, failed(plain("failed"), w.claim(a, plain("failed")), ledger.GaveUp))
	u := w.undone(plain("failed"), ledger.Failed)
	if !strings.HasSuffix(u.Error(), `"failed": it is failed after 1 attempts: the mail server said no`) {
		t.Error(u)
	}
	w.settle(a, failed(plain("doubt"), w.claim(a, plain("doubt")), ledger.Unclear))
	w.undone(plain("doubt"), ledger.InDoubt)
	w.claim(a, plain("open"))
	w.undone(ledger.Want{Entity: "open", Fingerprint: otherArgs}, ledger.Conflict)
	w.settle(a, completed(plain("done"), w.claim(a, plain("done"))))
	w.undone(ledger.Want{Entity: "done", Fingerprint: otherArgs}, ledger.Conflict)
}

// A wait lasts from before the work is known until it is done: through a failure, and the
// death of its worker.
func TestAwaitGoesOnUntilTheWorkIsDone(t *testing.T) {
	t.Parallel()
	w, a, b := two(t, ledger.Repeatable)
	answers := w.waiting(plain(e)) // missing
	w.settle(a, failed(plain(e), w.claim(a, plain(e)), ledger.ToRetry))
	w.goesOn(answers) // retrying
	c := w.claim(a, plain(e))
	w.goesOn(answers) // ongoing
	w.die(a)
	w.goesOn(answers) // abandoned
	cb := w.claim(b, plain(e))
	w.settle(a, returning(completed(plain(e), c), `"of the dead"`))
	w.goesOn(answers)
	w.settle(b, returning(completed(plain(e), cb), `"of who took over"`))
	w.told(answers, `"of who took over"`)
}

func TestAwaitWaitsForTheEpochThatIsAskedFor(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `"old"`))
	w.told(one(w.Await(t.Context(), w.kind.Name, plain(e))), `"old"`)
	answers := w.waiting(forced(e, 7))
	c := w.claim(a, forced(e, 7))
	w.goesOn(answers)
	w.told(one(w.Await(t.Context(), w.kind.Name, plain(e))), `"old"`) // which stands until it is replaced
	w.settle(a, returning(completed(forced(e, 7), c), `"new"`))
	w.told(answers, `"new"`)
}

func TestAwaitWaitsForTheSourceThatIsAskedFor(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Repeatable)
	w.settle(a, returning(completed(source(e, 3), w.claim(a, source(e, 3))), `3`))
	answers := w.waiting(source(e, 4))
	w.settle(a, returning(completed(source(e, 5), w.claim(a, source(e, 5))), `5`))
	w.told(answers, `5`)
}

// Who waits may be there before any worker ever was.
func TestAwaitWaitsForAJobTypeThatIsNotKnownYet(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Repeatable)
	answers := make(chan answer, 1)
	go func() {
		v, err := w.Await(t.Context(), "new", plain(e))
		answers <- answer{v, err}
	}()
	w.goesOn(answers)
	w.kind = w.register(&ledger.Type{Name: "new", Effect: ledger.Repeatable})
	w.settle(a, returning(completed(plain(e), claimless), `7`))
	w.told(answers, `7`)
}

func TestTheEndOfTheContextSaysWhereTheWorkStood(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.claim(a, plain(e))
	for want, reason := range map[ledger.Want]ledger.Reason{plain(e): ledger.Ongoing, plain("other"): ledger.Missing} {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		_, err := w.Await(ctx, w.kind.Name, want)
		cancel()
		u, is := errors.AsType[*ledger.UndoneError](err)
		if !is || u.Reason != reason || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", want.Entity, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the client has gone"))
	if _, err := w.Await(ctx, w.kind.Name, plain(e)); err == nil || !strings.HasSuffix(err.Error(), "the client has gone") {
		t.Error(err)
	}
}

// All who wait in a process share one read, and Postgres refuses the whole of it for one NUL.
func TestWhoWaitsForNonsenseIsToldSoAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Repeatable)
	answers := w.waiting(plain(e))
	type name struct{ jobType, entity string }
	refused := make(chan answer)
	nonsense := []name{{w.kind.Name, "a\x00"}, {w.kind.Name, "a\xff"}, {w.kind.Name, ""}, {w.kind.Name, strings.Repeat("a", 513)},
		{"a\x00", e}, {"a\xff", e}, {"", e}}
	for _, n := range nonsense {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := w.Await(ctx, n.jobType, plain(n.entity))
			refused <- answer{err: err}
		}()
	}
	w.goesOn(answers)
	w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `7`))
	w.told(answers, `7`)
	for range nonsense {
		err := (<-refused).err
		if _, waited := errors.AsType[*ledger.UndoneError](err); err == nil || waited || !strings.HasPrefix(err.Error(), "await ") {
			t.Errorf("waiting for nonsense: %v", err)
		}
	}
}
