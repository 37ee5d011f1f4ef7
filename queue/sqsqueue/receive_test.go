package sqsqueue_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// The queue's own times, in bubbles: hours pass in no time, and to the nanosecond.

// bubble runs a test with a queue in a fake, in a bubble.
func bubble(t *testing.T, name string, attributes map[string]string, o sqsqueue.Options, test func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := sqsfake.New()
		q := newQueue(t, fake, name, attributes, o)
		test(t, fake, q)
		fake.Close()
		if err := q.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestAPollOutlivesItsReceiveAndServesTheNext(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			ds, err := q.Receive(ctx, 3, nil)
			cancel()
			if len(ds) > 0 || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("%v, %v", ds, err)
			}
		}
		send(t, q, one("t", "e", 1))
		if ds := receive(t, q, 3); ds[0].Received != 1 {
			t.Errorf("received %d times: a canceled Receive has taken it", ds[0].Received)
		}
		if n := fake.Calls("ReceiveMessage"); n != 1 {
			t.Errorf("%d polls, want the one that was there", n)
		}
	})
}

func TestWhatAPollBringsWhenNobodyReceivesIsReleasedAtOnce(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		other := openQueue(t, fake, q.URL(), sqsqueue.Options{})
		ctx, stop := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); stop() }()
		if _, err := q.Receive(ctx, 10, nil); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		send(t, q, one("t", "e", 1)) // the poll that nobody waits for takes it
		sent := time.Now()
		receive(t, other, 10)
		if took := time.Since(sent); took > 2*time.Second {
			t.Errorf("others got it after %v, its visibility is %v", took, q.Visibility())
		}
		if err := other.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseWaitsForTheLastPollAndReleasesWhatItBrings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := sqsfake.New()
		q := newQueue(t, fake, "q", nil, sqsqueue.Options{})
		ctx, stop := context.WithCancel(t.Context())
		var receiving sync.WaitGroup
		receiving.Go(func() { _, _ = q.Receive(ctx, 10, nil) })
		time.Sleep(5 * time.Second)
		stop()
		receiving.Wait()
		closing := time.Now()
		go func() { time.Sleep(3 * time.Second); send(t, q, one("t", "e", 1)) }()
		if err := q.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(closing); took > 4*time.Second {
			t.Errorf("it took %v, though the poll had ended", took)
		}
		if visible, held, _ := fake.Count(q.URL()); visible != 1 || held != 0 {
			t.Errorf("%d visible, %d held, want it released", visible, held)
		}
		if _, err := q.Receive(t.Context(), 1, nil); !errors.Is(err, sqsqueue.ErrClosed) {
			t.Errorf("Receive on a closed queue: %v", err)
		}
		// With nothing to bring, a poll takes its time, and no more.
		q = openQueue(t, fake, q.URL(), sqsqueue.Options{Wait: 5 * time.Second})
		receive(t, q, 1)
		canceled, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = q.Receive(canceled, 1, nil)
		closing = time.Now()
		if err := q.Close(t.Context()); err != nil || time.Since(closing) > 4*time.Second {
			t.Errorf("%v after %v", err, time.Since(closing))
		}
		fake.Close()
	})
}

// A worker that has stopped leaves polls behind. They are no reason to leave messages behind.
func TestDrainWaitsForTheLastPollAndReleasesWhatItBrings(t *testing.T) {
	for _, suffix := range []string{"", ".fifo"} {
		bubble(t, "q"+suffix, nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
			ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
			defer stop()
			if ds, err := q.Receive(ctx, 10, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(ds, err)
			}
			draining := time.Now()
			var sender sync.WaitGroup
			sender.Go(func() { time.Sleep(3 * time.Second); send(t, q, one("t", "e", 1), one("t", "e", 2)) })
			if err := q.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(draining); took != 3*time.Second {
				t.Errorf("it took %v", took)
			}
			sender.Wait()
			if visible, held, _ := fake.Count(q.URL()); visible != 2 || held != 0 {
				t.Errorf("%d visible, %d held, want both released", visible, held)
			}
			ack(t, q, receive(t, q, 10)...) // it is not closed
		})
	}
}

