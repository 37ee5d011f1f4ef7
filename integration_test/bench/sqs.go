package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
)

const (
	sqsName    = "bench"
	sqsBatch   = 10 // the most that SQS takes and gives
	sqsClients = 10 // batches on their way at once, as in ours
)

// timeSQS sends n jobs to an SQS of its own, has a worker process do them, and waits until the
// database counts their facts and SQS nothing; or, for sqsAlone, receives and deletes as many
// messages with nothing but the SDK.
func timeSQS(ctx context.Context, o *options, db string, pool *pgxpool.Pool, s side, m measurement, n int) (sample, error) {
	server, err := sqslocal.Start(ctx, os.Stderr)
	if err != nil {
		return sample{}, fmt.Errorf("start an SQS: %w", err)
	}
	defer server.Stop()
	url, err := server.Create(ctx, sqsName, nil)
	if err != nil {
		return sample{}, err
	}
	if m.kind == sqsAlone {
		return timeAlone(ctx, server, url, n)
	}
	if err := server.Setenv(); err != nil { // of the worker's process too
		return sample{}, err
	}
	w, err := startWorker(ctx, o, db, m, n)
	if err != nil {
		return sample{}, err
	}
	defer w.kill()
	q, err := sqsqueue.New(ctx, sqsName, sqsqueue.Options{})
	if err != nil {
		return sample{}, err
	}
	start := time.Now()
	if err := sendJobs(ctx, q, m.kind, n); err != nil {
		return sample{}, err
	}
	if _, err := w.begin(); err != nil {
		return sample{}, err
	}
	if _, err := awaitCount(ctx, pool, s.queries().done, n, w); err != nil {
		return sample{}, err
	}
	end, err := awaitEmpty(ctx, server, url)
	if err != nil {
		return sample{}, err
	}
	if err := w.stop(); err != nil {
		return sample{}, err
	}
	if err := expect(ctx, pool, s.queries().done, n); err != nil {
		return sample{}, fmt.Errorf("count the finished jobs after the worker's end: %w", err)
	}
	return sample{rate: float64(n) / end.Sub(start).Seconds()}, nil
}

// sendJobs sends each job as a message, or in packs.
func sendJobs(ctx context.Context, q *sqsqueue.Queue, k kind, n int) error {
	size := 1
	if k == sqsPacks {
		size = packSize
	}
	var ms []queue.Message
	for from := 0; from < n; from += size {
		m := queue.Message{Type: job{}.JobType()}
		for i := from; i < min(from+size, n); i++ {
			item, err := jobs.NewItem(job{int64(i)})
			if err != nil {
				return err
			}
			m.Items = append(m.Items, item)
		}
		ms = append(ms, m)
	}
	return q.Send(ctx, ms...)
}

// awaitEmpty returns the time at which a look began that found nothing in the queue: neither
// visible, nor in flight, nor delayed.
func awaitEmpty(ctx context.Context, server *sqslocal.Server, url string) (time.Time, error) {
	for {
		began := time.Now()
		left, err := server.Count(ctx, url)
		if err != nil {
			return began, err
		}
		if left == 0 {
			return began, nil
		}
		select {
		case <-ctx.Done():
			return began, fmt.Errorf("%w; %d messages are left", context.Cause(ctx), left)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// timeAlone sends, receives and deletes n messages with the SDK alone.
func timeAlone(ctx context.Context, server *sqslocal.Server, url string, n int) (sample, error) {
	client := sqs.New(sqs.Options{
		Region: "us-east-1", BaseEndpoint: &server.Endpoint, Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) { t.MaxIdleConns, t.MaxIdleConnsPerHost = 100, 100 }),
	})
	start := time.Now()
	var next atomic.Int64
	err := sideBySide(ctx, func(ctx context.Context) error {
		for from := int(next.Add(sqsBatch)) - sqsBatch; from < n; from = int(next.Add(sqsBatch)) - sqsBatch {
			if err := sendBatch(ctx, client, url, from, min(from+sqsBatch, n)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return sample{}, fmt.Errorf("send: %w", err)
	}
	var deleted atomic.Int64
	err = sideBySide(ctx, func(ctx context.Context) error {
		for int(deleted.Load()) < n {
			taken, err := takeBatch(ctx, client, url)
			if err != nil {
				return err
			}
			deleted.Add(int64(taken))
		}
		return nil
	})
	if err != nil {
		return sample{}, fmt.Errorf("receive and delete: %w", err)
	}
	if int(deleted.Load()) != n {
		return sample{}, fmt.Errorf("%d messages came, of %d", deleted.Load(), n)
	}
	end, err := awaitEmpty(ctx, server, url)
	if err != nil {
		return sample{}, err
	}
	return sample{rate: float64(n) / end.Sub(start).Seconds()}, nil
}

// sideBySide returns the first error of several that do the same, and ends the others.
func sideBySide(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	for range sqsClients {
		all.Go(func() {
			if err := do(ctx); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

func sendBatch(ctx context.Context, client *sqs.Client, url string, from, to int) error {
	in := &sqs.SendMessageBatchInput{QueueUrl: &url}
	for i := from; i < to; i++ {
		// What ours sends, byte by byte.
		body := fmt.Sprintf(`{"type":%q,"entity":%q,"args":{"id":%d}}`, job{}.JobType(), job{int64(i)}.Entity(), i)
		in.Entries = append(in.Entries, types.SendMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), MessageBody: &body})
	}
	out, err := client.SendMessageBatch(ctx, in)
	if err == nil && len(out.Failed) > 0 {
		err = fmt.Errorf("%d were refused", len(out.Failed))
	}
	return err
}

// takeBatch receives and deletes what it gets.
func takeBatch(ctx context.Context, client *sqs.Client, url string) (int, error) {
	got, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: &url, MaxNumberOfMessages: sqsBatch, WaitTimeSeconds: 0})
	if err != nil || len(got.Messages) == 0 {
		return 0, err
	}
	in := &sqs.DeleteMessageBatchInput{QueueUrl: &url}
	for i := range got.Messages {
		in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: aws.String(strconv.Itoa(i)), ReceiptHandle: got.Messages[i].ReceiptHandle})
	}
	out, err := client.DeleteMessageBatch(ctx, in)
	if err == nil && len(out.Failed) > 0 {
		err = fmt.Errorf("%d deletes were refused", len(out.Failed))
	}
	return len(got.Messages), err
}
