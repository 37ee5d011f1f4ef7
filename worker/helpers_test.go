package worker_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// An errand is work whose entity is a word, so that a table of cases can be one batch.
type errand struct {
	What string `json:"what"`
}

func (errand) JobType() string  { return "errand" }
func (e errand) Entity() string { return e.What }

// A note has arguments beside its identity, of kinds that a body could change.
type note struct {
	ID   int               `json:"id"`
	Text string            `json:"text"`
	Tags []string          `json:"tags"`
	More map[string]string `json:"more"`
	To   *string           `json:"to"`
}

func (note) JobType() string  { return "note" }
func (n note) Entity() string { return jobs.Key(n.ID) }

// A page is made from a revision of something.
type page struct {
	ID       int   `json:"id"`
	Revision int64 `json:"source_version"`
}

func (page) JobType() string        { return "page" }
func (p page) Entity() string       { return jobs.Key(p.ID) }
func (p page) SourceVersion() int64 { return p.Revision }

// A running worker is stopped by stop, or with its test.
type running struct {
	*worker.Worker
	stopping context.CancelFunc
	ended    chan struct{}
	err      error // of Run, when ended is closed
}

// begin starts a worker.
func begin(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, c worker.Config) *running {
	t.Helper()
	return runWorker(t, newWorker(t, pool, set, c))
}

// beginImpatient starts a worker that soon gives up bodies that ignore their context.
func beginImpatient(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, c worker.Config) *running {
	t.Helper()
	w := newWorker(t, pool, set, c)
	w.SetStuckGrace(50 * time.Millisecond)
	return runWorker(t, w)
}

func newWorker(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, c worker.Config) *worker.Worker {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	w, err := worker.New(t.Context(), pool, set, c)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func runWorker(t testing.TB, w *worker.Worker) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Worker: w, stopping: cancel, ended: make(chan struct{})}
	go func() { defer close(r.ended); r.err = w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-r.ended })
	return r
}

// stop asks it to stop and returns what Run returned.
func (r *running) stop() error {
	r.stopping()
	<-r.ended
	return r.err
}

func mustStop(t testing.TB, r *running) {
	t.Helper()
	if err := r.stop(); err != nil {
		t.Fatalf("the worker did not stop cleanly: %v", err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute: not yet: %s", what)
		}
	}
}

// within waits for a channel to be closed, or to have something.
func within[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(time.Minute):
		t.Fatalf("after a minute: not yet: %s", what)
	}
	return v
}

// eventuallyRow waits until a query returns true.
func eventuallyRow(t testing.TB, pool *pgxpool.Pool, what, query string, args ...any) {
	t.Helper()
	eventually(t, what, func() bool { return ask(t, pool, query, args...) })
}

// ask runs a query that returns a truth.
func ask(t testing.TB, pool *pgxpool.Pool, query string, args ...any) (is bool) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&is); err != nil {
		t.Fatal(err)
	}
	return is
}

func mustExec(t testing.TB, pool *pgxpool.Pool, statement string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), statement, args...); err != nil {
		t.Fatal(err)
	}
}

func enqueue(t testing.TB, to queue.Sender, args ...jobs.Args) {
	t.Helper()
	if err := jobs.Enqueue(t.Context(), to, args...); err != nil {
		t.Fatal(err)
	}
}

// together is one message with many items.
func together[A jobs.Args](t testing.TB, args ...A) queue.Message {
	t.Helper()
	m := queue.Message{Type: args[0].JobType()}
	for _, a := range args {
		it, err := jobs.NewItem(a)
		if err != nil {
			t.Fatal(err)
		}
		m.Items = append(m.Items, it)
	}
	return m
}

func sendMessages(t testing.TB, to queue.Sender, ms ...queue.Message) {
	t.Helper()
	if err := to.Send(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
}

// quiet: nothing is on its way, held or waiting.
const quiet = `SELECT NOT EXISTS (SELECT FROM oncemore.message)`

// standing is where an entity is: "missing", "done c 2" (the evidence and the attempts), or
// "failed 3" (the trouble and the attempts).
func standing(t testing.TB, pool *pgxpool.Pool, entity string) string {
	t.Helper()
	var s string
	if err := pool.QueryRow(t.Context(), `
SELECT coalesce((SELECT 'done ' || l.evidence::text || ' ' || l.attempts FROM oncemore.ledger l WHERE l.entity = $1),
                (SELECT coalesce(c.trouble, 'held') || ' ' || c.attempts FROM oncemore.claim c WHERE c.entity = $1), 'missing')`, entity).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// of is how often something was counted.
func (c *tally) of(entity string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[entity]
}

// sum is how often anything was counted.
func (c *tally) sum() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.n {
		n += m
	}
	return n
}

// A gate holds bodies until it is opened, and tells who is inside.
type gate struct {
	entered chan string
	open    chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan string, 1000), open: make(chan struct{})} }

// pass waits for the gate, or for the end of ctx.
func (g *gate) pass(ctx context.Context, entity string) error {
	g.entered <- entity
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("at the gate: %w", ctx.Err())
	}
}

func pgq(pool *pgxpool.Pool) *pgqueue.Queue { return pgqueue.New(pool, "") }
