package queuetest

import (
	"slices"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
)

// settling: how a delivery ends, and that only its holder can end it.
var settling = []promise{
	{"AnAcknowledgedMessageIsGoneForGood", gone},
	{"AcknowledgingOneLeavesItsNeighbours", neighbours},
	{"DeliveriesOfSeveralReceivesSettleTogether", together},
	{"ALateAckChangesNothingAndIsNoError", lateAck},
	{"ALateReleaseChangesNothingAndIsNoError", lateRelease},
	{"AStaleReceiptDoesNotActForTheNewOneOfTheSameReceiver", staleBesideFresh},
	{"AReleasedMessageIsBackAtOnce", releasedNow},
	{"AMessageReleasedWithADelayComesAfterItAndNotBefore", releasedLater},
}

func gone(s *suite) {
	s.send(msg("t", "e"))
	d := s.take1()
	s.ack(d)
	s.ack(d) // again, as one whose first answer was lost would
	s.release(0, d)
	if lost := s.extend(d); !slices.Equal(lost, []string{d.Receipt}) {
		s.Errorf("extending an acknowledged message lost %q", lost)
	}
	s.none(s.Visibility() + s.o.Delay)
}

func neighbours(s *suite) {
	s.send(numbered(10)...)
	ds := s.take(10)
	s.ack(ds[3], ds[7])
	rest := s.take(8)
	for _, d := range []queue.Delivery{ds[3], ds[7]} {
		if slices.Contains(entities(rest), d.Items[0].Entity) {
			s.Errorf("%s was acknowledged and came back", d.Items[0].Entity)
		}
	}
	s.ack(rest...)
	s.none(s.Visibility() + s.o.Delay)
}

func together(s *suite) {
	s.timely(func() bool {
		s.send(numbered(12)...)
		before := time.Now()
		var ds []queue.Delivery
		for i := range 6 {
			ds = append(ds, s.take(1+i%3)...)
		}
		slices.Reverse(ds)
		s.ack(ds...)
		return time.Since(before) < s.Visibility()
	})
	s.none(s.Visibility() + s.o.Delay)
}

// lose returns a delivery that was lost to the visibility timeout, and the one that
// replaced it.
func (s *suite) lose() (late, held queue.Delivery) {
	s.send(msg("t", "e"))
	return s.take1(), s.take1()
}

func lateAck(s *suite) {
	late, held := s.lose()
	s.held(held)
	s.ack(late)
	s.held(held)
	again := s.take1()
	if again.Items[0].Entity != "e" {
		s.Errorf("received %s", describe([]queue.Delivery{again}))
	}
	s.ack(again)
}

func lateRelease(s *suite) {
	s.timely(func() bool {
		late, held := s.lose()
		since := time.Now()
		s.held(held)
		s.release(0, late)
		ds, _ := s.try(s.Visibility() / 2)
		if time.Since(since) >= s.Visibility() {
			return false
		}
		if len(ds) > 0 {
			s.Errorf("a late Release made a message visible that somebody else holds")
		}
		s.release(time.Hour, late)
		s.held(held)
		s.ack(held)
		return true
	})
}

// One process may lose a message and receive it again beside others. Its receipts
// are then told apart message by message.
func staleBesideFresh(s *suite) {
	stale, fresh := s.lose()
	s.send(msg("t", "other"))
	other := s.takeOf("other")
	s.ack(stale, other)
	if again := s.takeOf("e"); again.Receipt == fresh.Receipt {
		s.Errorf("two deliveries with the receipt %q", fresh.Receipt)
	}
}

// takeOf receives until a message on the entity comes, and leaves the others to time out.
func (s *suite) takeOf(entity string) queue.Delivery {
	s.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if d := s.take1(); d.Items[0].Entity == entity {
			return d
		}
	}
	s.Fatalf("nothing came for %s", entity)
	panic("unreachable")
}

func releasedNow(s *suite) {
	s.timely(func() bool {
		s.send(msg("t", "e"))
		before := time.Now()
		d := s.take1()
		held := time.Now()
		s.release(0, d)
		s.ack(s.take1())
		if time.Since(held) < s.Visibility() {
			return true
		}
		if time.Since(before) < 2*s.Visibility() {
			s.Logf("came back only after %v, which may be the visibility timeout's doing", time.Since(held))
		}
		return false
	})
}

func releasedLater(s *suite) {
	s.send(numbered(3)...)
	ds := s.take(3)
	before := time.Now()
	s.release(s.o.Delay, ds[0], ds[1])
	s.ack(ds[2])
	back := s.take(2)
	if d := time.Since(before); d < s.o.Delay {
		s.Errorf("released with a delay of %v, came back after %v", s.o.Delay, d)
	}
	if want := entities(ds[:2]); !slices.Equal(entities(back), want) {
		s.Errorf("came back: %v, expected %v", entities(back), want)
	}
	before = time.Now()
	s.release(s.Visibility()*2, back[0])
	s.ack(back[1])
	long := s.take1()
	if d := time.Since(before); d < s.Visibility()*2-s.Visibility()/2 {
		s.Errorf("released for %v, came back after %v", s.Visibility()*2, d)
	}
	s.ack(long)
}
