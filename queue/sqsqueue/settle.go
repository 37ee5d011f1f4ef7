package sqsqueue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/oncemore-jobs/oncemore/queue"
)

// Everything here goes by the receipt of one delivery, never by the message: who lost it
// changes nothing, and of two deliveries of one message each settles only itself.

// Ack removes the messages for good, in batches of ten side by side. A worker hands over
// whatever has gathered while the last call ran, so that batches fill by themselves. What
// SQS refuses by its own fault is tried again at once, because nobody above does; what then
// remains is one error, and comes again.
func (q *Queue) Ack(ctx context.Context, ds ...queue.Delivery) error {
	hs, err := known(ds)
	if err != nil || len(hs) == 0 {
		return err
	}
	err = tens(ctx, false, inTens(hs), q.deleteBatch)
	if err != nil {
		return fmt.Errorf("acknowledge %d messages of %s: %w", len(ds), q.url, err)
	}
	return nil
}

func (q *Queue) deleteBatch(ctx context.Context, hs []held) error {
	call := func(ctx context.Context, hs []held) ([]types.BatchResultErrorEntry, error) {
		in := &sqs.DeleteMessageBatchInput{QueueUrl: &q.url, Entries: make([]types.DeleteMessageBatchRequestEntry, len(hs))}
		for i := range hs {
			in.Entries[i] = types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &hs[i].handle}
		}
		out, err := q.client.DeleteMessageBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	}
	left, why, err := batch(ctx, hs, call, func(h held) {
		if q.fifo {
			if ds := q.groups.next(h); len(ds) > 0 {
				q.arrive(ds...)
			}
		}
	})
	if err != nil {
		q.forgetMates(hs)
		return err
	}
	var failed []refusal
	var lost, unsure []held
	for i, r := range why {
		if r.ours && r.lost() {
			lost = append(lost, left[i])
		} else {
			failed, unsure = append(failed, r), append(unsure, left[i])
		}
	}
	q.forgetMates(unsure)
	q.releaseMates(ctx, lost)
	return firstOf("some come again", failed, len(hs))
}

// forgetMates is for deliveries that come again when their visibility ends: what waits
// behind them in their group comes again then too, and SQS keeps the order.
func (q *Queue) forgetMates(hs []held) {
	if q.fifo {
		for _, h := range hs {
			q.groups.stop(h)
		}
	}
}

// releaseMates is for deliveries that somebody else has by now, or that are gone: what
// waits behind them in their group would only block it. It is released in order.
func (q *Queue) releaseMates(ctx context.Context, hs []held) {
	if !q.fifo {
		return
	}
	for _, h := range hs {
		mates, _ := known(q.groups.stop(h))
		if err := q.setVisibility(ctx, true, mates, func(held) int32 { return 0 }, nil); err != nil {
			q.log.Warn("releasing failed: the messages come again when their visibility ends", "queue", q.url, "messages", len(mates), "error", err)
		}
	}
}

// Extend begins the visibility timeout anew for each delivery, and returns the receipts that
// are no longer held. One that was received 12 hours ago is lost: SQS lets nobody hold a
// message longer.
func (q *Queue) Extend(ctx context.Context, ds ...queue.Delivery) (lost []string, err error) {
	hs, err := known(ds)
	if err != nil || len(hs) == 0 {
		return nil, err
	}
	now := time.Now()
	var all []held
	head := make(map[string]bool, len(hs))
	var ended []held
	for _, h := range hs {
		head[h.Receipt] = true
		if h.left(now) < time.Second {
			lost, ended = append(lost, h.Receipt), append(ended, h)
			continue
		}
		all = append(all, h)
		if q.fifo {
			mates, _ := known(q.groups.mates(h))
			all = append(all, mates...)
		}
	}
	var mu sync.Mutex
	err = q.setVisibility(ctx, false, all, func(h held) int32 {
		return seconds(max(time.Second, min(q.visibility, h.left(now))))
	}, func(h held, r *refusal) {
		if !head[h.Receipt] {
			return // one that waits: it is found lost when its turn comes
		}
		if r == nil {
			q.groups.extended(h, now.Add(q.visibility))
			return
		}
		mu.Lock()
		defer mu.Unlock()
		lost, ended = append(lost, h.Receipt), append(ended, h)
	})
	q.releaseMates(ctx, ended)
	if err != nil {
		return lost, fmt.Errorf("extend %d messages of %s: %w", len(ds), q.url, err)
	}
	return lost, nil
}

// Release makes the messages visible again after a delay; at once when that is 0. A message
// that comes back again and again waits longer each time: a delay is at least a second, and
// twice as long with every delivery, up to 32 seconds; from the 26th delivery on 0 is a
// delay too. So messages that nobody can work never go round in a hot loop.
func (q *Queue) Release(ctx context.Context, after time.Duration, ds ...queue.Delivery) error {
	hs, err := known(ds)
	if err != nil || len(hs) == 0 {
		return err
	}
	now := time.Now()
	var all []held
	delay := make(map[string]time.Duration, len(hs))
	add := func(h held, d time.Duration) {
		delay[h.Receipt] = max(0, min(d, h.left(now)))
		all = append(all, h)
	}
	for _, h := range hs {
		d := patience(after, h.Received)
		add(h, d)
		if q.fifo {
			mates, _ := known(q.groups.stop(h))
			for _, m := range mates {
				add(m, d) // after its head, in order: each batch is worked in order
			}
		}
	}
	err = q.setVisibility(ctx, q.fifo, all, func(h held) int32 { return seconds(delay[h.Receipt]) }, nil)
	if err != nil {
		return fmt.Errorf("release %d messages of %s: %w", len(ds), q.url, err)
	}
	return nil
}

// patience is how long a message stays invisible that is released for the received-th time.
func patience(after time.Duration, received int) time.Duration {
	const quick = 25
	if after <= 0 {
		if received <= quick {
			return 0
		}
		after, received = time.Second, received-quick
	}
	d := time.Second << min(received-1, 5)
	return max(min(after, mostVisible), d+rand.N(d/4+1))
}

// setVisibility has each message become visible after so many seconds. told is called with
// each that SQS took, and with those that are no longer held.
func (q *Queue) setVisibility(ctx context.Context, serial bool, hs []held, after func(held) int32, told func(held, *refusal)) error {
	if told == nil {
		told = func(held, *refusal) {}
	}
	call := func(ctx context.Context, hs []held) ([]types.BatchResultErrorEntry, error) {
		in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &q.url, Entries: make([]types.ChangeMessageVisibilityBatchRequestEntry, len(hs))}
		for i := range hs {
			in.Entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: &hs[i].handle, VisibilityTimeout: after(hs[i])}
		}
		out, err := q.client.ChangeMessageVisibilityBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	}
	return tens(ctx, serial, inTens(hs), func(ctx context.Context, hs []held) error {
		left, why, err := batch(ctx, hs, call, func(h held) { told(h, nil) })
		if err != nil {
			return err
		}
		var failed []refusal
		for i, h := range left {
			if why[i].ours && why[i].lost() {
				told(h, &why[i])
			} else {
				failed = append(failed, why[i])
			}
		}
		return firstOf("some stay as they are", failed, len(hs))
	})
}
