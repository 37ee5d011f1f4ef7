// Command sqs sends the invitations of package invitations on request of a program that is
// not in Go: a producer in Node.js, with Amazon's own SDK, sends a small JSON message for
// each to a queue in SQS, and the workers read that beside their Postgres.
//
//	go run ./examples/sqs
//
// plays the whole story and prints its proof, counted from the tables, the mail server and
// the queue. It needs PostgreSQL (or EXAMPLES_DATABASE_URL) and Node.js; the SQS is a private one,
// which npm installs the first time.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

func main() {
	switch {
	case len(os.Args) == 1:
		stage.Play(func(ctx context.Context) (*proof, error) { return tell(ctx, stage.Options{}, "", 600) })
	case len(os.Args) == 6 && os.Args[1] == "worker": // of the play
		stage.Main(func(ctx context.Context) error { return work(ctx, os.Args[2], os.Args[3], os.Args[4], os.Args[5]) })
	default:
		stage.Main(func(context.Context) error { return errors.New("it takes no arguments") })
	}
}

// work is a worker process: it reads a queue in SQS beside the one in Postgres.
func work(ctx context.Context, name, queueURL, smtp, control string) error {
	q, err := sqsqueue.New(ctx, queueURL, sqsqueue.Options{Wait: time.Second})
	if err != nil {
		return err
	}
	mailer := invitations.NewMailer(smtp, control)
	mailer.Settle = stage.Lease
	err = stage.Work(name, worker.Config{Queues: map[string]queue.Queue{"": q}}, func(db *pgxpool.Pool) []jobs.Definition {
		return invitations.Jobs(db, mailer)
	})
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if e := q.Close(last); e != nil {
		err = errors.Join(err, fmt.Errorf("release what the last poll brought: %w", e))
	}
	return err
}
