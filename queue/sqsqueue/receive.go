package sqsqueue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/oncemore-jobs/oncemore/queue"
)

// ErrClosed is returned by Receive after [Queue.Close].
var ErrClosed = errors.New("the queue is closed")

// spareTime is how long what a poll brought may wait for a Receive, before it is released.
// Polls hold messages for so much longer, so that a delivery is held for the whole
// visibility timeout from when it is handed out.
const spareTime = time.Second

// gatherTime is how long a Receive waits for further polls, from its first message on, while
// polls come back full. Otherwise it would return with the ten of the first one; a worker
// may not ask again before it has room for many, and what the others bring would be spare.
const gatherTime = 100 * time.Millisecond

// polls are those that run, and what they brought that nobody has taken yet. Receives do
// not own polls: they say how much they want, and take what has arrived.
type polls struct {
	most int // that may run at once

	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, when something arrived or a poll ended
	wanted  int           // messages, by the Receives that wait
	asked   int           // messages, by the polls that run
	running int
	pace    int  // polls that may run now: doubled by one that comes back full, halved by an empty one
	hot     bool // the last poll came back full: there is more
	arrived []arrival
	err     error // of a poll, for a Receive that waits
	sparing bool  // a timer runs for what has arrived
	giving  int   // messages that are being released, since nobody took them
	drains  int   // that wait: nobody is to come any more
	closed  bool

	all    context.Context // of all polls: ends only when Close has waited long enough
	cancel context.CancelFunc
}

type arrival struct {
	queue.Delivery
	at time.Time
}

func (p *polls) init(most int) {
	p.most, p.pace, p.changed = most, 1, make(chan struct{})
	p.all, p.cancel = context.WithCancel(context.Background())
}

// Receive returns up to max messages, of all types. When there are none it waits up to 20
// seconds. A canceled ctx ends the wait with ctx's error; the polls that wait in SQS then go
// on, for the next Receive. Messages that they bring while there is none are released.
func (q *Queue) Receive(ctx context.Context, max int, _ []string) ([]queue.Delivery, error) {
	if max < 1 {
		return nil, nil
	}
	end := time.NewTimer(mostWait)
	defer end.Stop()
	p := &q.polls
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wanted += max
	defer func() { p.wanted -= max }()
	var gather <-chan time.Time
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if p.closed {
			return nil, ErrClosed
		}
		if n := len(p.arrived); n >= max || n > 0 && !p.hot {
			return p.take(max), nil
		}
		if err := p.err; err != nil && len(p.arrived) == 0 {
			p.err = nil
			return nil, fmt.Errorf("receive from %s: %w", q.url, err)
		}
		q.startPolls()
		if len(p.arrived) > 0 {
			if p.running == 0 {
				return p.take(max), nil
			}
			if gather == nil {
				gather = time.After(gatherTime)
			}
		}
		changed := p.changed
		p.mu.Unlock()
		var gathered, expired bool
		select {
		case <-ctx.Done():
		case <-changed:
		case <-gather:
			gathered = true
		case <-end.C:
			expired = true
		}
		p.mu.Lock()
		if gathered {
			p.hot = false // those that still wait in SQS find nothing there, or are slow
			gather = nil  // another Receive may have taken what had come: then it begins anew
		}
		if expired {
			return p.take(max), nil
		}
	}
}

// take is owned by the mutex, as all of polls.
func (p *polls) take(max int) []queue.Delivery {
	n := min(max, len(p.arrived))
	if n == 0 {
		return nil
	}
	ds := make([]queue.Delivery, n)
	for i := range ds {
		ds[i] = p.arrived[i].Delivery
	}
	if p.arrived = p.arrived[n:]; len(p.arrived) == 0 {
		p.arrived = nil
	}
	return ds
}

// startPolls starts as many as are needed for what is wanted.
func (q *Queue) startPolls() {
	p := &q.polls
	for p.running < p.pace {
		n := min(mostEntries, p.wanted-p.asked-len(p.arrived))
		if n < 1 {
			return
		}
		p.running++
		p.asked += n
		go q.poll(n)
	}
}

// poll asks SQS once for up to n messages.
func (q *Queue) poll(n int) {
	ctx, cancel := context.WithTimeout(q.polls.all, q.wait+beyondWait)
	defer cancel()
	in := &sqs.ReceiveMessageInput{QueueUrl: &q.url, MaxNumberOfMessages: int32(n),
		VisibilityTimeout: seconds(min(q.visibility+spareTime, mostVisible)), WaitTimeSeconds: seconds(q.wait),
		MessageAttributeNames:       []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount}}
	if q.fifo {
		in.MessageSystemAttributeNames = append(in.MessageSystemAttributeNames, types.MessageSystemAttributeNameMessageGroupId)
	}
	begun := time.Now()
	out, err := q.client.ReceiveMessage(ctx, in)
	var ds []queue.Delivery
	brought := 0
	if err == nil {
		now := time.Now()
		brought = len(out.Messages)
		for i := range out.Messages {
			ds = append(ds, q.delivery(&out.Messages[i], now))
		}
		if q.fifo {
			ds = q.groups.admit(ds, now, q.visibility+spareTime)
		}
		if brought == 0 {
			// A server that does not wait must not make this a hot loop.
			time.Sleep(min(q.wait, time.Second) - now.Sub(begun))
		}
	}

	p := &q.polls
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.asked -= n
	switch {
	case err != nil:
		p.hot = false
		if p.wanted > 0 {
			p.err = err
		}
	case brought == n:
		p.hot, p.pace = true, min(p.most, 2*p.pace)
	case brought == 0:
		p.hot, p.pace = false, max(1, p.pace/2)
	default:
		p.hot = false
	}
	q.arrived(ds) // in the same moment as the poll ends: who waits for its end must find them
}

