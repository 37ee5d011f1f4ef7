package admin_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func TestADoubtResolvedAsDoneIsAFactOnTheOperatorsWord(t *testing.T) {
	y := newYard(t)
	y.doubts("a", "b")
	r, err := y.by("anna").Resolve(t.Context(), y.inDoubt(admin.Selection{Type: "pay", Entities: []string{"a"}}), true, "is on the statement")
	if err != nil || r.Changed != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	same(t, "a", y.where("a"), "done o 1")
	same(t, "b, which was not named", y.where("b"), "in_doubt 1")
	same(t, "messages", y.messages(), 0)
	y.work(pay{"a"})
	same(t, "paid, also when called again", y.ran("a"), 1)
}

func TestADoubtResolvedAsNotAppliedIsDueAtOnce(t *testing.T) {
	y := newYard(t)
	y.doubts("a")
	if r, err := y.by("anna").Resolve(t.Context(), y.inDoubt(admin.Selection{Type: "pay"}), false, "is on no statement"); err != nil || r.Changed != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	same(t, "before a worker came", y.where("a"), "retrying 1")
	y.work()
	same(t, "then", y.where("a"), "done r 2")
	same(t, "attempts", y.ran("a"), 2)
}

// Two people look at the same list, and say opposite things at the same time.
func TestOfTwoOperatorsWhoResolveTheSameOneWinsAndTheOtherIsTold(t *testing.T) {
	y := newYard(t)
	var names []string
	for n := range 12 {
		names = append(names, fmt.Sprintf("bill/%02d", n))
	}
	y.doubts(names...)
	shown := y.inDoubt(admin.Selection{Type: "pay"})
	same(t, "shown", entitiesOf(shown), names)
	var results [2]*admin.Result
	var both sync.WaitGroup
	for i, actor := range []string{"anna", "bert"} {
		both.Go(func() {
			var err error
			if results[i], err = y.by(actor).Resolve(t.Context(), shown, i == 0, "as "+actor+" saw it"); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	anna, bert := results[0], results[1]
	if anna.Changed+bert.Changed != len(names) || len(anna.Left) != bert.Changed || len(bert.Left) != anna.Changed {
		t.Fatalf("anna %+v, bert %+v", anna, bert)
	}
	done := one[int](y, `SELECT count(*)::int FROM oncemore.ledger`)
	due := one[int](y, `SELECT count(*)::int FROM oncemore.claim WHERE trouble = 'retrying'`)
	if done != anna.Changed || due != bert.Changed || y.messages() != bert.Changed {
		t.Errorf("%d done and %d due with %d messages: anna %+v, bert %+v", done, due, y.messages(), anna, bert)
	}
	told := 0
	for _, e := range y.audits() {
		told += int(e.Entities)
	}
	same(t, "told by the audit", told, len(names))
}

// An operator looks into a case for an hour. Meanwhile another one has it tried again, and
// it is in doubt again, about another attempt. The first one's finding is not of that one.
func TestAVerdictIsOnlyOfTheAttemptThatWasShown(t *testing.T) {
	y := newYard(t)
	y.doubts("a")
	seen := y.inDoubt(admin.Selection{Type: "pay"})
	y.say(errors.New("no answer either"), "a")
	if _, err := y.by("bert").Resolve(t.Context(), seen, false, "was not there yesterday"); err != nil {
		t.Fatal(err)
	}
	y.work()
	same(t, "after bert", y.where("a"), "in_doubt 2")
	before := y.contents()
	r, err := y.by("anna").Resolve(t.Context(), seen, false, "was not there yesterday")
	if err != nil || r.Changed != 0 || r.Audit != 0 || !slices.Equal(leftOf(r), []string{"a"}) {
		t.Errorf("%+v, %v", r, err)
	}
	same(t, "after anna", y.contents(), before)
}

func TestDoubtsAreSelectedByNameClassTimeAndLimit(t *testing.T) {
	y := newYard(t)
	y.doubts("a")
	y.doubts("b")
	y.doubts("c")
	y.say(fmt.Errorf("%w", &someError{}), "d")
	y.work(pay{"d"})
	y.say(jobs.Permanent(jobs.NotApplied(errors.New("no such account"))), "failed")
	y.work(pay{"failed"}, draw{Page: "done"})
	half := one[time.Time](y, `SELECT at FROM oncemore.attempt WHERE entity = 'b'`)
	for what, test := range map[string]struct {
		s    admin.Selection
		want []string
	}{
		"all":      {admin.Selection{}, []string{"a", "b", "c", "d"}},
		"named":    {admin.Selection{Entities: []string{"c", "a", "c", "failed", "nobody"}}, []string{"a", "c"}},
		"class":    {admin.Selection{Class: "*admin_test.someError"}, []string{"d"}},
		"no class": {admin.Selection{Class: "someError"}, nil},
		"since":    {admin.Selection{Window: admin.Window{Since: half}}, []string{"b", "c", "d"}},
		"until":    {admin.Selection{Window: admin.Window{Until: half}}, []string{"a"}},
		"within":   {admin.Selection{Window: admin.Window{Within: time.Hour}}, []string{"a", "b", "c", "d"}},
		"too late": {admin.Selection{Window: admin.Window{Within: time.Nanosecond}}, nil},
		"limit":    {admin.Selection{Limit: 2}, []string{"a", "b"}},
		"prefix":   {admin.Selection{Prefix: "c"}, []string{"c"}},
	} {
		test.s.Type = "pay"
		shown := y.inDoubt(test.s)
		same(t, what, entitiesOf(shown), test.want)
		same(t, what+": more", shown.More, what == "limit")
	}
	shown := y.inDoubt(admin.Selection{Type: "pay", Entities: []string{"failed", "c", "nobody", "nobody"}})
	same(t, "named, and not in doubt", shown.Absent, []admin.Left{{What: "failed", Why: "is not in doubt"}, {What: "nobody", Why: "is not in doubt"}})
	if e := shown.Entries[0]; e.State != "in_doubt" || e.Class != "*errors.errorString" || e.Error != "no answer" || e.Attempts != 1 || e.Fence == 0 || e.At.IsZero() {
		t.Errorf("%+v", e)
	}
	if _, err := y.by("anna").InDoubt(t.Context(), admin.Selection{Type: "pya"}); !errors.Is(err, admin.ErrNoType) {
		t.Errorf("a type that is not there: %v", err)
	}
}

type someError struct{}

func (*someError) Error() string { return "some error" }

// A verdict ends a doubt. Work that failed is not done because somebody says so of it.
func TestOnlyWhatIsInDoubtIsResolved(t *testing.T) {
	y := newYard(t)
	y.failures(errors.New("no ink"), "a")
	before := y.contents()
	r, err := y.by("anna").Resolve(t.Context(), y.retryable(admin.Selection{Type: "draw"}), true, "it looks drawn")
	if err != nil || r.Changed != 0 || !slices.Equal(leftOf(r), []string{"a"}) {
		t.Errorf("%+v, %v", r, err)
	}
	same(t, "after it", y.contents(), before)
}
