package jobs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// The same job type as three programs have it: as it was, with its fields moved and given other
// names in Go, and made from something that changes.
type (
	parcel struct {
		ID   int64    `json:"id"`
		Note string   `json:"note"`
		To   receiver `json:"to"`
	}
	receiver struct {
		Name string  `json:"name"`
		At   []place `json:"at"`
	}
	place struct {
		Street string  `json:"street"`
		Lat    float64 `json:"lat"`
	}

	parcelMoved struct {
		Receiver receiverMoved `json:"to"`
		Remark   string        `json:"note"`
		Insured  bool          `json:"insured,omitempty"` // is new
		Number   int64         `json:"id"`
	}
	receiverMoved struct {
		Where []placeMoved `json:"at"`
		Who   string       `json:"name"`
	}
	placeMoved struct {
		Lat    float64 `json:"lat"`
		Street string  `json:"street"`
	}

	parcelSourced struct {
		Revision int64 `json:"source_version"`
		parcel
	}
)

func (parcel) JobType() string               { return "parcel" }
func (p parcel) Entity() string              { return jobs.Key(p.ID) }
func (parcelMoved) JobType() string          { return "parcel" }
func (p parcelMoved) Entity() string         { return jobs.Key(p.Number) }
func (p parcelSourced) SourceVersion() int64 { return p.Revision }

// What is open or done stays what it is over a deploy that changes only the text of the program.
func TestADeployThatMovesOrRenamesFieldsKeepsTheFingerprint(t *testing.T) {
	const raw = `{"id":7,"note":"a \"quote\", a { and a <","to":{"name":"Ann","at":[{"street":"é","lat":1e21},{"street":"\\","lat":-0.5}]}}`
	fingerprint := func(d jobs.Definition, raw string) int64 {
		in, err := decoder(t, d).Decode("7", []byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		return in.Fingerprint
	}
	before := fingerprint(jobs.Job[parcel]{Effect: jobs.Once, Do: func(context.Context, parcel) error { return nil }}, raw)
	moved := jobs.Job[parcelMoved]{Effect: jobs.Once, Do: func(context.Context, parcelMoved) error { return nil }}
	if got := fingerprint(moved, raw); got != before {
		t.Errorf("with the fields moved it is %x, it was %x", got, before)
	}
	sourced := jobs.Job[parcelSourced]{Effect: jobs.Once, Do: func(context.Context, parcelSourced) error { return nil }}
	if got := fingerprint(sourced, raw[:len(raw)-1]+`,"source_version":9}`); got != before {
		t.Errorf("with a source version it is %x, it was %x", got, before)
	}
	if got := fingerprint(moved, strings.Replace(raw, "1e21", "1e22", 1)); got == before {
		t.Error("another place, deep inside, has the same fingerprint")
	}
}

// Opaque arguments are kept as they came, with all that JSON has.
type opaque struct{ Raw json.RawMessage }

func (opaque) JobType() string                 { return "opaque" }
func (opaque) Entity() string                  { return "1" }
func (o opaque) MarshalJSON() ([]byte, error)  { return o.Raw, nil }
func (o *opaque) UnmarshalJSON(b []byte) error { o.Raw = bytes.Clone(b); return nil }

// A spelling is a JSON value, written with its members in two orders.
type spelling struct{ one, two string }

func spellings(depth int) *rapid.Generator[spelling] {
	return rapid.Custom(func(t *rapid.T) spelling {
		kind := rapid.IntRange(0, 3).Draw(t, "kind")
		if depth == 0 || kind < 2 {
			s := rapid.OneOf(
				rapid.SampledFrom([]string{`1`, `-0`, `1.0`, `10e-1`, `9007199254740993`, `null`, `true`, `"\u0041\""`, `"\\"`, `"},{:[]"`}),
				rapid.Map(rapid.String(), func(s string) string { b, _ := json.Marshal(s); return string(b) }),
			).Draw(t, "value")
			return spelling{s, s}
		}
		if kind == 2 {
			var one, two []string
			for _, s := range rapid.SliceOfN(spellings(depth-1), 0, 4).Draw(t, "values") {
				one, two = append(one, s.one), append(two, s.two)
			}
			return spelling{"[" + strings.Join(one, ",") + "]", "[" + strings.Join(two, ",") + "]"}
		}
		fields := rapid.MapOfN(rapid.StringOf(rapid.RuneFrom([]rune("ab\"\\ <{é"))), spellings(depth-1), 0, 20).Draw(t, "fields")
		names := slices.Sorted(maps.Keys(fields))
		write := func(names []string, of func(spelling) string) string {
			members := make([]string, len(names))
			for i, name := range names {
				key, _ := json.Marshal(name)
				members[i] = fmt.Sprintf("%s:%s", key, of(fields[name]))
			}
			return "{" + strings.Join(members, ",") + "}"
		}
		if len(names) == 0 {
			return spelling{"{}", "{}"}
		}
		return spelling{
			write(rapid.Permutation(names).Draw(t, "one order"), func(s spelling) string { return s.one }),
			write(rapid.Permutation(names).Draw(t, "another"), func(s spelling) string { return s.two }),
		}
	})
}

func TestAnyOrderOfMembersGivesOneFingerprint(t *testing.T) {
	e := decoder(t, jobs.Job[opaque]{Effect: jobs.Once, Do: func(context.Context, opaque) error { return nil }})
	fingerprint := func(t *rapid.T, raw string) int64 {
		in, err := e.Decode("1", []byte(raw))
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		return in.Fingerprint
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := spellings(3).Draw(t, "a"), spellings(3).Draw(t, "b")
		if one, two := fingerprint(t, a.one), fingerprint(t, a.two); one != two {
			t.Fatalf("%s has %x, %s has %x", a.one, one, a.two, two)
		}
		if one, two := fingerprint(t, a.one), fingerprint(t, b.one); one == two && a.one != b.one && sortedByMap(a.one) != sortedByMap(b.one) {
			t.Fatalf("%s and %s both have %x", a.one, b.one, one)
		}
	})
}

