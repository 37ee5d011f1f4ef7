package integration_test

import (
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
)

// A worker stops while its last poll waits in SQS. Whoever sends then must not wait until the
// visibility of a message ends that nobody holds.
func TestWhatSQSHandsToAWorkerThatHasStoppedIsGivenBack(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.open(s.url, sqsqueue.Options{Visibility: 10 * time.Minute})
	stop := s.work(map[string]queue.Queue{"": q})
	s.await("it polls", func() bool { return s.fake.Calls("ReceiveMessage") > 0 })
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop() }()
	s.awaitRow("it stops", `SELECT count(*) = 0 FROM oncemore.worker WHERE dead_at IS NULL`)
	s.send(s.open(s.url, sqsqueue.Options{}), shout{1})
	<-stopped
	if visible, held, _ := s.fake.Count(s.url); visible != 1 || held != 0 {
		t.Errorf("%d visible, %d in flight", visible, held)
	}
}
