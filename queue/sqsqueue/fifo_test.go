package sqsqueue_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

func numbers(ds []queue.Delivery) (out []string) {
	for _, d := range ds {
		out = append(out, d.Items[0].Entity+argsOf(d))
	}
	return out
}

func TestAGroupIsSerialAndGroupsAreNot(t *testing.T) {
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "a", 1), one("t", "a", 2), one("t", "b", 1), one("t", "a", 3), one("t", "b", 2))
		first := receive(t, q, 10)
		if got := numbers(first); !slices.Equal(got, []string{"a1", "b1"}) {
			t.Fatalf("received %v", got)
		}
		ack(t, q, first[0])
		if got := numbers(receive(t, q, 10)); !slices.Equal(got, []string{"a2"}) {
			t.Fatalf("after a1: %v", got)
		}
		ack(t, q, first[1])
		if got := numbers(receive(t, q, 10)); !slices.Equal(got, []string{"b2"}) {
			t.Fatalf("after b1: %v", got)
		}
	})
}

func TestAGroupStopsAtAReleaseAndBeginsAnewFromThere(t *testing.T) {
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		for i := 1; i <= 25; i++ { // the rest of it does not fit into one batch
			send(t, q, one("t", "a", i))
		}
		ack(t, q, receive(t, q, 10)...)
		d := receive(t, q, 10)
		if err := q.Release(t.Context(), 5*time.Second, d...); err != nil {
			t.Fatal(err)
		}
		released := time.Now()
		for i := 2; i <= 25; i++ {
			ds := receive(t, q, 10)
			if got := numbers(ds); !slices.Equal(got, []string{fmt.Sprint("a", i)}) {
				t.Fatalf("received %v, want a%d", got, i)
			}
			if i == 2 && time.Since(released) < 5*time.Second {
				t.Errorf("it came after %v", time.Since(released))
			}
			ack(t, q, ds...)
		}
		if took := time.Since(released); took > 10*time.Second {
			t.Errorf("the rest came after %v, visibility is %v", took, q.Visibility())
		}
	})
}

func TestAGroupOfAHolderThatDiedBeginsAnew(t *testing.T) {
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "a", 1), one("t", "a", 2), one("t", "a", 3))
		late := receive(t, q, 10) // and nothing more is heard of it
		for i := 1; i <= 3; i++ {
			ds := receive(t, q, 10)
			if got := numbers(ds); !slices.Equal(got, []string{fmt.Sprint("a", i)}) {
				t.Fatalf("received %v, want a%d", got, i)
			}
			ack(t, q, ds...)
			ack(t, q, late...) // of no consequence
		}
	})
}

// Somebody else has had it meanwhile, and was done with it. What waits here must not block
// the group for as long as its visibility.
func TestWhatWaitsInAGroupIsReleasedWhenItsHeadIsLost(t *testing.T) {
	for name, find := range map[string]func(*testing.T, *sqsqueue.Queue, queue.Delivery){
		"by extending": func(t *testing.T, q *sqsqueue.Queue, head queue.Delivery) {
			if lost, err := q.Extend(t.Context(), head); len(lost) != 1 || err != nil {
				t.Fatal(lost, err)
			}
		},
		"by acknowledging": func(t *testing.T, q *sqsqueue.Queue, head queue.Delivery) { ack(t, q, head) },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
				send(t, q, one("t", "a", 1), one("t", "a", 2), one("t", "a", 3))
				head := receive(t, q, 10)[0]
				handle := strings.Fields(head.Receipt)[2]
				if _, err := fake.Client().DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: new(q.URL()), ReceiptHandle: &handle}); err != nil {
					t.Fatal(err)
				}
				find(t, q, head)
				found := time.Now()
				for i := 2; i <= 3; i++ {
					ds := receive(t, q, 10)
					if got := numbers(ds); !slices.Equal(got, []string{fmt.Sprint("a", i)}) {
						t.Fatalf("received %v, want a%d", got, i)
					}
					ack(t, q, ds...)
				}
				if took := time.Since(found); took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// Nobody else can have it: what waits here blocks the group. So it begins anew at once.
func TestAGroupBeginsAnewWhenAnAckFindsThatItsHeadHasExpired(t *testing.T) {
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "a", 1), one("t", "a", 2), one("t", "a", 3))
		head := receive(t, q, 10)
		handle := strings.Fields(head[0].Receipt)[2]
		if _, err := fake.Client().ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: new(q.URL()), ReceiptHandle: &handle, VisibilityTimeout: 1}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		ack(t, q, head...)
		late := time.Now()
		for i := 1; i <= 3; i++ {
			ds := receive(t, q, 10)
			if got := numbers(ds); !slices.Equal(got, []string{fmt.Sprint("a", i)}) {
				t.Fatalf("received %v, want a%d", got, i)
			}
			ack(t, q, ds...)
		}
		if took := time.Since(late); took > 5*time.Second {
			t.Errorf("it took %v, visibility is %v", took, q.Visibility())
		}
	})
}