// sortedByMap sorts members in the slow and simple way, keeping how numbers are spelt.
func sortedByMap(raw string) string {
	sorted, err := shuffled(json.RawMessage(raw), false)
	if err != nil {
		return err.Error()
	}
	return string(sorted)
}

// Which of two members of one name counts is said by their order alone: it is no spelling.
func TestMembersOfOneNameKeepTheirOrder(t *testing.T) {
	e := decoder(t, jobs.Job[opaque]{Effect: jobs.Once, Do: func(context.Context, opaque) error { return nil }})
	one, err := e.Decode("1", []byte(`{"b":0,"a":1,"a":2}`))
	if err != nil {
		t.Fatal(err)
	}
	two, err := e.Decode("1", []byte(`{"b":0,"a":2,"a":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if one.Fingerprint == two.Fingerprint {
		t.Error("the last one counts, and another is the last")
	}
}

func BenchmarkDecode(b *testing.B) {
	const raw = `{"id":7,"note":"some text of the usual length","to":{"at":[{"lat":1.5,"street":"High Street 7"}],"name":"Ann"}}`
	for _, c := range []struct {
		name, raw, entity string
		job               jobs.Definition
	}{
		{"Small", `{"event_id":234,"to":"anna"}`, "234/anna", jobs.Job[letter]{Do: do, Effect: jobs.Once}},
		{"Unsorted", raw, "7", jobs.Job[parcelMoved]{Effect: jobs.Once, Do: func(context.Context, parcelMoved) error { return nil }}},
		{"Sorted", raw, "7", jobs.Job[sortedParcel]{Effect: jobs.Once, Do: func(context.Context, sortedParcel) error { return nil }}},
		{"Sourced", `{"id":7,"text":"x","source_version":1}`, "7", jobs.Job[page]{Do: doPage, Effect: jobs.Repeatable}},
	} {
		e := decoder(b, c.job)
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.Decode(c.entity, []byte(c.raw)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type sortedParcel struct {
	ID   int64  `json:"id"`
	Note string `json:"note"`
	To   struct {
		At   []placeMoved `json:"at"`
		Name string       `json:"name"`
	} `json:"to"`
}

func (sortedParcel) JobType() string  { return "parcel" }
func (p sortedParcel) Entity() string { return jobs.Key(p.ID) }
