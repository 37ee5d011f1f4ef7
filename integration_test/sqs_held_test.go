package integration_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// What a worker does with messages of SQS that it holds and cannot work now, or no longer
// holds, or could not get done.

// A counted queue counts what it hands out.
type counted struct {
	*sqsqueue.Queue
	mu     sync.Mutex
	handed map[string]int // by type
	most   map[string]int // by type: how often one message was delivered
}

func (c *counted) Receive(ctx context.Context, most int, types []string) ([]queue.Delivery, error) {
	ds, err := c.Queue.Receive(ctx, most, types)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range ds {
		c.handed[d.Type]++
		c.most[d.Type] = max(c.most[d.Type], d.Received)
	}
	return ds, err
}

func (s *sqsStage) count(q *sqsqueue.Queue) *counted {
	return &counted{Queue: q, handed: map[string]int{}, most: map[string]int{}}
}

func (c *counted) of(jobType string) (handed, most int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handed[jobType], c.most[jobType]
}

// run starts a worker of such jobs.
func (s *sqsStage) run(q queue.Queue, defs ...jobs.Definition) {
	s.Helper()
	set, err := jobs.NewSet(defs...)
	if err != nil {
		s.Fatal(err)
	}
	w, err := worker.New(s.Context(), s.pool, set, worker.Config{Queues: map[string]queue.Queue{"": q}, Slots: 8, Grace: 100 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	s.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.Errorf("the worker did not stop cleanly: %v", err)
		}
	})
}

func leave(s *sqsStage) func(context.Context, jobs.Args) error {
	return func(ctx context.Context, a jobs.Args) error {
		_, err := s.pool.Exec(context.WithoutCancel(ctx), `INSERT INTO trail (type, entity) VALUES ($1, $2)`, a.JobType(), a.Entity())
		return err
	}
}

// Each delivery brings a message nearer to its dead-letter queue. So a queue is left alone
// while what it brings could not start.
func TestWhatMustWaitForItsLimitIsLeftInSQSWhereTheQueueIsItsOwn(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.count(s.open(s.url, sqsqueue.Options{}))
	n := rounds(500, 1000)
	for i := range n {
		s.send(q, shout{i})
	}
	s.run(q, jobs.Job[shout]{Effect: jobs.Once, Do: func(ctx context.Context, a shout) error { return leave(s)(ctx, a) },
		Policy: jobs.Policy{Limit: jobs.Limit{Rate: 100}}})
	s.await("all is done", func() bool { return s.number(facts) == n })
	s.awaitEnd()
	if handed, most := q.of("shout"); handed > n+n/5 || most > 2 {
		t.Errorf("%d messages were handed out %d times, one of them %d times", n, handed, most)
	}
}

// Where others share the queue, they flow; what must wait is held, and past a bound put
// away for some time.
func TestWhatMustWaitForItsLimitHoldsUpNothingElseInItsQueue(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.count(s.open(s.url, sqsqueue.Options{}))
	const n = 500
	open := make(chan struct{})
	defer close(open)
	for i := range n {
		s.send(q, shout{i})
	}
	for i := range 50 {
		s.send(q, entry{i})
	}
	s.run(q, jobs.Job[shout]{Effect: jobs.Once, Do: func(ctx context.Context, a shout) error {
		select {
		case <-open:
		case <-ctx.Done():
		}
		return jobs.NotApplied(context.Cause(ctx))
	}, Policy: jobs.Policy{Limit: jobs.Limit{Running: 1}}},
		jobs.Job[entry]{DoTx: func(ctx context.Context, tx pgx.Tx, a entry) error { return nil }})
	s.await("the others are done", func() bool { return s.number(facts) == 50 })
	s.await("all that waits is held or put away", func() bool {
		visible, held, _ := s.fake.Count(s.url)
		return visible == 0 && held == n
	})
	if handed, most := q.of("shout"); handed > n+n/10 || most > 2 {
		t.Errorf("%d messages were handed out %d times, one of them %d times", n, handed, most)
	}
}