func TestWhatWaitsInAGroupIsExtendedWithItsHead(t *testing.T) {
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "a", 1), one("t", "a", 2))
		head := receive(t, q, 10)
		for range 30 {
			time.Sleep(q.Visibility() / 3)
			if lost, err := q.Extend(t.Context(), head...); len(lost) > 0 || err != nil {
				t.Fatal(lost, err)
			}
		}
		ack(t, q, head...)
		next := receive(t, q, 10)
		if got := numbers(next); !slices.Equal(got, []string{"a2"}) || next[0].Received != 1 {
			t.Errorf("received %v, %d times", got, next[0].Received)
		}
		if lost, err := q.Extend(t.Context(), next...); len(lost) > 0 || err != nil {
			t.Errorf("it is not held any more: %v, %v", lost, err)
		}
	})
}

func TestTheSameWorkSentTwiceIsTwoMessages(t *testing.T) {
	bubble(t, "q.fifo", map[string]string{"ContentBasedDeduplication": "true"}, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "a", 1))
		send(t, q, one("t", "a", 1))
		if visible, _, _ := fake.Count(q.URL()); visible != 2 {
			t.Errorf("%d messages: SQS has swallowed what was asked for again on purpose", visible)
		}
	})
}

// SQS may refuse one entry of a batch and take those behind it.
func TestWhatIsSentToAGroupIsInOrderWhateverSQSRefuses(t *testing.T) {
	beside(t)
	seed := seedOf(t)
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		fake.SetFaults(sqsfake.Faults{PartialFailures: 0.1, LostAnswers: 0.1, Seed: seed})
		var ms []queue.Message
		for i := 1; i <= 60; i++ {
			ms = append(ms, one("t", fmt.Sprint("g", i%3), i))
		}
		for q.Send(t.Context(), ms...) != nil { // what is sent twice is in order each time
		}
		fake.SetFaults(sqsfake.Faults{})
		last := map[string]int{"g1": -2, "g2": -1}
		for seen := 0; seen < 60; {
			for _, d := range receive(t, q, 10) {
				n, _ := strconv.Atoi(argsOf(d))
				if was := last[d.Items[0].Entity]; n > was {
					if n != was+3 {
						t.Fatalf("%d after %d", n, was)
					}
					last[d.Items[0].Entity] = n
					seen++
				}
				ack(t, q, d)
			}
		}
	})
}

func TestAGroupIsNamedByTheCaller(t *testing.T) {
	o := sqsqueue.Options{Group: func(m queue.Message) string { return m.Items[0].Entity }}
	bubble(t, "q.fifo", nil, o, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		if err := q.Send(t.Context(), one("t", "not allowed", 1)); err == nil {
			t.Error("a group with a space")
		}
		send(t, q, one("t", "a", 1), one("u", "a", 2))
		if got := numbers(receive(t, q, 10)); !slices.Equal(got, []string{"a1"}) {
			t.Errorf("received %v: both are of the group a", got)
		}
	})
}

// Several consumers fail, die and are slow now and then. In each group a message is worked
// to its end only after all those before it.
func TestGroupsStayInOrderWhateverHappens(t *testing.T) {
	beside(t)
	const groups, each = 7, 40
	seed := seedOf(t)
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, first *sqsqueue.Queue) {
		for i := 1; i <= each; i++ {
			for g := range groups {
				send(t, first, one("t", fmt.Sprint("g", g), i))
			}
		}
		var qs []*sqsqueue.Queue
		for range 3 {
			qs = append(qs, openQueue(t, fake, first.URL(), sqsqueue.Options{}))
		}
		fake.SetFaults(sqsfake.Faults{PartialFailures: 0.05, Throttled: 0.05, LostReceives: 0.03, DelayedRedelivery: 3 * time.Second, Seed: seed})
		var mu sync.Mutex
		done := map[string]int{}
		left := groups * each
		var consumers sync.WaitGroup
		for c, q := range qs {
			consumers.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(c)))
				for {
					mu.Lock()
					over := left == 0
					mu.Unlock()
					if over {
						break
					}
					ds, err := q.Receive(t.Context(), 1+random.IntN(20), nil)
					if err != nil {
						continue // a throttle that outlasted the SDK's tries
					}
					for _, d := range ds {
						switch random.IntN(12) {
						case 0: // it dies
							continue
						case 1:
							_ = q.Release(t.Context(), time.Duration(random.IntN(3))*time.Second, d)
							continue
						}
						n, _ := strconv.Atoi(argsOf(d))
						mu.Lock()
						last := done[d.Items[0].Entity]
						if n > last+1 {
							t.Errorf("%s: %d after %d", d.Items[0].Entity, n, last)
						}
						if n == last+1 {
							done[d.Items[0].Entity] = n
							left--
						}
						mu.Unlock()
						_ = q.Ack(t.Context(), d)
					}
				}
				if err := q.Close(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		consumers.Wait()
	})
}
