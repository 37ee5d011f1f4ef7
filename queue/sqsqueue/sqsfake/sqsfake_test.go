package sqsfake_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"

	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// The laws that the service keeps, and those that only the fake keeps always, seen through
// the SDK.

// A stage is a fake with a queue, in a bubble.
type stage struct {
	*testing.T
	*sqs.Client
	fake *sqsfake.Fake
	url  string
}

func bubble(t *testing.T, name string, attributes map[string]string, test func(s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &stage{T: t, fake: sqsfake.New()}
		s.Client = s.fake.Client()
		var err error
		if s.url, err = s.fake.CreateQueue(name, attributes); err != nil {
			t.Fatal(err)
		}
		test(s)
		s.fake.Close()
	})
}

func (s *stage) send(body, group string) {
	s.Helper()
	in := &sqs.SendMessageInput{QueueUrl: &s.url, MessageBody: &body}
	if group != "" {
		in.MessageGroupId, in.MessageDeduplicationId = &group, &body
	}
	if _, err := s.SendMessage(s.Context(), in); err != nil {
		s.Fatal(err)
	}
}

// receive asks once, and waits for a second at most.
func (s *stage) receive() []types.Message {
	s.Helper()
	out, err := s.ReceiveMessage(s.Context(), &sqs.ReceiveMessageInput{QueueUrl: &s.url, MaxNumberOfMessages: 10, WaitTimeSeconds: 1})
	if err != nil {
		s.Fatal(err)
	}
	return out.Messages
}

func bodies(ms []types.Message) (out []string) {
	for _, m := range ms {
		out = append(out, *m.Body)
	}
	return out
}

// code is SQS's word for an error.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return fmt.Sprint(err)
}

func TestWhatBreaksALawIsRefused(t *testing.T) {
	bubble(t, "q", nil, func(s *stage) {
		batch := func(ids ...string) error {
			in := &sqs.SendMessageBatchInput{QueueUrl: &s.url, Entries: []types.SendMessageBatchRequestEntry{}}
			for _, id := range ids {
				in.Entries = append(in.Entries, types.SendMessageBatchRequestEntry{Id: &id, MessageBody: new("b")})
			}
			_, err := s.SendMessageBatch(s.Context(), in)
			return err
		}
		send := func(in *sqs.SendMessageInput) error {
			in.QueueUrl = &s.url
			_, err := s.SendMessage(s.Context(), in)
			return err
		}
		receive := func(in *sqs.ReceiveMessageInput) error {
			in.QueueUrl = &s.url
			_, err := s.ReceiveMessage(s.Context(), in)
			return err
		}
		large := strings.Repeat("x", 600_000)
		two := []types.SendMessageBatchRequestEntry{{Id: new("a"), MessageBody: &large}, {Id: new("b"), MessageBody: &large}}
		_, tooLong := s.SendMessageBatch(s.Context(), &sqs.SendMessageBatchInput{QueueUrl: &s.url, Entries: two})
		_, noQueue := s.GetQueueUrl(s.Context(), &sqs.GetQueueUrlInput{QueueName: new("nowhere")})
		_, noReceipt := s.ChangeMessageVisibility(s.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: &s.url, ReceiptHandle: new("x")})
		for _, c := range []struct {
			want string
			err  error
		}{
			{"EmptyBatchRequest", batch()},
			{"TooManyEntriesInBatchRequest", batch(strings.Split("abcdefghijk", "")...)},
			{"BatchEntryIdsNotDistinct", batch("a", "a")},
			{"InvalidBatchEntryId", batch("a b")},
			{"BatchRequestTooLong", tooLong},
			{"NonExistentQueue", noQueue}, // the word of the older protocol, which the SDK prefers
			{"ReceiptHandleIsInvalid", noReceipt},
			{"InvalidMessageContents", send(&sqs.SendMessageInput{MessageBody: new("\x01")})},
			{"InvalidParameterValue", send(&sqs.SendMessageInput{MessageBody: new(large + large)})},
			{"InvalidParameterValue", send(&sqs.SendMessageInput{MessageBody: new("b"), DelaySeconds: 901})},
			{"InvalidParameterValue", send(&sqs.SendMessageInput{MessageBody: new("b"), MessageDeduplicationId: new("d")})},
			{"InvalidParameterValue", receive(&sqs.ReceiveMessageInput{MaxNumberOfMessages: 11})},
			{"InvalidParameterValue", receive(&sqs.ReceiveMessageInput{WaitTimeSeconds: 21})},
			{"InvalidParameterValue", receive(&sqs.ReceiveMessageInput{VisibilityTimeout: 43201})},
		} {
			if got := code(c.err); got != c.want && !strings.HasSuffix(got, "."+c.want) {
				s.Errorf("%s, want %s", got, c.want)
			}
		}
		if visible, _, _ := s.fake.Count(s.url); visible != 0 {
			s.Errorf("%d were sent all the same", visible)
		}
	})
	bubble(t, "q.fifo", nil, func(s *stage) {
		for _, in := range []*sqs.SendMessageInput{
			{MessageBody: new("b")},
			{MessageBody: new("b"), MessageGroupId: new("g")},
			{MessageBody: new("b"), MessageGroupId: new("g"), MessageDeduplicationId: new("d"), DelaySeconds: 1},
			{MessageBody: new("b"), MessageGroupId: new("a b"), MessageDeduplicationId: new("d")},
		} {
			in.QueueUrl = &s.url
			if _, err := s.SendMessage(s.Context(), in); err == nil {
				s.Errorf("%+v is taken", in)
			}
		}
	})
}

