package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
)

// A tale is an ordeal while it goes on.
type tale struct {
	*stage.Stage
	*ordeal
	sqs    *sqs
	random *rand.Rand
	killed []string // the workers' names
	lapsed int64    // leases of those, before they were killed
	proof  proof
}

// undergo lets the messages go through it all, and counts.
func (o *ordeal) undergo(ctx context.Context) (_ *proof, err error) {
	t := &tale{ordeal: o, proof: proof{ordeal: o}, random: rand.New(rand.NewPCG(o.seed, 0)), killed: []string{}}
	t.Stage, err = stage.Open(ctx, "sqsproof", o.stage)
	defer func() { t.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	t.Say("Seed %d.", o.seed)
	if _, err = t.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the world: %w", err)
	}
	if t.sqs, err = openSQS(ctx, o); err != nil {
		return nil, err
	}
	defer t.sqs.stop()
	for range o.workers {
		if _, err = t.StartWorker(ctx); err != nil {
			return nil, err
		}
	}
	t.Say("%d worker processes, and %s as SQS: of the messages %.0f %% are handed out twice, of the entries of batches %.0f %% refused.", o.workers, o.peer, 100*o.twice, 100*o.refused)

	// The sender runs beside the workers, and ends with the story, however that ends.
	ctx, cancel := context.WithCancelCause(ctx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := t.send(ctx); err != nil {
			cancel(err)
		}
	}()
	defer func() { cancel(nil); <-sent }()
	if err = t.killSome(ctx); err != nil {
		return nil, err
	}
	<-sent
	if err = t.awaitEnd(ctx); err != nil {
		return nil, err
	}
	if err = t.StopWorkers(); err != nil {
		return nil, err
	}
	t.Say("The workers have stopped.")
	if err = t.count(ctx); err != nil {
		return nil, err
	}
	return &t.proof, nil
}

// send sends a message for each entity, in any order, and for some of them two.
func (t *tale) send(ctx context.Context) error {
	q, err := sqsqueue.New(ctx, queueName, queueOptions)
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(t.seed, 1))
	order := random.Perm(t.entities)
	t.proof.Twice = int64(t.twice * float64(t.entities))
	order = append(order, random.Perm(t.entities)[:t.proof.Twice]...)
	random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	t.proof.Sent = int64(len(order))
	for ns := range slices.Chunk(order, 200) {
		ms := make([]queue.Message, len(ns))
		for i, n := range ns {
			ms[i] = message(n)
		}
		for tries := 1; ; tries++ {
			err := q.Send(ctx, ms...)
			if err == nil {
				break
			}
			if ctx.Err() != nil || tries == 20 {
				return err
			}
			t.proof.SentAgain++ // some are sent: all of them again is right
		}
	}
	t.Say("%d messages are sent.", len(order))
	return nil
}

const (
	// It counts them all, so it is not asked without a pause.
	doneSQL = `SELECT (SELECT count(*) >= $1 FROM oncemore.ledger) FROM pg_sleep(0.1)`

	// The claims of a worker, and those for charges that it has made: nothing but the fact is
	// missing. (A claim may also be beside a fact: the message was a second one, and it was to be
	// given back.)
	heldSQL = `
SELECT count(*), count(*) FILTER (WHERE t.name = 'charge' AND l.entity IS NULL
    AND EXISTS (SELECT FROM proof.called p WHERE p.type = t.name AND p.entity = c.entity AND p.worker = w.name)),
    (SELECT count(*) FROM oncemore.worker WHERE name = $1 AND dead_at IS NOT NULL)
FROM oncemore.claim c JOIN oncemore.worker w ON w.id = c.owner JOIN oncemore.job_type t ON t.id = c.job_type
LEFT JOIN oncemore.ledger l ON l.job_type = c.job_type AND l.entity = c.entity
WHERE w.name = $1`

	// What a worker had sent to the server before it was frozen, or died, is worked all the same.
	restsSQL = `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1 AND state = 'active' AND wait_event IS DISTINCT FROM 'ClientRead')`
	goneSQL  = `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1)`
)

// killSome kills workers in the middle of their work, as parts of all of it are done.
func (t *tale) killSome(ctx context.Context) error {
	victims := t.random.Perm(t.workers)[:t.kills]
	all := t.Living()
	for i, v := range victims {
		at := (float64(i) + 0.3 + 0.5*t.random.Float64()) / float64(t.kills+1)
		if err := t.Await(ctx, fmt.Sprintf("%.0f %% are done", 100*at), doneSQL, int(at*float64(t.entities))); err != nil {
			return err
		}
		if err := t.killOverEffect(ctx, all[v]); err != nil {
			return err
		}
	}
	return nil
}

// killOverEffect kills a worker that has made a charge, of which there is no fact yet.
func (t *tale) killOverEffect(ctx context.Context, p *stage.Process) error {
	var held, charged, late int64
	look := func() error {
		if err := t.DB.QueryRow(ctx, heldSQL, p.Name).Scan(&held, &charged, &late); err != nil {
			return fmt.Errorf("look what %s holds: %w", p.Name, err)
		}
		return nil
	}
	for {
		// Frozen, it does nothing more between our look and the kill.
		if err := syscall.Kill(p.Pid(), syscall.SIGSTOP); err != nil {
			return fmt.Errorf("freeze %s: %w", p.Name, os.NewSyscallError("kill", err))
		}
		if err := t.Await(ctx, p.Name+" rests", restsSQL, p.Name); err != nil {
			return err
		}
		if err := look(); err != nil {
			return err
		}
		if charged > 0 {
			break
		}
		if err := syscall.Kill(p.Pid(), syscall.SIGCONT); err != nil {
			return fmt.Errorf("let %s go on: %w", p.Name, os.NewSyscallError("kill", err))
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w; %s was to be killed over a charge", context.Cause(ctx), p.Name)
		}
	}
	if err := p.Kill(); err != nil {
		return err
	}
	t.killed = append(t.killed, p.Name)
	if err := t.Await(ctx, "the server has noticed", goneSQL, p.Name); err != nil {
		return err
	}
	// Its lease lasts for some seconds more: nobody has taken anything over yet, unless this
	// machine is very slow.
	if err := look(); err != nil {
		return err
	}
	t.lapsed += late
	t.proof.Held += held
	t.proof.Charged += charged
	t.Say("kill -9: %s has died over %d claims; %d charges are made and not recorded.", p.Name, held, charged)
	return nil
}

// awaitEnd returns when nothing is on its way any more, in SQS or in the database.
func (t *tale) awaitEnd(ctx context.Context) error {
	if err := t.Await(ctx, "all is done", doneSQL, t.entities); err != nil {
		return err
	}
	t.Say("All is done. What was doubled is still on its way.")
	for {
		// SQS first: what comes from it may be sent on through the database, and never back.
		f, err := t.sqs.filling(ctx, t.sqs.url)
		if err != nil {
			return err
		}
		if f == (filling{}) {
			return t.Await(ctx, "nothing is on its way in the database", `SELECT NOT EXISTS (SELECT FROM oncemore.message) AND NOT EXISTS (SELECT FROM oncemore.claim)`)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w; the queue has %v", context.Cause(ctx), f)
		}
	}
}
