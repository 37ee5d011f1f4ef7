package sqsqueue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/oncemore-jobs/oncemore/queue"
)

// Options of a queue. The zero Options are a good beginning.
type Options struct {
	// Client talks to SQS. nil: one made of what the SDK finds in the environment, the
	// shared files, the container or the machine; AWS_ENDPOINT_URL_SQS names another
	// endpoint.
	Client *sqs.Client

	// Visibility is how long a message is held before it is handed out again, in whole
	// seconds. A worker extends what it holds at a third of it, so it need not be longer
	// than the jobs: it is how late the work of a crashed worker comes again. 0: the
	// queue's own VisibilityTimeout.
	Visibility time.Duration

	// Wait is how long one poll waits in SQS for the first message, in whole seconds up to
	// 20; 0: 20. Shorter waits cost more requests and find nothing sooner, but they are
	// what [Queue.Close] waits for.
	Wait time.Duration

	// Polls is how many polls may run at once; 0: 10. Each can bring ten messages.
	Polls int

	// Decode reads messages that are not in the format of docs/wire-format.md; nil: [Decode].
	Decode Decoder

	// Group names the message group of a message that is sent to a FIFO queue: at most 128
	// letters, digits and signs of ASCII. nil: one for each job type and entity (of a pack,
	// its first entity), so that only what is about the same thing is in order.
	Group func(queue.Message) string

	Log *slog.Logger // nil: slog.Default()
}

// A Queue is one queue in SQS. It is safe for concurrent use.
type Queue struct {
	client     *sqs.Client
	url        string
	fifo       bool
	visibility time.Duration
	wait       time.Duration
	limit      int // bytes of a message, its attributes included
	decode     Decoder
	group      func(queue.Message) string
	log        *slog.Logger

	polls  polls
	groups groups
}

var _ queue.Queue = (*Queue)(nil)

const (
	mostVisible = 12 * time.Hour   // that SQS holds a message, from its receipt on
	mostDelay   = 15 * time.Minute // of a message
	mostWait    = 20 * time.Second // of a poll
	mostBytes   = 1 << 20          // of a message and of a batch
	mostEntries = 10               // of a batch
	callTime    = 20 * time.Second // of any call but a poll
	beyondWait  = 10 * time.Second // of a poll, beyond its wait
	sideBySide  = 10               // batches of one method at a time
)

// New returns the queue with that URL or name. It asks SQS for the queue's attributes, so
// that whatever is missing (credentials, a region, the queue, a permission) is one error
// here. The role needs sqs:GetQueueAttributes, and sqs:GetQueueUrl where a name is given.
func New(ctx context.Context, urlOrName string, o Options) (*Queue, error) {
	q := &Queue{client: o.Client, visibility: o.Visibility, wait: o.Wait, decode: o.Decode, group: o.Group, log: o.Log}
	if q.wait == 0 {
		q.wait = mostWait
	}
	if o.Polls == 0 {
		o.Polls = 10
	}
	if q.decode == nil {
		q.decode = Decode
	}
	if q.group == nil {
		q.group = groupOf
	}
	if q.log == nil {
		q.log = slog.Default()
	}
	if q.wait < time.Second || q.wait > mostWait || q.wait%time.Second != 0 || q.visibility < 0 || q.visibility > mostVisible || q.visibility%time.Second != 0 || o.Polls < 0 {
		return nil, errors.New("sqsqueue: Wait must be whole seconds from 1 to 20, Visibility whole seconds up to 12 hours, and Polls not negative")
	}
	client, url, attributes, err := open(ctx, q.client, urlOrName)
	if err != nil {
		return nil, fmt.Errorf("sqsqueue: %w", err)
	}
	q.client, q.url = client, url
	q.fifo = attributes["FifoQueue"] == "true" || strings.HasSuffix(url, ".fifo")
	q.limit = number(attributes, "MaximumMessageSize", mostBytes)
	if q.visibility == 0 {
		q.visibility = time.Duration(number(attributes, "VisibilityTimeout", 30)) * time.Second
	}
	if q.visibility < time.Second {
		return nil, fmt.Errorf("sqsqueue: queue %s has a VisibilityTimeout of 0, so nobody would hold what he receives: set it to 30 seconds or so, or Options.Visibility", url)
	}
	q.polls.init(o.Polls)
	q.groups.init()
	return q, nil
}

// number is an attribute that is one.
func number(attributes map[string]string, name string, otherwise int) int {
	if n, err := strconv.Atoi(attributes[name]); err == nil {
		return n
	}
	return otherwise
}

// attributesOf reads all attributes of a queue.
func attributesOf(ctx context.Context, client *sqs.Client, url string) (map[string]string, error) {
	out, err := client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: &url, AttributeNames: []types.QueueAttributeName{types.QueueAttributeNameAll}})
	if err != nil {
		return nil, err
	}
	return out.Attributes, nil
}

// Visibility is how long a delivery is held before it is handed out again.
func (q *Queue) Visibility() time.Duration { return q.visibility }

// URL is where SQS has the queue.
func (q *Queue) URL() string { return q.url }

// FIFO tells whether it is a FIFO queue.
func (q *Queue) FIFO() bool { return q.fifo }

// seconds are whole ones, rounded up, so that nothing comes early.
func seconds(d time.Duration) int32 {
	if d <= 0 {
		return 0
	}
	return int32((d-1)/time.Second) + 1
}
