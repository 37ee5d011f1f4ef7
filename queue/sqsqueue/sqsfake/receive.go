package sqsfake

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

type receiveInput struct {
	QueueUrl                    string   `json:"QueueUrl"`
	MaxNumberOfMessages         *int     `json:"MaxNumberOfMessages"`
	VisibilityTimeout           *int     `json:"VisibilityTimeout"`
	WaitTimeSeconds             *int     `json:"WaitTimeSeconds"`
	MessageAttributeNames       []string `json:"MessageAttributeNames"`
	MessageSystemAttributeNames []string `json:"MessageSystemAttributeNames"`
	AttributeNames              []string `json:"AttributeNames"`
}

type received struct {
	MessageId         string               `json:"MessageId"`
	ReceiptHandle     string               `json:"ReceiptHandle"`
	Body              string               `json:"Body"`
	MD5OfBody         string               `json:"MD5OfBody"`
	Attributes        map[string]string    `json:"Attributes,omitempty"`
	MessageAttributes map[string]attribute `json:"MessageAttributes,omitempty"`
}

type receiveOutput struct {
	Messages []received `json:"Messages,omitempty"`
}

// receive waits without the mutex. It knows nothing of the client: who has hung up is
// handed messages too.
func (f *Fake) receive(body []byte) (any, *failed) {
	var in receiveInput
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, refuse("SerializationException", "%v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	q, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	max, visibility, wait := 1, q.number("VisibilityTimeout"), q.number("ReceiveMessageWaitTimeSeconds")
	for _, p := range []struct {
		name      string
		given     *int
		to        *int
		low, high int
	}{
		{"MaxNumberOfMessages", in.MaxNumberOfMessages, &max, 1, 10},
		{"VisibilityTimeout", in.VisibilityTimeout, &visibility, 0, 43200},
		{"WaitTimeSeconds", in.WaitTimeSeconds, &wait, 0, 20},
	} {
		if p.given == nil {
			continue
		}
		if *p.given < p.low || *p.given > p.high {
			return nil, invalid("value %d for parameter %s is invalid: must be between %d and %d", *p.given, p.name, p.low, p.high)
		}
		*p.to = *p.given
	}
	end := f.now().Add(time.Duration(wait) * time.Second)
	for {
		now := f.now()
		if ms := f.take(q, &in, max, time.Duration(visibility)*time.Second, now); len(ms) > 0 {
			if f.faults.happens(f.faults.LostReceives) {
				return nil, serverError()
			}
			return &receiveOutput{ms}, nil
		}
		if !now.Before(end) || f.closed {
			return &receiveOutput{}, nil
		}
		next := end
		if at := q.nextAt(now); !at.IsZero() && at.Before(next) {
			next = at
		}
		changed := f.changed
		f.mu.Unlock()
		timer := time.NewTimer(next.Sub(now))
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
		f.mu.Lock()
	}
}

// take hands out up to max messages.
func (f *Fake) take(q *fakeQueue, in *receiveInput, max int, visibility time.Duration, now time.Time) (out []received) {
	q.settle(now)
	for _, m := range q.candidates(max, now) {
		if f.bury(q, m, now) {
			continue
		}
		f.next++
		m.delivery = f.next
		m.received++
		if m.first.IsZero() {
			m.first = now
		}
		m.since, m.expires, m.held = now, now.Add(visibility), true
		at := m.expires.Add(f.faults.upTo(f.faults.DelayedRedelivery))
		if f.faults.happens(f.faults.ExpiredHandles) {
			m.expires = now
		}
		if !q.fifo && f.faults.happens(f.faults.Duplicates) {
			at, m.expires = now, now
			f.tally.Duplicates++
		}
		q.move(m, at, now)
		out = append(out, q.handOut(m, in))
	}
	f.tally.HandedOut += len(out)
	if len(out) > 0 {
		f.wake() // who waits must know when these lapse
	}
	return out
}

// bury moves a message that was received too often to the dead-letter queue.
func (f *Fake) bury(q *fakeQueue, m *message, now time.Time) bool {
	policy, ok := q.redrivePolicy()
	if !ok || m.received < policy.most {
		return false
	}
	dlq := f.byARN(policy.target)
	if dlq == nil || dlq.fifo != q.fifo {
		return false
	}
	q.remove(m)
	m.at, m.held, m.received, m.delivery = now, false, 0, 0
	if q.fifo {
		m.sent = now // a standard queue keeps the time, which counts for the retention
	}
	dlq.put(m, now)
	f.wake()
	return true
}

type redrivePolicy struct {
	target string
	most   int
}

func (q *fakeQueue) redrivePolicy() (redrivePolicy, bool) {
	var p struct {
		DeadLetterTargetArn string          `json:"deadLetterTargetArn"`
		MaxReceiveCount     json.RawMessage `json:"maxReceiveCount"` // a number, or one in a string
	}
	if json.Unmarshal([]byte(q.attributes["RedrivePolicy"]), &p) != nil {
		return redrivePolicy{}, false
	}
	n, err := strconv.Atoi(strings.Trim(string(p.MaxReceiveCount), `"`))
	return redrivePolicy{p.DeadLetterTargetArn, n}, err == nil && n > 0
}

func (q *fakeQueue) handOut(m *message, in *receiveInput) received {
	digest := md5.Sum([]byte(m.body))
	out := received{MessageId: m.name(), ReceiptHandle: handle(m), Body: m.body, MD5OfBody: hex.EncodeToString(digest[:])}
	system := map[string]string{
		"ApproximateReceiveCount":          strconv.Itoa(m.received),
		"SentTimestamp":                    strconv.FormatInt(m.sent.UnixMilli(), 10),
		"ApproximateFirstReceiveTimestamp": strconv.FormatInt(m.first.UnixMilli(), 10),
		"SenderId":                         account,
	}
	if m.group != "" {
		system["MessageGroupId"] = m.group
	}
	if q.fifo {
		system["MessageDeduplicationId"], system["SequenceNumber"] = m.dedup, m.sequence()
	}
	asked := slices.Concat(in.MessageSystemAttributeNames, in.AttributeNames)
	for name, value := range system {
		if slices.Contains(asked, "All") || slices.Contains(asked, name) {
			if out.Attributes == nil {
				out.Attributes = map[string]string{}
			}
			out.Attributes[name] = value
		}
	}
	for name, a := range m.attributes {
		if slices.ContainsFunc(in.MessageAttributeNames, func(want string) bool { return want == "All" || want == ".*" || want == name }) {
			if out.MessageAttributes == nil {
				out.MessageAttributes = map[string]attribute{}
			}
			out.MessageAttributes[name] = a
		}
	}
	return out
}

// A handle names a message and one delivery of it.
func handle(m *message) string {
	return "AQEB" + base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%d:%d", m.id, m.delivery))
}

// holds returns the message of a handle, and whether the handle is still good for it. The
// message is nil when it is gone.
func (q *fakeQueue) holds(handle string, now time.Time) (m *message, good bool, fail *failed) {
	wrong := &failed{"ReceiptHandleIsInvalid", "the input receipt handle is invalid", 400, ""}
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(handle, "AQEB"))
	if err != nil || !strings.HasPrefix(handle, "AQEB") {
		return nil, false, wrong
	}
	var id, delivery int64
	if n, err := fmt.Sscanf(string(b), "%d:%d", &id, &delivery); n != 2 || err != nil {
		return nil, false, wrong
	}
	q.settle(now)
	m = q.messages[id]
	return m, m != nil && m.held && m.delivery == delivery && m.expires.After(now), nil
}
