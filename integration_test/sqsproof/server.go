package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

const (
	queueName = "proof"
	graveName = "proof-dead"

	// So few receives that a message which went round and round would be buried.
	mostReceives = 20
)

// An sqs is a server, its queue, and where that buries messages.
type sqs struct {
	*sqslocal.Server
	url, grave string
	tally      func() sqsfake.Tally
	stop       func()
}

// openSQS starts a server with such faults. This process and its children talk to it from
// now on.
func openSQS(ctx context.Context, o *ordeal) (s *sqs, err error) {
	s = &sqs{stop: func() {}}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	var handler http.Handler
	faults := sqsfake.Faults{Duplicates: o.twice, PartialFailures: o.refused, Seed: o.seed}
	if o.peer == "fauxqs" {
		peer, err := sqslocal.Start(ctx, os.Stderr)
		if err != nil {
			return s, err
		}
		s.stop = peer.Stop
		f := sqslocal.NewFaulty(peer.Endpoint, faults)
		handler, s.tally = f, f.Tally
	} else {
		fake := sqsfake.New()
		fake.SetFaults(faults)
		s.stop = fake.Close
		handler, s.tally = fake, fake.Tally
	}
	var front func()
	behind := s.stop
	if s.Server, front, err = sqslocal.Serve(handler); err != nil {
		return s, err
	}
	s.stop = func() { behind(); front() }
	if err := s.Setenv(); err != nil {
		return s, err
	}
	return s, s.createQueues(ctx)
}

func (s *sqs) createQueues(ctx context.Context) (err error) {
	if s.grave, err = s.Create(ctx, graveName, nil); err != nil {
		return err
	}
	dead, err := s.Attributes(ctx, s.grave)
	if err != nil {
		return err
	}
	s.url, err = s.Create(ctx, queueName, map[string]string{
		"RedrivePolicy": fmt.Sprintf(`{"deadLetterTargetArn":%q,"maxReceiveCount":"%d"}`, dead["QueueArn"], mostReceives)})
	return err
}

// A filling is how many messages a queue says that it has.
type filling struct{ Visible, InFlight, Delayed int }

func (f filling) String() string {
	return fmt.Sprintf("%d visible, %d in flight, %d delayed", f.Visible, f.InFlight, f.Delayed)
}

func (s *sqs) filling(ctx context.Context, url string) (f filling, err error) {
	all, err := s.Attributes(ctx, url)
	if err != nil {
		return f, err
	}
	for name, to := range map[string]*int{"ApproximateNumberOfMessages": &f.Visible, "ApproximateNumberOfMessagesNotVisible": &f.InFlight, "ApproximateNumberOfMessagesDelayed": &f.Delayed} {
		n, e := strconv.Atoi(all[name])
		if e != nil {
			err = errors.Join(err, fmt.Errorf("attribute %s of %s: %w", name, url, e))
		}
		*to = n
	}
	return f, err
}