func TestDrainLeavesThePollsToWhoReceives(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		var other sync.WaitGroup
		other.Go(func() { ack(t, q, receive(t, q, 10)...) })
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, _ = q.Receive(ctx, 10, nil)
		draining := time.Now()
		if err := q.Drain(t.Context()); err != nil || time.Since(draining) > 0 {
			t.Errorf("%v, after %v", err, time.Since(draining))
		}
		send(t, q, one("t", "e", 1))
		other.Wait()
		if n := fake.Calls("ChangeMessageVisibilityBatch"); n > 0 {
			t.Error("what somebody waits for was released")
		}
		ctx, stop = context.WithTimeout(t.Context(), time.Second)
		defer stop()
		_, _ = q.Receive(ctx, 10, nil)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.Drain(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while nothing comes: %v", err)
		}
	})
}

func TestCloseGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := sqsfake.New()
		q := newQueue(t, fake, "q", nil, sqsqueue.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _ = q.Receive(ctx, 1, nil)
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := q.Close(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		fake.Close()
	})
}

func TestAnIdleQueueCostsThreeRequestsAMinuteHoweverManySlotsAreFree(t *testing.T) {
	beside(t)
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		var ms []queue.Message
		for i := range 500 { // a burst, that more polls bring in
			ms = append(ms, one("t", "e", i))
		}
		send(t, q, ms...)
		for got := 0; got < len(ms); {
			ds := receive(t, q, 1000)
			ack(t, q, ds...)
			got += len(ds)
		}
		time.Sleep(time.Minute)
		burst := fake.Calls("ReceiveMessage")
		for end := time.Now().Add(time.Hour); time.Now().Before(end); {
			if ds, err := q.Receive(t.Context(), 1000, nil); len(ds) > 0 || err != nil {
				t.Fatal(ds, err)
			}
		}
		if n := fake.Calls("ReceiveMessage") - burst; n > 181+10 {
			t.Errorf("%d requests in an hour, want 180", n)
		}
	})
}

func TestThereAreAsManyPollsAsFreeSlotsNeedAndNoMore(t *testing.T) {
	beside(t)
	bubble(t, "q", nil, sqsqueue.Options{Polls: 4}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		var ms []queue.Message
		for i := range 1000 {
			ms = append(ms, one("t", "e", i))
		}
		send(t, q, ms...)
		for got := 0; got < 1000; {
			ds := receive(t, q, 25)
			if len(ds) > 25 {
				t.Fatalf("received %d of 25", len(ds))
			}
			if _, held, _ := fake.Count(q.URL()); held > 25+got {
				t.Errorf("%d are held, %d were handed out: they can not all start", held, got+len(ds))
			}
			got += len(ds)
		}
		if n := fake.Calls("ReceiveMessage"); n > 200 {
			t.Errorf("%d requests for 1000 messages", n)
		}
	})
}

// A worker with slow jobs asks seldom, for many, and takes what it gets. What was brought for
// it does not go back and forth meanwhile.
func TestWhatIsReceivedForASlowWorkerIsReceivedOnce(t *testing.T) {
	beside(t)
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		fake.SetFaults(sqsfake.Faults{Slow: 30 * time.Millisecond})
		var ms []queue.Message
		for i := range 500 {
			ms = append(ms, one("t", "e", i))
		}
		send(t, q, ms...)
		again, calls := 0, 0
		for got := 0; got < len(ms); calls++ {
			ds := receive(t, q, 49)
			for _, d := range ds {
				if d.Received > 1 {
					again++
				}
			}
			got += len(ds)
			ack(t, q, ds...)
			time.Sleep(20 * time.Second) // no room
		}
		if again > 25 || calls > 20 {
			t.Errorf("%d of %d messages were given back and received again, in %d receives", again, len(ms), calls)
		}
	})
}

