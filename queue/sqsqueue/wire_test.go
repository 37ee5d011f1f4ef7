package sqsqueue

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/queue"
)

// What any language may write is what docs/wire-format.md shows.
func TestTheExamplesOfTheDocumentAreMessages(t *testing.T) {
	text, err := os.ReadFile("../../docs/wire-format.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllSubmatch(text, -1)
	if len(blocks) < 3 {
		t.Fatalf("there are %d examples", len(blocks))
	}
	for _, b := range blocks {
		m, err := decode(b[1])
		if err == nil {
			err = m.Check()
		}
		if err != nil {
			t.Errorf("%v\n%s", err, b[1])
		}
	}
}

func TestAPlainItemIsAMessage(t *testing.T) {
	m, err := decode([]byte(` { "args" : {"event_id": 234}, "entity": "event/234", "later": {"a":[1,"]}"]}, "type":"send" } `))
	want := queue.Message{Type: "send", Items: []queue.Item{{Entity: "event/234", Args: json.RawMessage(` {"event_id": 234}`)}}}
	if err != nil || !reflect.DeepEqual(m, want) {
		t.Errorf("%v\n%+v\n%+v", err, m, want)
	}
}

func TestABodyThatIsNotAMessageIsAnErrorThatSaysWhy(t *testing.T) {
	for body, says := range map[string]string{
		``:                                     "not JSON",
		`hello`:                                "not JSON",
		"{\"type\":\"\xff\"}":                  "not JSON",
		`[]`:                                   `want '{'`,
		`"x"`:                                  `want '{'`,
		`{"type":7}`:                           `"type" is 7, want a string`,
		`{"type":null}`:                        `want a string`,
		`{"type":"t","run":"7"}`:               `"run" is "7", want an integer`,
		`{"type":"t","pack":1e3}`:              `"pack"`,
		`{"type":"t","priority":99999999999}`:  `"priority"`,
		`{"type":"t","items":{}}`:              `want '['`,
		`{"type":"t","items":[],"entity":"e"}`: "both",
		`{"v":2,"type":"t"}`:                   "version 2, known is 1",
	} {
		m, err := decode([]byte(body))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %+v, %v; want it to say %q", body, m, err, says)
		}
		if strings.HasPrefix(body, `{"type":"t",`) && m.Type != "t" {
			t.Errorf("%s: the type, which is known, is %q", body, m.Type)
		}
	}
}

// A message arrives as it was sent, and its body is characters that SQS takes.
func FuzzABodyIsReadAsItWasWritten(f *testing.F) {
	f.Add("send", "event/234", []byte(`{"event_id":234}`), int64(7), 3, "")
	f.Add("t", "\x01\x7f\"\\\n", []byte(" { \"a\" : \"\\\"},]\" , \"b\":[ ] } "), int64(-1), 0, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	f.Add("Ü", "\uffff\ufffe🚀", []byte("\"\uffff\""), int64(0), 1<<31-1, "\x02")
	f.Fuzz(func(t *testing.T, jobType, entity string, args []byte, run int64, pack int, trace string) {
		for _, items := range [][]queue.Item{{{Entity: entity, Args: args}}, {{Entity: entity, Args: args}, {Entity: "other", Args: json.RawMessage(`null`)}, {Entity: entity, Args: args}}} {
			m := queue.Message{Type: jobType, Run: run, Pack: pack, Epoch: run / 3, Priority: -5, Deferred: 2, Items: items}
			if !plain(trace) {
				m.Trace = trace
			}
			if m.Check() != nil {
				return
			}
			body := encode(&m, 0, len(items))
			if !json.Valid(body) || !plain(string(body)) {
				t.Fatalf("%q", body)
			}
			got, err := decode(body)
			if bytes.Contains(args, []byte("\uffff")) || bytes.Contains(args, []byte("\ufffe")) {
				for i := range got.Items { // the same value in other words
					var a, b any
					if json.Unmarshal(got.Items[i].Args, &a) != nil || json.Unmarshal(items[i].Args, &b) != nil || !reflect.DeepEqual(a, b) {
						t.Errorf("%q became %q", items[i].Args, got.Items[i].Args)
					}
					got.Items[i].Args = items[i].Args
				}
			}
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("%v\n%q\n%+v\n%+v", err, body, got, m)
			}
		}
	})
}

// Any body is a message, or an error: never a panic, and what it says is what
// encoding/json reads.
func FuzzAnyBodyIsReadAsJSONReadsIt(f *testing.F) {
	for _, s := range []string{`{}`, `[`, `{"type":"t","items":[{"entity":"e","args":{"a":[1,{"b":"}"}]}},{}, [7] ,{"entity":"\u0000","args":1},{"entity":8}]}`, `{"args":1,"args":2,"entity":"\ud800"}`, ` {"":{}} `, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := decode(body)
		if err != nil {
			return
		}
		var want struct {
			Type, Entity *string
			Args         json.RawMessage
			Items        []json.RawMessage
		}
		exact := map[string]json.RawMessage{} // encoding/json would take "TYPE" for "type"
		if err := json.Unmarshal(body, &exact); err != nil {
			t.Fatalf("%q was taken, and is %v", body, err)
		}
		for key, value := range exact {
			switch key {
			case "type":
				_ = json.Unmarshal(value, &want.Type)
			case "entity":
				_ = json.Unmarshal(value, &want.Entity)
			case "args":
				want.Args = value
			case "items":
				_ = json.Unmarshal(value, &want.Items)
			}
		}
		if want.Type != nil && *want.Type != m.Type {
			t.Errorf("%q: type %q, want %q", body, m.Type, *want.Type)
		}
		switch {
		case want.Items != nil && len(want.Items) != len(m.Items):
			t.Errorf("%q: %d items, want %d", body, len(m.Items), len(want.Items))
		case want.Args != nil && (len(m.Items) != 1 || string(bytes.Trim(m.Items[0].Args, jsonSpace)) != string(want.Args)):
			t.Errorf("%q: %+v, want the arguments %q", body, m, want.Args)
		case want.Entity != nil && (len(m.Items) != 1 || m.Items[0].Entity != *want.Entity):
			t.Errorf("%q: %+v, want the entity %q", body, m, *want.Entity)
		}
		for i, whole := range want.Items {
			var it map[string]json.RawMessage
			want := whole // an item that is bad keeps all that stands there
			if queue.CheckName("entity", m.Items[i].Entity) == nil {
				if err := json.Unmarshal(whole, &it); err != nil {
					t.Fatalf("%q: item %d was taken, and is %v", body, i, err)
				}
				want = it["args"]
			}
			if string(bytes.Trim(m.Items[i].Args, jsonSpace)) != string(want) {
				t.Errorf("%q: item %d has %q, want %q", body, i, m.Items[i].Args, want)
			}
		}
	})
}
