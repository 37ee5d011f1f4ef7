package sqsqueue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// A Redrive moves the messages of a dead-letter queue back to where they came from, or
// elsewhere: it receives, sends, and deletes what was sent. It needs no move task of SQS. A
// crash, or a lost answer, between the last two costs a duplicate, which the ledger skips;
// nothing is lost, whenever it ends.
type Redrive struct {
	From   string      // URL or name of the dead-letter queue
	To     string      // URL or name; empty: the only queue that has From as its dead-letter queue
	Client *sqs.Client // nil: as for [New]

	Max      int                // messages; 0: all that are there, until From looks empty
	Rate     float64            // messages in a second; 0: as fast as it goes
	DryRun   bool               // only look
	Progress func(RedriveState) // called after each batch; nil: nobody asks
}

// A RedriveState says how far a redrive is.
type RedriveState struct {
	From    string   `json:"from"` // URLs
	To      string   `json:"to"`
	Waiting int      `json:"waiting"` // in From when it began, as SQS estimates it
	Moved   int      `json:"moved"`
	Left    int      `json:"left"` // that could not be sent; they come again in From when their visibility ends
	Sample  []string `json:"sample,omitempty"`
}

// redriveVisibility is how long what is being moved is held: longer than a batch takes.
const redriveVisibility = 2 * time.Minute

// Run moves messages until From is empty, Max is reached, or ctx ends, which is no error
// for what has been moved by then: see the state.
func (r Redrive) Run(ctx context.Context) (RedriveState, error) {
	var state RedriveState
	client, from, attributes, err := open(ctx, r.Client, r.From)
	if err != nil {
		return state, fmt.Errorf("redrive: %w", err)
	}
	if r.To == "" {
		if r.To, err = sourceOf(ctx, client, from); err != nil {
			return state, fmt.Errorf("redrive: %w", err)
		}
	}
	_, to, target, err := open(ctx, client, r.To)
	if err != nil {
		return state, fmt.Errorf("redrive: %w", err)
	}
	if from == to {
		return state, errors.New("redrive: a queue cannot be redriven into itself")
	}
	if (attributes["FifoQueue"] == "true") != (target["FifoQueue"] == "true") {
		return state, errors.New("redrive: one of the queues is FIFO, and the other is not")
	}
	state = RedriveState{From: from, To: to, Waiting: number(attributes, "ApproximateNumberOfMessages", 0)}
	if r.DryRun {
		state.Sample, err = peek(ctx, client, from)
		return state, err
	}
	for begun := time.Now(); r.Max == 0 || state.Moved+state.Left < r.Max; {
		n := mostEntries
		if r.Max > 0 {
			n = min(n, r.Max-state.Moved-state.Left)
		}
		ms, err := receiveSome(ctx, client, from, n, redriveVisibility)
		if err != nil || len(ms) == 0 {
			return state, err
		}
		moved, err := move(ctx, client, from, to, target["FifoQueue"] == "true", ms)
		state.Moved, state.Left = state.Moved+moved, state.Left+len(ms)-moved
		if r.Progress != nil {
			r.Progress(state)
		}
		if err != nil {
			return state, fmt.Errorf("redrive: %w", err)
		}
		if r.Rate > 0 {
			timer := time.NewTimer(time.Until(begun.Add(time.Duration(float64(state.Moved) / r.Rate * float64(time.Second)))))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return state, ctx.Err()
			}
		}
	}
	return state, nil
}

// sourceOf is the queue whose dead letters go to dlq.
func sourceOf(ctx context.Context, client *sqs.Client, dlq string) (string, error) {
	out, err := client.ListDeadLetterSourceQueues(ctx, &sqs.ListDeadLetterSourceQueuesInput{QueueUrl: &dlq})
	if err != nil {
		return "", fmt.Errorf("ask which queue has %s as its dead-letter queue (or say where its messages are to go): %w", dlq, err)
	}
	if len(out.QueueUrls) != 1 {
		return "", fmt.Errorf("%d queues have %s as their dead-letter queue: say where its messages are to go", len(out.QueueUrls), dlq)
	}
	return out.QueueUrls[0], nil
}

