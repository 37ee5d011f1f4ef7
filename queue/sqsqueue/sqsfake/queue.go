package sqsfake

import (
	"container/heap"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const account = "000000000000"

// A fakeQueue is owned by the mutex of its Fake.
type fakeQueue struct {
	name       string
	attributes map[string]string
	created    time.Time
	fifo       bool

	messages map[int64]*message
	ready    byOrder                // of a standard queue: visible messages
	later    byTime                 // of a standard queue: those that are delayed or held
	order    []*message             // of a FIFO queue: all, as they were sent
	dedup    map[string]deduplicate // of a FIFO queue
}

type deduplicate struct {
	until time.Time
	m     *message
}

type attribute struct {
	DataType    string `json:"DataType"`
	StringValue string `json:"StringValue,omitempty"`
	BinaryValue []byte `json:"BinaryValue,omitempty"`
}

type message struct {
	id         int64
	body       string
	attributes map[string]attribute
	group      string
	dedup      string

	sent     time.Time
	first    time.Time // received; zero: never
	received int

	delivery int64     // the number of the newest one; 0: none
	at       time.Time // it becomes visible then
	expires  time.Time // its newest receipt handle is good until then
	held     bool      // else it is delayed until at, or visible
	since    time.Time // held
	index    int       // in its heap
	waits    bool      // that is later, not ready
}

var (
	queueName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)
	defaults  = map[string]string{"VisibilityTimeout": "30", "DelaySeconds": "0", "MaximumMessageSize": "1048576", "MessageRetentionPeriod": "345600", "ReceiveMessageWaitTimeSeconds": "0"}
)

func (f *Fake) create(name string, attributes map[string]string) (*fakeQueue, *failed) {
	base, fifo := strings.CutSuffix(name, ".fifo")
	if !queueName.MatchString(base) {
		return nil, invalid("can only include alphanumeric characters, hyphens, or underscores, 1 to 80 in length: %q", name)
	}
	if q := f.queues[name]; q != nil {
		for k, v := range attributes {
			if q.attributes[k] != v {
				return nil, refuse("QueueNameExists", "a queue %s exists with another %s", name, k)
			}
		}
		return q, nil
	}
	q := &fakeQueue{name: name, fifo: fifo, created: f.now(), attributes: map[string]string{}, messages: map[int64]*message{}, dedup: map[string]deduplicate{}}
	for k, v := range defaults {
		q.attributes[k] = v
	}
	if fifo {
		q.attributes["FifoQueue"], q.attributes["ContentBasedDeduplication"] = "true", "false"
	}
	q.attributes["QueueArn"] = "arn:aws:sqs:us-east-1:" + account + ":" + name
	if fail := q.set(attributes); fail != nil {
		return nil, fail
	}
	f.queues[name] = q
	return q, nil
}

// set takes attributes as they are, but for numbers out of their range.
func (q *fakeQueue) set(attributes map[string]string) *failed {
	for k, v := range attributes {
		limit, isNumber := map[string][2]int{"VisibilityTimeout": {0, 43200}, "DelaySeconds": {0, 900}, "MaximumMessageSize": {1024, 1 << 20},
			"MessageRetentionPeriod": {60, 1209600}, "ReceiveMessageWaitTimeSeconds": {0, 20}}[k]
		if isNumber {
			if n, err := strconv.Atoi(v); err != nil || n < limit[0] || n > limit[1] {
				return refuse("InvalidAttributeValue", "invalid value for the parameter %s", k)
			}
		} else if !slices.Contains([]string{"RedrivePolicy", "RedriveAllowPolicy", "FifoQueue", "ContentBasedDeduplication", "Policy", "DeduplicationScope", "FifoThroughputLimit", "KmsMasterKeyId", "SqsManagedSseEnabled"}, k) {
			return refuse("InvalidAttributeName", "unknown attribute %s", k)
		}
	}
	for k, v := range attributes {
		q.attributes[k] = v
	}
	return nil
}

func (q *fakeQueue) url() string {
	return "https://sqs.us-east-1.amazonaws.com/" + account + "/" + q.name
}

func (q *fakeQueue) number(attribute string) int {
	n, _ := strconv.Atoi(q.attributes[attribute])
	return n
}

func (q *fakeQueue) seconds(attribute string) time.Duration {
	return time.Duration(q.number(attribute)) * time.Second
}

// find looks only at the name: its host is not ours when a client names another endpoint.
func (f *Fake) find(url string) (*fakeQueue, *failed) {
	if url == "" {
		return nil, refuse("MissingParameter", "the request must contain the parameter QueueUrl")
	}
	if q := f.queues[url[strings.LastIndexByte(url, '/')+1:]]; q != nil {
		return q, nil
	}
	return nil, &failed{"QueueDoesNotExist", "the specified queue does not exist", 400, "AWS.SimpleQueueService.NonExistentQueue"}
}

