package admin_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

func TestWhatFailedGetsAllItsAttemptsAnew(t *testing.T) {
	y := newYard(t)
	y.failures(errors.New("no ink"), "a", "b", "c")
	shown := y.retryable(admin.Selection{Type: "draw", Entities: []string{"a", "c"}})
	r, err := y.by("anna").Retry(t.Context(), shown, "")
	if err != nil || r.Changed != 2 || r.Audit == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	same(t, "before a worker came", y.where("a"), "retrying 0")
	y.work()
	same(t, "a, which was mended", y.where("a"), "done r 1")
	same(t, "b, which was not named", y.where("b"), "failed 1")
	same(t, "what is left in the queue", y.messages(), 0)
}

func TestRetryNeverTouchesWhatIsInDoubt(t *testing.T) {
	y := newYard(t)
	y.doubts("a")
	if shown := y.retryable(admin.Selection{Type: "pay"}); len(shown.Entries) > 0 {
		t.Errorf("a doubt is shown as retryable: %+v", shown)
	}
	before := y.contents()
	// Not even for who has its fence.
	r, err := y.by("anna").Retry(t.Context(), y.inDoubt(admin.Selection{Type: "pay"}), "")
	if err != nil || r.Changed != 0 || !slices.Equal(leftOf(r), []string{"a"}) {
		t.Errorf("%+v, %v", r, err)
	}
	same(t, "after it", y.contents(), before)
}

