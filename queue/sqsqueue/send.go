package sqsqueue

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/oncemore-jobs/oncemore/queue"
)

// ErrDelay is wrapped by Send's errors for a delay that SQS cannot keep.
var ErrDelay = errors.New("SQS cannot delay a message so long")

// traceAttribute is the message attribute that carries the W3C traceparent.
const traceAttribute = "traceparent"

// An entry is one message of SQS.
type entry struct {
	body  string
	trace string // as an attribute
	delay int32
	group string
	dedup string
}

// size is what counts towards the limits: the body, and names, types and values of the
// attributes.
func (e *entry) size() int {
	n := len(e.body)
	if e.trace != "" {
		n += len(traceAttribute) + len("String") + len(e.trace)
	}
	return n
}

// Send sends the messages in batches of ten. It looks at all of them before it sends the
// first; after an error some may be sent all the same, and sending all of them again is
// right. It tries again what SQS refused by its own fault.
//
// A delay of more than 15 minutes, or any on a FIFO queue, is an error that wraps
// [ErrDelay]. An item that does not fit into the queue's MaximumMessageSize alone is one
// that wraps [queue.ErrInvalid] and says its size; a pack that does not fit is split.
func (q *Queue) Send(ctx context.Context, ms ...queue.Message) error {
	var entries []entry
	for i := range ms {
		m := &ms[i]
		if err := m.Check(); err != nil {
			return err
		}
		if err := q.checkDelay(m); err != nil {
			return err
		}
		e := entry{delay: seconds(m.Delay)}
		if plain(m.Trace) {
			e.trace = m.Trace
		}
		if q.fifo {
			if e.group = q.group(*m); !isGroup(e.group) {
				return fmt.Errorf("%w: %q is no message group for %s: want 1 to 128 letters, digits and signs of ASCII", queue.ErrInvalid, e.group, m.Type)
			}
		}
		var err error
		if entries, err = q.split(entries, e, m, 0, len(m.Items)); err != nil {
			return err
		}
	}
	if len(entries) == 0 {
		return nil
	}
	err := tens(ctx, q.fifo, inBytes(entries), q.sendBatch)
	if err != nil {
		return fmt.Errorf("send %d messages to %s: %w", len(ms), q.url, err)
	}
	return nil
}

func (q *Queue) checkDelay(m *queue.Message) error {
	switch {
	case m.Delay <= 0:
		return nil
	case q.fifo:
		return fmt.Errorf("%w: %s wants %v, and a FIFO queue can delay no single message; send it through the Postgres queue (package pgqueue), which every worker reads too", ErrDelay, m.Type, m.Delay)
	case m.Delay > mostDelay:
		return fmt.Errorf("%w: %s wants %v, allowed are 15 minutes; send it through the Postgres queue (package pgqueue), which every worker reads too", ErrDelay, m.Type, m.Delay)
	}
	return nil
}

// split appends the items from and to of m as one message of SQS, or, when that is too
// large, as several.
func (q *Queue) split(entries []entry, e entry, m *queue.Message, from, to int) ([]entry, error) {
	e.body = string(encode(m, from, to))
	size := e.size()
	if size <= min(q.limit, mostBytes) {
		if q.fifo {
			// Never by content: the same work may be asked for twice on purpose, and the ledger
			// knows better. This one makes a repeated call of the SDK harmless.
			e.dedup = rand.Text()
		}
		return append(entries, e), nil
	}
	if to-from == 1 {
		return nil, fmt.Errorf("%w: %s %q takes %d bytes as a message, and the queue takes %d; send an id and keep the rest in the database",
			queue.ErrInvalid, m.Type, m.Items[from].Entity, size, q.limit)
	}
	middle := (from + to) / 2
	entries, err := q.split(entries, e, m, from, middle)
	if err != nil {
		return nil, err
	}
	return q.split(entries, e, m, middle, to)
}

// inBytes cuts entries into batches that SQS takes. A batch has no two of one message
// group: SQS may refuse the first of them and take the second.
func inBytes(entries []entry) (batches [][]entry) {
	start, bytes, groups := 0, 0, map[string]bool{}
	for i := range entries {
		e := &entries[i]
		if i > start && (i-start == mostEntries || bytes+e.size() > mostBytes || groups[e.group]) {
			batches = append(batches, entries[start:i:i])
			start, bytes = i, 0
			clear(groups)
		}
		bytes += e.size()
		if e.group != "" {
			groups[e.group] = true
		}
	}
	return append(batches, entries[start:])
}

func (q *Queue) sendBatch(ctx context.Context, entries []entry) error {
	call := func(ctx context.Context, entries []entry) ([]types.BatchResultErrorEntry, error) {
		in := &sqs.SendMessageBatchInput{QueueUrl: &q.url, Entries: make([]types.SendMessageBatchRequestEntry, len(entries))}
		for i := range entries {
			e := &entries[i]
			out := types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &e.body, DelaySeconds: e.delay}
			if e.trace != "" {
				out.MessageAttributes = map[string]types.MessageAttributeValue{traceAttribute: {DataType: aws.String("String"), StringValue: &e.trace}}
			}
			if q.fifo {
				out.MessageGroupId, out.MessageDeduplicationId = &e.group, &e.dedup
			}
			in.Entries[i] = out
		}
		out, err := q.client.SendMessageBatch(ctx, in)
		if err != nil {
			return nil, err
		}
		return out.Failed, nil
	}
	_, why, err := batch(ctx, entries, call, nil)
	if err != nil {
		return err
	}
	return firstOf("some are sent", why, len(entries))
}

// groupOf is the message group of what is about one entity.
func groupOf(m queue.Message) string {
	digest := sha256.Sum256([]byte(m.Type + "\x00" + m.Items[0].Entity))
	return hex.EncodeToString(digest[:16])
}

// isGroup tells whether SQS takes s as a message group.
func isGroup(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}
