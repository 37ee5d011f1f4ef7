package integration_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
	"github.com/oncemore-jobs/oncemore/worker"
)

// The jobs of these stories leave a row in the table trail each time their body runs.
type (
	call  struct{ N int }        // may be repeated within an hour, with its key
	shout struct{ N int }        // nobody can tell whether it was heard
	entry struct{ N int }        // in a transaction
	step  struct{ Way, N int }   // one after the other on its way
	fuss  struct{ N, Fails int } // fails so often
)

func (call) JobType() string  { return "call" }
func (shout) JobType() string { return "shout" }
func (entry) JobType() string { return "entry" }
func (step) JobType() string  { return "step" }
func (fuss) JobType() string  { return "fuss" }

func (c call) Entity() string  { return jobs.Key(c.N) }
func (s shout) Entity() string { return jobs.Key(s.N) }
func (e entry) Entity() string { return jobs.Key(e.N) }
func (s step) Entity() string  { return jobs.Key(s.Way, s.N) }
func (f fuss) Entity() string  { return jobs.Key(f.N) }

const createTrail = `CREATE TABLE trail (id bigserial PRIMARY KEY, type text, entity text, pid int)`

// trailSet is the jobs. hang says whether the body of a call never comes back.
func trailSet(pool *pgxpool.Pool, hang bool) (*jobs.Set, error) {
	leave := func(ctx context.Context, a jobs.Args) error {
		_, err := pool.Exec(ctx, `INSERT INTO trail (type, entity, pid) VALUES ($1, $2, $3)`, a.JobType(), a.Entity(), os.Getpid())
		return err
	}
	return jobs.NewSet(
		jobs.Job[call]{Effect: jobs.Keyed(time.Hour), Do: func(ctx context.Context, a call) error {
			err := leave(ctx, a)
			if hang && err == nil {
				select {}
			}
			return err
		}},
		jobs.Job[shout]{Effect: jobs.Once, Do: func(ctx context.Context, a shout) error { return leave(ctx, a) }},
		jobs.Job[step]{Effect: jobs.Once, Do: func(ctx context.Context, a step) error { return leave(ctx, a) }, Policy: jobs.Policy{Queue: "ways"}},
		jobs.Job[entry]{DoTx: func(ctx context.Context, tx pgx.Tx, a entry) error {
			_, err := tx.Exec(ctx, `INSERT INTO trail (type, entity) VALUES ($1, $2)`, a.JobType(), a.Entity())
			return err
		}},
		jobs.Job[fuss]{Effect: jobs.Repeatable, Do: func(ctx context.Context, a fuss) error {
			if err := leave(ctx, a); err != nil {
				return err
			}
			if jobs.Current(ctx).Number <= a.Fails {
				return errors.New("not this time")
			}
			return nil
		}, Policy: jobs.Policy{Backoff: func(int) time.Duration { return 100 * time.Millisecond }}},
	)
}

// An sqsStage is a database, and an SQS with a queue.
type sqsStage struct {
	*testing.T
	pool *pgxpool.Pool
	pg   *pgqueue.Queue
	fake *sqsfake.Fake
	url  string
}

func newSQSStage(t *testing.T) *sqsStage {
	s := &sqsStage{T: t, pool: pgtest.Pool(t), fake: sqsfake.New()}
	t.Cleanup(s.fake.Close)
	s.pg = pgqueue.New(s.pool, "")
	s.exec(createTrail)
	s.url = s.create("q", nil)
	return s
}

func (s *sqsStage) create(name string, attributes map[string]string) string {
	s.Helper()
	url, err := s.fake.CreateQueue(name, attributes)
	if err != nil {
		s.Fatal(err)
	}
	return url
}

func (s *sqsStage) open(url string, o sqsqueue.Options) *sqsqueue.Queue {
	s.Helper()
	o.Client = s.fake.Client()
	o.Visibility = cmp.Or(o.Visibility, 2*time.Second)
	o.Wait = cmp.Or(o.Wait, time.Second) // who stops waits for it
	o.Log = slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	q, err := sqsqueue.New(s.Context(), url, o)
	if err != nil {
		s.Fatal(err)
	}
	return q
}

