package queuetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// carrying: what is sent arrives as it was, all or nothing.
var carrying = []promise{
	{"AMessageArrivesAsItWasSent", arrives},
	{"APackKeepsEveryByteAndItsOrder", packs},
	{"ManyMessagesOfOneSendAllArrive", many},
	{"SenderAndReceiverShareNoMemory", noSharing},
	{"AMessageThatBreaksALimitIsRefusedWithAllOfItsSend", refuses},
	{"AMessageAtTheLimitsIsCarried", atTheLimits},
	{"NothingAtAllIsNoError", nothing},
}

func arrives(s *suite) {
	full := queue.Message{
		Type:  "send_invitation",
		Items: []queue.Item{{Entity: "event/234/invitee/17", Args: json.RawMessage(`{"event_id":234,"invitee_id":17}`)}},
		Run:   7, Pack: 3, Epoch: 1 << 40, Priority: 5, Deferred: 2,
		Trace: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
	low := msg("other", "e")
	low.Priority = -100
	for _, m := range []queue.Message{full, low, msg("t", "plain")} {
		s.send(m)
		d := s.take1()
		if !reflect.DeepEqual(d.Message, m) {
			s.Errorf("received %+v\nsent     %+v", d.Message, m)
		}
		if d.Receipt == "" || d.Bad != nil || d.Received != 1 && !(s.o.NoReceived && d.Received > 0) {
			s.Errorf("receipt %q, received %d, bad %q", d.Receipt, d.Received, d.Bad)
		}
		s.ack(d)
	}
	for _, deferred := range []queue.Message{full, low} {
		deferred.Delay = time.Millisecond
		s.send(deferred)
		d := s.take1()
		if deferred.Delay = 0; !reflect.DeepEqual(d.Message, deferred) {
			s.Errorf("after a delay received %+v\nsent %+v", d.Message, deferred)
		}
		s.ack(d)
	}
}

func packs(s *suite) {
	odd := []string{
		`{}`, `null`, `""`, `[]`, ` { "spaces" :  1 } `, `{"b":1,"a":2,"b":3}`, `{"n":1.000000000000000000001e400}`,
		`"\u0000\ud800 \\ \" {,} NULL"`, `{"text":"Grüße 👩‍👩‍👧 שלום \u202e"}`, "{\n\t\"lines\": 1\r\n}", `"` + strings.Repeat("x", 5000) + `"`,
	}
	names := []string{"e", " ", "NULL", `{"a,b"}`, `back\slash`, "new\nline", "Zürich/東京/🚀", "\x01\x7f", "'; --", "é", "e\u0301", strings.Repeat("ü", 256)}
	name := "Päckchen 📦"
	if s.o.BasicPlane {
		beyond := func(r rune) bool { return r > 0xffff }
		name = strings.TrimRightFunc(name, beyond)
		odd = slices.DeleteFunc(odd, func(s string) bool { return strings.ContainsFunc(s, beyond) })
		names = slices.DeleteFunc(names, func(s string) bool { return strings.ContainsFunc(s, beyond) })
	}
	for _, n := range []int{1, 2, 100, queue.MaxItems} {
		m := queue.Message{Type: name}
		for i := range n {
			m.Items = append(m.Items, queue.Item{Entity: names[i%len(names)], Args: json.RawMessage(odd[i%len(odd)])})
			if i >= len(odd) {
				m.Items[i].Args = json.RawMessage(odd[i%(len(odd)-1)]) // the long one once
			}
		}
		s.send(m)
		d := s.take1()
		if !reflect.DeepEqual(d.Message, m) {
			for i := range min(len(d.Items), n) {
				if !reflect.DeepEqual(d.Items[i], m.Items[i]) {
					s.Errorf("item %d of %d: received %q %s, sent %q %s", i, n, d.Items[i].Entity, d.Items[i].Args, m.Items[i].Entity, m.Items[i].Args)
				}
			}
			s.Fatalf("a pack of %d items changed: %d items of type %q", n, len(d.Items), d.Type)
		}
		s.ack(d)
	}
}

func many(s *suite) {
	var ms []queue.Message
	var want []string
	for i := range 150 {
		m := msg(fmt.Sprintf("t%d", i%3), fmt.Sprintf("e%04d", i))
		if i%10 == 0 {
			m.Items = append(m.Items, queue.Item{Entity: m.Items[0].Entity + "/2", Args: json.RawMessage(`[1]`)})
		}
		m.Run, m.Pack = int64(i%2), i
		ms = append(ms, m)
		for _, it := range m.Items {
			want = append(want, it.Entity)
		}
	}
	s.send(ms...)
	ds := s.take(len(ms))
	if got := entities(ds); !slices.Equal(got, want) {
		s.Errorf("received %v\nsent %v", got, want)
	}
	for _, d := range ds {
		if sent := ms[d.Pack]; !reflect.DeepEqual(d.Message, sent) {
			s.Errorf("received %+v\nsent %+v", d.Message, sent)
		}
	}
	s.ack(ds...)
}

func noSharing(s *suite) {
	m := msg("t", "e")
	m.Items[0].Args = json.RawMessage(`[1]`)
	s.send(m)
	m.Items[0].Args[1] = '2'
	m.Items[0].Entity = "other"
	for range 2 {
		d := s.take1()
		if d.Items[0].Entity != "e" || string(d.Items[0].Args) != `[1]` {
			s.Fatalf("received %q %s", d.Items[0].Entity, d.Items[0].Args)
		}
		d.Items[0].Args[1] = '3'
		_ = append(d.Items[0].Args, "more"...)
		s.release(0, d)
	}
}

func refuses(s *suite) {
	args := func(n int) json.RawMessage { return json.RawMessage(`"` + strings.Repeat("x", n-2) + `"`) }
	pack := func(n int, a json.RawMessage) queue.Message {
		m := queue.Message{Type: "t"}
		for i := range n {
			m.Items = append(m.Items, queue.Item{Entity: fmt.Sprint("e", i), Args: a})
		}
		return m
	}
	with := func(change func(*queue.Message)) queue.Message {
		m := msg("t", "e")
		change(&m)
		return m
	}
	for name, bad := range map[string]queue.Message{
		"no type":            msg("", "e"),
		"long type":          msg(strings.Repeat("t", queue.MaxEntity+1), "e"),
		"no items":           {Type: "t"},
		"too many items":     pack(queue.MaxItems+1, args(2)),
		"no entity":          msg("t", ""),
		"long entity":        msg("t", strings.Repeat("e", queue.MaxEntity+1)),
		"NUL in entity":      msg("t", "a\x00b"),
		"entity not UTF-8":   msg("t", "a\xffb"),
		"type not UTF-8":     msg("a\xffb", "e"),
		"no arguments":       pack(1, nil),
		"arguments not JSON": pack(1, json.RawMessage(`{`)),
		"two values":         pack(1, json.RawMessage(`1 2`)),
		"args not UTF-8":     pack(1, json.RawMessage("\"\xff\"")),
		"long arguments":     pack(1, args(queue.MaxArgs+1)),
		"long pack":          pack(13, args(queue.MaxArgs)),
		"high priority":      with(func(m *queue.Message) { m.Priority = 101 }),
		"low priority":       with(func(m *queue.Message) { m.Priority = -101 }),
		"negative pack":      with(func(m *queue.Message) { m.Pack = -1 }),
		"huge pack number":   with(func(m *queue.Message) { m.Pack = 1 << 40 }),
		"long trace":         with(func(m *queue.Message) { m.Trace = strings.Repeat("t", queue.MaxTrace+1) }),
		"NUL in trace":       with(func(m *queue.Message) { m.Trace = "\x00" }),
	} {
		for _, ms := range [][]queue.Message{{bad}, {msg("t", "before"), bad, msg("t", "after")}} {
			if err := s.Send(s.Context(), ms...); !errors.Is(err, queue.ErrInvalid) {
				s.Errorf("%s: Send returned %v, expected ErrInvalid", name, err)
			}
		}
	}
	s.none(s.o.Delay)
}

func atTheLimits(s *suite) {
	m := queue.Message{
		Type: strings.Repeat("t", queue.MaxEntity),
		Run:  1<<63 - 1, Pack: 1<<31 - 1, Epoch: 1<<63 - 1, Priority: 100,
		Trace: strings.Repeat("t", queue.MaxTrace),
	}
	for i := range queue.MaxItems {
		m.Items = append(m.Items, queue.Item{Entity: fmt.Sprintf("%0*d", queue.MaxEntity, i), Args: json.RawMessage(`"` + strings.Repeat("y", 200) + `"`)})
	}
	wide := queue.Message{Type: "t", Items: []queue.Item{{Entity: "e", Args: json.RawMessage(`"` + strings.Repeat("x", queue.MaxArgs-2) + `"`)}}}
	for _, m := range []queue.Message{m, wide} {
		s.send(m)
		d := s.take1()
		if !reflect.DeepEqual(d.Message, m) {
			s.Errorf("a message of type %.10s with %d items changed", m.Type, len(m.Items))
		}
		s.ack(d)
	}
}

func nothing(s *suite) {
	s.send()
	s.ack()
	s.release(time.Second)
	if lost := s.extend(); len(lost) != 0 {
		s.Errorf("extending nothing lost %q", lost)
	}
	s.send(msg("t", "e"))
	for _, max := range []int{0, -1} {
		if ds, err := s.Receive(s.Context(), max, nil); len(ds) != 0 || err != nil {
			s.Errorf("Receive of %d returned %d deliveries and %v", max, len(ds), err)
		}
	}
	s.ack(s.take1())
}
