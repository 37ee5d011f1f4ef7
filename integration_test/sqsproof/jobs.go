package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// schema is the world that the jobs act on. Neither table has a key of its own: what is done
// twice stands there twice. What is outside the database in life is called with a
// transaction of its own here, which no worker's death takes back.
const schema = `
CREATE SCHEMA proof;
CREATE TABLE proof.posting (entity text COLLATE "C" NOT NULL, worker text NOT NULL);
CREATE UNLOGGED TABLE proof.called (type text NOT NULL, entity text COLLATE "C" NOT NULL, worker text NOT NULL);
CREATE INDEX ON proof.called (type, entity)`

// A post is written in the transaction of its fact, a charge is made at a provider that knows
// its key, and a shipping can be asked about.
type (
	post   struct{ N int }
	charge struct{ N int }
	ship   struct{ N int }
)

func (post) JobType() string   { return "post" }
func (charge) JobType() string { return "charge" }
func (ship) JobType() string   { return "ship" }

func (a post) Entity() string   { return jobs.Key(a.N) }
func (a charge) Entity() string { return jobs.Key(a.N) }
func (a ship) Entity() string   { return jobs.Key(a.N) }

// kinds are the types of the entities 0, 1, 2, and so on, and over again.
var kinds = []string{post{}.JobType(), charge{}.JobType(), ship{}.JobType()}

// message is what is sent for the entity n.
func message(n int) queue.Message {
	return queue.Message{Type: kinds[n%len(kinds)], Items: []queue.Item{{Entity: jobs.Key(n), Args: fmt.Appendf(nil, `{"N":%d}`, n)}}}
}

const (
	postSQL = `/* proof: post */ INSERT INTO proof.posting (entity, worker) VALUES ($1, $2)`
	callSQL = `/* proof: call */ INSERT INTO proof.called (type, entity, worker) VALUES ($1, $2, $3)`
)

func definitions(db *pgxpool.Pool, name string) []jobs.Definition {
	call := func(ctx context.Context, a jobs.Args) error {
		_, err := db.Exec(ctx, callSQL, a.JobType(), a.Entity(), name)
		return err
	}
	policy := jobs.Policy{Queue: "sqs"}
	return []jobs.Definition{
		jobs.Job[post]{Policy: policy, DoTx: func(ctx context.Context, tx pgx.Tx, a post) error {
			_, err := tx.Exec(ctx, postSQL, a.Entity(), name)
			return err
		}},
		jobs.Job[charge]{Policy: policy, Effect: jobs.Keyed(time.Hour), Do: func(ctx context.Context, a charge) error { return call(ctx, a) }},
		jobs.Job[ship]{Policy: policy, Effect: jobs.Verifiable(0), Do: func(ctx context.Context, a ship) error { return call(ctx, a) },
			Done: func(ctx context.Context, a ship) (is bool, err error) {
				err = db.QueryRow(ctx, `SELECT EXISTS (SELECT FROM proof.called WHERE type = 'ship' AND entity = $1)`, a.Entity()).Scan(&is)
				return is, err
			}},
	}
}

// queueOptions hold messages no longer than needed: others must get those of a dead worker
// before the proof is over. Nor do polls wait for long, since they are waited for at the end.
var queueOptions = sqsqueue.Options{Visibility: 5 * time.Second, Wait: 2 * time.Second}

// work is a worker process. The environment names the database and the SQS.
func work(ctx context.Context, name string) error {
	sqs, err := sqsqueue.New(ctx, queueName, queueOptions)
	if err != nil {
		return err
	}
	c := worker.Config{Slots: 16, Queues: map[string]queue.Queue{"sqs": sqs}}
	err = stage.Work(name, c, func(db *pgxpool.Pool) []jobs.Definition { return definitions(db, name) })
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*queueOptions.Wait)
	defer cancel()
	if e := sqs.Close(last); e != nil {
		fmt.Fprintln(os.Stderr, "close the queue:", e)
		err = errors.Join(err, e)
	}
	return err
}