// work starts a worker in this process, and returns what stops it.
func (s *sqsStage) work(queues map[string]queue.Queue) (stop func()) {
	s.Helper()
	if queues["ways"] == nil {
		queues["ways"] = s.pg
	}
	set, err := trailSet(s.pool, false)
	if err != nil {
		s.Fatal(err)
	}
	w, err := worker.New(s.Context(), s.pool, set, worker.Config{Queues: queues, Slots: 8, Log: slog.New(slog.NewTextHandler(s.Output(), &slog.HandlerOptions{Level: slog.LevelError}))})
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			s.Errorf("the worker did not stop cleanly: %v", err)
		}
	})
	s.Cleanup(stop)
	return stop
}

func (s *sqsStage) exec(sql string, args ...any) {
	s.Helper()
	if _, err := s.pool.Exec(s.Context(), sql, args...); err != nil {
		s.Fatal(err)
	}
}

func (s *sqsStage) send(to queue.Sender, as ...jobs.Args) {
	s.Helper()
	for _, a := range as {
		if err := jobs.Enqueue(s.Context(), to, a); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *sqsStage) await(what string, is func() bool) {
	s.Helper()
	for end := time.Now().Add(3 * time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("after three minutes: not yet: %s", what)
		}
	}
}

func (s *sqsStage) awaitRow(what, sql string, args ...any) {
	s.Helper()
	s.await(what, func() (is bool) {
		if err := s.pool.QueryRow(s.Context(), sql, args...).Scan(&is); err != nil {
			s.Fatal(err)
		}
		return is
	})
}

// awaitEnd waits until nothing is on its way any more, in either queue.
func (s *sqsStage) awaitEnd() {
	s.Helper()
	s.await("SQS is empty", func() bool {
		visible, held, delayed := s.fake.Count(s.url)
		return visible+held+delayed == 0
	})
	s.awaitRow("the Postgres queue is empty, and nothing is open", `SELECT NOT EXISTS (SELECT FROM oncemore.message) AND NOT EXISTS (SELECT FROM oncemore.claim)`)
}

func (s *sqsStage) number(sql string, args ...any) (n int) {
	s.Helper()
	if err := s.pool.QueryRow(s.Context(), sql, args...).Scan(&n); err != nil {
		s.Fatal(err)
	}
	return n
}

const facts = `SELECT count(*) FROM oncemore.ledger`

func rounds(short, full int) int {
	if os.Getenv("ONCEMORE_FULL") == "1" {
		return full
	}
	return short
}

