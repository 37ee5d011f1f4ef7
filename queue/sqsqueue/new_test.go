package sqsqueue_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// noAWS makes sure that the surroundings say nothing.
func noAWS(t *testing.T) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE",
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SQS", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func TestWhatIsMissingIsOneClearErrorAtOnce(t *testing.T) {
	noAWS(t)
	const url = "https://sqs.eu-west-1.amazonaws.com/1/q"
	refuse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"__type":"com.amazon.coral.service#AccessDeniedException","message":"User: arn:aws:iam::1:user/anna is not authorized to perform: sqs:getqueueattributes"}`))
	}))
	t.Cleanup(refuse.Close)
	at := func(endpoint string) *sqs.Client {
		return sqs.New(sqs.Options{Region: "us-east-1", BaseEndpoint: &endpoint, Credentials: credentials.NewStaticCredentialsProvider("a", "b", ""), RetryMaxAttempts: 1})
	}
	fake := sqsfake.New()
	zero, err := fake.CreateQueue("zero", map[string]string{"VisibilityTimeout": "0"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, queue string
		options     sqsqueue.Options
		says        string
	}{
		{"no queue", " ", sqsqueue.Options{}, "no queue is named"},
		{"no region", "q", sqsqueue.Options{}, "no AWS region is set: set AWS_REGION"},
		{"no credentials", url, sqsqueue.Options{}, "no AWS credentials were found: set AWS_ACCESS_KEY_ID"},
		{"not there", "q", sqsqueue.Options{Client: fake.Client()}, "there is no queue q at http://sqs.fake: create it"},
		{"not allowed", url, sqsqueue.Options{Client: at(refuse.URL)}, "these credentials may not sqs:GetQueueAttributes"},
		{"nobody home", url, sqsqueue.Options{Client: at("http://127.0.0.1:1")}, "ask SQS at http://127.0.0.1:1 about queue"},
		{"visible at once", zero, sqsqueue.Options{Client: fake.Client()}, "VisibilityTimeout of 0"},
		{"half a second", zero, sqsqueue.Options{Client: fake.Client(), Visibility: time.Second / 2}, "whole seconds"},
		{"long wait", zero, sqsqueue.Options{Client: fake.Client(), Wait: time.Minute}, "whole seconds from 1 to 20"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := sqsqueue.New(ctx, c.queue, c.options)
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Count(err.Error(), "sqsqueue:") != 1 {
				t.Errorf("%v\nwant it to say %q", err, c.says)
			}
		})
	}
	if q, err := sqsqueue.New(t.Context(), zero, sqsqueue.Options{Client: fake.Client(), Visibility: 7 * time.Second}); err != nil || q.Visibility() != 7*time.Second {
		t.Errorf("%v", err)
	}
}

func TestAReceiptOfAnotherKindOfQueueIsAnError(t *testing.T) {
	bubble(t, "q", nil, sqsqueue.Options{}, func(t *testing.T, fake *sqsfake.Fake, q *sqsqueue.Queue) {
		send(t, q, one("t", "e", 1))
		ds := receive(t, q, 1)
		for _, receipt := range []string{"", "1:1", "?  y", "a b"} {
			both := append(ds[:1:1], ds[0])
			both[1].Receipt = receipt
			if q.Ack(t.Context(), both...) == nil || q.Release(t.Context(), 0, both...) == nil {
				t.Errorf("%q is taken for a receipt", receipt)
			}
			if _, err := q.Extend(t.Context(), both...); err == nil {
				t.Errorf("%q is extended", receipt)
			}
		}
		if _, held, _ := fake.Count(q.URL()); held != 1 {
			t.Error("the other one was changed")
		}
	})
}
