package sqsqueue_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/oncemore-jobs/oncemore/integration_test/sqspeer"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
)

func TestConformanceOnThePeer(t *testing.T) {
	t.Parallel()
	peer := sqspeer.Start(t)
	differs := differs
	differs.BasicPlane = true // the peer refuses what SQS takes
	var n atomic.Int64
	differs.Run(t, func(t *testing.T) queue.Queue {
		return peerQueue(t, peer, fmt.Sprint("conformance-", n.Add(1)), nil)
	})
}

func peerClient(peer *sqspeer.Peer) *sqs.Client {
	return sqs.New(sqs.Options{Region: "us-east-1", BaseEndpoint: &peer.Endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")})
}

func peerQueue(t *testing.T, peer *sqspeer.Peer, name string, attributes map[string]string) *sqsqueue.Queue {
	q, err := sqsqueue.New(t.Context(), peer.CreateQueue(t, name, attributes),
		sqsqueue.Options{Client: peerClient(peer), Visibility: visibility, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// A message group is serial on somebody else's FIFO queue too.
func TestAGroupIsInOrderOnThePeer(t *testing.T) {
	t.Parallel()
	q := peerQueue(t, sqspeer.Start(t), "orders.fifo", map[string]string{"FifoQueue": "true"})
	send(t, q, one("order", "7", 1), one("order", "7", 2), one("order", "7", 3))
	for want := 1; want <= 3; want++ {
		ds := receive(t, q, 10)
		if len(ds) != 1 || argsOf(ds[0]) != fmt.Sprint(want) {
			t.Fatalf("received %v, want number %d alone", ds, want)
		}
		ack(t, q, ds...)
	}
}

// SQS is found by the SDK's own chain and AWS_ENDPOINT_URL_SQS, and a queue by its name.
func TestTheEnvironmentNamesTheEndpoint(t *testing.T) {
	peer := sqspeer.Start(t)
	peer.Setenv(t)
	url := peer.CreateQueue(t, "by-name", nil)
	q, err := sqsqueue.New(t.Context(), "by-name", sqsqueue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if q.URL() != url || q.Visibility().Seconds() != 30 || q.FIFO() {
		t.Errorf("%s instead of %s, visibility %v", q.URL(), url, q.Visibility())
	}
	_, err = sqsqueue.New(t.Context(), "not-there", sqsqueue.Options{})
	if err == nil || !strings.Contains(err.Error(), "there is no queue not-there at "+peer.Endpoint) {
		t.Errorf("a queue that is not there: %v", err)
	}
}
