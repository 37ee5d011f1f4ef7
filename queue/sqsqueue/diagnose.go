package sqsqueue

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// A Check is one thing that [Diagnose] looked at.
type Check struct {
	Name  string `json:"check"`
	State string `json:"state"` // "ok", "warn", "bad" or "unseen", as of the database's checks
	Found string `json:"found"`
	Do    string `json:"do,omitempty"` // what is to be done, where it is not ok
}

// Facts are what a queue's attributes are to be compared with. The zero Facts are the
// defaults of jobs.
type Facts struct {
	Client     *sqs.Client   // nil: as for [New]
	Attempts   int           // the most that a job type of the queue has; 0: 10
	Timeout    time.Duration // the longest of a job type of the queue; 0: a minute
	Visibility time.Duration // of [Options], where it is set
}

// Diagnose looks whether a queue is set up for its work: visibility, dead letters,
// retention, permissions. It changes nothing and receives nothing. An error means that
// nothing could be looked at.
func Diagnose(ctx context.Context, urlOrName string, f Facts) ([]Check, error) {
	if f.Attempts == 0 {
		f.Attempts = 10
	}
	if f.Timeout == 0 {
		f.Timeout = time.Minute
	}
	client, url, attributes, err := open(ctx, f.Client, urlOrName)
	if err != nil {
		return nil, fmt.Errorf("sqsqueue: %w", err)
	}
	q := &queueFacts{Facts: f, client: client, url: url, attributes: attributes, fifo: attributes["FifoQueue"] == "true"}
	checks := []Check{q.visibility(), q.timeout(), q.waiting(), q.inFlight(), q.delay(), q.size()}
	checks = append(checks, q.deadLetters(ctx)...)
	return append(checks, q.permissions(ctx)...), nil
}

type queueFacts struct {
	Facts
	client     *sqs.Client
	url        string
	attributes map[string]string
	fifo       bool
}

func (q *queueFacts) seconds(name string) time.Duration {
	return time.Duration(number(q.attributes, name, 0)) * time.Second
}

func (q *queueFacts) visibility() Check {
	c := Check{Name: "visibility", State: "ok"}
	v, from := q.Visibility, "Options.Visibility"
	if v == 0 {
		v, from = q.seconds("VisibilityTimeout"), "VisibilityTimeout"
	}
	c.Found = fmt.Sprintf("%s is %v: extended at a third of it, and how late the work of a crashed worker comes again", from, v)
	switch {
	case v == 0:
		c.State, c.Do = "bad", "set VisibilityTimeout to 30 to 60 seconds: nobody would hold what he receives"
	case v < 10*time.Second:
		c.State, c.Do = "warn", "set it to 30 to 60 seconds: a pause of a few seconds loses what is held, and every extension is a request"
	case v > 5*time.Minute:
		c.State, c.Do = "warn", "set it to 30 to 60 seconds: workers extend what they hold, so it need not be as long as the jobs"
	}
	return c
}

func (q *queueFacts) timeout() Check {
	c := Check{Name: "timeout", State: "ok", Found: fmt.Sprintf("the longest timeout of a job is %v; SQS lets a message be held for 12 hours", q.Timeout)}
	if q.Timeout > mostVisible-time.Hour {
		c.State, c.Do = "warn", "make such jobs shorter, or send them through the Postgres queue: the message comes again while the job runs"
	}
	return c
}

func (q *queueFacts) waiting() Check {
	n, oldest := number(q.attributes, "ApproximateNumberOfMessages", 0), q.seconds("MessageRetentionPeriod")
	c := Check{Name: "retention", State: "ok", Found: fmt.Sprintf("%d messages wait; what waits longer than %v is deleted by SQS", n, days(oldest))}
	if oldest < 4*24*time.Hour {
		c.State, c.Do = "warn", "set MessageRetentionPeriod to 1209600 (14 days): an outage over a long weekend must lose nothing"
	}
	return c
}

func (q *queueFacts) inFlight() Check {
	const most = 120_000
	n := number(q.attributes, "ApproximateNumberOfMessagesNotVisible", 0)
	c := Check{Name: "in flight", State: "ok", Found: fmt.Sprintf("%d messages are held; at %d SQS hands out no more, without an error", n, most)}
	if n > most*8/10 {
		c.State, c.Do = "bad", "see which workers hold them: fewer slots, or fewer messages with more items in each"
	}
	return c
}

func (q *queueFacts) delay() Check {
	d := q.seconds("DelaySeconds")
	c := Check{Name: "delay", State: "ok", Found: fmt.Sprintf("DelaySeconds is %v", d)}
	if d > 0 {
		c.State, c.Do = "warn", "set DelaySeconds to 0: every message waits so long, also those of a retry by hand"
	}
	return c
}

func (q *queueFacts) size() Check {
	n := number(q.attributes, "MaximumMessageSize", mostBytes)
	c := Check{Name: "size", State: "ok", Found: fmt.Sprintf("MaximumMessageSize is %d bytes", n)}
	if n < 256<<10 {
		c.State, c.Do = "warn", "set MaximumMessageSize to 1048576: packs are split into messages of so few bytes, and an item of 64 KiB may not fit at all"
	}
	return c
}