// arrive has the next Receive find ds.
func (q *Queue) arrive(ds ...queue.Delivery) {
	q.polls.mu.Lock()
	defer q.polls.mu.Unlock()
	q.arrived(ds)
}

// arrived is arrive, under the mutex.
func (q *Queue) arrived(ds []queue.Delivery) {
	p := &q.polls
	now := time.Now()
	for _, d := range ds {
		p.arrived = append(p.arrived, arrival{d, now})
	}
	p.tell()
	if len(p.arrived) > 0 && !p.sparing {
		p.sparing = true
		time.AfterFunc(spareTime, q.releaseSpare)
	}
}

// tell wakes who waits for a change.
func (p *polls) tell() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// releaseSpare releases what no Receive has taken in time.
func (q *Queue) releaseSpare() {
	p := &q.polls
	p.mu.Lock()
	n := 0
	for n < len(p.arrived) && (p.closed || p.drains > 0 && p.wanted == 0 || time.Since(p.arrived[n].at) >= spareTime) {
		n++
	}
	ds := p.take(n)
	p.giving += n
	if p.sparing = len(p.arrived) > 0; p.sparing {
		time.AfterFunc(spareTime, q.releaseSpare)
	}
	p.mu.Unlock()
	if len(ds) == 0 {
		return
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.giving -= n
		p.tell()
	}()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if err := q.Release(ctx, 0, ds...); err != nil {
		q.log.Warn("releasing failed: the messages come again when their visibility ends", "queue", q.url, "messages", len(ds), "error", err)
	}
}

// Drain waits for the polls that wait in SQS on behalf of Receives that have ended, up to
// [Options.Wait], and releases what they bring. Without it such messages come again only when
// their visibility ends. It returns early, without error, when there is a Receive again: that
// one takes up the polls. When ctx ends first Drain returns its error, and the polls go on.
// Call it, or Close, when the workers have stopped and the process is to end.
func (q *Queue) Drain(ctx context.Context) error {
	p := &q.polls
	p.mu.Lock()
	p.drains++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.drains--
		p.mu.Unlock()
	}()
	for {
		q.releaseSpare()
		p.mu.Lock()
		left, needed, changed := p.running+len(p.arrived)+p.giving, p.wanted > 0 && !p.closed, p.changed
		p.mu.Unlock()
		if left == 0 || needed {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the last polls of %s: %w", q.url, ctx.Err())
		}
	}
}

// Close ends receiving: Receive returns [ErrClosed] from now on. Close itself returns as
// [Queue.Drain] does, except that it cuts the polls off when ctx ends first. The other methods
// may still be called.
func (q *Queue) Close(ctx context.Context) error {
	p := &q.polls
	defer p.cancel()
	p.mu.Lock()
	p.closed = true
	p.tell()
	p.mu.Unlock()
	return q.Drain(ctx)
}

// delivery makes one of what SQS handed out.
func (q *Queue) delivery(m *types.Message, now time.Time) queue.Delivery {
	r := receipt{since: now, handle: *m.ReceiptHandle}
	if q.fifo {
		r.group = m.Attributes[string(types.MessageSystemAttributeNameMessageGroupId)]
	}
	raw := Raw{Attributes: make(map[string]string, len(m.MessageAttributes))}
	if m.MessageId != nil {
		raw.ID = *m.MessageId
	}
	if m.Body != nil {
		raw.Body = []byte(*m.Body)
	}
	for name, a := range m.MessageAttributes {
		if a.StringValue != nil {
			raw.Attributes[name] = *a.StringValue
		}
	}
	d := queue.Delivery{Receipt: r.String(), Received: 1}
	if n, err := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)]); err == nil && n > 1 {
		d.Received = n
	}
	var err error
	if d.Message, err = q.decodeSafely(raw); err == nil {
		// Of many items one that is bad is the worker's to set aside: the whole message would
		// be taken out of the queue with the good ones in it.
		if err = d.Message.CheckHead(); err == nil && len(d.Items) == 1 {
			err = d.Items[0].Check()
		}
	}
	d.Delay = 0
	if err != nil {
		d.Bad = append([]byte{}, raw.Body...)
		q.log.Warn("a message cannot be decoded", "queue", q.url, "message", raw.ID, "type", d.Type, "error", err)
	}
	return d
}

// decodeSafely keeps a Decoder's panic from ending the process: the message would only
// come again and end the next one.
func (q *Queue) decodeSafely(raw Raw) (m queue.Message, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the decoder panicked: %v", r)
		}
	}()
	return q.decode(raw)
}
