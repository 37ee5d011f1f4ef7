package sqsqueue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/sqspeer"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// graveyard is a queue, its dead-letter queue, and n messages in that.
func graveyard(t *testing.T, fake *sqsfake.Fake, suffix string, n int) (q, dead *sqsqueue.Queue) {
	dead = newQueue(t, fake, "dead"+suffix, nil, sqsqueue.Options{})
	q = newQueue(t, fake, "q"+suffix, map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead` + suffix + `","maxReceiveCount":"1"}`},
		sqsqueue.Options{Wait: time.Second})
	for i := range n {
		m := one("t", fmt.Sprint("e", i%4), i)
		m.Trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		send(t, q, m)
	}
	for {
		if visible, held, _ := fake.Count(dead.URL()); visible+held == n {
			if err := q.Close(t.Context()); err != nil { // else its last poll would take what comes back
				t.Fatal(err)
			}
			return q, dead
		}
		ds, err := q.Receive(t.Context(), 10, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Release(t.Context(), 0, ds...); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRedriveMovesAllDeadLettersBack(t *testing.T) {
	beside(t)
	for _, suffix := range []string{"", ".fifo"} {
		synctest.Test(t, func(t *testing.T) {
			fake := sqsfake.New()
			const n = 47
			q, dead := graveyard(t, fake, suffix, n)
			r := sqsqueue.Redrive{From: dead.URL(), Client: fake.Client()}

			r.DryRun = true
			state, err := r.Run(t.Context())
			if err != nil || state.Waiting != n || state.Moved != 0 || state.To != q.URL() || len(state.Sample) == 0 || !strings.Contains(state.Sample[0], `"type":"t"`) {
				t.Fatalf("a dry run: %+v, %v", state, err)
			}
			if visible, _, _ := fake.Count(dead.URL()); visible != n {
				t.Errorf("the dry run has left %d of %d", visible, n)
			}

			r.DryRun, r.Max = false, 12
			if state, err = r.Run(t.Context()); err != nil || state.Moved != 12 {
				t.Errorf("with a limit: %+v, %v", state, err)
			}
			r.Max = 0
			var told []int
			r.Progress = func(s sqsqueue.RedriveState) { told = append(told, s.Moved) }
			begun := time.Now()
			r.Rate = 5
			if state, err = r.Run(t.Context()); err != nil || state.Moved != n-12 || state.Left != 0 || !slices.IsSorted(told) || len(told) < 4 {
				t.Errorf("the rest: %+v, told %v, %v", state, told, err)
			}
			if took := time.Since(begun); took < 7*time.Second || took > 10*time.Second {
				t.Errorf("%d messages at 5 in a second took %v", n-12, took)
			}
			q = openQueue(t, fake, q.URL(), sqsqueue.Options{})
			seen := map[string]bool{}
			for len(seen) < n {
				for _, d := range receive(t, q, 10) {
					if seen[argsOf(d)] = true; d.Trace == "" || d.Received != 1 {
						t.Errorf("%+v", d)
					}
					ack(t, q, d)
				}
			}
			for _, q := range []*sqsqueue.Queue{q, dead} {
				if visible, held, _ := fake.Count(q.URL()); visible+held > 0 {
					t.Errorf("%s has %d left", q.URL(), visible+held)
				}
				if err := q.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestRedriveLosesNothingUnderFaultsAndWhenItIsStopped(t *testing.T) {
	beside(t)
	first := seedOf(t)
	for seed := first; seed < first+5; seed++ {
		synctest.Test(t, func(t *testing.T) {
			fake := sqsfake.New()
			const n = 60
			q, dead := graveyard(t, fake, "", n)
			r := sqsqueue.Redrive{From: dead.URL(), To: q.URL(), Client: fake.Client()}
			for try := range 1000 {
				fake.SetFaults(sqsfake.Faults{PartialFailures: 0.6, LostAnswers: 0.1, LostAcks: 0.1, LostReceives: 0.1, Seed: seed + uint64(try)})
				ctx, stop := context.WithCancel(t.Context())
				r.Progress = func(sqsqueue.RedriveState) {
					if try%3 == 0 {
						stop()
					}
				}
				_, _ = r.Run(ctx)
				stop()
				fake.Advance(3 * time.Minute)
				if visible, held, _ := fake.Count(dead.URL()); visible+held == 0 {
					break
				}
			}
			fake.SetFaults(sqsfake.Faults{})
			q = openQueue(t, fake, q.URL(), sqsqueue.Options{Wait: time.Second})
			seen := map[string]bool{}
			for len(seen) < n {
				for _, d := range receive(t, q, 10) {
					seen[argsOf(d)] = true
					ack(t, q, d)
				}
			}
			if err := errors.Join(q.Close(t.Context()), dead.Close(t.Context())); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRedriveRefusesWhatMakesNoSense(t *testing.T) {
	fake := sqsfake.New()
	client := fake.Client()
	var urls []string
	for _, name := range []string{"lonely", "q.fifo"} {
		url, err := fake.CreateQueue(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		urls = append(urls, url)
	}
	for _, c := range []struct{ from, to, says string }{
		{urls[0], "", "0 queues have " + urls[0] + " as their dead-letter queue"},
		{urls[0], urls[0], "into itself"},
		{urls[0], urls[1], "one of the queues is FIFO"},
		{"nowhere", urls[1], "there is no queue nowhere"},
		{urls[0], "nowhere", "there is no queue nowhere"},
	} {
		_, err := sqsqueue.Redrive{From: c.from, To: c.to, Client: client}.Run(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s to %s: %v, want %q", c.from, c.to, err, c.says)
		}
	}
}

// The peer knows neither move tasks nor whose dead letters these are.
func TestRedriveOnThePeer(t *testing.T) {
	t.Parallel()
	peer := sqspeer.Start(t)
	dead, q := peerQueue(t, peer, "dead", nil), peerQueue(t, peer, "q", nil)
	var ms []queue.Message
	for i := range 25 {
		ms = append(ms, one("t", "e", i))
	}
	send(t, dead, ms...)
	r := sqsqueue.Redrive{From: dead.URL(), Client: peerClient(peer)}
	if _, err := r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "say where its messages are to go") {
		t.Errorf("%v", err)
	}
	r.To = q.URL()
	if state, err := r.Run(t.Context()); err != nil || state.Moved != len(ms) {
		t.Errorf("%+v, %v", state, err)
	}
	for got := 0; got < len(ms); {
		ds := receive(t, q, 10)
		ack(t, q, ds...)
		got += len(ds)
	}
}