// One Receive waits for more than has come, and another one takes that. What comes then is no
// less in time.
func TestWhatComesAfterAnotherReceiveHasTakenTheFirstIsReceivedInTime(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, _ *sqsfake.Fake, q *sqsqueue.Queue) {
		ten := func() (ms []queue.Message) {
			for i := range 10 {
				ms = append(ms, one("t", "e", i))
			}
			return ms
		}
		var sent time.Time
		var slow sync.WaitGroup
		slow.Go(func() {
			ds := receive(t, q, 100)
			if took := time.Since(sent); len(ds) != 10 || took > time.Second {
				t.Errorf("received %d after %v", len(ds), took)
			}
			ack(t, q, ds...)
		})
		time.Sleep(time.Second)
		send(t, q, ten()...)
		synctest.Wait() // they are there, and further polls wait
		ack(t, q, receive(t, q, 10)...)
		time.Sleep(time.Second)
		sent = time.Now()
		send(t, q, ten()...)
		slow.Wait()
	})
}

func TestAMessageIsHeldForTwelveHoursAtMost(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{Visibility: time.Hour}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "e", 1))
		d := receive(t, q, 1)[0]
		begun := time.Now()
		for {
			time.Sleep(20 * time.Minute)
			lost, err := q.Extend(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if len(lost) > 0 {
				break
			}
		}
		if took := time.Since(begun); took != 12*time.Hour {
			t.Errorf("it was lost after %v", took)
		}
		if again := receive(t, q, 1)[0]; again.Received != 2 {
			t.Errorf("received %d times", again.Received)
		}
	})
}

func TestAMessageThatIsReleasedAgainAndAgainComesLaterEachTime(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		pause := func(after time.Duration) time.Duration {
			d := receive(t, q, 1)[0]
			if err := q.Release(t.Context(), after, d); err != nil {
				t.Fatal(err)
			}
			released := time.Now()
			d = receive(t, q, 1)[0]
			defer func() {
				if err := q.Release(t.Context(), 0, d); err != nil {
					t.Fatal(err)
				}
			}()
			return time.Since(released)
		}
		send(t, q, one("t", "errors", 1))
		var pauses []time.Duration
		for range 6 {
			pauses = append(pauses, pause(time.Second))
		}
		if pauses[0] > 3*time.Second || pauses[1] <= pauses[0] || pauses[5] < 30*time.Second || pauses[5] > time.Minute {
			t.Errorf("released for a second after errors, it came after %v", pauses)
		}
		// And one that is thrown back at once does so only some times.
		for range 20 {
			pause(0)
		}
		if p := pause(0); p < time.Second {
			t.Errorf("after more than thirty deliveries it comes after %v", p)
		}
	})
}

func TestExtendReportsWhatItCouldNotExtend(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		var ms []queue.Message
		for i := range 35 {
			ms = append(ms, one("t", "e", i))
		}
		send(t, q, ms...)
		var ds []queue.Delivery
		for len(ds) < len(ms) {
			ds = append(ds, receive(t, q, len(ms)-len(ds))...)
		}
		fake.SetFaults(sqsfake.Faults{PartialFailures: 1})
		if lost, err := q.Extend(t.Context(), ds...); err == nil || len(lost) > 0 {
			t.Errorf("lost %v, %v: SQS's own failure loses nothing, and is an error", lost, err)
		}
		fake.SetFaults(sqsfake.Faults{PartialFailures: 0.2})
		if lost, err := q.Extend(t.Context(), ds...); err != nil || len(lost) > 0 {
			t.Errorf("lost %v, %v: a few failures are tried again", lost, err)
		}
		fake.SetFaults(sqsfake.Faults{})
		fake.Advance(time.Minute)
		if lost, err := q.Extend(t.Context(), ds...); err != nil || len(lost) != len(ds) {
			t.Errorf("lost %d of %d, %v: their visibility has ended", len(lost), len(ds), err)
		}
	})
}
