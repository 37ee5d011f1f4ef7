package admin_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// careless hands out messages of all types, as SQS does.
type careless struct{ *memqueue.Queue }

func (c careless) Receive(ctx context.Context, max int, _ []string) ([]queue.Delivery, error) {
	return c.Queue.Receive(ctx, max, nil)
}

// receive lets a worker receive messages from a queue that is not Postgres, until so many
// inputs are parked.
func (y *yard) receive(parked int, ms ...queue.Message) {
	y.t.Helper()
	q := careless{memqueue.New()}
	if err := q.Send(y.t.Context(), ms...); err != nil {
		y.t.Fatal(err)
	}
	w, err := worker.New(y.t.Context(), y.Pool, y.set, worker.Config{Queues: map[string]queue.Queue{"outside": q}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		y.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(y.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	for limit := time.Now().Add(20 * time.Second); one[int](y, `SELECT count(*)::int FROM oncemore.parked`) < parked; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			y.t.Fatal("not parked within 20 s")
		}
	}
	stop()
	if err := <-ended; err != nil {
		y.t.Fatal(err)
	}
}

// unheard is the type of a service that is not deployed here.
type unheard struct {
	Who string `json:"who"`
}

func (unheard) JobType() string  { return "unheard" }
func (u unheard) Entity() string { return "unheard " + u.Who }

func message(t *testing.T, args ...jobs.Args) queue.Message {
	t.Helper()
	m := queue.Message{Type: args[0].JobType()}
	for _, a := range args {
		m.Items = append(m.Items, mustBe[queue.Item](t)(jobs.NewItem(a)))
	}
	return m
}

// park has inputs of a type that no worker knows set aside.
func (y *yard) park(who ...string) {
	y.t.Helper()
	m := queue.Message{Type: "unheard"}
	for _, w := range who {
		m.Items = append(m.Items, queue.Item{Entity: w, Args: fmt.Appendf(nil, `{"who":%q}`, w)})
	}
	y.receive(len(who), m)
}

func (y *yard) parked(s admin.ParkedSelection) *admin.ShownParked {
	y.t.Helper()
	return mustBe[*admin.ShownParked](y.t)(y.by("anna").Parked(y.t.Context(), s))
}

func TestParkedInputThatIsSentAgainIsWorkedByWhoKnowsIt(t *testing.T) {
	y := newYard(t)
	y.receive(2, message(t, unheard{"a"}, unheard{"b"}))
	shown := y.parked(admin.ParkedSelection{Reason: "unknown_type"})
	r, err := y.by("anna").Resend(t.Context(), shown, "")
	if err != nil || r.Changed != 2 || r.Audit == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	same(t, "still parked", one[int](y, `SELECT count(*)::int FROM oncemore.parked`), 0)
	y.set = mustBe[*jobs.Set](t)(jobs.NewSet(jobs.Job[unheard]{Effect: jobs.Repeatable, Do: func(_ context.Context, u unheard) error { return y.run(u.Who) }}))
	y.work()
	same(t, "a", y.where("unheard a"), "done r 1")
	same(t, "b", y.where("unheard b"), "done r 1")
}

func TestForcedWorkThatWasParkedComesBackForced(t *testing.T) {
	y := newYard(t)
	plain, forced := message(t, unheard{"x"}), message(t, unheard{"x"})
	forced.Epoch = 7
	y.receive(1, plain, forced)
	until := time.Now().Add(20 * time.Second)
	for one[int](y, `SELECT coalesce(max(times), 0)::int FROM oncemore.parked`) < 2 && time.Now().Before(until) {
		y.receive(1, forced) // the first worker may have stopped after one of the two
	}
	if _, err := y.by("anna").Resend(t.Context(), y.parked(admin.ParkedSelection{}), "deployed"); err != nil {
		t.Fatal(err)
	}
	same(t, "the epoch under which it comes back", one[int](y, `SELECT max(epoch)::int FROM oncemore.message`), 7)
}

// A double click, or two people.
func TestParkedInputIsSentAgainOnce(t *testing.T) {
	y := newYard(t)
	var who []string
	for n := range 30 {
		who = append(who, fmt.Sprintf("u%02d", n))
	}
	y.park(who...)
	shown := y.parked(admin.ParkedSelection{Type: "unheard"})
	same(t, "shown", len(shown.Entries), 30)
	var results [3]*admin.Result
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			var err error
			act := func() (*admin.Result, error) { return y.by("anna").Resend(t.Context(), shown, "") }
			if i == 2 {
				act = func() (*admin.Result, error) { return y.by("bert").Drop(t.Context(), shown, "nonsense") }
			}
			if results[i], err = act(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	changed, left := 0, 0
	for _, r := range results {
		changed, left = changed+r.Changed, left+len(r.Left)
	}
	same(t, "changed, and left alone", []int{changed, left}, []int{30, 60})
	same(t, "messages", y.messages(), results[0].Changed+results[1].Changed)
	same(t, "still parked", one[int](y, `SELECT count(*)::int FROM oncemore.parked`), 0)
	again, err := y.by("anna").Resend(t.Context(), shown, "")
	if err != nil || again.Changed != 0 || len(again.Left) != 30 {
		t.Errorf("once more: %+v, %v", again, err)
	}
}

func TestInputThatStillCannotBeWorkedIsSetAsideAgain(t *testing.T) {
	y := newYard(t)
	y.work(draw{Page: "p", Style: "new"})
	y.receive(2, message(t, draw{Page: "p", Style: "old"}), queue.Message{Type: "draw", Items: []queue.Item{{Entity: "other", Args: []byte(`{"page":"p"}`)}}})
	shown := y.parked(admin.ParkedSelection{})
	reasons := []string{shown.Entries[0].Reason, shown.Entries[1].Reason}
	slices.Sort(reasons)
	same(t, "reasons", reasons, "[conflict undecodable]")
	if r, err := y.by("anna").Resend(t.Context(), shown, ""); err != nil || r.Changed != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	y.work()
	again := y.parked(admin.ParkedSelection{})
	same(t, "set aside again", len(again.Entries), 2)
	if again.Entries[0].ID <= shown.Entries[1].ID {
		t.Errorf("they never left the list: %+v", again.Entries)
	}
	same(t, "the fact", y.where("p"), "done r 1")
}

// What was cut off when it was stored is not what was sent.
func TestInputThatWasNotKeptAsItCameIsNeverSent(t *testing.T) {
	y := newYard(t)
	y.receive(1, queue.Message{Type: "unheard", Items: []queue.Item{{Entity: "fits", Args: []byte(`{"who":"` + strings.Repeat("x", queue.MaxArgs-20) + `"}`)}}})
	y.exec(`UPDATE oncemore.parked SET body = left(body, 100) || '…'`) // as the cap does it
	y.exec(`INSERT INTO oncemore.parked (reason, type, entity, body, error, digest) VALUES ('undecodable', '', '', 'GET / HTTP/1.1', 'no',
		sha256(convert_to('undecodable', 'UTF8') || '\x000000' || convert_to('GET / HTTP/1.1', 'UTF8')))`)
	y.exec(`INSERT INTO oncemore.parked (reason, type, entity, body, error, digest) VALUES ('undecodable', 'draw', 'p', repeat('é', 1 << 19), 'no', 'all of it')`)
	before := y.contents()
	r, err := y.by("anna").Resend(t.Context(), y.parked(admin.ParkedSelection{}), "")
	if err != nil || r.Changed != 0 || r.Audit != 0 || len(r.Left) != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	for i, want := range []string{"not kept as it came", "cannot be a message", "larger than 65536 bytes"} {
		if why := r.Left[i].Why; !strings.Contains(why, want) || !strings.Contains(why, "dropped") {
			t.Errorf("%q says nothing of %q and of what to do", why, want)
		}
	}
	same(t, "after it", y.contents(), before)
	if r, err := y.by("anna").Drop(t.Context(), y.parked(admin.ParkedSelection{}), "the producer is mended"); err != nil || r.Changed != 3 {
		t.Errorf("drop: %+v, %v", r, err)
	}
	same(t, "still parked", one[int](y, `SELECT count(*)::int FROM oncemore.parked`), 0)
}

func TestParkedInputIsSelectedByIDReasonTypeTimeAndLimit(t *testing.T) {
	y := newYard(t)
	y.work(draw{Page: "p", Style: "new"})
	y.receive(4, message(t, draw{Page: "p", Style: "old"}), message(t, unheard{"a"}, unheard{"b"}),
		queue.Message{Type: "pay", Items: []queue.Item{{Entity: "x", Args: []byte(`{"bill":"y"}`)}}})
	all := y.parked(admin.ParkedSelection{})
	for what, test := range map[string]struct {
		s    admin.ParkedSelection
		want int
	}{
		"reason":   {admin.ParkedSelection{Reason: "conflict"}, 1},
		"type":     {admin.ParkedSelection{Type: "unheard"}, 2},
		"both":     {admin.ParkedSelection{Type: "unheard", Reason: "conflict"}, 0},
		"ids":      {admin.ParkedSelection{IDs: []int64{all.Entries[0].ID, all.Entries[2].ID, 999}}, 2},
		"within":   {admin.ParkedSelection{Window: admin.Window{Within: time.Hour}}, len(all.Entries)},
		"too late": {admin.ParkedSelection{Window: admin.Window{Within: time.Nanosecond}}, 0},
		"limit":    {admin.ParkedSelection{Limit: 1}, 1},
	} {
		shown := y.parked(test.s)
		same(t, what, len(shown.Entries), test.want)
		same(t, what+": more", shown.More, what == "limit")
		if what == "ids" && !slices.Equal(shown.Absent, []admin.Left{{What: "999", Why: "is not parked, or not by this selection"}}) {
			t.Errorf("absent: %+v", shown.Absent)
		}
	}
}
