package queuetest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// holding: who has a delivery has it alone, for the visibility timeout.
var holding = []promise{
	{"AMessageComesBackAfterTheVisibilityTimeoutAndNotBefore", comesBack},
	{"AMessageComesBackAgainAndAgainUntilAcknowledged", againAndAgain},
	{"NoTwoReceiversHoldAMessageAtATime", oneHolder},
	{"ExtendKeepsAMessage", extendKeeps},
	{"ExtendReportsWhatIsLostAndKeepsTheRest", extendReports},
	{"AReceiverThatDiesLosesNothing", dies},
}

func comesBack(s *suite) {
	s.send(msg("t", "e"))
	before := time.Now()
	first := s.take1()
	second := s.take1()
	// The hold began after before, so this holds on the busiest machine.
	if d := time.Since(before); d < s.Visibility() {
		s.Errorf("came back after %v, visibility is %v", d, s.Visibility())
	}
	if first.Receipt == second.Receipt {
		s.Errorf("both deliveries have the receipt %q", first.Receipt)
	}
	if second.Received != 2 && !s.o.NoReceived {
		s.Errorf("the second delivery says it was received %d times", second.Received)
	}
	s.ack(second)
}

func againAndAgain(s *suite) {
	s.send(msg("t", "e"))
	for i := 1; i <= 25; i++ {
		d := s.take1()
		if d.Items[0].Entity != "e" || d.Received != i && !s.o.NoReceived {
			s.Fatalf("delivery %d: %s", i, describe([]queue.Delivery{d}))
		}
		if i == 12 {
			continue // abandoned, for the visibility timeout
		}
		s.release(0, d)
	}
	s.ack(s.take1())
	s.none(s.Visibility() + s.o.Delay)
}

// Many receivers with nothing wrong, except that every so often one forgets what it
// has. A message may be received again only a visibility timeout later.
func oneHolder(s *suite) {
	const messages, receivers = 400, 8
	s.send(numbered(messages)...)
	ctx, cancel := context.WithTimeout(s.Context(), 2*patience)
	defer cancel()
	var mu sync.Mutex
	since := map[string]time.Time{} // entity → when its holder began to receive
	done := map[string]bool{}
	var wg sync.WaitGroup
	for r := range receivers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				before := time.Now()
				ds, err := s.Receive(ctx, 1+(r+i)%7, nil)
				if err != nil && ctx.Err() == nil {
					s.Errorf("Receive: %v", err)
					return
				}
				now := time.Now()
				mu.Lock()
				var ack []queue.Delivery
				for _, d := range ds {
					e := d.Items[0].Entity
					if at, ok := since[e]; ok && now.Sub(at) < s.Visibility() {
						s.Errorf("%s was received %v after the receive that holds it", e, now.Sub(at))
					}
					since[e] = before
					if d.Received > 1 || len(e)%2 == 1 && e[len(e)-1] != '7' {
						ack = append(ack, d)
					}
				}
				mu.Unlock()
				if err := s.Ack(ctx, ack...); err != nil && ctx.Err() == nil {
					s.Errorf("Ack: %v", err)
					return
				}
				mu.Lock()
				for _, d := range ack {
					done[d.Items[0].Entity] = true
				}
				if len(done) == messages {
					cancel()
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(done) != messages {
		s.Errorf("%d of %d messages were delivered and acknowledged", len(done), messages)
	}
}

func extendKeeps(s *suite) {
	s.timely(func() bool {
		s.send(msg("t", "e"))
		last := time.Now()
		d := s.take1()
		for end := time.Now().Add(2 * s.Visibility()); time.Now().Before(end); {
			ctx, cancel := context.WithTimeout(s.Context(), s.Visibility()/4)
			ds, err := s.Receive(ctx, 1, nil)
			cancel()
			if err != nil && ctx.Err() == nil {
				s.Fatalf("Receive: %v", err)
			}
			if time.Since(last) >= s.Visibility() {
				return false
			}
			if len(ds) > 0 {
				s.Fatalf("received %s, which is held and extended", describe(ds))
			}
			last = time.Now()
			s.held(d)
		}
		s.ack(d)
		return true
	})
	s.none(s.Visibility() + s.o.Delay)
}

func extendReports(s *suite) {
	s.timely(func() bool {
		s.send(numbered(4)...)
		before := time.Now()
		ds := s.take(4)
		acked, lost, kept := ds[0], ds[1], ds[2:]
		s.ack(acked)
		s.release(0, lost)
		s.ack(s.take1())
		got := s.extend(ds...)
		if time.Since(before) >= s.Visibility() {
			return false
		}
		slices.Sort(got)
		if want := receipts(acked, lost); !slices.Equal(got, want) {
			s.Errorf("lost are %q, expected the acknowledged and the released one: %q", got, want)
		}
		s.ack(kept...)
		return true
	})
	s.none(s.Visibility() + s.o.Delay)
}

func dies(s *suite) {
	s.send(numbered(20)...)
	s.take(20)
	ds := s.take(20)
	s.ack(ds...)
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("e%04d", i))
	}
	if got := entities(ds); !slices.Equal(got, want) {
		s.Errorf("came back: %v", got)
	}
}
