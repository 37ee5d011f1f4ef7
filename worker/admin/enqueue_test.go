package admin_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func inputs(args ...string) (in []admin.Input) {
	for i, a := range args {
		in = append(in, admin.Input{Args: []byte(a), Where: fmt.Sprintf("line %d", i+1)})
	}
	return in
}

func TestEnqueuedWorkIsDoneAndWhatIsDoneIsSkipped(t *testing.T) {
	y := newYard(t)
	for round := range 2 {
		b, err := y.by("anna").Prepare(t.Context(), "draw", inputs(`{"page":"a"}`, ` {"page" : "b","style":""} `))
		if err != nil {
			t.Fatal(err)
		}
		if r, err := y.by("anna").Enqueue(t.Context(), b, "call it again"); err != nil || r.Changed != 2 || r.Audit == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		y.work()
		same(t, fmt.Sprintf("round %d", round), []string{y.where("a"), y.where("b")}, []string{"done r 1", "done r 1"})
	}
	same(t, "drawn", []int{y.ran("a"), y.ran("b")}, []int{1, 1})
	same(t, "parked", one[int](y, `SELECT count(*)::int FROM oncemore.parked`), 0)
}

// One bad line in a file of many must not leave half of them enqueued, and the person who
// mends the file wants to hear of all of them.
func TestEveryMistakeIsNamedAndThenNothingIsEnqueued(t *testing.T) {
	y := newYard(t)
	_, err := y.by("anna").Prepare(t.Context(), "draw", inputs(
		`{"page":"good"}`, `{"page":"good"`, `{"paeg":"x"}`, `{"page":7}`, `{"page":""}`, "{\"page\":\"\xff\"}",
		`{"page":"`+strings.Repeat("x", 600)+`"}`, `{"page":"good","style":"other"}`, `{"page":"good"}`, `[]`, `{"page":"big","style":"`+strings.Repeat("x", 70_000)+`"}`))
	bad, ok := errors.AsType[admin.BadInputs](err)
	if !ok {
		t.Fatal(err)
	}
	var where []string
	for _, b := range bad {
		where = append(where, strings.TrimPrefix(b.Where, "line "))
	}
	same(t, "the lines", where, "[2 3 4 5 6 7 8 10 11]")
	for _, want := range []string{"9 inputs are wrong", "line 3: ", "paeg", `line 8: entity "good" is that of line 1 as well, with other arguments`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if len(err.Error()) > 4000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
	same(t, "messages", y.messages(), 0)
}

func TestTheSameTwiceIsEnqueuedOnce(t *testing.T) {
	y := newYard(t)
	b, err := y.by("anna").Prepare(t.Context(), "draw", inputs(`{"page":"a"}`, `{ "page": "a" }`, `{"page":"a","style":""}`))
	if err != nil || len(b.Items) != 1 || b.Twice != 2 {
		t.Errorf("%+v, %v", b, err)
	}
}

// A program without the jobs can still enqueue, where it is told the entity.
func TestWithoutTheJobsNamesAndJSONAreChecked(t *testing.T) {
	y := newYard(t)
	y.work(draw{Page: "registered"})
	op := y.by("anna")
	op.Set = nil
	b, err := op.Prepare(t.Context(), "draw", []admin.Input{{Entity: "a", Args: []byte(`{"page": "a"}`)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := op.Enqueue(t.Context(), b, ""); err != nil {
		t.Fatal(err)
	}
	y.work()
	same(t, "a", y.where("a"), "done r 1")
	for what, test := range map[string]struct {
		jobType string
		in      admin.Input
		says    string
	}{
		"a misspelt type":   {"drwa", admin.Input{Entity: "a", Args: []byte(`{}`)}, "no worker has registered"},
		"no entity":         {"draw", admin.Input{Args: []byte(`{"page":"a"}`)}, "names no entity"},
		"no JSON":           {"draw", admin.Input{Entity: "a", Args: []byte(`page`)}, "is not JSON"},
		"an endless entity": {"draw", admin.Input{Entity: strings.Repeat("x", 600), Args: []byte(`{}`)}, "allowed are 512"},
	} {
		if b, err := op.Prepare(t.Context(), test.jobType, []admin.Input{test.in}); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %+v, %v", what, b, err)
		}
	}
	op.Set = y.set
	if _, err := op.Prepare(t.Context(), "drwa", inputs(`{}`)); err == nil || !strings.Contains(err.Error(), "it has: draw, pay") {
		t.Errorf("a type that the set has not: %v", err)
	}
	if _, err := op.Prepare(t.Context(), "draw", []admin.Input{{Entity: "b", Args: []byte(`{"page":"a"}`)}}); err == nil || !strings.Contains(err.Error(), `is of entity "a", not "b"`) {
		t.Errorf("another entity than the arguments': %v", err)
	}
}

// A batch travels in packs that a queue can carry.
func TestALargeBatchTravelsInPacks(t *testing.T) {
	y := newYard(t)
	var many []string
	for n := range 250 {
		many = append(many, fmt.Sprintf(`{"page":"small %d"}`, n))
	}
	for n := range 30 { // 30 × 60,000 bytes: more than one message may hold
		many = append(many, fmt.Sprintf(`{"page":"large %d","style":"%s"}`, n, strings.Repeat("x", 60_000)))
	}
	b, err := y.by("anna").Prepare(t.Context(), "draw", inputs(many...))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := y.by("anna").Enqueue(t.Context(), b, ""); err != nil || r.Changed != 280 {
		t.Fatalf("%+v, %v", r, err)
	}
	same(t, "entities in messages", one[int](y, `SELECT sum(cardinality(entities))::int FROM oncemore.message`), 280)
	if n := y.messages(); n < 5 || n > 8 {
		t.Errorf("%d messages", n)
	}
}
