package sqsqueue

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/oncemore-jobs/oncemore/queue"
)

// A Raw is a message as SQS handed it out.
type Raw struct {
	ID         string // of the message in SQS
	Body       []byte
	Attributes map[string]string // the message attributes that are strings or numbers
}

// A Decoder makes a message of what SQS handed out, where that is not in the format of
// docs/wire-format.md. It is called by many goroutines. On an error it returns what it
// knows, the job type above all; the body is then kept aside and listed, never tried again.
type Decoder func(Raw) (queue.Message, error)

// Decode reads the format of docs/wire-format.md. It is the Decoder of a queue that is
// given none.
func Decode(r Raw) (queue.Message, error) {
	m, err := decode(r.Body)
	if m.Trace == "" {
		m.Trace = traceOf(r)
	}
	return m, err
}

// traceOf is the trace that r carries as an attribute. One that no message may carry is
// left out: tracing stops no work.
func traceOf(r Raw) string {
	if trace := r.Attributes[traceAttribute]; len(trace) <= queue.MaxTrace {
		return trace
	}
	return ""
}

// FromSNS unwraps notifications of an SNS topic, whose own message next decodes. A topic
// with raw message delivery needs no unwrapping; what is not a notification goes to next as
// it is, so that a queue may have both.
func FromSNS(next Decoder) Decoder {
	return func(r Raw) (queue.Message, error) {
		var n struct {
			Type, TopicArn    string
			Message           *string
			MessageAttributes map[string]struct{ Value string }
		}
		if json.Unmarshal(r.Body, &n) != nil || n.Type != "Notification" || n.TopicArn == "" || n.Message == nil {
			return next(r)
		}
		inner := Raw{ID: r.ID, Body: []byte(*n.Message), Attributes: map[string]string{}}
		for name, a := range n.MessageAttributes {
			inner.Attributes[name] = a.Value
		}
		return next(inner)
	}
}

// An Event is one that EventBridge delivered. It names an event only by its ID: EventBridge
// delivers at least once too.
type Event struct {
	ID         string          `json:"id"`
	DetailType string          `json:"detail-type"`
	Source     string          `json:"source"`
	Time       string          `json:"time"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`
}

// FromEventBridge has f make messages of events.
func FromEventBridge(f func(Event) (queue.Message, error)) Decoder {
	return func(r Raw) (queue.Message, error) {
		var e Event
		if err := json.Unmarshal(r.Body, &e); err != nil {
			return queue.Message{}, fmt.Errorf("not an event of EventBridge: %w", err)
		}
		if e.DetailType == "" || e.Source == "" {
			return queue.Message{}, errors.New("not an event of EventBridge: it has no source or no detail-type")
		}
		m, err := f(e)
		return traced(m, r), err
	}
}

// An S3Object is what one record of an S3 notification is about. One object may be notified
// of twice, and the notifications of two of its versions may come in any order: Sequencer
// tells which is the later one of the same key.
type S3Object struct {
	Event  string // as "ObjectCreated:Put"
	Bucket string
	Key    string // as S3 sends it: URL-encoded
	Size   int64
	ETag   string

	VersionID string // empty where the bucket has no versions
	Sequencer string // hexadecimal
}

// FromS3 makes one message of job type jobType of a notification; f makes an item of each
// of its records.
func FromS3(jobType string, f func(S3Object) (queue.Item, error)) Decoder {
	return func(r Raw) (queue.Message, error) {
		m := traced(queue.Message{Type: jobType}, r)
		var n struct {
			Records []struct {
				EventName string `json:"eventName"`
				S3        struct {
					Bucket struct{ Name string }
					Object struct {
						Key, ETag, VersionID, Sequencer string
						Size                            int64
					}
				} `json:"s3"`
			}
		}
		if err := json.Unmarshal(r.Body, &n); err != nil {
			return m, fmt.Errorf("not a notification of S3: %w", err)
		}
		if len(n.Records) == 0 {
			return m, errors.New("not a notification of S3: it has no records") // as its test event
		}
		for _, rec := range n.Records {
			o := rec.S3.Object
			it, err := f(S3Object{Event: rec.EventName, Bucket: rec.S3.Bucket.Name, Key: o.Key, Size: o.Size,
				ETag: o.ETag, VersionID: o.VersionID, Sequencer: o.Sequencer})
			if err != nil {
				return m, err
			}
			m.Items = append(m.Items, it)
		}
		return m, nil
	}
}

func traced(m queue.Message, r Raw) queue.Message {
	if m.Trace == "" {
		m.Trace = traceOf(r)
	}
	return m
}
