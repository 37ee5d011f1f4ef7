package sqslocal_test

import (
	"context"
	"os"
	"testing"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// started starts a server that ends with the test.
func started(t *testing.T) *sqslocal.Server {
	t.Helper()
	s, err := sqslocal.Start(t.Context(), t.Output())
	if err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatalf("no SQS, and TEST_REQUIRE=1: %v", err)
		}
		t.Skipf("no SQS: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

func send(t *testing.T, s *sqslocal.Server, url string, n int) {
	t.Helper()
	for range n {
		if err := call(t.Context(), s, "SendMessage", map[string]any{"QueueUrl": url, "MessageBody": "hello"}, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func call(ctx context.Context, s *sqslocal.Server, action string, in, out any) error {
	return sqslocal.Call(ctx, s.Endpoint, action, in, out)
}

type received struct{ Messages []struct{ MessageId string } }

func receive(t *testing.T, s *sqslocal.Server, url string) (ids []string) {
	t.Helper()
	var r received
	if err := call(t.Context(), s, "ReceiveMessage", map[string]any{"QueueUrl": url, "MaxNumberOfMessages": 10}, &r); err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Messages {
		ids = append(ids, m.MessageId)
	}
	return ids
}

func TestAServerKeepsCountOfItsMessagesAndIsGoneAfterStop(t *testing.T) {
	s := started(t)
	url, err := s.Create(t.Context(), "letters", map[string]string{"VisibilityTimeout": "60"})
	if err != nil {
		t.Fatal(err)
	}
	send(t, s, url, 3)
	if got := receive(t, s, url); len(got) == 0 {
		t.Error("nothing was received")
	}
	if n, err := s.Count(t.Context(), url); n != 3 || err != nil {
		t.Errorf("it counts %d messages, %v; want 3, held or not", n, err)
	}
	s.Stop()
	if _, err := s.Count(t.Context(), url); err == nil {
		t.Error("it answers after Stop")
	}
}

func TestAFaultyHandsOutTwiceRefusesAndGoesAway(t *testing.T) {
	f := sqslocal.NewFaulty(started(t).Endpoint, sqsfake.Faults{Duplicates: 1, PartialFailures: 1})
	s, stop, err := sqslocal.Serve(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	url, err := s.Create(t.Context(), "letters", map[string]string{"VisibilityTimeout": "60"})
	if err != nil {
		t.Fatal(err)
	}

	entries := []map[string]string{{"Id": "1", "MessageBody": "one"}, {"Id": "2", "MessageBody": "two"}}
	var sent struct{ Successful, Failed []struct{ Id string } }
	if err := call(t.Context(), s, "SendMessageBatch", map[string]any{"QueueUrl": url, "Entries": entries}, &sent); err != nil {
		t.Fatal(err)
	}
	if len(sent.Successful) != 0 || len(sent.Failed) != 2 {
		t.Errorf("of two messages it took %d and refused %d, though it refuses all", len(sent.Successful), len(sent.Failed))
	}
	first, again := receive(t, s, url), receive(t, s, url)
	if len(first) != 1 || len(again) != 1 || first[0] != again[0] {
		t.Errorf("handed out were %q and %q; want, twice, one of those it had refused", first, again)
	}
	if got, want := f.Tally(), (sqsfake.Tally{HandedOut: 2, Duplicates: 2, Entries: 2, Refused: 2}); got != want {
		t.Errorf("it tells of %+v, want %+v", got, want)
	}

	f.SetDown(true)
	if _, err := s.Count(t.Context(), url); err == nil {
		t.Error("it answers while it is down")
	}
	if f.Lost() == 0 {
		t.Error("no call was lost")
	}
	f.SetDown(false)
	if n, err := s.Count(t.Context(), url); n != 1 || err != nil {
		t.Errorf("after the outage it counts %d messages, %v; want 1", n, err)
	}
}
