package admin_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

func TestALookWritesNothingAndIsBoundedInTime(t *testing.T) {
	s := newScene(t)
	err := admin.Read(t.Context(), s.pool, 10*time.Second, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `DELETE FROM oncemore.ledger`)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a look may write: %v", err)
	}
	err = admin.Read(t.Context(), s.pool, 20*time.Millisecond, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SELECT pg_sleep(30)`)
		return err
	})
	if !admin.TimedOut(err) {
		t.Errorf("a statement that takes too long: %v", err)
	}
}

func TestFailuresAreGroupedByClassWithWhatIsStillOpenOfThem(t *testing.T) {
	s := newScene(t)
	mail, page, w := s.kind("mail", ledger.Repeatable), s.kind("page", ledger.Once), s.worker("anna")
	s.fail(mail, w, ledger.GaveUp, "net.OpError", "connection refused\nby 10.0.0.1", "a", "b")
	s.fail(mail, w, ledger.ToRetry, "net.OpError", "connection refused", "c")
	s.fail(mail, w, ledger.GaveUp, "panic", "panic: nil map", "d")
	s.fail(page, w, ledger.Unclear, "net.OpError", "reset", "e")
	// Done since, so its failure is of the past.
	s.fail(mail, w, ledger.ToRetry, "net.OpError", "connection refused", "f")
	s.exec(`UPDATE oncemore.claim SET not_before = NULL WHERE entity = 'f'`)
	s.complete(mail, w, "f")
	// A late success is no failure.
	s.ok(s.RecordDisputes(t.Context(), mail, w.ID, []*ledger.Outcome{{Want: ledger.Want{Entity: "a"}, State: ledger.Completed, Refused: true, Fence: 1, Attempts: 1}}))

	group := func(f admin.Filter, limit int) *admin.Failures {
		return look(s, func(tx pgx.Tx) (*admin.Failures, error) { return admin.GroupFailures(t.Context(), tx, nil, f, limit) })
	}
	found := group(admin.Filter{}, 10)
	brief := func(g admin.Failure) string {
		return fmt.Sprintf("%s %s: %d attempts, %d failed, %d retrying, %d in doubt", g.Type, g.Class, g.Attempts, g.Failed.N, g.Retrying.N, g.InDoubt.N)
	}
	var got []string
	for _, g := range found.Rows {
		got = append(got, brief(g))
		if g.FirstAt.After(g.LastAt) || found.Now.Sub(g.LastAt) > time.Minute || g.LastHour != g.Attempts || g.Failed.Is != admin.Exact {
			t.Errorf("%+v", g)
		}
	}
	want := []string{ // the last seen first
		"mail net.OpError: 4 attempts, 2 failed, 1 retrying, 0 in doubt",
		"page net.OpError: 1 attempts, 0 failed, 0 retrying, 1 in doubt",
		"mail panic: 1 attempts, 1 failed, 0 retrying, 0 in doubt",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r := found.Rows[2]; r.Entity != "d" || r.Error != "panic: nil map" {
		t.Errorf("the sample: %+v", r)
	}
	if found.Of != (admin.Count{N: 3, Is: admin.Exact}) || found.Others.N != 0 {
		t.Errorf("%+v", found)
	}

	// Two hours later, somebody asks for the last hour: a panic that is failed since is named.
	s.exec(`UPDATE oncemore.attempt SET at = at - interval '2 hours' WHERE error_class = 'panic'`)
	found = group(admin.Filter{Type: "mail", Window: admin.Window{Within: time.Hour}}, 10)
	if len(found.Rows) != 1 || found.Rows[0].Class != "net.OpError" || found.Others != (admin.Count{N: 1, Is: admin.Exact}) {
		t.Errorf("of the last hour: %+v", found)
	}
	found = group(admin.Filter{Window: admin.Window{Until: found.Now.Add(-time.Hour)}}, 10)
	if len(found.Rows) != 1 || found.Rows[0].Class != "panic" || found.Rows[0].LastHour != 0 {
		t.Errorf("before the last hour: %+v", found)
	}
	if found = group(admin.Filter{Class: "panic"}, 10); len(found.Rows) != 1 || found.Others.N != 0 {
		t.Errorf("of one class: %+v", found)
	}
	if found = group(admin.Filter{}, 1); len(found.Rows) != 1 || found.Of.N != 3 || found.Others.N != 1 {
		t.Errorf("one of three: %+v", found)
	}
}

func TestWhatHasFailedIsListedWithItsLastErrorByTypeClassAndTime(t *testing.T) {
	s := newScene(t)
	mail, page, w := s.kind("mail", ledger.Repeatable), s.kind("page", ledger.Repeatable), s.worker("anna")
	s.fail(mail, w, ledger.ToRetry, "timeout", "too slow", "b")
	s.exec(`UPDATE oncemore.claim SET not_before = NULL`)
	s.fail(mail, w, ledger.GaveUp, "panic", "panic: nil map\ngoroutine 1", "b")
	s.fail(mail, w, ledger.GaveUp, "net.OpError", "refused", "a")
	s.fail(page, w, ledger.GaveUp, "panic", "panic", "a")
	s.fail(page, w, ledger.ToRetry, "panic", "panic", "waits")
	// A worker that lost b long ago reports success after all: that is not why b has failed.
	s.ok(s.RecordDisputes(t.Context(), mail, w.ID, []*ledger.Outcome{{Want: ledger.Want{Entity: "b"}, State: ledger.Completed, Refused: true, Fence: 1, Attempts: 1}}))

	list := s.opens(failed, admin.Filter{Type: "mail"}, admin.Page{Limit: 10})
	if !slices.Equal(names(list.Rows), []string{"a", "b"}) || list.Of.N != 2 || list.Next != "" {
		t.Fatalf("%+v", list)
	}
	b := list.Rows[1]
	if b.Class != "panic" || b.Error != "panic: nil map\ngoroutine 1" || b.Attempts != 2 || b.State != "failed" || b.Reason != ledger.Failed ||
		b.Owner == nil || b.Owner.Name != "anna" || list.Now.Sub(b.Since) > time.Minute || !strings.Contains(b.Next, "retry") {
		t.Errorf("%+v, owner %+v", b, b.Owner)
	}
	if list = s.opens(failed, admin.Filter{Class: "panic"}, admin.Page{Limit: 10}); !slices.Equal(names(list.Rows), []string{"b", "a"}) || list.Of.N != 2 {
		t.Errorf("of one class: %+v", list)
	}
	if list = s.opens(failed, admin.Filter{Class: "timeout"}, admin.Page{Limit: 10}); len(list.Rows) != 0 || list.Of.N != 0 {
		t.Errorf("of a class that was not the last: %+v", list)
	}
	s.exec(`UPDATE oncemore.attempt SET at = at - interval '3 hours' WHERE entity = 'a'`)
	if list = s.opens(failed, admin.Filter{Window: admin.Window{Within: time.Hour}}, admin.Page{Limit: 10}); !slices.Equal(names(list.Rows), []string{"b"}) {
		t.Errorf("of the last hour: %+v", list)
	}
	if list = s.opens(failed, admin.Filter{Type: "mail", Window: admin.Window{Until: list.Now.Add(-time.Hour)}}, admin.Page{Limit: 10}); !slices.Equal(names(list.Rows), []string{"a"}) {
		t.Errorf("before the last hour: %+v", list)
	}
	err := admin.Read(t.Context(), s.pool, 10*time.Second, func(tx pgx.Tx) error {
		_, err := admin.Failed(t.Context(), tx, nil, admin.Filter{Type: "mial"}, admin.Page{Limit: 1})
		return err
	})
	if !errors.Is(err, admin.ErrNoType) || !strings.Contains(err.Error(), "mail, page") {
		t.Errorf("an unknown type: %v", err)
	}
}

func TestWhatIsInDoubtSaysWhoHadItAndWhatIsToBeDone(t *testing.T) {
	s := newScene(t)
	w := s.worker("anna")
	for _, c := range []struct {
		effect ledger.Effect
		next   string
	}{
		{ledger.Once, "find out whether it happened"},
		{ledger.Keyed(time.Hour), "find out whether it happened"},
		{ledger.Verifiable(time.Second), "ask its done-check again"},
	} {
		kind := s.kind(c.effect.String(), c.effect)
		s.fail(kind, w, ledger.Unclear, "net.OpError", "connection reset", "e")
		list := s.opens(doubts, admin.Filter{Type: kind.Name}, admin.Page{Limit: 10})
		if len(list.Rows) != 1 {
			t.Fatalf("%s: %+v", c.effect, list)
		}
		o := list.Rows[0]
		if o.State != "in_doubt" || o.Reason != ledger.InDoubt || o.Effect != c.effect.String() || !strings.Contains(o.Next, c.next) || o.Fence == 0 ||
			o.Owner == nil || o.Owner.ID != w.ID || o.EffectKey != ledger.EffectKey(kind.Name, "e", 0) || o.FirstClaimedAt == nil {
			t.Errorf("%s: %+v, owner %+v", c.effect, o, o.Owner)
		}
	}
	// With the app's jobs it is known that a keyed one has a done-check too.
	set, err := jobs.NewSet(jobs.Job[pay]{Effect: jobs.Keyed(time.Hour), Do: func(context.Context, pay) error { return nil }, Done: func(context.Context, pay) (bool, error) { return false, nil }})
	s.ok(err)
	s.fail(s.kind("pay", ledger.Keyed(time.Hour)), w, ledger.Unclear, "x", "x", "e")
	list := look(s, func(tx pgx.Tx) (*admin.List[admin.Open], error) {
		return admin.Doubts(t.Context(), tx, set, admin.Filter{Type: "pay"}, admin.Page{Limit: 1})
	})
	if len(list.Rows) != 1 || !strings.Contains(list.Rows[0].Next, "done-check") {
		t.Errorf("%+v", list)
	}
}

func TestWhatADeadWorkerLeftIsStrandedAndWhatASilentOneHasIsNot(t *testing.T) {
	s := newScene(t)
	mail, pays := s.kind("mail", ledger.Repeatable), s.kind("pay", ledger.Once)
	anna, bert, carl := s.worker("anna"), s.worker("bert"), s.worker("carl")
	s.claim(mail, anna, "a")
	s.claim(pays, anna, "b")
	s.claim(mail, bert, "living")
	s.claim(mail, carl, "silent")
	s.exec(`UPDATE oncemore.worker SET expires = clock_timestamp() - interval '1 minute' WHERE name = 'carl'`)
	s.dies(anna)
	s.exec(`UPDATE oncemore.worker SET dead_at = dead_at - interval '90 seconds' WHERE name = 'anna'`)

	list := s.opens(stranded, admin.Filter{}, admin.Page{Limit: 10})
	if !slices.Equal(names(list.Rows), []string{"a", "b"}) || list.Of.N != 2 {
		t.Fatalf("%+v", list)
	}
	a, b := list.Rows[0], list.Rows[1]
	if a.State != "stranded" || a.Reason != ledger.Retry || a.Owner.Name != "anna" || a.Owner.DeadAt == nil || list.Now.Sub(a.Since) < 90*time.Second || !strings.Contains(a.Next, "come again") {
		t.Errorf("%+v", a)
	}
	if b.Reason != ledger.InDoubt || !strings.Contains(b.Next, "puts it in doubt") {
		t.Errorf("an effect of class Once that was stranded: %+v", b)
	}
	if list = s.opens(stranded, admin.Filter{Window: admin.Window{Within: time.Minute}}, admin.Page{Limit: 10}); list.Of.N != 0 {
		t.Errorf("in the last minute: %+v", list)
	}
}

// A process is frozen, another one takes over and completes; then the first wakes up and
// reports success.
func TestALateSuccessIsListedAsDisputed(t *testing.T) {
	s := newScene(t)
	mail := s.kind("mail", ledger.Repeatable)
	anna, bert := s.worker("anna"), s.worker("bert")
	late := s.claim(mail, anna, "a", "b")
	s.dies(anna)
	s.complete(mail, bert, "a")
	s.claim(mail, bert, "b")
	s.settle(mail, anna, late[0], ledger.Outcome{Want: ledger.Want{Entity: "a"}, State: ledger.Completed})
	s.settle(mail, anna, late[1], ledger.Outcome{Want: ledger.Want{Entity: "b"}, State: ledger.Completed})

	list := func(f admin.Filter, p admin.Page) *admin.List[admin.Disputed] {
		return look(s, func(tx pgx.Tx) (*admin.List[admin.Disputed], error) {
			return admin.DisputedCompletions(t.Context(), tx, nil, f, p)
		})
	}
	all := list(admin.Filter{}, admin.Page{Limit: 10})
	if len(all.Rows) != 2 || all.Of.N != 2 || all.Rows[0].Entity != "b" || all.Rows[1].Entity != "a" { // the newest first
		t.Fatalf("%+v", all)
	}
	if a := all.Rows[1]; a.Type != "mail" || a.Worker == nil || a.Worker.Name != "anna" || a.Place != "done" || a.DoneAt == nil || a.Fence != late[0].Fence || !strings.Contains(a.Error, "twice") {
		t.Errorf("%+v", a)
	}
	if b := all.Rows[0]; b.Place != "open" || b.DoneAt != nil {
		t.Errorf("%+v", b)
	}
	first := list(admin.Filter{Type: "mail"}, admin.Page{Limit: 1})
	second := list(admin.Filter{Type: "mail"}, admin.Page{Limit: 1, After: first.Next})
	if first.Next == "" || len(second.Rows) != 1 || second.Rows[0].Entity != "a" || second.Next != "" {
		t.Errorf("paged: %+v, %+v", first, second)
	}
	if old := list(admin.Filter{Window: admin.Window{Until: all.Rows[1].At}}, admin.Page{Limit: 10}); old.Of.N != 0 {
		t.Errorf("before the first of them: %+v", old)
	}
}

func TestParkedInputIsListedOncePerContentAndShownWithItsBody(t *testing.T) {
	s := newScene(t)
	set, err := jobs.NewSet(jobs.Job[draw]{Effect: jobs.Repeatable, Do: func(context.Context, draw) error { return nil }})
	s.ok(err)
	q := pgqueue.New(s.pool, "")
	bad := queue.Message{Type: "draw", Items: []queue.Item{{Entity: "x", Args: []byte(`{"page":"y"}`)}}}
	s.ok(q.Send(t.Context(), bad, bad, queue.Message{Type: "draw", Items: []queue.Item{{Entity: "z", Args: []byte(`{"page":7}`)}}}))
	if r := workertest.Run(t, s.pool, set); r.Parked != 2 {
		t.Fatalf("%+v", r)
	}
	list := func(f admin.ParkedFilter, p admin.Page) *admin.List[admin.SetAside] {
		return look(s, func(tx pgx.Tx) (*admin.List[admin.SetAside], error) { return admin.ListParked(t.Context(), tx, f, p) })
	}
	all := list(admin.ParkedFilter{Type: "draw", Reason: "undecodable"}, admin.Page{Limit: 10})
	if len(all.Rows) != 2 || all.Of.N != 2 {
		t.Fatalf("%+v", all)
	}
	times := map[string]int{}
	for _, in := range all.Rows {
		times[in.Entity] = in.Times
		if in.Body != "" || in.Bytes == 0 || in.Error == "" || in.FirstAt.After(in.LastAt) {
			t.Errorf("%+v", in)
		}
		whole := look(s, func(tx pgx.Tx) (*admin.SetAside, error) { return admin.FindParked(t.Context(), tx, in.ID) })
		if len(whole.Body) != in.Bytes || !strings.HasPrefix(whole.Body, `{"page":`) {
			t.Errorf("%+v", whole)
		}
	}
	if times["x"] != 2 || times["z"] != 1 {
		t.Errorf("%v", times)
	}
	if none := list(admin.ParkedFilter{Reason: "conflict"}, admin.Page{Limit: 10}); none.Of.N != 0 || none.Rows == nil {
		t.Errorf("%+v", none)
	}
	first := list(admin.ParkedFilter{}, admin.Page{Limit: 1})
	second := list(admin.ParkedFilter{}, admin.Page{Limit: 1, After: first.Next})
	if len(first.Rows) != 1 || len(second.Rows) != 1 || first.Rows[0].ID <= second.Rows[0].ID || second.Next != "" {
		t.Errorf("paged: %+v, %+v", first, second)
	}
	err = admin.Read(t.Context(), s.pool, 10*time.Second, func(tx pgx.Tx) error {
		_, err := admin.FindParked(t.Context(), tx, 4711)
		return err
	})
	if !errors.Is(err, admin.ErrNotParked) {
		t.Errorf("%v", err)
	}
}

func TestPagesOfAListLeaveNothingOutAndRepeatNothing(t *testing.T) {
	s := newScene(t)
	w := s.worker("anna")
	var want []string
	for _, name := range []string{"b", "a", "c"} { // numbered in this order, which is that of the list
		kind := s.kind(name, ledger.Repeatable)
		for _, e := range []string{"", ":", "1", "1:2", "10", "é", "zz", "~"} {
			entity := name + e
			s.fail(kind, w, ledger.GaveUp, "x", "x", entity)
			want = append(want, name+" "+entity)
		}
	}
	slices.SortFunc(want[0:8], strings.Compare)
	for limit := 1; limit <= 30; limit += 3 {
		var got []string
		p := admin.Page{Limit: limit}
		for range 40 {
			list := s.opens(failed, admin.Filter{}, p)
			if list.Of.N != int64(len(want)) || len(list.Rows) > limit {
				t.Fatalf("limit %d: %+v", limit, list)
			}
			for _, r := range list.Rows {
				got = append(got, r.Type+" "+r.Entity)
			}
			if p.After = list.Next; p.After == "" {
				break
			}
		}
		slices.Sort(got)
		sorted := slices.Sorted(slices.Values(want))
		if !slices.Equal(got, sorted) {
			t.Errorf("limit %d: got %q, want %q", limit, got, sorted)
		}
	}
	if list := s.opens(failed, admin.Filter{}, admin.Page{}); list.Of.N != 24 || len(list.Rows) != 0 {
		t.Errorf("a page of none: %+v", list)
	}
}

func TestAPlaceThatNoPageGaveOutIsRefused(t *testing.T) {
	s := newScene(t)
	for name, read := range map[string]func(tx pgx.Tx, p admin.Page) error{
		"open": func(tx pgx.Tx, p admin.Page) error {
			_, err := admin.Failed(t.Context(), tx, nil, admin.Filter{}, p)
			return err
		},
		"disputed": func(tx pgx.Tx, p admin.Page) error {
			_, err := admin.DisputedCompletions(t.Context(), tx, nil, admin.Filter{}, p)
			return err
		},
		"parked": func(tx pgx.Tx, p admin.Page) error {
			_, err := admin.ListParked(t.Context(), tx, admin.ParkedFilter{}, p)
			return err
		},
	} {
		for _, after := range []string{"x", "x:y", ":", "99999999999999999999:a", "1:1"} {
			if after == "1:1" && name == "open" {
				continue // which is one
			}
			err := admin.Read(t.Context(), s.pool, 10*time.Second, func(tx pgx.Tx) error { return read(tx, admin.Page{After: after, Limit: 1}) })
			if !errors.Is(err, admin.ErrPage) {
				t.Errorf("%s after %q: %v", name, after, err)
			}
		}
	}
}

func TestCountsSayWhereTheyEnd(t *testing.T) {
	s := newScene(t)
	s.kind("mail", ledger.Repeatable)
	s.exec(`INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, entity, args, trouble)
		SELECT n, 1, 0, 0, 0, 1, 1, 'e' || n, '{}', 'failed' FROM generate_series(1, 10100) n`)
	list := s.opens(failed, admin.Filter{}, admin.Page{Limit: 3})
	if list.Of != (admin.Count{N: 10_000, Is: admin.AtLeast}) || list.Of.String() != "more than 10,000" || len(list.Rows) != 3 {
		t.Errorf("%+v", list)
	}
	s.exec(`DELETE FROM oncemore.claim WHERE fence > 10000`)
	if list = s.opens(failed, admin.Filter{}, admin.Page{Limit: 3}); list.Of != (admin.Count{N: 10_000, Is: admin.Exact}) || list.Of.String() != "10,000" {
		t.Errorf("%+v", list)
	}
	if about := (admin.Count{N: 5_000_000, Is: admin.Estimate}).String(); about != "about 5,000,000" {
		t.Error(about)
	}
}

func TestAnEffectClassIsReadAsItWasWritten(t *testing.T) {
	for _, e := range []ledger.Effect{ledger.InTransaction, ledger.Repeatable, ledger.Once, ledger.Keyed(24 * time.Hour), ledger.Keyed(90 * time.Second), ledger.Verifiable(0), ledger.Verifiable(1500 * time.Millisecond)} {
		if got := admin.ParseEffect(e.String()); got != e {
			t.Errorf("%s is read as %s", e, got)
		}
	}
	for _, s := range []string{"", "none", "Keyed", "Keyed(soon)", "Sometimes(1s)"} {
		if got := admin.ParseEffect(s); got != (ledger.Effect{}) {
			t.Errorf("%q is read as %s", s, got)
		}
	}
}