func (f *Fake) byARN(arn string) *fakeQueue {
	return f.queues[arn[strings.LastIndexByte(arn, ':')+1:]]
}

// put adds a message that becomes visible at m.at.
func (q *fakeQueue) put(m *message, now time.Time) {
	q.messages[m.id] = m
	if q.fifo {
		i, _ := slices.BinarySearchFunc(q.order, m.id, func(o *message, id int64) int { return int(o.id - id) })
		q.order = slices.Insert(q.order, i, m)
		return
	}
	q.push(m, now)
}

func (q *fakeQueue) push(m *message, now time.Time) {
	if m.waits = m.at.After(now); m.waits {
		heap.Push(&q.later, m)
	} else {
		m.held = false
		heap.Push(&q.ready, m)
	}
}

// move puts a message where its new time wants it.
func (q *fakeQueue) move(m *message, at, now time.Time) {
	if q.fifo {
		m.at = at
		m.held = m.held && at.After(now)
		return
	}
	q.pull(m)
	m.at = at
	q.push(m, now)
}

func (q *fakeQueue) pull(m *message) {
	if m.waits {
		heap.Remove(&q.later, m.index)
	} else {
		heap.Remove(&q.ready, m.index)
	}
}

func (q *fakeQueue) remove(m *message) {
	delete(q.messages, m.id)
	if q.fifo {
		q.order = slices.DeleteFunc(q.order, func(o *message) bool { return o == m })
		return
	}
	q.pull(m)
}

// settle makes visible what has become so, and forgets what is too old.
func (q *fakeQueue) settle(now time.Time) {
	if q.fifo {
		for _, m := range q.order {
			m.held = m.held && m.at.After(now)
		}
	} else {
		for len(q.later.all) > 0 && !q.later.all[0].at.After(now) {
			m := q.later.all[0]
			q.pull(m)
			q.push(m, now)
		}
	}
	if oldest := now.Add(-q.seconds("MessageRetentionPeriod")); !q.created.After(oldest) {
		for _, m := range q.messages {
			if m.sent.Before(oldest) {
				q.remove(m)
			}
		}
	}
}

// nextAt is when something becomes visible by itself; zero: never.
func (q *fakeQueue) nextAt(now time.Time) (next time.Time) {
	if !q.fifo {
		if len(q.later.all) > 0 {
			next = q.later.all[0].at
		}
		return next
	}
	for _, m := range q.order {
		if m.at.After(now) && (next.IsZero() || m.at.Before(next)) {
			next = m.at
		}
	}
	return next
}

func (q *fakeQueue) count(now time.Time) (visible, held, delayed int) {
	q.settle(now)
	for _, m := range q.messages {
		switch {
		case !m.at.After(now):
			visible++
		case m.held:
			held++
		default:
			delayed++
		}
	}
	return visible, held, delayed
}

// candidates are up to n messages that may be received now, in order.
func (q *fakeQueue) candidates(n int, now time.Time) (ms []*message) {
	if !q.fifo {
		for len(ms) < n && len(q.ready.all) > 0 {
			m := q.ready.all[0]
			q.pull(m)
			m.waits = false
			ms = append(ms, m)
		}
		for _, m := range ms {
			q.push(m, now)
		}
		return ms
	}
	blocked := map[string]bool{}
	for _, m := range q.order {
		if m.held {
			blocked[m.group] = true
		}
	}
	for _, m := range q.order {
		if len(ms) == n {
			break
		}
		if m.at.After(now) { // delayed, by the queue's default: those after it wait too
			blocked[m.group] = true
		}
		if !blocked[m.group] {
			ms = append(ms, m)
		}
	}
	return ms
}

func (m *message) String() string { return fmt.Sprintf("message %d", m.id) }

// byOrder and byTime are heaps.
type byOrder struct{ all []*message }

func (h byOrder) Len() int           { return len(h.all) }
func (h byOrder) Less(i, j int) bool { return h.all[i].id < h.all[j].id }
func (h byOrder) Swap(i, j int) {
	h.all[i], h.all[j] = h.all[j], h.all[i]
	h.all[i].index, h.all[j].index = i, j
}
func (h *byOrder) Push(x any) { m := x.(*message); m.index = len(h.all); h.all = append(h.all, m) }
func (h *byOrder) Pop() any {
	m := h.all[len(h.all)-1]
	h.all[len(h.all)-1] = nil
	h.all = h.all[:len(h.all)-1]
	return m
}

type byTime struct{ byOrder }

func (h byTime) Less(i, j int) bool { return h.all[i].at.Before(h.all[j].at) }
