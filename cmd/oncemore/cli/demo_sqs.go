package cli

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// demoVisibility is how long the demo's queues hold a message, and so how late the work of
// the dead comes again.
const demoVisibility = 3 * time.Second

// A demoSQS is the queue of the demo where that is in SQS: a private server, behind
// something that makes it as bad as it may be.
type demoSQS struct {
	server *sqslocal.Server
	faulty *sqslocal.Faulty
	front  func() // ends it
	url    string
}

// beginSQS starts the server, makes the queue, and has this process and its children talk
// to it.
func (d *demo) beginSQS(ctx context.Context) error {
	d.say("Starting a private SQS (the first time, npm installs it). It hands out every tenth message twice, and refuses one of twenty in a batch.")
	log, err := os.Create(filepath.Join(d.logs, "sqs.log"))
	if err != nil {
		return fmt.Errorf("start SQS: %w", err)
	}
	defer log.Close()
	s := &demoSQS{}
	if s.server, err = sqslocal.Start(ctx, log); err != nil {
		return err
	}
	d.sqs = s
	s.faulty = sqslocal.NewFaulty(s.server.Endpoint, sqsfake.Faults{Duplicates: 0.1, PartialFailures: 0.05, Seed: rand.Uint64()})
	var front *sqslocal.Server
	if front, s.front, err = sqslocal.Serve(s.faulty); err != nil {
		return err
	}
	if err := front.Setenv(); err != nil {
		return err
	}
	s.url, err = front.Create(ctx, "invitations", map[string]string{"VisibilityTimeout": strconv.Itoa(int(demoVisibility.Seconds()))})
	if err != nil {
		return err
	}
	d.queue, err = sqsqueue.New(ctx, s.url, sqsqueue.Options{})
	return err
}

func (s *demoSQS) end() {
	if s.front != nil {
		s.front()
	}
	s.server.Stop()
}

// sqsFaults is what SQS did wrong.
type sqsFaults struct {
	HandedOut  int64 `json:"handed_out"`
	Twice      int64 `json:"handed_out_twice"`
	Refused    int64 `json:"refused"`    // entries of batches
	Unanswered int64 `json:"unanswered"` // calls
}

func (s *demoSQS) faults() *sqsFaults {
	t := s.faulty.Tally()
	return &sqsFaults{int64(t.HandedOut), int64(t.Duplicates), int64(t.Refused), s.faulty.Lost()}
}

// callAllTwice asks for every single invitation, as producers do that know of no fan-out.
func (d *demo) callAllTwice(ctx context.Context) error {
	d.say("A producer asks for all invitations over SQS, in as many messages. Twice, to be sure.")
	all := make([]invitations.SendEventEmailToInvitee, demoInvitees)
	for i := range all {
		n := int64(i + 1)
		all[i] = invitations.SendEventEmailToInvitee{EventID: n%demoEvents + 1, InviteeID: n}
	}
	// SQS may refuse a message at each of the tries that a call makes. Nobody asks which: it is
	// called again.
	const most = 10
	for called, try := 0, 1; called < 2; try++ {
		switch err := jobs.Enqueue(ctx, d.queue, all...); {
		case err == nil:
			called++
		case try == most:
			return fmt.Errorf("call send_event_email_to_invitee: %w", err)
		}
	}
	return nil
}

// breakQueue is an outage of SQS. What is held meanwhile cannot be extended or acknowledged,
// and comes again.
func (d *demo) breakQueue(ctx context.Context) error {
	d.say("SQS goes away. Nothing is received, and what is done cannot be acknowledged.")
	d.sqs.faulty.SetDown(true)
	down, lost := time.Now(), d.sqs.faulty.Lost()
	err := d.await(ctx, "calls to SQS have failed", func(demoState) bool {
		return d.sqs.faulty.Lost() > lost && time.Since(down) >= demoOutage
	})
	if err != nil {
		return err
	}
	d.sqs.faulty.SetDown(false)
	d.say("It is back. %d calls got no answer.", d.sqs.faulty.Lost()-lost)
	return nil
}