// The visibility of what is being worked ends, and somebody else is handed it.
func TestABodyWhoseMessageIsLostEndsWithACauseUnlessAClaimKeepsOthersAway(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.open(s.url, sqsqueue.Options{})
	s.send(q, call{1}, fuss{1, 0}, entry{1}, entry{2})
	begun, causes, finish := make(chan string, 20), make(chan error, 20), make(chan struct{})
	// Its first attempt waits for the end of its context.
	var mu sync.Mutex
	tries := map[string]int{}
	wait := func(ctx context.Context, a jobs.Args) error {
		name := a.JobType() + " " + a.Entity()
		mu.Lock()
		tries[name]++
		first := tries[name] == 1
		mu.Unlock()
		if !first {
			return nil
		}
		begun <- name
		<-ctx.Done()
		causes <- context.Cause(ctx)
		if name == "entry 2" {
			return nil // it had been done all the same
		}
		return ctx.Err()
	}
	brief := jobs.Policy{Timeout: 20 * time.Second}
	s.run(q,
		jobs.Job[fuss]{Effect: jobs.Repeatable, Do: func(ctx context.Context, a fuss) error { return wait(ctx, a) }, Policy: brief},
		jobs.Job[entry]{DoTx: func(ctx context.Context, tx pgx.Tx, a entry) error {
			if _, err := tx.Exec(ctx, `INSERT INTO trail (type, entity) VALUES ($1, $2)`, a.JobType(), a.Entity()); err != nil {
				return err
			}
			return wait(ctx, a)
		}, Policy: brief},
		jobs.Job[call]{Effect: jobs.Keyed(time.Hour), Do: func(ctx context.Context, a call) error {
			begun <- "call"
			select {
			case <-finish:
				return leave(s)(ctx, a)
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
	for range 4 {
		<-begun
	}
	s.fake.Advance(5 * time.Second)
	for range 3 {
		if err := <-causes; err != worker.ErrMessageLost {
			t.Errorf("a body without a claim ended by %v", err)
		}
	}
	s.await("what came again is done", func() bool { return s.number(facts) == 3 })
	close(finish)
	s.await("what has a claim is done", func() bool { return s.number(facts) == 4 })
	s.awaitEnd()
	if n := s.number(`SELECT count(*) FROM trail WHERE type = 'call'`); n != 1 {
		t.Errorf("what had a claim ran %d times", n)
	}
	if n := s.number(`SELECT count(*) FROM trail WHERE type = 'entry'`); n != 2 {
		t.Errorf("%d effects in transactions for 2 entities", n)
	}
	if n := s.number(`SELECT count(*) FROM oncemore.attempt`); n > 0 {
		t.Errorf("%d attempts were charged for lost messages", n)
	}
}

// What fails stays at the head of its group until it is done, or has failed for good.
func TestAGroupOfAFIFOQueueWaitsForWhatFailed(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	way := func(m queue.Message) string { return strings.SplitN(m.Items[0].Entity, "/", 2)[0] }
	q := s.open(s.create("ways.fifo", nil), sqsqueue.Options{Group: way})
	for n := range 6 {
		for w := range 3 {
			s.send(q, step{w, n})
		}
	}
	s.run(q, jobs.Job[step]{Effect: jobs.Once, Do: func(ctx context.Context, a step) error {
		if err := leave(s)(ctx, a); err != nil {
			return err
		}
		switch number := jobs.Current(ctx).Number; {
		case a.Way == 0 && a.N == 2 && number <= 2:
			return jobs.NotApplied(fmt.Errorf("attempt %d failed", number))
		case a.Way == 1 && a.N == 2:
			return jobs.NotApplied(fmt.Errorf("attempt %d failed", number))
		case a.Way == 2 && a.N == 2:
			return fmt.Errorf("nobody knows what came of it")
		}
		return nil
	}, Policy: jobs.Policy{Attempts: 2 + 1, Backoff: func(int) time.Duration { return 100 * time.Millisecond }}})
	s.await("all is done that can be", func() bool { return s.number(facts) == 16 })
	s.await("SQS is empty", func() bool { visible, held, _ := s.fake.Count(q.URL()); return visible+held == 0 })
	for w, want := range []string{"0 1 2 2 2 3 4 5", "0 1 2 2 2 3 4 5", "0 1 2 3 4 5"} {
		var got string
		if err := s.pool.QueryRow(t.Context(), `SELECT string_agg(split_part(entity, '/', 2), ' ' ORDER BY id) FROM trail WHERE split_part(entity, '/', 1) = $1`, fmt.Sprint(w)).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("way %d went %s, want %s", w, got, want)
		}
	}
	if n := s.number(`SELECT count(*) FROM oncemore.message`); n > 0 {
		t.Errorf("%d messages travelled through Postgres", n)
	}
	if n := s.number(`SELECT count(*) FROM oncemore.claim WHERE trouble IN ('failed', 'in_doubt')`); n != 2 {
		t.Errorf("%d are open, want one that failed and one in doubt", n)
	}
}