func sqsSeed(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("ONCEMORE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ONCEMORE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// The fence is one: whoever delivers, and however many do at once.
func TestTheSameEntityFromBothQueuesAtOnceRunsOnce(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	random := sqsSeed(t)
	var sqss []*sqsqueue.Queue
	for range 2 {
		q := s.open(s.url, sqsqueue.Options{})
		sqss = append(sqss, q)
		s.work(map[string]queue.Queue{"": q})
	}
	n := rounds(100, 3000)
	for i := range n {
		senders := []queue.Sender{s.pg, sqss[i%2]}
		random.Shuffle(2, func(i, j int) { senders[i], senders[j] = senders[j], senders[i] })
		var both sync.WaitGroup
		for _, to := range senders {
			both.Go(func() {
				if err := errors.Join(jobs.Enqueue(t.Context(), to, shout{i}), jobs.Enqueue(t.Context(), to, entry{i})); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
	}
	s.await("all is done", func() bool { return s.number(facts) == 2*n })
	s.awaitEnd()
	if ran := s.number(`SELECT count(*) FROM trail`); ran != 2*n {
		t.Errorf("%d bodies ran to their end for %d entities", ran, 2*n)
	}
	if twice := s.number(`SELECT count(*) FROM (SELECT FROM trail GROUP BY type, entity HAVING count(*) > 1) t`); twice > 0 {
		t.Errorf("%d entities ran twice", twice)
	}
}

// What a dead worker held of one queue is taken over by whoever gets it from the other.
func TestAWorkerTakesOverFromTheOtherQueueWhatADeadOneHeld(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	server := httptest.NewServer(s.fake)
	t.Cleanup(server.Close)
	t.Cleanup(s.fake.Close)
	sqs := s.open(s.url, sqsqueue.Options{})

	first := s.process(server.URL, true)
	s.send(sqs, call{1})
	s.send(s.pg, call{2})
	s.awaitRow("the first one has begun both", `SELECT count(*) = 2 FROM trail WHERE pid = $1`, first.Process.Pid)
	second := s.process(server.URL, false)
	s.awaitRow("both live", `SELECT count(*) = 2 FROM oncemore.worker WHERE dead_at IS NULL`)
	s.send(s.pg, call{1})
	s.send(sqs, call{2})
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	s.await("both are done", func() bool { return s.number(facts) == 2 })
	s.awaitEnd()
	if ran := s.number(`SELECT count(*) FROM trail WHERE pid = $1`, second.Process.Pid); ran != 2 {
		t.Errorf("the second one ran %d bodies, want 2", ran)
	}
}

// process starts a worker process over both queues.
func (s *sqsStage) process(endpoint string, hang bool) *exec.Cmd {
	s.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestSQSWorkerProcess$")
	cmd.Env = append(os.Environ(), "SQS_WORKER_DATABASE="+s.pool.Config().ConnString(), "SQS_WORKER_QUEUE="+s.url, fmt.Sprint("SQS_WORKER_HANGS=", hang),
		"AWS_ENDPOINT_URL_SQS="+endpoint, "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=test", "AWS_SECRET_ACCESS_KEY=test", "AWS_EC2_METADATA_DISABLED=true")
	var said bytes.Buffer // a test that fails says why on stdout
	cmd.Stdout, cmd.Stderr = &said, s.Output()
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	// It ends by our SIGKILL: one that dies by itself would look like the dead worker that
	// the story is about, or leave its work to another one.
	s.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // how it ended is in ProcessState
		if st, _ := cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGKILL {
			s.Errorf("worker process %d ended by itself: %v\n%s", cmd.Process.Pid, cmd.ProcessState, &said)
		}
	})
	return cmd
}

// TestSQSWorkerProcess is no test but the worker process of the one above.
func TestSQSWorkerProcess(t *testing.T) {
	dsn := os.Getenv("SQS_WORKER_DATABASE")
	if dsn == "" {
		t.Skip("it is a process of another test")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	q, err := sqsqueue.New(ctx, os.Getenv("SQS_WORKER_QUEUE"), sqsqueue.Options{Visibility: 2 * time.Second, Wait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	set, err := trailSet(pool, os.Getenv("SQS_WORKER_HANGS") == "true")
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(ctx, pool, set, worker.Config{Queues: map[string]queue.Queue{"": q, "ways": q}, Lease: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// Where the default queue is in SQS, retries travel through Postgres all the same, in the
// transaction that records the failure.
func TestRetriesOfWorkFromSQSTravelThroughPostgres(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.open(s.url, sqsqueue.Options{Visibility: time.Minute})
	s.send(q, fuss{1, 2}, fuss{2, 0})
	s.work(map[string]queue.Queue{"": q})
	s.await("both are done", func() bool { return s.number(facts) == 2 })
	s.awaitEnd()
	if ran := s.number(`SELECT count(*) FROM trail WHERE entity = '1'`); ran != 3 {
		t.Errorf("it ran %d times, want twice and once more", ran)
	}
	if n := s.fake.Calls("SendMessageBatch"); n != 2 {
		t.Errorf("%d messages were sent to SQS, want the first two alone", n)
	}
}

// What nobody can read, or nobody knows, is set aside and listed, and gone from SQS.
func TestWhatNobodyCanWorkIsSetAsideAndGoneFromSQS(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.open(s.url, sqsqueue.Options{Visibility: time.Minute, Decode: func(r sqsqueue.Raw) (queue.Message, error) {
		m, err := sqsqueue.Decode(r)
		if m.Type == "junk" {
			err = errors.New("junk")
		}
		return m, err
	}})
	unknown := queue.Message{Type: "nobody knows it", Items: []queue.Item{{Entity: "1", Args: json.RawMessage(`{}`)}}}
	undecodable := queue.Message{Type: "junk", Items: []queue.Item{{Entity: "1", Args: json.RawMessage(`{}`)}}}
	misnamed := queue.Message{Type: "entry", Items: []queue.Item{{Entity: "another", Args: json.RawMessage(`{"N":1}`)}, {Entity: "2", Args: json.RawMessage(`{"N":2}`)}}}
	if err := q.Send(t.Context(), unknown, undecodable, misnamed); err != nil {
		t.Fatal(err)
	}
	s.work(map[string]queue.Queue{"": q})
	s.await("its neighbour is done", func() bool { return s.number(facts) == 1 })
	s.awaitEnd()
	if n := s.number(`SELECT count(*) FROM oncemore.parked WHERE times = 1 AND (reason, type) IN (('unknown_type', 'nobody knows it'), ('undecodable', 'junk'), ('undecodable', 'entry'))`); n != 3 {
		t.Errorf("%d of 3 are set aside, once each", n)
	}
}

// A FIFO queue and a standard one side by side, in two workers. Each way is gone step by
// step, whoever does it.
func TestAFIFOQueueStaysInOrderBesideAStandardOne(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	way := func(m queue.Message) string { return strings.SplitN(m.Items[0].Entity, "/", 2)[0] }
	ways := s.create("ways.fifo", nil)
	producer := s.open(ways, sqsqueue.Options{Group: way})
	standard := s.open(s.url, sqsqueue.Options{})
	const groups = 5
	steps := rounds(15, 200)
	for n := range steps {
		for w := range groups {
			s.send(producer, step{w, n})
			s.send(standard, entry{w*steps + n})
		}
	}
	for range 2 {
		s.work(map[string]queue.Queue{"": s.open(s.url, sqsqueue.Options{}), "ways": s.open(ways, sqsqueue.Options{Group: way})})
	}
	s.await("all is done", func() bool { return s.number(facts) == 2*steps*groups })
	s.awaitEnd()
	if n := s.number(`SELECT count(*) FROM (
		SELECT split_part(entity, '/', 2)::int - lag(split_part(entity, '/', 2)::int, 1, -1) OVER (PARTITION BY split_part(entity, '/', 1) ORDER BY id) AS stride
		FROM trail WHERE type = 'step') s WHERE stride <> 1`); n > 0 {
		t.Errorf("%d steps are out of order", n)
	}
}

// Workers stop while they hold messages. What they did not do is visible again at once, and
// not when its visibility ends.
func TestAWorkerThatStopsLeavesNothingInFlight(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	q := s.open(s.url, sqsqueue.Options{Visibility: 10 * time.Minute, Wait: time.Second})
	var as []jobs.Args
	for n := range 500 {
		as = append(as, shout{n})
	}
	s.send(q, as...)
	stop := s.work(map[string]queue.Queue{"": q})
	s.await("some are done", func() bool { return s.number(facts) > 20 })
	stop()
	if err := q.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := s.number(facts)
	if visible, held, _ := s.fake.Count(s.url); held != 0 || visible != 500-done {
		t.Errorf("%d are done, %d visible, %d in flight", done, visible, held)
	}
	if open := s.number(`SELECT count(*) FROM oncemore.claim`); open > 0 {
		t.Errorf("%d are open", open)
	}
}

// Workers over an SQS that fails in every way, now and then.
func TestWorkersLoseAndDoubleNothingWhateverSQSDoes(t *testing.T) {
	t.Parallel()
	s := newSQSStage(t)
	random := sqsSeed(t)
	producer := s.open(s.url, sqsqueue.Options{})
	n := rounds(300, 10_000)
	var ms []queue.Message
	for i := 0; i < n; {
		m := queue.Message{Type: "entry"}
		if random.IntN(2) == 0 {
			m.Type = "shout"
		}
		for range 1 + random.IntN(30) {
			if i == n {
				break
			}
			m.Items = append(m.Items, queue.Item{Entity: jobs.Key(i), Args: fmt.Appendf(nil, `{"N":%d}`, i)})
			i++
		}
		ms = append(ms, m)
	}
	if err := producer.Send(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
	var qs []*sqsqueue.Queue
	for range 3 {
		qs = append(qs, s.open(s.url, sqsqueue.Options{}))
	}
	s.fake.SetFaults(sqsfake.Faults{Duplicates: 0.1, PartialFailures: 0.05, Throttled: 0.02, LostAnswers: 0.02, LostReceives: 0.02, LostAcks: 0.05, ExpiredHandles: 0.02, Seed: random.Uint64()})
	for _, q := range qs {
		s.work(map[string]queue.Queue{"": q})
	}
	s.await("all is done", func() bool { return s.number(facts) == n })
	s.awaitEnd()
	if ran := s.number(`SELECT count(*) FROM trail`); ran != n {
		t.Errorf("%d bodies ran to their end for %d entities", ran, n)
	}
}

// Who uses another queue carries no AWS.
func TestNoPackageButTheOneForSQSNeedsAWS(t *testing.T) {
	for _, pkg := range library {
		out, err := exec.Command("go", "list", "-deps", module+"/"+pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", pkg, err, out)
		}
		for dep := range strings.Lines(string(out)) {
			if strings.HasPrefix(dep, "github.com/aws/") {
				t.Errorf("%s needs %s", pkg, dep)
			}
		}
	}
	out, err := exec.Command("go", "list", "-deps", module+"/queue/sqsqueue").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "github.com/aws/aws-sdk-go-v2/service/sqs") {
		t.Errorf("the list says nothing: %v", err)
	}
}