// peek shows the bodies of a few messages, and lets go of them.
func peek(ctx context.Context, client *sqs.Client, url string) (bodies []string, err error) {
	ms, err := receiveSome(ctx, client, url, mostEntries, 30*time.Second)
	if err != nil {
		return nil, err
	}
	in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &url}
	for i, m := range ms {
		bodies = append(bodies, *m.Body)
		in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: m.ReceiptHandle})
	}
	if len(ms) > 0 {
		if _, err := client.ChangeMessageVisibilityBatch(context.WithoutCancel(ctx), in); err != nil {
			return bodies, fmt.Errorf("let go of what was looked at: %w", err)
		}
	}
	return bodies, nil
}

func receiveSome(ctx context.Context, client *sqs.Client, url string, n int, visibility time.Duration) ([]types.Message, error) {
	// Not canceled with ctx: what it brings would be in flight for nothing.
	poll, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second+beyondWait)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out, err := client.ReceiveMessage(poll, &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: int32(n), WaitTimeSeconds: 2,
		VisibilityTimeout: seconds(visibility), MessageAttributeNames: []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll}})
	if err != nil {
		return nil, fmt.Errorf("receive from %s: %w", url, err)
	}
	return out.Messages, nil
}

// move sends messages on, one after the other in batches that fit, and deletes those that
// were sent.
func move(ctx context.Context, client *sqs.Client, from, to string, fifo bool, ms []types.Message) (moved int, err error) {
	// What was begun is finished.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redriveVisibility/2)
	defer cancel()
	for start := 0; start < len(ms); {
		end, bytes := start, 0
		for end < len(ms) && (end == start || bytes+sizeOf(&ms[end]) <= mostBytes) {
			bytes += sizeOf(&ms[end])
			end++
		}
		var sent []types.Message
		left, why, err := batch(ctx, ms[start:end:end], func(ctx context.Context, ms []types.Message) ([]types.BatchResultErrorEntry, error) {
			in := &sqs.SendMessageBatchInput{QueueUrl: &to}
			for i, m := range ms {
				e := types.SendMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), MessageBody: m.Body, MessageAttributes: m.MessageAttributes}
				if group, ok := m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)]; ok {
					e.MessageGroupId = &group
				}
				if fifo {
					e.MessageDeduplicationId = m.MessageId
				}
				in.Entries = append(in.Entries, e)
			}
			out, err := client.SendMessageBatch(ctx, in)
			if err != nil {
				return nil, err
			}
			return out.Failed, nil
		}, func(m types.Message) { sent = append(sent, m) })
		if len(sent) > 0 {
			if e := deleteAll(ctx, client, from, sent); err == nil {
				err = e
			}
		}
		moved += len(sent)
		if err == nil && len(left) > 0 {
			err = firstOf("some could not be sent", why, end-start)
		}
		if err != nil {
			return moved, err
		}
		start = end
	}
	return moved, nil
}

func sizeOf(m *types.Message) int {
	n := len(*m.Body)
	for name, a := range m.MessageAttributes {
		n += len(name) + len(*a.DataType) + len(a.BinaryValue)
		if a.StringValue != nil {
			n += len(*a.StringValue)
		}
	}
	return n
}

func deleteAll(ctx context.Context, client *sqs.Client, url string, ms []types.Message) error {
	left, why, err := batch(ctx, ms, func(ctx context.Context, ms []types.Message) ([]types.BatchResultErrorEntry, error) {
		in := &sqs.DeleteMessageBatchInput{QueueUrl: &url}
		for i, m := range ms {
			in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(fmt.Sprint(i)), ReceiptHandle: m.ReceiptHandle})
		}
		out, err := client.DeleteMessageBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	}, nil)
	if err == nil && len(left) > 0 {
		err = firstOf("some were sent and stay, so they will be sent again", why, len(ms))
	}
	return err
}