// Somebody has it tried again while an operator looks at the list, and it runs right now.
func TestWhatAWorkerRunsIsNotRetriedAsWell(t *testing.T) {
	y := newYard(t)
	y.failures(errors.New("no ink"), "a", "b")
	shown := y.retryable(admin.Selection{Type: "draw"})
	entered, leave := make(chan struct{}, 1), make(chan struct{})
	set, err := jobs.NewSet(jobs.Job[draw]{Effect: jobs.Repeatable, Do: func(context.Context, draw) error {
		entered <- struct{}{}
		<-leave
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := y.by("bert").Retry(t.Context(), y.retryable(admin.Selection{Type: "draw", Entities: []string{"a"}}), ""); err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), y.Pool, set, worker.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	<-entered
	same(t, "a, while it runs", y.where("a"), "held 1")
	r, err := y.by("anna").Retry(t.Context(), shown, "")
	if err != nil || r.Changed != 1 || !slices.Equal(leftOf(r), []string{"a"}) {
		t.Errorf("%+v, %v", r, err)
	}
	<-entered // b, which was as it was shown
	close(leave)
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	same(t, "a", y.where("a"), "done r 1")
	same(t, "b", y.where("b"), "done r 1")
}

// stranded has work of a type claimed by a worker that is dead, and no message of it.
func (y *yard) stranded(set *jobs.Set, args ...jobs.Args) {
	y.t.Helper()
	l := ledger.New(y.Pool)
	lease, err := l.Join(y.t.Context(), "dead", 0, slog.New(slog.DiscardHandler))
	if err != nil {
		y.t.Fatal(err)
	}
	for _, a := range args {
		e, _ := set.Lookup(a.JobType())
		ty := &ledger.Type{Name: e.Type, Effect: e.Effect, Timeout: e.Timeout, Checked: e.Done != nil}
		if err := l.Register(y.t.Context(), ty); err != nil {
			y.t.Fatal(err)
		}
		it, err := jobs.NewItem(a)
		if err != nil {
			y.t.Fatal(err)
		}
		in, err := e.Decode(it.Entity, it.Args)
		if err != nil {
			y.t.Fatal(err)
		}
		claims, err := l.Claim(y.t.Context(), ty, lease.ID, []ledger.Candidate{{Want: ledger.Want{Entity: it.Entity, Fingerprint: in.Fingerprint}, Args: string(it.Args)}})
		if err != nil || !claims[0].Won {
			y.t.Fatalf("%+v, %v", claims, err)
		}
	}
	if err := lease.Leave(y.t.Context()); err != nil {
		y.t.Fatal(err)
	}
}

// A worker died, and the message will not come again: it was in a queue that gave up on it.
// A retry brings it back by the way of any other, so that its effect class decides.
func TestStrandedWorkIsBroughtBackAndItsEffectClassDecides(t *testing.T) {
	y := newYard(t)
	asked := make(chan string, 10)
	set, err := jobs.NewSet(
		jobs.Job[draw]{Effect: jobs.Repeatable, Do: func(_ context.Context, d draw) error { return y.run(d.Page) }},
		jobs.Job[pay]{Effect: jobs.Once, Do: func(_ context.Context, p pay) error { return y.run(p.Bill) }},
		jobs.Job[ship]{Effect: jobs.Verifiable(time.Hour), Do: func(_ context.Context, s ship) error { return y.run(s.Parcel) },
			Done: func(_ context.Context, s ship) (bool, error) { asked <- s.Parcel; return false, nil }},
	)
	if err != nil {
		t.Fatal(err)
	}
	y.set = set
	y.stranded(set, draw{Page: "page"}, pay{"bill"}, ship{"parcel"})
	for _, ty := range []string{"draw", "pay", "ship"} {
		shown := y.retryable(admin.Selection{Type: ty})
		if len(shown.Entries) != 1 || shown.Entries[0].State != "stranded" {
			t.Fatalf("%s: %+v", ty, shown)
		}
		if r, err := y.by("anna").Retry(t.Context(), shown, ""); err != nil || r.Changed != 1 {
			t.Fatalf("%s: %+v, %v", ty, r, err)
		}
	}
	workertest.RunConfig(t, y.Pool, set, worker.Config{Log: slog.New(slog.DiscardHandler)})
	same(t, "what may be repeated", y.where("page"), "done r 1")
	same(t, "what may happen once", y.where("bill"), "in_doubt 0")
	same(t, "what can be asked about when an hour has passed since the death", y.where("parcel"), "held 0")
	same(t, "bodies that ran", []int{y.ran("page"), y.ran("bill"), y.ran("parcel")}, []int{1, 0, 0})
	select {
	case who := <-asked:
		t.Errorf("the done-check was asked about %s before its time", who)
	default:
	}
	same(t, "messages that carry the parcel on", y.messages(), 1)
}

type ship struct {
	Parcel string `json:"parcel"`
}

func (ship) JobType() string  { return "ship" }
func (s ship) Entity() string { return s.Parcel }

// A provider knows our key for some time. An attempt failed for good within it, and is
// retried after it: nobody may guess then, and the operator who said retry is no answer.
func TestI4NoBlindRepeatByARetryPastTheHorizon(t *testing.T) {
	y := newYard(t)
	set, err := jobs.NewSet(jobs.Job[ship]{Effect: jobs.Keyed(time.Hour), Do: func(_ context.Context, s ship) error { return y.run(s.Parcel) }})
	if err != nil {
		t.Fatal(err)
	}
	y.set = set
	y.say(jobs.Permanent(errors.New("refused, perhaps")), "late", "early")
	y.work(ship{"late"}, ship{"early"})
	y.say(nil, "late", "early")
	y.exec(`UPDATE oncemore.claim SET first_claimed_at = first_claimed_at - interval '2 hours' WHERE entity = 'late'`)
	if r, err := y.by("anna").Retry(t.Context(), y.retryable(admin.Selection{Type: "ship"}), ""); err != nil || r.Changed != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	y.work()
	same(t, "within the horizon", y.where("early"), "done r 1")
	same(t, "past it", y.where("late"), "in_doubt 0")
	same(t, "attempts past it", y.ran("late"), 1)
}

// The message is sent in the transaction that changes the claim: whoever sees one sees both.
func TestARetryIsAlwaysCarried(t *testing.T) {
	y := newYard(t)
	y.failures(errors.New("no ink"), "a")
	if _, err := y.by("anna").Retry(t.Context(), y.retryable(admin.Selection{Type: "draw"}), ""); err != nil {
		t.Fatal(err)
	}
	type message struct {
		Type     string
		Entities []string
		Args     []string
		Priority int16
	}
	var m message
	err := y.QueryRow(t.Context(), `SELECT type, entities, args, priority FROM oncemore.message`).Scan(&m.Type, &m.Entities, &m.Args, &m.Priority)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "the message", m, message{"draw", []string{"a"}, []string{`{"page":"a"}`}, 7})
}

// What an operator saw was mended and tried again by another one, and failed for another
// reason: that is for somebody to look at first.
func TestARetryIsOnlyOfTheFailureThatWasShown(t *testing.T) {
	y := newYard(t)
	y.failures(errors.New("no ink"), "a")
	seen := y.retryable(admin.Selection{Type: "draw"})
	if _, err := y.by("bert").Retry(t.Context(), seen, "ink is here"); err != nil {
		t.Fatal(err)
	}
	y.say(jobs.Permanent(errors.New("no paper")), "a")
	y.work()
	before := y.contents()
	r, err := y.by("anna").Retry(t.Context(), seen, "ink is here")
	if err != nil || r.Changed != 0 || !slices.Equal(leftOf(r), []string{"a"}) {
		t.Errorf("%+v, %v", r, err)
	}
	same(t, "after anna", y.contents(), before)
}
