package queue_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

func message() queue.Message {
	return queue.Message{Type: "t", Items: []queue.Item{{Entity: "e", Args: json.RawMessage(`{}`)}}}
}

// recorder keeps what was sent.
type recorder []queue.Message

func (r *recorder) Send(_ context.Context, ms ...queue.Message) error {
	*r = append(*r, ms...)
	return nil
}

func TestOptionsOfSendingAreSenders(t *testing.T) {
	var r recorder
	s := queue.Priority(queue.After(queue.After(&r, time.Minute), time.Hour), 3)
	sent := []queue.Message{message(), message()}
	sent[1].Priority, sent[1].Delay = 9, time.Second
	before := slices.Clone(sent)
	if err := s.Send(t.Context(), sent...); err != nil {
		t.Fatal(err)
	}
	if len(r) != 2 || r[0].Delay != time.Hour+time.Minute || r[1].Delay != time.Hour+time.Minute+time.Second {
		t.Errorf("delays add up to %v and %v", r[0].Delay, r[1].Delay)
	}
	if r[0].Priority != 3 || r[1].Priority != 3 {
		t.Errorf("priorities %d and %d", r[0].Priority, r[1].Priority)
	}
	for i := range sent {
		if sent[i].Delay != before[i].Delay || sent[i].Priority != before[i].Priority {
			t.Errorf("the caller's message was changed: %+v", sent[i])
		}
	}
}

func TestCheckSaysWhichLimitIsBroken(t *testing.T) {
	for _, c := range []struct {
		says   string
		change func(*queue.Message)
	}{
		{"empty job type", func(m *queue.Message) { m.Type = "" }},
		{"empty entity", func(m *queue.Message) { m.Items[0].Entity = "" }},
		{"entity of 513 bytes, allowed are 512", func(m *queue.Message) { m.Items[0].Entity = strings.Repeat("e", 513) }},
		{"NUL byte", func(m *queue.Message) { m.Items[0].Entity = "\x00" }},
		{"not valid UTF-8", func(m *queue.Message) { m.Type = "\xff" }},
		{"0 items, allowed are 1 to 1000", func(m *queue.Message) { m.Items = nil }},
		{"1001 items", func(m *queue.Message) { m.Items = make([]queue.Item, 1001) }},
		{"not JSON in UTF-8", func(m *queue.Message) { m.Items[0].Args = nil }},
		{"not JSON in UTF-8", func(m *queue.Message) { m.Items[0].Args = json.RawMessage("\"\xff\"") }},
		{"65537 bytes, allowed are 65536", func(m *queue.Message) { m.Items[0].Args = json.RawMessage(strings.Repeat(" ", 65535) + "{}") }},
		{"priority 101, allowed are -100 to 100", func(m *queue.Message) { m.Priority = 101 }},
		{"pack -1", func(m *queue.Message) { m.Pack = -1 }},
		{"traceparent", func(m *queue.Message) { m.Trace = "\x00" }},
		{"send fewer items", func(m *queue.Message) {
			m.Items = slices.Repeat([]queue.Item{{Entity: "e", Args: json.RawMessage(strings.Repeat(" ", 65534) + "{}")}}, 13)
		}},
	} {
		m := message()
		c.change(&m)
		err := m.Check()
		if !errors.Is(err, queue.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("Check says %v, expected it to wrap ErrInvalid and say %q", err, c.says)
		}
	}
	m := message()
	if err := m.Check(); err != nil {
		t.Errorf("an ordinary message: %v", err)
	}
}
