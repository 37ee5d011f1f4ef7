package sqsfake

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"
)

type sendInput struct {
	QueueUrl               string               `json:"QueueUrl"`
	Id                     string               `json:"Id"`
	MessageBody            *string              `json:"MessageBody"`
	DelaySeconds           *int                 `json:"DelaySeconds"`
	MessageAttributes      map[string]attribute `json:"MessageAttributes"`
	MessageGroupId         string               `json:"MessageGroupId"`
	MessageDeduplicationId string               `json:"MessageDeduplicationId"`
}

type sent struct {
	Id               string `json:"Id,omitempty"`
	MessageId        string `json:"MessageId"`
	MD5OfMessageBody string `json:"MD5OfMessageBody"`
	SequenceNumber   string `json:"SequenceNumber,omitempty"`
}

type refusedEntry struct {
	Id          string `json:"Id"`
	Code        string `json:"Code"`
	Message     string `json:"Message"`
	SenderFault bool   `json:"SenderFault"`
}

func (f *failed) entry(id string) refusedEntry {
	return refusedEntry{Id: id, Code: f.code, Message: f.message, SenderFault: f.status < 500}
}

func (f *Fake) sendMessage(in *sendInput) (*sent, *failed) {
	q, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	return f.send(q, in)
}

type sendBatchInput struct {
	QueueUrl string      `json:"QueueUrl"`
	Entries  []sendInput `json:"Entries"`
}

type sendBatchOutput struct {
	Successful []sent         `json:"Successful"`
	Failed     []refusedEntry `json:"Failed"`
}

func (f *Fake) sendMessageBatch(in *sendBatchInput) (*sendBatchOutput, *failed) {
	q, fail := f.find(in.QueueUrl)
	if fail != nil {
		return nil, fail
	}
	ids := make([]string, len(in.Entries))
	total := 0
	for i := range in.Entries {
		ids[i] = in.Entries[i].Id
		total += in.Entries[i].size()
	}
	if fail := checkBatch(ids); fail != nil {
		return nil, fail
	}
	if total > 1<<20 {
		return nil, refuse("BatchRequestTooLong", "the batch takes %d bytes, allowed are %d", total, 1<<20)
	}
	out := &sendBatchOutput{Successful: []sent{}, Failed: []refusedEntry{}}
	f.tally.Entries += len(in.Entries)
	for i := range in.Entries {
		e := &in.Entries[i]
		refused, acts := f.faults.partial()
		var s *sent
		var fail *failed
		if acts {
			s, fail = f.send(q, e)
		}
		if refused {
			fail = serverError()
		}
		if fail != nil {
			out.Failed = append(out.Failed, fail.entry(e.Id))
			continue
		}
		s.Id = e.Id
		out.Successful = append(out.Successful, *s)
	}
	return out, nil
}

var batchID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

// checkBatch keeps the laws of all batches.
func checkBatch(ids []string) *failed {
	if len(ids) == 0 {
		return &failed{"EmptyBatchRequest", "there should be at least one entry", 400, "AWS.SimpleQueueService.EmptyBatchRequest"}
	}
	if len(ids) > 10 {
		return &failed{"TooManyEntriesInBatchRequest", "maximum number of entries per request are 10", 400, "AWS.SimpleQueueService.TooManyEntriesInBatchRequest"}
	}
	seen := map[string]bool{}
	for _, id := range ids {
		if !batchID.MatchString(id) {
			return &failed{"InvalidBatchEntryId", "an entry's id is malformed", 400, "AWS.SimpleQueueService.InvalidBatchEntryId"}
		}
		if seen[id] {
			return &failed{"BatchEntryIdsNotDistinct", "id " + id + " repeated", 400, "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"}
		}
		seen[id] = true
	}
	return nil
}

func (in *sendInput) size() int {
	n := 0
	if in.MessageBody != nil {
		n = len(*in.MessageBody)
	}
	for name, a := range in.MessageAttributes {
		n += len(name) + len(a.DataType) + len(a.StringValue) + len(a.BinaryValue)
	}
	return n
}

// characters are those that XML can hold.
func characters(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return false
		}
	}
	return true
}

