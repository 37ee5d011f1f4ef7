package containers

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/integration_test/sqspeer"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

type entry struct{ N int }

func (entry) JobType() string  { return "entry" }
func (e entry) Entity() string { return jobs.Key(e.N) }

// Two workers take from both queues at once. In the middle of it SQS freezes, then the
// database, then the database's server crashes. A freeze is the hard kind: connections stay,
// and nothing answers.
func TestEachIsDoneOnceThroughOutagesOfBothServers(t *testing.T) {
	need(t)
	peer := sqspeer.Start(t)
	peer.Setenv(t)
	url := peer.CreateQueue(t, fmt.Sprint("outages-", time.Now().UnixNano()), nil)
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE trail (n int)`); err != nil {
		t.Fatal(err)
	}
	overSQS, overPostgres := work(t, pool, url), pgqueue.New(pool, "")
	work(t, pool, url)

	const each = 300
	sent := 0
	for _, outage := range []struct {
		name   string
		strike func(t *testing.T)
	}{
		{"SQS freezes", func(t *testing.T) { freeze(t, sqs, 3*time.Second) }},
		{"the database freezes", func(t *testing.T) { freeze(t, database, 3*time.Second) }},
		{"the server crashes", crash},
	} {
		t.Log(outage.name)
		ms := make([]queue.Message, each)
		for i := range ms {
			ms[i] = queue.Message{Type: "entry", Items: []queue.Item{{Entity: jobs.Key(sent + i), Args: fmt.Appendf(nil, `{"N":%d}`, sent+i)}}}
		}
		// Some come by both ways.
		if err := overSQS.Send(t.Context(), ms[:2*each/3]...); err != nil {
			t.Fatal(err)
		}
		if err := overPostgres.Send(t.Context(), ms[each/3:]...); err != nil {
			t.Fatal(err)
		}
		await(t, pool, sent+each/10)
		outage.strike(t)
		sent += each
		await(t, pool, sent)
	}
	var bodies int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM trail`).Scan(&bodies); err != nil {
		t.Fatal(err)
	}
	if bodies != sent {
		t.Errorf("%d bodies ran to their end for %d entities", bodies, sent)
	}
}

// work starts a worker that ends with the test, and returns its SQS queue.
func work(t *testing.T, pool *pgxpool.Pool, url string) *sqsqueue.Queue {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	q, err := sqsqueue.New(t.Context(), url, sqsqueue.Options{Visibility: 5 * time.Second, Wait: time.Second, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	set, err := jobs.NewSet(jobs.Job[entry]{DoTx: func(ctx context.Context, tx pgx.Tx, e entry) error {
		// Long enough to be met by an outage.
		_, err := tx.Exec(ctx, `INSERT INTO trail SELECT $1 FROM pg_sleep(0.05)`, e.N)
		return err
	}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), pool, set, worker.Config{Queues: map[string]queue.Queue{"": q}, Slots: 4, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the worker did not stop cleanly: %v", err)
		}
	})
	return q
}

// await waits until so many are done. The database may be away.
func await(t *testing.T, pool *pgxpool.Pool, want int) {
	t.Helper()
	var n int
	var err error
	for end := time.Now().Add(2 * time.Minute); n < want; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after two minutes %d of %d are done (%v)", n, want, err)
		}
		err = pool.QueryRow(t.Context(), `SELECT count(*) FROM oncemore.ledger`).Scan(&n)
	}
}

func freeze(t *testing.T, c testcontainers.Container, d time.Duration) {
	t.Helper()
	p, err := testcontainers.NewDockerProvider()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Client().ContainerPause(t.Context(), c.GetContainerID(), client.ContainerPauseOptions{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d)
	if _, err := p.Client().ContainerUnpause(t.Context(), c.GetContainerID(), client.ContainerUnpauseOptions{}); err != nil {
		t.Fatal(err)
	}
}

// crash kills one of the server's processes: it ends all others, and recovers.
func crash(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), os.Getenv("TEST_DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var pid int
	if err := conn.QueryRow(t.Context(), `SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	status, _, err := database.Exec(t.Context(), []string{"sh", "-c", fmt.Sprint("kill -9 ", pid)})
	if err != nil || status != 0 {
		t.Fatalf("kill: status %d, %v", status, err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_sleep(60)`); err == nil {
		t.Fatal("the server did not crash")
	}
}
