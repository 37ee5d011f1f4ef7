package queuetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// receiving: what Receive hands out, and when it returns.
var receiving = []promise{
	{"ReceiveReturnsNoMoreThanAsked", noMore},
	{"ReceiveLeavesOtherTypesToOthers", types},
	{"HigherPrioritiesComeFirst", priorities},
	{"AHigherPriorityOvertakesWhatWaits", overtakes},
	{"ADelayedMessageComesAfterItsDelayAndNotBefore", delayed},
	{"AMessageSentWhileAReceiveWaitsIsReceived", wakes},
	{"ACanceledReceiveReturnsAtOnceAndTakesNothing", canceled},
}

func noMore(s *suite) {
	s.send(numbered(30)...)
	var all []queue.Delivery
	for len(all) < 30 {
		ds, err := s.Receive(s.Context(), 4, nil)
		if err != nil || len(ds) > 4 {
			s.Fatalf("Receive of 4 returned %d deliveries, %v", len(ds), err)
		}
		all = append(all, ds...)
	}
	s.ack(all...)
}

func types(s *suite) {
	if s.o.AllTypes {
		s.Skip("this backend hands out messages of all types")
	}
	s.send(msg("strange", "s1"), msg("known", "k1"), msg("strange", "s2"), msg("also known", "k2"))
	ctx, cancel := context.WithTimeout(s.Context(), patience)
	defer cancel()
	var got []queue.Delivery
	for len(got) < 2 {
		ds, err := s.Receive(ctx, 10, []string{"known", "also known"})
		if err != nil {
			s.Fatal(err)
		}
		got = append(got, ds...)
	}
	if e := entities(got); !slices.Equal(e, []string{"k1", "k2"}) {
		s.Errorf("received %v", e)
	}
	s.ack(got...)
	s.none(s.o.Delay, "known", "also known")
	began := time.Now()
	rest := s.take(2)
	slow := time.Since(began) > s.Visibility()/2 // then one may have come back before the other came
	if e := entities(rest); !slices.Equal(e, []string{"s1", "s2"}) {
		s.Errorf("what was left to others is %v", e)
	}
	for _, d := range rest {
		if d.Received != 1 && !s.o.NoReceived && !slow {
			s.Errorf("received %d times", d.Received)
		}
	}
	s.ack(rest...)
}

func priorities(s *suite) {
	if s.o.NoPriorities {
		s.Skip("this backend knows no priorities")
	}
	for i, p := range []int{0, -100, 7, 100, 0, -3} {
		m := msg("t", fmt.Sprint("e", i))
		m.Priority = p
		s.send(m)
	}
	want := []int{100, 7, 0, 0, -3, -100}
	for _, n := range []int{6, 1} { // in one receive, and across several
		// A backend may take a moment to look where it has already been.
		for end := time.Now().Add(patience); ; {
			var got []int
			var ds []queue.Delivery
			for range 6 / n {
				for _, d := range s.take(n) {
					got, ds = append(got, d.Priority), append(ds, d)
				}
			}
			s.release(0, ds...)
			if slices.Equal(got, want) {
				break
			}
			if time.Now().After(end) {
				s.Fatalf("received %d at a time: priorities %v, expected %v", n, got, want)
			}
		}
	}
}

// A courtesy: it may take a moment, not for ever.
func overtakes(s *suite) {
	if s.o.NoPriorities {
		s.Skip("this backend knows no priorities")
	}
	s.send(numbered(10)...)
	s.ack(s.take(2)...)
	urgent := msg("t", "urgent")
	urgent.Priority = 1
	s.send(urgent)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		d := s.take1()
		if d.Items[0].Entity == "urgent" {
			s.ack(d)
			return
		}
		s.release(0, d) // so that others always wait too
	}
	s.Error("a message of higher priority waited behind others")
}

func delayed(s *suite) {
	later := msg("t", "later")
	later.Delay = s.o.Delay
	past := msg("t", "past")
	past.Delay = -time.Hour
	s.timely(func() bool {
		before := time.Now()
		s.send(later, msg("t", "now"), past)
		first := s.take(2)
		if time.Since(before) >= s.o.Delay {
			s.ack(first...)
			return false
		}
		if !slices.Equal(entities(first), []string{"now", "past"}) {
			s.Errorf("received %v before the delay was over", entities(first))
		}
		s.ack(first...) // before their visibility ends, on a slow day
		last := s.take1()
		if d := time.Since(before); d < s.o.Delay {
			s.Errorf("delayed by %v, received after %v", s.o.Delay, d)
		}
		if last.Items[0].Entity != "later" {
			s.Errorf("received %s", describe([]queue.Delivery{last}))
		}
		s.ack(last)
		return true
	})
}

func wakes(s *suite) {
	got := make(chan queue.Delivery)
	go func() {
		defer close(got)
		for s.Context().Err() == nil {
			ds, err := s.Receive(s.Context(), 1, nil)
			if err != nil {
				return
			}
			for _, d := range ds {
				got <- d
				return
			}
		}
	}()
	select {
	case d := <-got:
		s.Fatalf("received %s from an empty queue", describe([]queue.Delivery{d}))
	case <-time.After(s.o.Delay):
	}
	s.send(msg("t", "e"))
	select {
	case d, ok := <-got:
		if !ok {
			s.Fatal("Receive failed")
		}
		s.ack(d)
	case <-time.After(patience):
		s.Fatal("the waiting Receive did not return")
	}
}

func canceled(s *suite) {
	ctx, cancel := context.WithCancel(s.Context())
	time.AfterFunc(s.o.Delay, cancel)
	for ctx.Err() == nil {
		ds, err := s.Receive(ctx, 1, nil)
		if len(ds) > 0 || err != nil && ctx.Err() == nil {
			s.Fatalf("Receive from an empty queue returned %d deliveries and %v", len(ds), err)
		}
	}
	late := time.Now()
	s.send(msg("t", "e"))
	ds, err := s.Receive(ctx, 1, nil)
	if len(ds) > 0 || !errors.Is(err, context.Canceled) {
		s.Errorf("Receive with a canceled context returned %d deliveries and %v", len(ds), err)
	}
	if d := time.Since(late); d > patience/2 {
		s.Errorf("a canceled Receive took %v", d)
	}
	if d := s.take1(); d.Received != 1 && !s.o.NoReceived {
		s.Errorf("the canceled Receive took the message")
	}
}

// try receives once, for so long at most, and returns the moment before.
func (s *suite) try(d time.Duration) ([]queue.Delivery, time.Time) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), d)
	defer cancel()
	before := time.Now()
	ds, err := s.Receive(ctx, 1, nil)
	if err != nil && ctx.Err() == nil {
		s.Fatalf("Receive: %v", err)
	}
	return ds, before
}

var _ testing.TB = (*suite)(nil)
