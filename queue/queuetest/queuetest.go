// Package queuetest holds the promises of package queue as tests, for every backend:
//
//	func TestConformance(t *testing.T) {
//		queuetest.Run(t, func(t *testing.T) queue.Queue { return memqueue.New().WithVisibility(time.Second) })
//	}
//
// The tests wait for visibility timeouts to pass: one of about a second keeps them
// quick, and long enough for a busy machine.
package queuetest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// Options says where a backend differs from what most can do. The zero value
// differs nowhere.
type Options struct {
	NoPriorities bool          // order has nothing to do with Priority
	AllTypes     bool          // Receive hands out messages of all types, whatever it is asked for
	NoReceived   bool          // Received is not counted
	BasicPlane   bool          // no text may have characters beyond U+FFFF
	Bubble       bool          // the backend takes its time from package time alone and does no I/O: run each test in a [testing/synctest] bubble, where waiting takes no time and a busy machine spoils nothing
	Delay        time.Duration // the shortest delay that the backend can keep; default 200 ms
}

// Run runs the whole suite on a backend that differs nowhere. open returns a new,
// empty queue, whose end it leaves to t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) queue.Queue) { Options{}.Run(t, open) }

// Run runs the whole suite, except for what o says is different.
func (o Options) Run(t *testing.T, open func(t *testing.T) queue.Queue) {
	if o.Delay == 0 {
		o.Delay = 200 * time.Millisecond
	}
	for _, c := range slices.Concat(carrying, holding, settling, receiving) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			test := func(t *testing.T) { c.test(&suite{T: t, Queue: open(t), o: o}) }
			if o.Bubble {
				synctest.Test(t, test)
			} else {
				test(t)
			}
		})
	}
}

type promise struct {
	name string
	test func(s *suite)
}

// A suite is one test with a queue of its own.
type suite struct {
	*testing.T
	queue.Queue
	o Options
}

// patience is how long something that must happen may take.
const patience = 30 * time.Second

func (s *suite) send(ms ...queue.Message) {
	s.Helper()
	if err := s.Send(s.Context(), ms...); err != nil {
		s.Fatalf("Send: %v", err)
	}
}

// take receives until it has deliveries of n messages that differ in their first
// entity. One that comes twice, since this machine is slow, counts as it came last.
func (s *suite) take(n int) []queue.Delivery {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	var got []queue.Delivery
	for len(got) < n {
		ds, err := s.Receive(ctx, n-len(got), nil)
		if err != nil {
			s.Fatalf("Receive after %d of %d deliveries: %v", len(got), n, err)
		}
		for _, d := range ds {
			same := func(g queue.Delivery) bool { return g.Items[0].Entity == d.Items[0].Entity }
			if i := slices.IndexFunc(got, same); i >= 0 {
				got[i] = d
			} else {
				got = append(got, d)
			}
		}
	}
	return got
}

func (s *suite) take1() queue.Delivery {
	s.Helper()
	return s.take(1)[0]
}

// none checks that for so long nothing is delivered.
func (s *suite) none(d time.Duration, types ...string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), d)
	defer cancel()
	for ctx.Err() == nil {
		ds, err := s.Receive(ctx, 10, types)
		if len(ds) > 0 {
			s.Fatalf("received %s, expected nothing", describe(ds))
		}
		if err != nil && ctx.Err() == nil {
			s.Fatalf("Receive: %v", err)
		}
	}
}

func (s *suite) ack(ds ...queue.Delivery) {
	s.Helper()
	if err := s.Ack(s.Context(), ds...); err != nil {
		s.Fatalf("Ack: %v", err)
	}
}

func (s *suite) release(after time.Duration, ds ...queue.Delivery) {
	s.Helper()
	if err := s.Release(s.Context(), after, ds...); err != nil {
		s.Fatalf("Release: %v", err)
	}
}

// extend returns the receipts that are lost.
func (s *suite) extend(ds ...queue.Delivery) []string {
	s.Helper()
	lost, err := s.Extend(s.Context(), ds...)
	if err != nil {
		s.Fatalf("Extend: %v", err)
	}
	return lost
}

// held checks that d is held by who has it.
func (s *suite) held(d queue.Delivery) {
	s.Helper()
	if lost := s.extend(d); len(lost) > 0 {
		s.Fatalf("%s is no longer held", describe([]queue.Delivery{d}))
	}
}

// timely runs a try that a busy machine can spoil by being slower than a visibility
// timeout, until one counts. try says whether it did.
func (s *suite) timely(try func() bool) {
	s.Helper()
	for range 10 {
		if try() {
			return
		}
		s.drain()
	}
	if s.o.Bubble {
		s.Fatal("ten tries have failed, and in a bubble no machine is busy")
	}
	s.Skip("this machine is too busy for a visibility timeout of ", s.Visibility())
}

// drain acknowledges all there is, and all that comes back.
func (s *suite) drain() {
	s.Helper()
	for {
		ds, _ := s.try(s.Visibility() + s.o.Delay)
		if len(ds) == 0 {
			return
		}
		s.ack(ds...)
	}
}

// msg is a message of type t on one entity.
func msg(t, entity string) queue.Message {
	return queue.Message{Type: t, Items: []queue.Item{{Entity: entity, Args: json.RawMessage(`{}`)}}}
}

func numbered(n int) []queue.Message {
	ms := make([]queue.Message, n)
	for i := range ms {
		ms[i] = msg("t", fmt.Sprintf("e%04d", i))
	}
	return ms
}

func entities(ds []queue.Delivery) []string {
	var es []string
	for _, d := range ds {
		for _, it := range d.Items {
			es = append(es, it.Entity)
		}
	}
	slices.Sort(es)
	return es
}

func describe(ds []queue.Delivery) string {
	var out []string
	for _, d := range ds {
		out = append(out, fmt.Sprintf("%s of %d items from %q, receipt %s, received %d", d.Type, len(d.Items), d.Items[0].Entity, d.Receipt, d.Received))
	}
	return fmt.Sprint(out)
}

func receipts(ds ...queue.Delivery) []string {
	var out []string
	for _, d := range ds {
		out = append(out, d.Receipt)
	}
	slices.Sort(out)
	return out
}
