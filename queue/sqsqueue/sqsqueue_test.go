package sqsqueue_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/queuetest"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// differs says where SQS differs from the contract: see the package's documentation. Polls
// hold messages a second longer than the visibility timeout, and all delays are rounded up.
var differs = queuetest.Options{NoPriorities: true, AllTypes: true, Delay: 1500 * time.Millisecond}

const visibility = 3 * time.Second

func TestConformanceOnTheFake(t *testing.T) {
	differs := differs
	differs.Bubble = true
	differs.Run(t, func(t *testing.T) queue.Queue {
		fake := sqsfake.New()
		q := newQueue(t, fake, "q", nil, sqsqueue.Options{Visibility: visibility})
		t.Cleanup(func() {
			fake.Close()
			if err := q.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		return q
	})
}

// newQueue makes a queue in the fake.
func newQueue(t testing.TB, fake *sqsfake.Fake, name string, attributes map[string]string, o sqsqueue.Options) *sqsqueue.Queue {
	t.Helper()
	url, err := fake.CreateQueue(name, attributes)
	if err != nil {
		t.Fatal(err)
	}
	return openQueue(t, fake, url, o)
}

func openQueue(t testing.TB, fake *sqsfake.Fake, url string, o sqsqueue.Options) *sqsqueue.Queue {
	t.Helper()
	if o.Client == nil {
		o.Client = fake.Client()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	q, err := sqsqueue.New(t.Context(), url, o)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// one is a message of one item, whose arguments are a number.
func one(jobType, entity string, n int) queue.Message {
	return queue.Message{Type: jobType, Items: []queue.Item{{Entity: entity, Args: json.RawMessage(fmt.Sprint(n))}}}
}

func argsOf(d queue.Delivery) string { return string(d.Items[0].Args) }

func send(t testing.TB, q queue.Sender, ms ...queue.Message) {
	t.Helper()
	if err := q.Send(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
}

// receive waits until there is something.
func receive(t testing.TB, q queue.Queue, max int) []queue.Delivery {
	t.Helper()
	for range 100 {
		ds, err := q.Receive(t.Context(), max, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(ds) > 0 {
			return ds
		}
	}
	t.Fatal("nothing comes")
	return nil
}

func ack(t testing.TB, q queue.Queue, ds ...queue.Delivery) {
	t.Helper()
	if err := q.Ack(t.Context(), ds...); err != nil {
		t.Fatal(err)
	}
}
