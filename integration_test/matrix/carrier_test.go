package matrix_test

import (
	"context"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// A carrier is the queue that brings a scenario's messages to its workers. Retries, visits
// of runs and what is sent on for later travel through the database whatever it is.
type carrier int

const (
	postgres carrier = iota
	amazon           // SQS, as sqsfake has it
	fifo             // a FIFO queue there, where what failed stays at the head of its group
	carriers
)

func (c carrier) String() string { return [...]string{"Postgres", "SQS", "SQS FIFO"}[c] }

// queue is the name of the queue in SQS; empty: it is in the database.
func (c carrier) queue() string { return [...]string{"", "work", "work.fifo"}[c] }

// faults are those that what it writes can meet.
func (c carrier) faults() []fault {
	all := slices.Clone(faults)
	if c != postgres {
		all = append(all, refused)
	}
	if c == amazon { // a FIFO queue hands out nothing twice before its visibility timeout
		all = append(all, twice)
	}
	return all
}

// carries tells whether anything of a scenario is sent through it.
func (c carrier) carries(s *scenario) bool {
	sent := len(s.sends) > 0 && s.shape != statistics.shape
	switch c {
	case amazon:
		return sent
	case fifo:
		return sent && (s.fails != nil || s.shape == "stop" || s.shape == "odd")
	}
	return true
}

// openQueue opens the queue at an address; where that is empty, the one in the database.
// Who closes it waits for what SQS still has to bring.
func openQueue(ctx context.Context, address string, pool *pgxpool.Pool) (q queue.Queue, closeIt func(), err error) {
	if address == "" {
		return pgqueue.New(pool, "").WithVisibility(visibility), func() {}, nil
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	sqs, err := sqsqueue.New(ctx, address, sqsqueue.Options{Client: sqsfake.ClientOf(u.Scheme + "://" + u.Host), Visibility: visibility, Wait: time.Second,
		Log: slog.New(slog.DiscardHandler)}) // the worker says what matters
	if err != nil {
		return nil, nil, err
	}
	return sqs, func() {
		last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = sqs.Close(last)
	}, nil
}

// unacknowledged is how many messages there are outside the database.
func (w *world) unacknowledged() int {
	if w.sqs == nil {
		return 0
	}
	visible, held, delayed := w.sqs.Count("/" + w.over.queue())
	return visible + held + delayed
}

// emptied waits until there are none. Messages go from SQS to the database and never
// back, so who has seen this may look there.
func (w *world) emptied() {
	w.Helper()
	for end := time.Now().Add(patience); w.unacknowledged() > 0; time.Sleep(25 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("after %v: %d messages are not acknowledged\n%s", patience, w.unacknowledged(), w.story())
		}
	}
}
