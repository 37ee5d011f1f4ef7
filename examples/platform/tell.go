package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

const schema = `
CREATE SCHEMA IF NOT EXISTS platform;
CREATE TABLE IF NOT EXISTS platform.greeting (
    play  text NOT NULL,
    place text NOT NULL,
    n     int  NOT NULL,
    known text NOT NULL    -- the variables of the worker that did it
)`

const greetings = 10

// A place is an environment.
type place struct {
	name  string
	vars  map[string]string
	queue queue.Sender
	Known string // as the worker's greetings say
	Done  int64
	InSQS int // messages before the worker starts
	Left  int // of them, when it has stopped
}

// A proof is counted from the table.
type proof struct{ Places []*place }

func tell(ctx context.Context, o stage.Options) (_ *proof, err error) {
	s, err := stage.Open(ctx, "platform", o)
	defer func() { s.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if _, err = s.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	fake := sqsfake.New()
	defer fake.Close()
	endpoint, stop, err := stage.Serve(fake)
	if err != nil {
		return nil, err
	}
	defer stop()
	inAmazon, err := fake.CreateQueue("greetings", nil)
	if err != nil {
		return nil, err
	}
	sqs, err := sqsqueue.New(ctx, inAmazon, sqsqueue.Options{Client: fake.Client()})
	if err != nil {
		return nil, err
	}
	db := s.DB.Config().ConnConfig
	queueURL, err := url.Parse(inAmazon)
	if err != nil {
		return nil, err
	}
	document, err := vcap(address(db), endpoint+queueURL.Path)
	if err != nil {
		return nil, err
	}
	pr := &proof{[]*place{
		{name: "DATABASE_URL", vars: map[string]string{"DATABASE_URL": address(db)}, queue: s.Queue},
		{name: "PG*", queue: s.Queue, vars: map[string]string{"PGHOST": db.Host, "PGPORT": strconv.Itoa(int(db.Port)),
			"PGUSER": db.User, "PGPASSWORD": db.Password, "PGDATABASE": db.Database}},
		{name: "VCAP_SERVICES", vars: map[string]string{"VCAP_SERVICES": document}, queue: sqs},
	}}
	for _, p := range pr.Places {
		if err = enqueue(ctx, p.queue, s.Dir, p.name, greetings); err != nil {
			return nil, err
		}
		p.InSQS, _, _ = fake.Count(inAmazon)
		if err = p.play(ctx, s); err != nil {
			return nil, fmt.Errorf("with %s: %w", p.name, err)
		}
		visible, held, delayed := fake.Count(inAmazon)
		p.Left = visible + held + delayed
		s.Say("A worker that knows %s and nothing else has done %d of %d, and stopped when it was asked to.", p.name, p.Done, greetings)
	}
	return pr, nil
}

// play starts a worker there, and when the work is done stops it as a platform does.
func (p *place) play(ctx context.Context, s *stage.Stage) (err error) {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "worker")
	cmd.Env = []string{} // nil would be all of ours
	for name, value := range p.vars {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	log, err := os.Create(filepath.Join(s.Dir, p.name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	until, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		done <- s.Await(until, "its work is done", `SELECT count(*) >= $3 FROM platform.greeting WHERE play = $1 AND place = $2`, s.Dir, p.name, greetings)
	}()
	select {
	case err = <-ended:
		cancel(err)
		text, _ := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("the worker has ended: %v, and said: %s", err, text), <-done)
	case err = <-done:
	}
	if e := cmd.Process.Signal(syscall.SIGTERM); err == nil {
		err = e
	}
	if e := <-ended; err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return s.DB.QueryRow(ctx, `SELECT count(*), string_agg(DISTINCT known, ' | ') FROM platform.greeting WHERE play = $1 AND place = $2`, s.Dir, p.name).Scan(&p.Done, &p.Known)
}

// address is the database's, as a platform gives it.
func address(c *pgx.ConnConfig) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(c.User, c.Password), Path: "/" + c.Database,
		RawQuery: url.Values{"host": {c.Host}, "port": {strconv.Itoa(int(c.Port))}}.Encode()} // the host may be the folder of a socket
	return u.String()
}

// vcap is what Cloud Foundry says to an application to which a database, a queue and a service
// that has nothing to do with us are bound.
func vcap(database, queueURL string) (string, error) {
	type credentials map[string]string
	document, err := json.Marshal(map[string]any{
		"csb-aws-postgresql": []any{map[string]any{"name": "ledger", "tags": []string{"aws", "postgresql"}, "credentials": credentials{"uri": database}}},
		"csb-aws-sqs": []any{map[string]any{"name": "greetings", "tags": []string{"aws", "sqs"}, "credentials": credentials{
			"queue_url": queueURL, "queue_name": "greetings", "region": "us-east-1", "access_key_id": "AKIDEXAMPLE", "secret_access_key": "secret"}}},
		"p.rabbitmq": []any{map[string]any{"name": "elsewhere", "credentials": credentials{"uri": "amqp://user:secret@rabbit.example/vhost"}}},
	})
	return string(document), err
}

func (p *proof) Write(w io.Writer) {
	fmt.Fprintln(w)
	for _, at := range p.Places {
		fmt.Fprintf(w, "  %-15s %d done by a worker with the variables %s\n", at.name, at.Done, at.Known)
	}
	fmt.Fprintf(w, "\nproof: %d places, %d jobs in each, done by workers that knew the environment alone\n", len(p.Places), greetings)
}

func (p *proof) Check() error {
	var c stage.Check
	c.Is(len(p.Places) == 3 && p.Places[2].InSQS == greetings, "no worker was given a queue in SQS")
	for _, at := range p.Places {
		c.Is(at.Done == greetings, "with %s %d were done", at.name, at.Done)
		c.Is(at.Left == 0, "with %s %d messages are left in SQS", at.name, at.Left)
		for _, v := range strings.Fields(at.Known) {
			c.Is(at.vars[v] != "" || v == "PGPASSWORD", "with %s the worker knew %s", at.name, v)
		}
		c.Is(at.Known != "" && strings.HasPrefix(at.Known, strings.TrimSuffix(at.name, "*")), "with %s the worker knew %q", at.name, at.Known)
	}
	return c.Err()
}
