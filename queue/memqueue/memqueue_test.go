package memqueue

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/queuetest"
)

func TestConformance(t *testing.T) {
	queuetest.Options{Bubble: true}.Run(t, func(t *testing.T) queue.Queue { return New().WithVisibility(300 * time.Millisecond) })
}

var hello = queue.Message{Type: "t", Items: []queue.Item{{Entity: "e", Args: json.RawMessage(`{}`)}}}

// In a bubble hours pass in no time, and every wait ends at its very moment.
func TestTimeIsTheBubbles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New()
		start := time.Now()
		at := func(want time.Duration) queue.Delivery {
			t.Helper()
			for {
				ds, err := q.Receive(t.Context(), 1, nil)
				if err != nil {
					t.Fatal(err)
				}
				if len(ds) == 0 {
					continue
				}
				if got := time.Since(start); got != want {
					t.Fatalf("received after %v, expected %v", got, want)
				}
				return ds[0]
			}
		}
		if err := queue.After(q, time.Hour).Send(t.Context(), hello); err != nil {
			t.Fatal(err)
		}
		at(time.Hour)
		d := at(time.Hour + 10*time.Second)
		time.Sleep(9 * time.Second)
		if lost, err := q.Extend(t.Context(), d); err != nil || len(lost) > 0 {
			t.Fatal(lost, err)
		}
		d = at(time.Hour + 29*time.Second)
		if err := q.Release(t.Context(), time.Minute, d); err != nil {
			t.Fatal(err)
		}
		d = at(time.Hour + 89*time.Second)
		if d.Received != 4 {
			t.Errorf("received %d times", d.Received)
		}
		if err := q.Ack(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if ds, err := q.Receive(t.Context(), 1, nil); len(ds) > 0 || err != nil || q.Len() != 0 {
			t.Errorf("%d deliveries, %v, %d messages", len(ds), err, q.Len())
		}
		if got := time.Since(start); got != time.Hour+109*time.Second {
			t.Errorf("an empty Receive ended after %v in all", got)
		}
	})
}

// Who waits is told of a message that another receiver holds and forgets.
func TestAWaitingReceiverGetsWhatAnotherLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New()
		got := make(chan time.Time, 1)
		send := func() {
			if err := q.Send(t.Context(), hello); err != nil {
				t.Error(err)
			}
		}
		send()
		if ds, _, _ := q.receiveNoWait(time.Now(), 1, nil); len(ds) != 1 {
			t.Fatal("nothing to receive")
		}
		lost := time.Now().Add(10 * time.Second)
		go func() {
			ds, err := q.Receive(t.Context(), 1, nil)
			if err != nil || len(ds) != 1 {
				t.Errorf("%d deliveries, %v", len(ds), err)
			}
			got <- time.Now()
		}()
		if at := <-got; !at.Equal(lost) {
			t.Errorf("received %v late", at.Sub(lost))
		}
	})
}

func TestAReceiptThatWasNeverGivenOutIsAnErrorAndChangesNothing(t *testing.T) {
	q := New()
	ctx := context.Background()
	if err := q.Send(ctx, hello); err != nil {
		t.Fatal(err)
	}
	ds, err := q.Receive(ctx, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, receipt := range []string{"", "0", "2", "-1", "x", "1:1"} {
		both := []queue.Delivery{ds[0], {Receipt: receipt}}
		if err := q.Ack(ctx, both...); !errors.Is(err, ErrReceipt) {
			t.Errorf("Ack of receipt %q: %v", receipt, err)
		}
		if err := q.Release(ctx, 0, both...); !errors.Is(err, ErrReceipt) {
			t.Errorf("Release of receipt %q: %v", receipt, err)
		}
		if _, err := q.Extend(ctx, both...); !errors.Is(err, ErrReceipt) {
			t.Errorf("Extend of receipt %q: %v", receipt, err)
		}
	}
	if lost, err := q.Extend(ctx, ds...); len(lost) > 0 || err != nil || q.Len() != 1 {
		t.Errorf("the message was changed: lost %q, %v, %d messages", lost, err, q.Len())
	}
}