func (q *queueFacts) deadLetters(ctx context.Context) []Check {
	c := Check{Name: "dead letters", State: "ok"}
	var policy struct {
		DeadLetterTargetArn string          `json:"deadLetterTargetArn"`
		MaxReceiveCount     json.RawMessage `json:"maxReceiveCount"`
	}
	text := q.attributes["RedrivePolicy"]
	if text == "" || json.Unmarshal([]byte(text), &policy) != nil {
		c.State, c.Found = "warn", "there is no dead-letter queue"
		c.Do = fmt.Sprintf("set one, with a maxReceiveCount of %d or so: workers keep aside what they cannot read, but a message that kills its worker before that goes round", q.wanted())
		return []Check{c}
	}
	most, _ := strconv.Atoi(strings.Trim(string(policy.MaxReceiveCount), `"`))
	c.Found = fmt.Sprintf("after %d receives a message goes to %s; a job has up to %d attempts", most, policy.DeadLetterTargetArn, q.Attempts)
	switch {
	case most <= q.Attempts:
		c.State = "bad"
	case most < q.wanted():
		c.State = "warn"
	}
	if c.State != "ok" {
		c.Do = fmt.Sprintf("set maxReceiveCount to %d or more: receives are no attempts (a stop, a lost answer and a full worker count too), and the ledger says which job failed and why", q.wanted())
	}
	return append([]Check{c}, q.deadLetterQueue(ctx, policy.DeadLetterTargetArn))
}

// wanted is a maxReceiveCount that leaves the attempts to the ledger.
func (q *queueFacts) wanted() int { return max(50, 5*q.Attempts) }

func (q *queueFacts) deadLetterQueue(ctx context.Context, arn string) Check {
	c := Check{Name: "dead letter queue", State: "ok"}
	parts := strings.Split(arn, ":")
	name := parts[len(parts)-1]
	in := &sqs.GetQueueUrlInput{QueueName: &name}
	if len(parts) == 6 {
		in.QueueOwnerAWSAccountId = &parts[4]
	}
	var attributes map[string]string
	out, err := q.client.GetQueueUrl(ctx, in)
	if err == nil {
		attributes, err = attributesOf(ctx, q.client, *out.QueueUrl)
	}
	if err != nil {
		c.State, c.Found = "unseen", fmt.Sprintf("%s could not be looked at: %v", arn, err)
		if isMissing(codeOf(err)) {
			c.State, c.Do = "bad", "create it: SQS deletes nothing, but moves nothing either, and the message goes round"
		}
		return c
	}
	dead, alive := time.Duration(number(attributes, "MessageRetentionPeriod", 0))*time.Second, q.seconds("MessageRetentionPeriod")
	n := number(attributes, "ApproximateNumberOfMessages", 0)
	c.Found = fmt.Sprintf("%d messages are in it; they are deleted after %s", n, days(dead))
	switch {
	case !q.fifo && dead <= alive:
		c.State = "bad"
		c.Found += fmt.Sprintf(", counted from when they were sent; the queue itself keeps them for %s", days(alive))
		c.Do = "set its MessageRetentionPeriod to 1209600 (14 days), and the queue's to less: a message that waited long would be deleted soon after it got there"
	case n > 0:
		c.State, c.Do = "warn", fmt.Sprintf("see what they are: oncemore sqs redrive %s --dry-run; and send them again when the reason is gone: oncemore sqs redrive %[1]s", name)
	}
	return c
}

// permissions asks for each action with a request that SQS must refuse: as malformed where
// the action is allowed.
func (q *queueFacts) permissions(ctx context.Context) (checks []Check) {
	for _, p := range []struct {
		action string
		ask    func() error
	}{
		{"sqs:ReceiveMessage", func() error {
			_, err := q.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &q.url, MaxNumberOfMessages: 11})
			return err
		}},
		{"sqs:DeleteMessage", func() error {
			_, err := q.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &q.url, Entries: []types.DeleteMessageBatchRequestEntry{}})
			return err
		}},
		{"sqs:ChangeMessageVisibility", func() error {
			_, err := q.client.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &q.url, Entries: []types.ChangeMessageVisibilityBatchRequestEntry{}})
			return err
		}},
		{"sqs:SendMessage", func() error {
			_, err := q.client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &q.url, Entries: []types.SendMessageBatchRequestEntry{}})
			return err
		}},
	} {
		c := Check{Name: p.action, State: "ok", Found: "allowed"}
		err := p.ask()
		switch code := codeOf(err); {
		case isDenied(code) && p.action == "sqs:SendMessage":
			c.State, c.Found, c.Do = "warn", "denied", "allow it to who sends, or moves dead letters back; workers do neither: see docs/sqs.md"
		case isDenied(code):
			c.State, c.Found, c.Do = "bad", "denied", "allow it in the policy of the role: see docs/sqs.md"
		case code == "" && err != nil:
			c.State, c.Found = "unseen", err.Error()
		}
		checks = append(checks, c)
	}
	return checks
}

func days(d time.Duration) string {
	if d >= 48*time.Hour {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return d.String()
}
