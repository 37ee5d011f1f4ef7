package admin_test

import (
	"context"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func TestTheVerdictNamesTheWorstFirst(t *testing.T) {
	letters := func(o admin.Openings, missing int64) admin.TypeStatus {
		return admin.TypeStatus{Type: "letter", Open: o, Missing: &admin.Count{N: missing, Is: admin.Exact}}
	}
	for _, c := range []struct {
		what   string
		status admin.Status
		want   admin.Verdict
		why    string
	}{
		{"nothing", admin.Status{}, admin.AllDone, ""},
		{"all done", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{}, 0)}}, admin.AllDone, ""},
		{"no source", admin.Status{Types: []admin.TypeStatus{{Type: "x", Unknown: admin.NoSource}}}, admin.AllDone, ""},
		{"missing", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{}, 2)}}, admin.Unfinished, "letter: 2 missing"},
		{"running", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{Running: 1}, 0)}}, admin.Unfinished, "1 running"},
		{"retrying", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{Retrying: 1}, 0)}}, admin.Unfinished, "1 retrying"},
		{"queued", admin.Status{Queues: []admin.QueueStatus{{Ready: 1}}}, admin.Unfinished, "1 messages"},
		{"held", admin.Status{Queues: []admin.QueueStatus{{Held: 1}}}, admin.Unfinished, "1 messages"},
		{"delayed", admin.Status{Queues: []admin.QueueStatus{{Delayed: 1}}}, admin.Unfinished, "1 messages"},
		{"failed and missing", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{Failed: 1}, 2)}}, admin.Troubled, "letter: 1 failed; letter: 2 missing"},
		{"in doubt", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{InDoubt: 1}, 0)}}, admin.Troubled, "1 in doubt"},
		{"stranded", admin.Status{Types: []admin.TypeStatus{letters(admin.Openings{Stranded: 1}, 0)}}, admin.Troubled, "1 stranded"},
		{"parked", admin.Status{Parked: []admin.ParkedStatus{{Type: "x", Reason: "undecodable", Inputs: 3}}}, admin.Troubled, "3 inputs parked: undecodable"},
		{"rows without an entity", admin.Status{Types: []admin.TypeStatus{{Type: "x", Unknown: admin.NoSource, Nameless: 1200}}}, admin.Troubled, "the source of x names 1,200 rows without an entity"},
		{"a source that fails", admin.Status{Types: []admin.TypeStatus{{Type: "x", Unknown: "no such table"}}}, admin.NotKnown, "no such table"},
		{"that, and missing", admin.Status{Types: []admin.TypeStatus{{Type: "x", Unknown: "no such table"}, letters(admin.Openings{}, 1)}}, admin.Unfinished, "1 missing; x: what is missing is not known"},
	} {
		got, why := c.status.Verdict()
		if text := strings.Join(why, "; "); got != c.want || !strings.Contains(text, c.why) || (c.why == "") != (text == "") {
			t.Errorf("%s: %s, %q; want %s, %q", c.what, got, text, c.want, c.why)
		}
	}
}

// A new job is deployed, and its worker never comes up; or the database is a fresh one.
// Only who has the jobs can know that something is missing.
func TestWhatNoWorkerHasRegisteredIsMissingAsFarAsItsSourceNamesIt(t *testing.T) {
	s := newScene(t)
	s.exec(`CREATE TABLE card AS SELECT n FROM generate_series(1, 5) n`)
	nothing := func(context.Context, card) error { return nil }
	set := func(aliases ...string) *jobs.Set {
		t.Helper()
		set, err := jobs.NewSet(jobs.Job[card]{Effect: jobs.Repeatable, Do: nothing, Policy: jobs.Policy{Aliases: aliases},
			Source: jobs.SQL[card](`SELECT n::text AS entity, n FROM card WHERE n <= $1`, 3)})
		s.ok(err)
		return set
	}
	judged := func(set *jobs.Set, o admin.StatusOptions, want admin.Verdict, says string) *admin.Status {
		t.Helper()
		status := statusOf(t, s.pool, set, o)
		verdict, why := status.Verdict()
		if text := strings.Join(why, "; "); verdict != want || !strings.HasPrefix(text, says) || (text == "") != (says == "") {
			t.Errorf("%s: %q; want %s: %q", verdict, text, want, says)
		}
		return status
	}
	unregistered := "card: 3 missing, and no worker has registered it in this database"
	status := judged(set(), admin.StatusOptions{}, admin.Unfinished, unregistered)
	if len(status.Types) != 1 || status.Types[0].Effect != "Repeatable" || status.Types[0].Done != (admin.Count{Is: admin.Exact}) || !status.Types[0].Unregistered {
		t.Errorf("%+v", status.Types)
	}
	judged(nil, admin.StatusOptions{}, admin.AllDone, "")
	judged(drawSet(t, "a", "b"), admin.StatusOptions{}, admin.NotKnown, "draw: what is missing is not known: its source is in Go; 'missing' walks it")
	judged(drawSet(t, "a", "b"), admin.StatusOptions{Walk: true}, admin.Unfinished, "draw: 2 missing, and no worker has registered it in this database")

	// A worker of the program before knows it by another name.
	w := s.worker("anna")
	old := s.kind("postcard", ledger.Repeatable)
	judged(set(), admin.StatusOptions{}, admin.Unfinished, unregistered)
	judged(set("postcard"), admin.StatusOptions{}, admin.Unfinished, "postcard: 3 missing")
	s.complete(old, w, "1", "2", "3")
	if status := judged(set("postcard"), admin.StatusOptions{}, admin.AllDone, ""); len(status.Types) != 1 || status.Types[0].Unregistered {
		t.Errorf("%+v", status.Types)
	}
	s.exec(`DROP TABLE card`)
	judged(set(), admin.StatusOptions{}, admin.NotKnown, `card: what is missing is not known: the source of card cannot be used: ERROR: relation "card" does not exist`)
}