func TestAHandleIsGoodUntilItsVisibilityEnds(t *testing.T) {
	bubble(t, "q", map[string]string{"VisibilityTimeout": "10"}, func(s *stage) {
		s.send("b", "")
		handle := s.receive()[0].ReceiptHandle
		time.Sleep(10 * time.Second)
		if _, err := s.DeleteMessage(s.Context(), &sqs.DeleteMessageInput{QueueUrl: &s.url, ReceiptHandle: handle}); err != nil {
			s.Error(err)
		}
		_, err := s.ChangeMessageVisibility(s.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: &s.url, ReceiptHandle: handle})
		if !strings.HasSuffix(code(err), "MessageNotInflight") {
			s.Errorf("an expired handle: %v", err)
		}
		if ms := s.receive(); len(ms) != 1 || *ms[0].ReceiptHandle == *handle {
			s.Errorf("it was deleted by an expired handle, or has the same again: %v", bodies(ms))
		}
	})
}

func TestAPollWhoseClientHasHungUpTakesMessagesAllTheSame(t *testing.T) {
	bubble(t, "q", nil, func(s *stage) {
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		defer cancel()
		if _, err := s.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &s.url, WaitTimeSeconds: 20}); err == nil {
			s.Error("it has an answer")
		}
		s.send("b", "")
		synctest.Wait()
		if _, held, _ := s.fake.Count(s.url); held != 1 {
			s.Errorf("%d are held", held)
		}
	})
}

func TestALongPollEndsWhenSomethingBecomesVisible(t *testing.T) {
	bubble(t, "q", map[string]string{"VisibilityTimeout": "7"}, func(s *stage) {
		s.send("b", "")
		s.receive()
		begun := time.Now()
		out, err := s.ReceiveMessage(s.Context(), &sqs.ReceiveMessageInput{QueueUrl: &s.url, WaitTimeSeconds: 20})
		if err != nil || len(out.Messages) != 1 || time.Since(begun) != 7*time.Second {
			s.Errorf("%v after %v", err, time.Since(begun))
		}
		s.fake.Advance(7 * time.Second) // as does time that is let jump
		if ms := s.receive(); len(ms) != 1 {
			s.Errorf("%d after an advance", len(ms))
		}
	})
}

func TestAGroupWaitsForWhatIsInFlight(t *testing.T) {
	bubble(t, "q.fifo", nil, func(s *stage) {
		for _, body := range []string{"a1", "a2", "b1"} {
			s.send(body, body[:1])
		}
		s.send("a1", "a") // again, within five minutes
		ms := s.receive()
		if got := bodies(ms); !slices.Equal(got, []string{"a1", "a2", "b1"}) {
			s.Errorf("one receive brings %v", got)
		}
		s.send("a3", "a")
		if got := bodies(s.receive()); len(got) > 0 {
			s.Errorf("while they are held: %v", got)
		}
		for i, d := range []int32{0, 0, 30} { // a1 and a2 come back
			if _, err := s.ChangeMessageVisibility(s.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: &s.url, ReceiptHandle: ms[i].ReceiptHandle, VisibilityTimeout: d}); err != nil {
				s.Fatal(err)
			}
		}
		if got := bodies(s.receive()); !slices.Equal(got, []string{"a1", "a2", "a3"}) {
			s.Errorf("then: %v", got)
		}
	})
}

func TestWhatIsReceivedTooOftenIsBuriedWithItsAge(t *testing.T) {
	bubble(t, "dead", map[string]string{"MessageRetentionPeriod": "3600"}, func(s *stage) {
		dead := s.url
		var err error
		if s.url, err = s.fake.CreateQueue("q", map[string]string{"VisibilityTimeout": "1", "RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":"2"}`}); err != nil {
			s.Fatal(err)
		}
		s.send("b", "")
		for range 2 {
			if ms := s.receive(); len(ms) != 1 {
				s.Fatalf("%d", len(ms))
			}
			time.Sleep(time.Second)
		}
		if ms := s.receive(); len(ms) != 0 {
			s.Errorf("a third time: %v", bodies(ms))
		}
		if visible, _, _ := s.fake.Count(dead); visible != 1 {
			s.Errorf("%d are buried", visible)
		}
		s.fake.Advance(time.Hour) // since it was sent
		if visible, _, _ := s.fake.Count(dead); visible != 0 {
			s.Error("it is older than its retention")
		}
	})
}
