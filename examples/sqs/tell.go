package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
	"github.com/oncemore-jobs/oncemore/examples/stage"
)

const events = 3

// A play is the story while it goes on.
type play struct {
	*stage.Stage
	sqs         *sqslocal.Server
	url, grave  string // of the queue, and of its dead-letter queue
	mail        *smtpd.Server
	invitations []invitation
	proof       proof
}

// An invitation is what somebody asks for.
type invitation struct{ Event, Invitee int64 }

// tell plays the story, on the SQS at an endpoint or on a private one, and counts what came
// of it. Each step waits for what it needs to have happened, never for a time.
func tell(ctx context.Context, o stage.Options, endpoint string, invitees int) (_ *proof, err error) {
	p := &play{sqs: &sqslocal.Server{Endpoint: endpoint}}
	p.Stage, err = stage.Open(ctx, "sqs", o)
	defer func() { p.close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	for _, act := range []func() error{
		func() error { return p.open(ctx, invitees) },
		func() error { return p.produceAndDie(ctx) },
		func() error { return p.produceAll(ctx) },
		func() error { return p.killWorker(ctx) },
		func() error { return p.produceAgain(ctx) },
		func() error { return p.produceRubbish(ctx) },
		func() error { return p.count(ctx) },
	} {
		if err = act(); err != nil {
			return nil, err
		}
	}
	return &p.proof, nil
}

// open sets up the queue, the mail server, and two workers.
func (p *play) open(ctx context.Context, invitees int) (err error) {
	if p.sqs.Endpoint == "" {
		p.Say("Starting a private SQS (the first time, npm installs it).")
		if p.sqs, err = sqslocal.Start(ctx, os.Stderr); err != nil {
			return err
		}
		if err := p.sqs.Setenv(); err != nil {
			return err
		}
	}
	name := "invitations-" + strings.ToLower(rand.Text()[:8])
	if p.grave, err = p.sqs.Create(ctx, name+"-dead", nil); err != nil {
		return err
	}
	dead, err := p.sqs.Attributes(ctx, p.grave)
	if err != nil {
		return err
	}
	p.url, err = p.sqs.Create(ctx, name, map[string]string{
		"VisibilityTimeout": fmt.Sprint(stage.Lease.Seconds()),
		"RedrivePolicy":     fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":"100"}`, dead["QueueArn"])})
	if err != nil {
		return err
	}
	if p.mail, err = smtpd.Start("127.0.0.1:0", smtpd.Options{}); err != nil {
		return err
	}
	if err := p.mail.Set(smtpd.Behaviour{Mode: smtpd.OK, Delay: time.Second}); err != nil { // until killWorker
		return err
	}
	if err := invitations.Seed(ctx, p.DB, events, invitees); err != nil {
		return err
	}
	rows, _ := p.DB.Query(ctx, `SELECT event_id, invitee_id FROM invitations.invitee ORDER BY invitee_id`)
	if p.invitations, err = pgx.CollectRows(rows, pgx.RowToStructByPos[invitation]); err != nil {
		return fmt.Errorf("read who is invited: %w", err)
	}
	for range 2 {
		if err := p.startWorker(ctx); err != nil {
			return err
		}
	}
	p.Say("%d invitees, a mail server, two workers on a queue in SQS. Who asks for the invitations is a program in Node.js.", len(p.invitations))
	return nil
}

func (p *play) startWorker(ctx context.Context) error {
	_, err := p.StartWorker(ctx, p.url, p.mail.Addr(), p.mail.ControlURL())
	return err
}

// produceAndDie is a crash when a third was sent.
func (p *play) produceAndDie(ctx context.Context) error {
	node, err := startProducer(ctx, p.url)
	if err != nil {
		return err
	}
	if err := node.ask(p.invitations[:len(p.invitations)/30*10]); err != nil {
		return err
	}
	if err := node.kill(); err != nil {
		return err
	}
	p.proof.Died = node.sent
	p.Say("kill -9: the producer dies when it has asked for %d of %d. Nobody keeps a list of which.", node.sent, len(p.invitations))
	return nil
}

// produceAll is what one does then: the whole again.
func (p *play) produceAll(ctx context.Context) error {
	p.Say("It is run again, from the beginning.")
	return p.produce(ctx)
}

func (p *play) produce(ctx context.Context) error {
	node, err := startProducer(ctx, p.url)
	if err != nil {
		return err
	}
	if err := node.ask(p.invitations); err != nil {
		return err
	}
	p.proof.Asked += node.sent
	return node.end()
}

// killWorker kills one while the mail server is slow: it has the mails, and the worker does
// not know that yet.
func (p *play) killWorker(ctx context.Context) error {
	victim, err := p.KillHolding(ctx, typeName, `SELECT count(*) > $1 * 0.9 OR EXISTS (SELECT FROM oncemore.parked)`+factsSQL, len(p.invitations))
	if err != nil {
		return err
	}
	if victim != nil {
		p.proof.Killed++
	}
	var unread *string
	if err := p.DB.QueryRow(ctx, `SELECT min(error) FROM oncemore.parked`).Scan(&unread); err != nil {
		return fmt.Errorf("look whether the workers can read what the producer writes: %w", err)
	} else if unread != nil {
		return fmt.Errorf("the workers cannot read what the producer writes: %s", *unread)
	}
	if err := p.mail.Set(smtpd.Behaviour{Mode: smtpd.OK}); err != nil {
		return err
	}
	if err := p.startWorker(ctx); err != nil {
		return err
	}
	if err := p.Await(ctx, "all have their invitation", `SELECT count(*) = $1`+factsSQL, len(p.invitations)); err != nil {
		return err
	}
	p.Say("SQS has handed the dead worker's messages to the others, who looked on the mail server what it had sent.")
	return nil
}

// produceAgain asks for all of what is done.
func (p *play) produceAgain(ctx context.Context) error {
	p.Say("All have their invitation. The producer is run once more, to be sure.")
	before := p.mail.Stats().Accepted
	if err := p.produce(ctx); err != nil {
		return err
	}
	if err := p.empty(ctx); err != nil {
		return err
	}
	p.proof.SentAgain = p.mail.Stats().Accepted - before
	return nil
}

// produceRubbish sends what no worker can read, as other programs do on a bad day.
func (p *play) produceRubbish(ctx context.Context) error {
	for _, body := range []string{
		`event=1&invitee=1`,
		`{"type":"send_event_email_to_invitee","entity":"1/2","args":{"event_id":1,"invitee_id":3}}`,
		`{"type":"send_carrier_pigeon","entity":"1/2","args":{}}`,
	} {
		if err := sqslocal.Call(ctx, p.sqs.Endpoint, "SendMessage", map[string]string{"QueueUrl": p.url, "MessageBody": body}, nil); err != nil {
			return fmt.Errorf("send rubbish: %w", err)
		}
	}
	p.Say("And some rubbish: a body that is no JSON, an entity that is not the one of its arguments, a job type that nobody knows.")
	if err := p.Await(ctx, "it is set aside", `SELECT count(*) >= 3 FROM oncemore.parked`); err != nil {
		return err
	}
	return p.empty(ctx)
}

// empty returns when nothing is on its way, in SQS or in Postgres: there are the messages of what
// was in doubt and had not happened, and one that found its work in other hands comes again later.
func (p *play) empty(ctx context.Context) error {
	for {
		n, err := p.sqs.Count(ctx, p.url)
		if err != nil {
			return err
		}
		if n == 0 {
			return p.Await(ctx, "no message is left in Postgres", `SELECT NOT EXISTS (SELECT FROM oncemore.message)`)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; %d messages are still in SQS", context.Cause(ctx), n)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *play) close(failed bool) {
	p.Stage.Close(failed)
	if p.mail != nil {
		_ = p.mail.Close()
	}
	p.sqs.Stop()
}
