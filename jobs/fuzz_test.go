package jobs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

// An order has arguments of every kind that JSON has.
type order struct {
	ID    int64             `json:"id"`
	Text  string            `json:"text"`
	Price float64           `json:"price,omitempty"`
	Rush  bool              `json:"rush"`
	Tags  []string          `json:"tags"`
	More  map[string]string `json:"more"`
	To    *address          `json:"to"`
	Any   any               `json:"any"`
}

type address struct {
	Street string `json:"street"`
	No     uint8  `json:"no"`
}

func (order) JobType() string  { return "order" }
func (o order) Entity() string { return jobs.Key(o.ID) }

// A revised order is made from something that changes.
type revised struct {
	order
	Revision int64 `json:"source_version"`
}

func (revised) JobType() string        { return "revised" }
func (r revised) SourceVersion() int64 { return r.Revision }

// shuffled writes a JSON value anew: the fields of objects in the order of their names, or
// in the opposite one, with spaces between. Numbers and texts stay as they are spelt.
func shuffled(raw json.RawMessage, backwards bool) (json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) > 0 && raw[0] == '{':
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil {
			return nil, err
		}
		names := slices.Sorted(maps.Keys(fields))
		for i := 1; i < len(names); i++ {
			for _, before := range names[:i] {
				if strings.EqualFold(before, names[i]) {
					return nil, errors.New("two names that Go takes for the same field")
				}
			}
		}
		if backwards {
			slices.Reverse(names)
		}
		var b bytes.Buffer
		b.WriteString("{")
		for i, name := range names {
			v, err := shuffled(fields[name], backwards)
			if err != nil {
				return nil, err
			}
			key, err := json.Marshal(name)
			if err != nil {
				return nil, err
			}
			if i > 0 {
				b.WriteString(" ,")
			}
			fmt.Fprintf(&b, "%s:\n%s", key, v)
		}
		b.WriteString("}")
		return b.Bytes(), nil
	case len(raw) > 0 && raw[0] == '[':
		var values []json.RawMessage
		if err := json.Unmarshal(raw, &values); err != nil {
			return nil, err
		}
		for i, v := range values {
			var err error
			if values[i], err = shuffled(v, backwards); err != nil {
				return nil, err
			}
		}
		var b bytes.Buffer
		b.WriteString("[")
		for i, v := range values {
			if i > 0 {
				b.WriteString("\t,")
			}
			b.Write(v)
		}
		b.WriteString("]")
		return b.Bytes(), nil
	}
	return raw, nil
}

// Equal arguments have one fingerprint, in whatever order their fields come and with
// whatever spaces; the one that is written back is again the same. Arguments that differ
// in one field have another.
func FuzzEqualArgumentsHaveOneFingerprint(f *testing.F) {
	for _, raw := range []string{
		`{"id":1}`,
		`{"id":7,"text":"é\u00e9 <&> \u2028","price":1e2,"rush":true,"tags":["b","a"],"more":{"z":"1","a":"2"},"to":{"street":"s","no":255},"any":{"b":[{"d":1,"c":2}],"a":null}}`,
		`{"any":[1.0,10e-1,9007199254740993,-0,"\ud800"],"id":-0,"tags":[],"more":null}`,
		`{"ID":3,"Text":"names in other cases"}`,
		`{"id":1,"any":{"id":{"id":{}}},"unknown":[{"x":0}]}`,
	} {
		f.Add([]byte(raw), int64(5))
	}
	plain := decoder(f, jobs.Job[order]{Do: func(context.Context, order) error { return nil }, Effect: jobs.Once})
	sourced := decoder(f, jobs.Job[revised]{Do: func(context.Context, revised) error { return nil }, Effect: jobs.Once})
	f.Fuzz(func(t *testing.T, raw []byte, revision int64) {
		one, err := shuffled(raw, false)
		if err != nil {
			t.Skip()
		}
		two, err := shuffled(raw, true)
		if err != nil {
			t.Fatal(err)
		}
		var o order
		if json.Unmarshal(one, &o) != nil {
			t.Skip()
		}
		read := func(e *jobs.Erased, raw []byte) jobs.Input {
			t.Helper()
			in, err := e.Decode(o.Entity(), raw)
			if err != nil {
				t.Fatalf("%s: %v", raw, err)
			}
			if in.Fingerprint>>56 != 2 {
				t.Errorf("%s: the fingerprint %x does not name its rule", raw, in.Fingerprint)
			}
			return in
		}
		fp := read(plain, one).Fingerprint
		if got := read(plain, two).Fingerprint; got != fp {
			t.Errorf("%s and %s have the fingerprints %x and %x", one, two, fp, got)
		}
		item, err := jobs.NewItem(o)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(plain, item.Args).Fingerprint; got != fp {
			t.Errorf("%s is written as %s, whose fingerprint is %x, not %x", one, item.Args, got, fp)
		}
		m := queue.Message{Type: "order", Items: []queue.Item{item}}
		if err := m.Check(); err != nil && len(item.Args) <= queue.MaxArgs && len(item.Args)+len(item.Entity) <= queue.MaxBytes {
			t.Errorf("what was decoded cannot be sent: %v", err)
		}

		// The version of the source is no part of it, and everything else is.
		older, err := json.Marshal(revised{o, revision})
		if err != nil {
			t.Fatal(err)
		}
		newer, err := json.Marshal(revised{o, revision ^ 1})
		if err != nil {
			t.Fatal(err)
		}
		a, b := read(sourced, older), read(sourced, newer)
		if a.Fingerprint != b.Fingerprint || a.SourceVersion != revision || b.SourceVersion != revision^1 {
			t.Errorf("of revisions %d and %d of %s the fingerprints are %x and %x", a.SourceVersion, b.SourceVersion, one, a.Fingerprint, b.Fingerprint)
		}
		for what, other := range map[string]order{
			"text":  {o.ID, o.Text + "x", o.Price, o.Rush, o.Tags, o.More, o.To, o.Any},
			"rush":  {o.ID, o.Text, o.Price, !o.Rush, o.Tags, o.More, o.To, o.Any},
			"tags":  {o.ID, o.Text, o.Price, o.Rush, append(slices.Clone(o.Tags), "x"), o.More, o.To, o.Any},
			"any":   {o.ID, o.Text, o.Price, o.Rush, o.Tags, o.More, o.To, []any{o.Any}},
			"price": {o.ID, o.Text, o.Price/2 + 1e-3, o.Rush, o.Tags, o.More, o.To, o.Any},
		} {
			item, err := jobs.NewItem(other)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(plain, item.Args).Fingerprint; got == fp && other.Price != o.Price == (what == "price") {
				t.Errorf("%s with another %s, %s, has the same fingerprint", one, what, item.Args)
			}
		}
	})
}

// The parts can be read back from the key, so no two lists of parts share one.
func FuzzTheKeyTellsItsParts(f *testing.F) {
	f.Add("a", "b", int64(1))
	f.Add("a/b", "%2F", int64(-1))
	f.Add("", "/", int64(0))
	f.Add("%25", "%", int64(1)<<62)
	f.Fuzz(func(t *testing.T, a, b string, n int64) {
		key := jobs.Key(a, n, b)
		parts := strings.Split(key, "/")
		if len(parts) != 3 || parts[1] != fmt.Sprint(n) {
			t.Fatalf("%q, %d and %q make %q", a, n, b, key)
		}
		unescape := strings.NewReplacer("%25", "%", "%2F", "/")
		if unescape.Replace(parts[0]) != a || unescape.Replace(parts[2]) != b {
			t.Errorf("%q, %d and %q make %q", a, n, b, key)
		}
	})
}
