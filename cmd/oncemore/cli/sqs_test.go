package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
	"github.com/oncemore-jobs/oncemore/worker"
)

// withSQS has the commands talk to a fake.
func withSQS(t *testing.T) *sqsfake.Fake {
	t.Helper()
	fake := sqsfake.New()
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	t.Cleanup(fake.Close)
	for name, value := range map[string]string{"AWS_ENDPOINT_URL_SQS": server.URL, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_PROFILE": "", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"} {
		t.Setenv(name, value)
	}
	return fake
}

func mustCreate(t *testing.T, fake *sqsfake.Fake, name string, attributes map[string]string) (url string) {
	t.Helper()
	url, err := fake.CreateQueue(name, attributes)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func TestSQSRedriveShowsAsksAndMoves(t *testing.T) {
	noDatabase(t)
	fake := withSQS(t)
	dead := mustCreate(t, fake, "dead", nil)
	url := mustCreate(t, fake, "q", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":50}`})
	q, err := sqsqueue.New(t.Context(), dead, sqsqueue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 15 {
		m := queue.Message{Type: "letter", Items: []queue.Item{{Entity: fmt.Sprint(i), Args: json.RawMessage(`{}`)}}}
		if err := q.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	left := func(url string) int { n, _, _ := fake.Count(url); return n }

	a := call(t, Options{}, "sqs", "redrive", "dead", "--dry-run")
	if a.code != 0 || !strings.Contains(a.err, "some 15 messages") || strings.Count(a.out, `"type":"letter"`) != 10 {
		t.Errorf("dry run: %+v", a)
	}
	a = call(t, Options{}, "sqs", "redrive", "dead", "--dry-run", "--max", "5")
	if a.code != 0 || !strings.Contains(a.err, "would move 5 messages") {
		t.Errorf("dry run of five: %+v", a)
	}
	a = call(t, Options{}, "sqs", "redrive", "dead")
	if a.code != 2 || !strings.Contains(a.err, "--yes") || left(dead) != 15 {
		t.Errorf("nobody is there to be asked: %+v", a)
	}
	a = callWith(t, Options{}, strings.NewReader("n\n"), true, "sqs", "redrive", "dead")
	if a.code != 1 || !strings.Contains(a.err, "nothing was changed") || !strings.Contains(a.err, "About to move some 15 messages of "+dead+" to "+url) || left(dead) != 15 {
		t.Errorf("no: %+v", a)
	}
	a = callWith(t, Options{}, strings.NewReader("y\n"), true, "sqs", "redrive", "dead", "--max", "5")
	if a.code != 0 || left(dead) != 10 || left(url) != 5 {
		t.Errorf("yes, five: %+v", a)
	}
	a = call(t, Options{}, "sqs", "redrive", "dead", "--yes", "-o", "json")
	var state sqsqueue.RedriveState
	if err := json.Unmarshal([]byte(a.out), &state); a.code != 0 || err != nil || state.Moved != 10 || state.From != dead || state.To != url || left(url) != 15 {
		t.Errorf("the rest: %+v %v", a, err)
	}
	for args, code := range map[string]int{"sqs redrive": 2, "sqs redrive dead --max -1": 2, "sqs redrive nowhere --dry-run": 1, "sqs": 0} {
		if a := call(t, Options{}, strings.Fields(args)...); a.code != code {
			t.Errorf("%s: %+v, want code %d", args, a, code)
		}
	}
}

func TestSQSDoctorComparesQueuesWithWhatReadsThem(t *testing.T) {
	noDatabase(t)
	fake := withSQS(t)
	mustCreate(t, fake, "dead", map[string]string{"MessageRetentionPeriod": "1209600"})
	url := mustCreate(t, fake, "q", map[string]string{"RedrivePolicy": `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":50}`})

	if a := call(t, Options{}, "sqs", "doctor"); a.code != 2 || !strings.Contains(a.err, "name a queue") {
		t.Errorf("without a queue: %+v", a)
	}
	if a := call(t, Options{}, "sqs", "doctor", "q", "--strict"); a.code != 0 || !strings.Contains(a.out, "sqs:DeleteMessage") || !strings.Contains(a.err, "0 bad, 0 warnings") {
		t.Errorf("a sound one: %+v", a)
	}
	if a := call(t, Options{}, "sqs", "doctor", "q", "--attempts", "60"); a.code != 3 || !strings.Contains(a.out, "set maxReceiveCount to 300") {
		t.Errorf("many attempts: %+v", a)
	}
	if a := call(t, Options{}, "sqs", "doctor", "nowhere"); a.code != 1 || !strings.Contains(a.err, "there is no queue nowhere") {
		t.Errorf("one that is not there: %+v", a)
	}

	// Without names it is those of the program, compared with its jobs.
	q, err := sqsqueue.New(t.Context(), url, sqsqueue.Options{Visibility: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Worker: worker.Config{Queues: map[string]queue.Queue{"slow": q}},
		Set: func(context.Context, *pgxpool.Pool) (*jobs.Set, error) {
			do := func(context.Context, sqsErrand) error { return nil }
			return jobs.NewSet(jobs.Job[sqsErrand]{Do: do, Effect: jobs.Repeatable, Policy: jobs.Policy{Queue: "slow", Attempts: 30, Timeout: 13 * time.Hour}})
		},
	}
	a := call(t, o, "sqs", "doctor", "-o", "json", "--database-url", pgtest.DSN(t))
	var checks []sqsCheck
	if err := json.Unmarshal([]byte(a.out), &checks); err != nil {
		t.Fatalf("%+v: %v", a, err)
	}
	state := map[string]string{}
	for _, c := range checks {
		if state[c.Name] = c.State; c.Queue != url {
			t.Errorf("%+v", c)
		}
	}
	if state["visibility"] != "warn" || state["timeout"] != "warn" || state["dead letters"] != "warn" {
		t.Errorf("%v", state)
	}
}

type sqsErrand struct{}

func (sqsErrand) JobType() string { return "errand" }
func (sqsErrand) Entity() string  { return "1" }

// A worker that is told to stop lets go of what the last poll of SQS brings.
func TestWorkEndsThePollsOfSQSBeforeItEnds(t *testing.T) {
	noDatabase(t)
	fake := withSQS(t)
	url := mustCreate(t, fake, "q", nil)
	q, err := sqsqueue.New(t.Context(), url, sqsqueue.Options{Visibility: time.Hour, Wait: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 10)
	o := Options{
		Worker: worker.Config{Queues: map[string]queue.Queue{"": q}},
		Set: func(context.Context, *pgxpool.Pool) (*jobs.Set, error) {
			return jobs.NewSet(jobs.Job[sqsErrand]{Effect: jobs.Repeatable, Do: func(_ context.Context, a sqsErrand) error { done <- a.Entity(); return nil }})
		},
	}
	root := New(o)
	root.SetArgs([]string{"work", "--database-url", pgtest.DSN(t)})
	root.SetErr(t.Output())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	if err := jobs.Enqueue(t.Context(), q, sqsErrand{}); err != nil {
		t.Fatal(err)
	}
	<-done
	stop()
	if err := jobs.Enqueue(t.Context(), q, sqsErrand{}); err != nil { // for the poll that still waits
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if visible, held, _ := fake.Count(url); visible != 1 || held != 0 {
		t.Errorf("%d visible, %d held, want the one that came late to be visible", visible, held)
	}
}
