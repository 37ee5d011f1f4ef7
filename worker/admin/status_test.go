package admin_test

import (
	"strings"
	"testing"

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
		{"a source that fails", admin.Status{Types: []admin.TypeStatus{{Type: "x", Unknown: "no such table"}}}, admin.NotKnown, "no such table"},
		{"that, and missing", admin.Status{Types: []admin.TypeStatus{{Type: "x", Unknown: "no such table"}, letters(admin.Openings{}, 1)}}, admin.Unfinished, "1 missing; x: what is missing is not known"},
	} {
		got, why := c.status.Verdict()
		if text := strings.Join(why, "; "); got != c.want || !strings.Contains(text, c.why) || (c.why == "") != (text == "") {
			t.Errorf("%s: %s, %q; want %s, %q", c.what, got, text, c.want, c.why)
		}
	}
}
