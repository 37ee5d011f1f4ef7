package sqsqueue_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// seedOf is a seed of random choices: ONCEMORE_SEED repeats them.
func seedOf(t testing.TB) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("ONCEMORE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ONCEMORE_SEED=%d", seed)
	return seed
}

// Whatever SQS does, each message is worked and acknowledged in the end, and the queue is
// empty then. The consumers do as a worker: they remember what is done, extend what they
// hold, and acknowledge it; now and then one forgets what it has.
func TestNothingIsLostAndNothingIsLeftUnderEachFault(t *testing.T) {
	beside(t)
	for name, faults := range map[string]sqsfake.Faults{
		"none":               {},
		"partial failures":   {PartialFailures: 0.3},
		"throttling":         {Throttled: 0.2},
		"lost answers":       {LostAnswers: 0.1},
		"lost receives":      {LostReceives: 0.2},
		"duplicates":         {Duplicates: 0.3},
		"lost acks":          {LostAcks: 0.3},
		"expired handles":    {ExpiredHandles: 0.3},
		"delayed redelivery": {DelayedRedelivery: time.Minute},
		"slow answers":       {Slow: 15 * time.Second},
		"all of it":          {PartialFailures: 0.1, Throttled: 0.05, LostAnswers: 0.05, LostReceives: 0.05, Duplicates: 0.1, LostAcks: 0.1, ExpiredHandles: 0.05, DelayedRedelivery: 10 * time.Second, Slow: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			faults.Seed = seedOf(t)
			for _, fifo := range []string{"", ".fifo"} {
				bubble(t, "q"+fifo, nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
					consume(t, fake, q, faults)
				})
			}
		})
	}
}

func consume(t *testing.T, fake *sqsfake.Fake, producer *sqsqueue.Queue, faults sqsfake.Faults) {
	const consumers = 3
	messages := 60
	if os.Getenv("ONCEMORE_FULL") == "1" {
		messages = 600
	}
	var qs []*sqsqueue.Queue
	for range consumers {
		qs = append(qs, openQueue(t, fake, producer.URL(), sqsqueue.Options{}))
	}
	fake.SetFaults(faults)
	for i := range messages {
		for { // an error may mean that it is sent: sending again is right
			if producer.Send(t.Context(), one("t", strconv.Itoa(i%31), i)) == nil {
				break
			}
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 24*time.Hour)
	defer stop()
	var mu sync.Mutex
	done := map[string]bool{}
	empty := func() bool {
		visible, held, delayed := fake.Count(producer.URL())
		return visible+held+delayed == 0
	}
	var running sync.WaitGroup
	for c, q := range qs {
		running.Go(func() {
			random := rand.New(rand.NewPCG(faults.Seed, uint64(c)))
			for ctx.Err() == nil && !empty() {
				ds, err := q.Receive(ctx, 1+random.IntN(50), nil)
				if err != nil {
					continue
				}
				if random.IntN(10) == 0 {
					continue // it dies
				}
				time.Sleep(time.Duration(random.IntN(9)) * time.Second)
				lost, err := q.Extend(ctx, ds...)
				if err == nil && len(lost) > len(ds) {
					t.Errorf("lost %d of %d", len(lost), len(ds))
				}
				mu.Lock()
				for _, d := range ds {
					done[argsOf(d)] = true
				}
				mu.Unlock()
				_ = q.Ack(ctx, ds...)
			}
			if err := q.Close(context.WithoutCancel(ctx)); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	if len(done) != messages {
		t.Errorf("%d of %d messages were worked", len(done), messages)
	}
	if !empty() {
		t.Error("messages are left after a day")
	}
}

func TestADeleteThatSQSRefusesByItsOwnFaultIsTriedAgain(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		var ms []queue.Message
		for i := range 100 {
			ms = append(ms, one("t", "e", i))
		}
		send(t, q, ms...)
		var ds []queue.Delivery
		for len(ds) < len(ms) {
			ds = append(ds, receive(t, q, len(ms)-len(ds))...)
		}
		fake.SetFaults(sqsfake.Faults{PartialFailures: 0.05, Seed: 1})
		ack(t, q, ds...)
		if _, held, _ := fake.Count(q.URL()); held != 0 {
			t.Errorf("%d are left", held)
		}
		if n := fake.Calls("DeleteMessageBatch"); n <= 10 || n > 20 {
			t.Errorf("%d calls for 100 messages of which some were refused", n)
		}
	})
}
