package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

type letter struct {
	Event int64  `json:"event_id"`
	To    string `json:"to"`
}

func (letter) JobType() string  { return "letter" }
func (l letter) Entity() string { return jobs.Key(l.Event, l.To) }

type page struct {
	ID       int64  `json:"id"`
	Text     string `json:"text"`
	Revision int64  `json:"source_version"`
}

func (page) JobType() string        { return "page" }
func (p page) Entity() string       { return jobs.Key(p.ID) }
func (p page) SourceVersion() int64 { return p.Revision }

type unversioned struct{ Revision int64 }

func (unversioned) JobType() string        { return "unversioned" }
func (unversioned) Entity() string         { return "1" }
func (u unversioned) SourceVersion() int64 { return u.Revision }

type nameless struct{}

func (nameless) JobType() string { return "" }
func (nameless) Entity() string  { return "1" }

func do(context.Context, letter) error           { return nil }
func doTx(context.Context, pgx.Tx, letter) error { return nil }
func yes(context.Context, letter) (bool, error)  { return true, nil }
func all(letter) jobs.Source                     { return jobs.SQL[letter](`SELECT 1`) }
func doPage(context.Context, page) error         { return nil }
func doBare(context.Context, unversioned) error  { return nil }
func doNameless(context.Context, nameless) error { return nil }
func doPointer(context.Context, *letter) error   { return nil }

func TestRegistrationRefusesWithASentenceThatExplains(t *testing.T) {
	for name, c := range map[string]struct {
		job  jobs.Definition
		says string
	}{
		"no name":                     {jobs.Job[nameless]{Do: doNameless, Effect: jobs.Once}, "no usable job type"},
		"a pointer":                   {jobs.Job[*letter]{Do: doPointer, Effect: jobs.Once}, "use the struct itself"},
		"no body":                     {jobs.Job[letter]{}, "exactly one of Do, DoTx, DoMany and FanOut"},
		"two bodies":                  {jobs.Job[letter]{Do: do, DoTx: doTx, Effect: jobs.Once}, "has 2 bodies"},
		"no class":                    {jobs.Job[letter]{Do: do}, "What may a crash in the middle mean?"},
		"a class in a transaction":    {jobs.Job[letter]{DoTx: doTx, Effect: jobs.Once}, "needs no Effect"},
		"verifiable without a check":  {jobs.Job[letter]{Do: do, Effect: jobs.Verifiable(time.Second)}, "has no Done"},
		"keyed for no time":           {jobs.Job[letter]{Do: do, Effect: jobs.Keyed(0)}, "its duration must be positive"},
		"settled before it began":     {jobs.Job[letter]{Do: do, Done: yes, Effect: jobs.Verifiable(-1)}, "of Verifiable: not negative"},
		"a version that would repeat": {jobs.Job[letter]{Do: do, Effect: jobs.Once, Policy: jobs.Policy{Version: 2}}, "may not be repeated unasked"},
		"another's source":            {jobs.Job[letter]{Do: do, Effect: jobs.Once, Source: jobs.SQL[page](`SELECT 1`)}, `a Source of "page"`},
		"a fan-out with checks":       {jobs.Job[letter]{FanOut: all, Ready: yes}, "checks of its own"},
		"a version that is not sent":  {jobs.Job[unversioned]{Do: doBare, Effect: jobs.Repeatable}, "no JSON field"},
		"packs too large":             {jobs.Job[letter]{DoTx: doTx, Policy: jobs.Policy{PackSize: 5000}}, "PackSize is at most 1000"},
		"a rate below nothing":        {jobs.Job[letter]{DoTx: doTx, Policy: jobs.Policy{Limit: jobs.Limit{Rate: -1}}}, "a limit is out of bounds"},
		"a rate that is no number":    {jobs.Job[letter]{DoTx: doTx, Policy: jobs.Policy{FleetLimit: jobs.Limit{Rate: math.NaN()}}}, "a limit is out of bounds"},
		"a rate of once in a year":    {jobs.Job[letter]{DoTx: doTx, Policy: jobs.Policy{Limit: jobs.Limit{Rate: 1e-8}}}, "from one in a day"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := jobs.NewSet(c.job)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want a sentence with %q", err, c.says)
			}
		})
	}
}

func TestRegistrationNamesAllMistakesAtOnce(t *testing.T) {
	good := jobs.Job[letter]{Do: do, Effect: jobs.Once}
	_, err := jobs.NewSet(good, good, jobs.Job[page]{}, jobs.Job[unversioned]{DoTx: nil, Do: doBare, Effect: jobs.Once, Policy: jobs.Policy{Aliases: []string{"letter"}}})
	for _, want := range []string{`"letter" is defined twice`, "job page has 0 bodies", "no JSON field"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q: %v", want, err)
		}
	}
}

func TestAnAliasFindsTheJob(t *testing.T) {
	set, err := jobs.NewSet(jobs.Job[letter]{Do: do, Effect: jobs.Once, Policy: jobs.Policy{Aliases: []string{"mail"}}})
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := set.Lookup("mail"); !ok || e.Type != "letter" {
		t.Errorf("the alias finds %v", e)
	}
	if got := fmt.Sprint(set.Types(), set.Names()); got != "[letter] [letter mail]" {
		t.Error(got)
	}
}

func decoder(t testing.TB, ds ...jobs.Definition) *jobs.Erased {
	t.Helper()
	set, err := jobs.NewSet(ds...)
	if err != nil {
		t.Fatal(err)
	}
	e, _ := set.Lookup(set.Types()[0])
	return e
}

