package sqsqueue_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// wide is a pack of n items of that many bytes each.
func wide(n, bytes int) queue.Message {
	m := queue.Message{Type: "t", Run: 7, Pack: 3}
	for i := range n {
		m.Items = append(m.Items, queue.Item{Entity: fmt.Sprintf("e%04d", i), Args: json.RawMessage(`"` + strings.Repeat("x", bytes-2) + `"`)})
	}
	return m
}

func TestAPackThatDoesNotFitIsSplit(t *testing.T) {
	bubble(t, "q", map[string]string{"MaximumMessageSize": "10000"}, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, wide(100, 900))
		seen := map[string]bool{}
		for len(seen) < 100 {
			for _, d := range receive(t, q, 10) {
				if d.Run != 7 || d.Pack != 3 {
					t.Errorf("run %d, pack %d", d.Run, d.Pack)
				}
				for _, it := range d.Items {
					if seen[it.Entity] || len(it.Args) != 900 {
						t.Errorf("%s came twice, or changed", it.Entity)
					}
					seen[it.Entity] = true
				}
				ack(t, q, d)
			}
		}
	})
}

func TestAnItemThatCanNeverFitIsRefusedWithItsSizeAndAllOfItsSend(t *testing.T) {
	bubble(t, "q", map[string]string{"MaximumMessageSize": "10000"}, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		m := wide(3, 100)
		m.Items[1] = wide(1, 20000).Items[0]
		err := q.Send(t.Context(), one("t", "before", 1), m)
		if !errors.Is(err, queue.ErrInvalid) || !strings.Contains(err.Error(), `"e0000" takes 20054 bytes as a message, and the queue takes 10000`) {
			t.Errorf("%v", err)
		}
		if visible, _, _ := fake.Count(q.URL()); visible != 0 {
			t.Errorf("%d are sent all the same", visible)
		}
	})
}

func TestBatchesAreWithinTheLimitOfAllTheirBytes(t *testing.T) {
	beside(t)
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		var ms []queue.Message
		for range 12 {
			ms = append(ms, wide(12, queue.MaxArgs-100)) // 768 KiB each
		}
		for range 25 {
			ms = append(ms, wide(1, 100))
		}
		send(t, q, ms...) // the fake refuses a batch of more than 1 MiB
		if visible, _, _ := fake.Count(q.URL()); visible != len(ms) {
			t.Errorf("%d of %d are sent", visible, len(ms))
		}
	})
}

func TestADelayThatSQSCannotKeepIsRefusedAndSaysWhereItCanBeKept(t *testing.T) {
	bubble(t, "q.fifo", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, fifo *sqsqueue.Queue) {
		standard := newQueue(t, fake, "q", nil, sqsqueue.Options{})
		for _, c := range []struct {
			to    queue.Sender
			delay time.Duration
			says  string
		}{
			{standard, 15*time.Minute + time.Second, "allowed are 15 minutes; send it through the Postgres queue"},
			{fifo, time.Second, "a FIFO queue can delay no single message; send it through the Postgres queue"},
		} {
			err := queue.After(c.to, c.delay).Send(t.Context(), one("t", "e", 1))
			if !errors.Is(err, sqsqueue.ErrDelay) || errors.Is(err, queue.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v: %v", c.delay, err)
			}
		}
		before := time.Now()
		send(t, queue.After(standard, 15*time.Minute), one("t", "e", 1))
		receive(t, standard, 1)
		if d := time.Since(before); d != 15*time.Minute {
			t.Errorf("delayed by %v", d)
		}
		if err := standard.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestTheTraceTravelsAsAnAttribute(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		m := one("t", "e", 1)
		m.Trace = trace
		send(t, q, m)
		out, err := fake.Client().ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: new(q.URL()), MessageAttributeNames: []string{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		if a := out.Messages[0].MessageAttributes["traceparent"]; a.StringValue == nil || *a.StringValue != trace || strings.Contains(*out.Messages[0].Body, trace) {
			t.Errorf("%+v in %s", a, *out.Messages[0].Body)
		}
		// And in, from whoever wrote it.
		_, err = fake.Client().SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: new(q.URL()), MessageBody: new(`{"type":"t","entity":"foreign","args":{}}`),
			MessageAttributes: map[string]types.MessageAttributeValue{"traceparent": {DataType: new("String"), StringValue: new(trace)}}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			d := receive(t, q, 1)[0]
			if d.Trace != trace {
				t.Errorf("%s has the trace %q", d.Items[0].Entity, d.Trace)
			}
			ack(t, q, d)
		}
	})
}