var (
	groupID       = regexp.MustCompile(`^[\x21-\x7e]{1,128}$`)
	attributeName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,256}$`)
	attributeType = regexp.MustCompile(`^(String|Number|Binary)(\..{1,249})?$`)
)

func (q *fakeQueue) check(in *sendInput) *failed {
	switch {
	case in.MessageBody == nil || *in.MessageBody == "":
		return refuse("MissingParameter", "the request must contain the parameter MessageBody")
	case !characters(*in.MessageBody):
		return refuse("InvalidMessageContents", "invalid characters found")
	case in.size() > q.number("MaximumMessageSize"):
		return invalid("one or more parameters are invalid: the message takes %d bytes, allowed are %d", in.size(), q.number("MaximumMessageSize"))
	case len(in.MessageAttributes) > 10:
		return invalid("number of message attributes [%d] exceeds the allowed maximum [10]", len(in.MessageAttributes))
	case in.DelaySeconds != nil && (*in.DelaySeconds < 0 || *in.DelaySeconds > 900):
		return invalid("value %d for parameter DelaySeconds is invalid", *in.DelaySeconds)
	case q.fifo && in.DelaySeconds != nil && *in.DelaySeconds != 0:
		return invalid("value %d for parameter DelaySeconds is invalid: the request includes a parameter that is not valid for this queue type", *in.DelaySeconds)
	case q.fifo && in.MessageGroupId == "":
		return refuse("MissingParameter", "the request must contain the parameter MessageGroupId")
	case in.MessageGroupId != "" && !groupID.MatchString(in.MessageGroupId):
		return invalid("value for parameter MessageGroupId is invalid")
	case !q.fifo && in.MessageDeduplicationId != "":
		return invalid("the request includes a parameter that is not valid for this queue type")
	case q.fifo && in.MessageDeduplicationId == "" && q.attributes["ContentBasedDeduplication"] != "true":
		return invalid("the queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	case in.MessageDeduplicationId != "" && !groupID.MatchString(in.MessageDeduplicationId):
		return invalid("value for parameter MessageDeduplicationId is invalid")
	}
	for name, a := range in.MessageAttributes {
		value := a.StringValue != "" && characters(a.StringValue)
		if len(a.DataType) >= 6 && a.DataType[:6] == "Binary" {
			value = len(a.BinaryValue) > 0
		}
		if !attributeName.MatchString(name) || !attributeType.MatchString(a.DataType) || !value {
			return invalid("the message attribute %q is invalid", name)
		}
	}
	return nil
}

const dedupTime = 5 * time.Minute

func (f *Fake) send(q *fakeQueue, in *sendInput) (*sent, *failed) {
	if fail := q.check(in); fail != nil {
		return nil, fail
	}
	now := f.now()
	digest := md5.Sum([]byte(*in.MessageBody))
	out := &sent{MD5OfMessageBody: hex.EncodeToString(digest[:])}
	m := &message{body: *in.MessageBody, attributes: in.MessageAttributes, group: in.MessageGroupId, sent: now, at: now}
	if q.fifo {
		m.dedup = in.MessageDeduplicationId
		if m.dedup == "" {
			m.dedup = fmt.Sprintf("%x", sha256.Sum256([]byte(*in.MessageBody)))
		}
		if d, ok := q.dedup[m.dedup]; ok && now.Before(d.until) {
			out.MessageId, out.SequenceNumber = d.m.name(), d.m.sequence()
			return out, nil
		}
		q.dedup[m.dedup] = deduplicate{now.Add(dedupTime), m}
	}
	delay := q.seconds("DelaySeconds")
	if in.DelaySeconds != nil {
		delay = time.Duration(*in.DelaySeconds) * time.Second
	}
	m.at = now.Add(delay)
	f.next++
	m.id = f.next
	q.put(m, now)
	f.wake()
	out.MessageId = m.name()
	if q.fifo {
		out.SequenceNumber = m.sequence()
	}
	return out, nil
}

func (m *message) name() string     { return fmt.Sprintf("00000000-0000-4000-8000-%012x", m.id) }
func (m *message) sequence() string { return fmt.Sprintf("%020d", m.id) }