func TestI8IdentityIsBoundToTheArguments(t *testing.T) {
	e := decoder(t, jobs.Job[letter]{Do: do, Effect: jobs.Once})
	if _, err := e.Decode("234/anna", []byte(`{"event_id":234,"to":"bob"}`)); err == nil {
		t.Error("arguments of another entity were accepted")
	}
	if _, err := e.Decode("234/anna", []byte(`{"event_id":"234"`)); err == nil {
		t.Error("broken JSON was accepted")
	}
}

func TestSpellingDoesNotChangeTheFingerprintAndContentDoes(t *testing.T) {
	e := decoder(t, jobs.Job[letter]{Do: do, Effect: jobs.Once})
	fp := func(raw string) int64 {
		in, err := e.Decode("234/é", []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		return in.Fingerprint
	}
	a := fp(`{"event_id":234,"to":"é"}`)
	for _, same := range []string{`{"to":"\u00e9",  "event_id":234}`, ` {"event_id" : 234, "to":"é", "unknown": [1]} `} {
		if fp(same) != a {
			t.Errorf("%s has another fingerprint", same)
		}
	}
	p := decoder(t, jobs.Job[page]{Do: doPage, Effect: jobs.Repeatable})
	read := func(raw string) jobs.Input {
		in, err := p.Decode("7", []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	one, two := read(`{"id":7,"text":"x","source_version":1}`), read(`{"id":7,"text":"x","source_version":2}`)
	if one.Fingerprint != two.Fingerprint || one.SourceVersion != 1 || two.SourceVersion != 2 {
		t.Errorf("the source version is no part of the fingerprint: %+v %+v", one, two)
	}
	if other := read(`{"id":7,"text":"y","source_version":1}`); other.Fingerprint == one.Fingerprint {
		t.Error("another text has the same fingerprint")
	}
	if a>>56 != 2 || one.Fingerprint>>56 != 2 {
		t.Error("a fingerprint does not name its rule")
	}
}

func TestMeaningsOfErrorsCanBeCombined(t *testing.T) {
	cause := errors.New("refused")
	err := fmt.Errorf("send: %w", jobs.Permanent(jobs.NotApplied(jobs.RetryAfter(time.Minute, cause))))
	if m := jobs.Meant(err); !m.Permanent || !m.NotApplied || m.After != time.Minute {
		t.Errorf("%+v", m)
	}
	if !errors.Is(err, cause) || err.Error() != "send: refused" {
		t.Error(err)
	}
	if m := jobs.Meant(cause); m.Permanent || m.NotApplied || m.After >= 0 {
		t.Errorf("a plain error means %+v", m)
	}
	if jobs.Permanent(nil) != nil || jobs.NotApplied(nil) != nil || jobs.RetryAfter(1, nil) != nil {
		t.Error("a meaning of nil is not nil")
	}
}

func TestEnqueueSendsOneMessageForEachArgs(t *testing.T) {
	var sent []queue.Message
	to := queue.SenderFunc(func(_ context.Context, ms ...queue.Message) error { sent = append(sent, ms...); return nil })
	if err := jobs.Enqueue(t.Context(), queue.After(to, time.Hour), letter{234, "anna"}, letter{234, "bob"}); err != nil {
		t.Fatal(err)
	}
	if len(sent) != 2 || sent[1].Items[0].Entity != "234/bob" || string(sent[1].Items[0].Args) != `{"event_id":234,"to":"bob"}` || sent[1].Delay != time.Hour {
		t.Errorf("%+v", sent)
	}
	type odd struct {
		letter
		F func()
	}
	if err := jobs.Enqueue(t.Context(), to, odd{}); !errors.Is(err, queue.ErrInvalid) {
		t.Errorf("arguments that do not encode gave %v", err)
	}
}

func TestASourceInGoContinuesBehindAnEntity(t *testing.T) {
	s := jobs.Seq(func(_ context.Context, after string) iter.Seq2[letter, error] {
		return func(yield func(letter, error) bool) {
			for _, to := range []string{"anna", "bob", "cem"} {
				l := letter{1, to}
				if l.Entity() > after && !yield(l, nil) {
					return
				}
			}
		}
	})
	var got []string
	for a, err := range s.Each(t.Context(), "1/anna") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.Entity())
	}
	if fmt.Sprint(got) != "[1/bob 1/cem]" || s.JobType() != "letter" || s.IsZero() {
		t.Error(got, s.JobType())
	}
}

func TestBackoffGrowsAndStaysInItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(-3, 1<<30).Draw(t, "attempt")
		if d := jobs.DefaultBackoff(n); d < 800*time.Millisecond || d > 6*time.Minute {
			t.Fatalf("attempt %d waits %s", n, d)
		}
	})
	if a, b := jobs.DefaultBackoff(1), jobs.DefaultBackoff(5); b < 4*a {
		t.Errorf("attempt 1 waits %s, attempt 5 %s", a, b)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("234/anna", []byte(`{"event_id":234,"to":"anna"}`))
	f.Add("7", []byte(`{"id":7,"source_version":1e3}`))
	set, err := jobs.NewSet(jobs.Job[letter]{Do: do, Effect: jobs.Once}, jobs.Job[page]{Do: doPage, Effect: jobs.Repeatable})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, entity string, raw []byte) {
		for _, name := range set.Types() {
			e, _ := set.Lookup(name)
			if in, err := e.Decode(entity, raw); err == nil && in.Args.Entity() != entity {
				t.Errorf("%s decoded as entity %q for %q", raw, in.Args.Entity(), entity)
			}
		}
	})
}
