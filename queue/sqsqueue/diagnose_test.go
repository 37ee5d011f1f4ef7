package sqsqueue_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/oncemore-jobs/oncemore/integration_test/sqspeer"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

func diagnose(t *testing.T, client *sqs.Client, url string, f sqsqueue.Facts) map[string]sqsqueue.Check {
	t.Helper()
	f.Client = client
	checks, err := sqsqueue.Diagnose(t.Context(), url, f)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]sqsqueue.Check{}
	for _, c := range checks {
		if c.Found == "" || (c.Do == "") != (c.State == "ok" || c.State == "unseen") {
			t.Errorf("%+v", c)
		}
		out[c.Name] = c
	}
	return out
}

func TestDiagnoseSaysWhatToChange(t *testing.T) {
	const dead = `{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":50}`
	sound := map[string]string{"VisibilityTimeout": "30", "RedrivePolicy": dead}
	for _, c := range []struct {
		name  string
		set   map[string]string // beside or instead of what is sound
		facts sqsqueue.Facts
		check string
		state string
		says  string
	}{
		{name: "sound"},
		{"held by nobody", map[string]string{"VisibilityTimeout": "0"}, sqsqueue.Facts{}, "visibility", "bad", "set VisibilityTimeout"},
		{"held by somebody", map[string]string{"VisibilityTimeout": "0"}, sqsqueue.Facts{Visibility: 30 * time.Second}, "", "", ""},
		{"short", map[string]string{"VisibilityTimeout": "5"}, sqsqueue.Facts{}, "visibility", "warn", "30 to 60 seconds"},
		{"long", map[string]string{"VisibilityTimeout": "3600"}, sqsqueue.Facts{}, "visibility", "warn", "need not be as long as the jobs"},
		{"half a day", nil, sqsqueue.Facts{Timeout: 12 * time.Hour}, "timeout", "warn", "shorter"},
		{"gone soon", map[string]string{"MessageRetentionPeriod": "3600"}, sqsqueue.Facts{}, "retention", "warn", "1209600"},
		{"delay", map[string]string{"DelaySeconds": "60"}, sqsqueue.Facts{}, "delay", "warn", "set DelaySeconds to 0"},
		{"small", map[string]string{"MaximumMessageSize": "2048"}, sqsqueue.Facts{}, "size", "warn", "1048576"},
		{"no dead letters", map[string]string{"RedrivePolicy": ""}, sqsqueue.Facts{}, "dead letters", "warn", "maxReceiveCount of 50"},
		{"buried alive", map[string]string{"RedrivePolicy": strings.Replace(dead, "50", `"10"`, 1)}, sqsqueue.Facts{}, "dead letters", "bad", "set maxReceiveCount to 50 or more"},
		{"nearly", map[string]string{"RedrivePolicy": strings.Replace(dead, "50", "49", 1)}, sqsqueue.Facts{}, "dead letters", "warn", "set maxReceiveCount to 50"},
		{"many attempts", nil, sqsqueue.Facts{Attempts: 25}, "dead letters", "warn", "set maxReceiveCount to 125"},
		{"no such place", map[string]string{"RedrivePolicy": strings.Replace(dead, ":dead", ":nowhere", 1)}, sqsqueue.Facts{}, "dead letter queue", "bad", "create it"},
		{"dead before buried", map[string]string{"MessageRetentionPeriod": "1209600"}, sqsqueue.Facts{}, "dead letter queue", "bad", "1209600"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := sqsfake.New()
			attributes := map[string]string{}
			for _, from := range []map[string]string{sound, c.set} {
				for k, v := range from {
					attributes[k] = v
				}
			}
			if _, err := fake.CreateQueue("dead", map[string]string{"MessageRetentionPeriod": "1209600"}); err != nil {
				t.Fatal(err)
			}
			url, err := fake.CreateQueue("q", attributes)
			if err != nil {
				t.Fatal(err)
			}
			for name, check := range diagnose(t, fake.Client(), url, c.facts) {
				switch {
				case name != c.check && check.State != "ok":
					t.Errorf("also: %+v", check)
				case name == c.check && (check.State != c.state || !strings.Contains(check.Do, c.says)):
					t.Errorf("%+v; want %s and %q", check, c.state, c.says)
				}
			}
			if n := fake.Calls("PurgeQueue") + fake.Calls("SetQueueAttributes"); n > 0 {
				t.Error("it has changed something")
			}
		})
	}
}

func TestDiagnoseFindsWhatIsNotAllowed(t *testing.T) {
	fake := sqsfake.New()
	url, err := fake.CreateQueue("q", nil)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if action := r.Header.Get("X-Amz-Target"); strings.HasSuffix(action, ".DeleteMessageBatch") || strings.HasSuffix(action, ".SendMessageBatch") {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"__type":"com.amazon.coral.service#AccessDeniedException","message":"not authorized"}`))
			return
		}
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	client := sqs.New(sqs.Options{Region: "us-east-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("a", "b", "")})
	found := diagnose(t, client, url, sqsqueue.Facts{})
	for name, want := range map[string]string{
		"sqs:ReceiveMessage":          "ok",
		"sqs:ChangeMessageVisibility": "ok",
		"sqs:DeleteMessage":           "bad",
		"sqs:SendMessage":             "warn", // a worker does not send
	} {
		if found[name].State != want {
			t.Errorf("%s: %+v, want %s", name, found[name], want)
		}
	}
}

// It looks, and takes nothing.
func TestDiagnoseOnThePeerTakesNothing(t *testing.T) {
	t.Parallel()
	peer := sqspeer.Start(t)
	q := peerQueue(t, peer, "q", nil)
	send(t, q, one("t", "e", 1))
	for _, c := range diagnose(t, peerClient(peer), q.URL(), sqsqueue.Facts{}) {
		if c.State == "bad" {
			t.Errorf("%+v", c)
		}
	}
	ds := receive(t, q, 10)
	if len(ds) != 1 || ds[0].Received != 1 {
		t.Errorf("%+v", ds)
	}
}
