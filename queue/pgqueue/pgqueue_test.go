package pgqueue

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/queuetest"
)

func TestMain(m *testing.M) {
	flag.Set("test.parallel", "16") // these tests wait rather than compute
	os.Exit(pgtest.Main(m))
}

func TestConformance(t *testing.T) {
	pool := pgtest.Pool(t)
	queuetest.Run(t, func(t *testing.T) queue.Queue { return New(pool, t.Name()).WithVisibility(time.Second) })
}

// pgx's simple modes send text where the others send binary, and name no statements:
// what works behind PgBouncer.
func TestConformanceWithoutNamedStatements(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			pool := poolWith(t, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			queuetest.Run(t, func(t *testing.T) queue.Queue { return New(pool, t.Name()).WithVisibility(time.Second) })
		})
	}
}

// Databases whose default isolation is stricter make claims fail that run into each
// other, unless the isolation is said.
func TestConformanceWhereTransactionsAreSerializable(t *testing.T) {
	pool := poolWith(t, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	})
	queuetest.Run(t, func(t *testing.T) queue.Queue { return New(pool, t.Name()).WithVisibility(time.Second) })
}

func poolWith(t *testing.T, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 10
	change(cfg)
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func message(entity string) queue.Message {
	return queue.Message{Type: "t", Items: []queue.Item{{Entity: entity, Args: json.RawMessage(`{}`)}}}
}

func send(t testing.TB, s queue.Sender, ms ...queue.Message) {
	t.Helper()
	if err := s.Send(context.Background(), ms...); err != nil {
		t.Fatal(err)
	}
}

// receive makes one attempt.
func receive(t testing.TB, q *Queue, max int) []queue.Delivery {
	t.Helper()
	ds, err := q.receiveNow(context.Background(), max, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ds
}

// await receives until it has n deliveries.
func await(t testing.TB, q *Queue, n int) []queue.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var got []queue.Delivery
	for len(got) < n {
		ds, err := q.Receive(ctx, n-len(got), nil)
		if err != nil {
			t.Fatalf("after %d of %d deliveries: %v", len(got), n, err)
		}
		got = append(got, ds...)
	}
	return got
}

func count(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never came true: ", what)
		}
	}
}

func TestMessagesSentInATransactionExistWhenItCommits(t *testing.T) {
	pool := pgtest.Pool(t)
	q := New(pool, "")
	for _, commit := range []bool{false, true} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Tx(tx).Send(t.Context(), message("bad"), queue.Message{}); !errors.Is(err, queue.ErrInvalid) {
			t.Fatalf("an invalid message: %v", err)
		}
		pack := message("b")
		pack.Items = append(pack.Items, queue.Item{Entity: "b2", Args: json.RawMessage(`[]`)})
		send(t, q.Tx(tx), message("a"), message("a2"), pack)
		if ds := receive(t, q, 10); len(ds) > 0 {
			t.Fatalf("received %d messages before the commit", len(ds))
		}
		if !commit {
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if ds := receive(t, q, 10); len(ds) > 0 {
				t.Fatalf("received %d messages of a transaction that was rolled back", len(ds))
			}
			continue
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if ds := await(t, q, 3); len(ds) != 3 {
			t.Fatalf("received %d messages", len(ds))
		}
	}
}

// The worker settles and acknowledges in one transaction: both or neither.
func TestAnAckInATransactionThatRollsBackDidNotHappen(t *testing.T) {
	pool := pgtest.Pool(t)
	q := New(pool, "").WithVisibility(300 * time.Millisecond)
	send(t, q, message("a"), message("b"))
	ds := await(t, q, 2)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := q.AckTx(t.Context(), tx, ds...); err != nil {
		t.Fatal(err)
	}
	// Its time passes; but who is settling it right now must not be waited for.
	eventually(t, "the message was looked at while somebody settles it", func() bool {
		return len(receive(t, q, 10)) == 0 && count(t, pool, `SELECT count(*) FROM oncemore.message_receive r WHERE r.check_at > clock_timestamp() + interval '500 ms'`) == 1
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	ds = await(t, q, 2)
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return q.AckTx(t.Context(), tx, ds...) })
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.message`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

func TestSettlingInABatchSendsAndAcknowledgesTogether(t *testing.T) {
	pool := pgtest.Pool(t)
	q := New(pool, "")
	send(t, q, message("a"))
	ds := await(t, q, 1)
	again := message("a")
	again.Delay = time.Hour
	err := run(t.Context(), pool, func(b *pgx.Batch) {
		q.SendBatch(b, again)
		q.SendBatch(b)
		q.AckBatch(b, append(ds, queue.Delivery{Receipt: "sqs-handle"})...)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.message m WHERE m.lock = 0`); n != 1 {
		t.Errorf("%d messages wait for later, expected the one that was sent again", n)
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.message m`); n != 1 {
		t.Errorf("%d messages are left", n)
	}
	if err := q.Ack(t.Context(), queue.Delivery{Receipt: "sqs-handle"}); err == nil {
		t.Error("a receipt of another kind of queue was no error")
	}
}

// A claim remembers where the last one began. What commits late, with an id before
// that, must not wait until everything after it is done.
func TestAMessageThatCommitsLateIsFoundInAFullQueue(t *testing.T) {
	pool := pgtest.Pool(t)
	q := New(pool, "")
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send(t, q.Tx(tx), message("late"))
	more := func() {
		var ms []queue.Message
		for i := range 50 {
			ms = append(ms, message(fmt.Sprint("e", i)))
		}
		send(t, q, ms...)
	}
	more()
	for range 3 {
		more()
		await(t, q, 10)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for {
		more() // so that there is always something after it
		for _, d := range await(t, q, 10) {
			if d.Items[0].Entity == "late" {
				return
			}
		}
		if time.Since(start) > 15*time.Second {
			t.Fatal("a message that committed late starves in a full queue")
		}
	}
}

func TestMoreDelayedMessagesThanOneWakeTakesAllComeDue(t *testing.T) {
	pool := pgtest.Pool(t)
	q := New(pool, "")
	var ms []queue.Message
	for i := range 2*wakeLimit + 10 {
		m := message(fmt.Sprint("e", i))
		m.Delay = time.Duration(1+i%50) * time.Millisecond
		ms = append(ms, m)
	}
	send(t, q, ms...)
	if ds := await(t, q, len(ms)); len(ds) != len(ms) {
		t.Errorf("received %d of %d", len(ds), len(ms))
	}
}

// The rows that remember receives must not pile up, and must not go too early. On a busy machine
// what is extended in time by the look of it may come back: then the story is told again, slower.
func TestAReceiveIsForgottenWhenNothingOfItIsHeld(t *testing.T) {
	for visibility := 200 * time.Millisecond; !receiveIsForgotten(t, visibility); visibility *= 2 {
		if visibility > 5*time.Second {
			t.Fatalf("what is extended all the time comes back, with a visibility timeout of %v", visibility)
		}
	}
}

// receiveIsForgotten tells the story, and returns false where the machine was too busy to hold
// anything for so long.
func receiveIsForgotten(t *testing.T, visibility time.Duration) bool {
	pool := pgtest.Pool(t)
	q := New(pool, "").WithVisibility(visibility)
	receives := func() int { return count(t, pool, `SELECT count(*) FROM oncemore.message_receive`) }
	for range 2*wakeReceives + 10 {
		send(t, q, message("short"))
		if err := q.Ack(t.Context(), await(t, q, 1)...); err != nil {
			t.Fatal(err)
		}
	}
	send(t, q, message("kept"), message("dropped"))
	ds := await(t, q, 2)
	until := time.Now().Add(10 * visibility) // past several looks at it
	for time.Now().Before(until) {
		if lost, err := q.Extend(t.Context(), ds...); err != nil {
			t.Fatal(err)
		} else if len(lost) > 0 || len(receive(t, q, 10)) > 0 {
			return false
		}
	}
	busy := false
	eventually(t, "only the receive that is held is remembered", func() bool {
		lost, err := q.Extend(t.Context(), ds...)
		busy = err == nil && len(lost) > 0 || len(receive(t, q, 10)) > 0
		return busy || receives() == 1
	})
	if busy {
		return false
	}
	if err := q.Ack(t.Context(), ds[0]); err != nil {
		t.Fatal(err)
	}
	back := await(t, q, 1)
	if err := q.Ack(t.Context(), back...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no receive is remembered", func() bool {
		receive(t, q, 10)
		return receives() == 0
	})
	if n := count(t, pool, `SELECT count(*) FROM oncemore.message`); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	return true
}

// Two workers may be configured differently: each hold lasts as long as its holder said.
func TestVisibilityIsTheReceivers(t *testing.T) {
	pool := pgtest.Pool(t)
	long, short := New(pool, ""), New(pool, "").WithVisibility(100*time.Millisecond)
	send(t, long, message("long"), message("short"))
	held := await(t, long, 1)
	await(t, short, 1)
	if d := await(t, short, 1)[0]; d.Items[0].Entity != "short" {
		t.Errorf("received %s, which is held for 10 seconds", d.Items[0].Entity)
	}
	if lost, err := long.Extend(t.Context(), held...); err != nil || len(lost) > 0 {
		t.Errorf("lost %q, %v", lost, err)
	}
}

// Nothing of ours writes such rows. They are handed over to be listed, not skipped
// and not choked on.
func TestARowThatIsNoMessageIsDeliveredAsBad(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
		t.Run(mode.String(), func(t *testing.T) { badRows(t, mode) })
	}
}

func badRows(t *testing.T, mode pgx.QueryExecMode) {
	pool := poolWith(t, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
	// (Of two dimensions the text format makes one; that is as good.)
	mustExec(t, pool, `INSERT INTO oncemore.message (queue, type, entities, args) VALUES
		('', 't', '{}', '{}'), ('', 't', '{a,b}', '{"{}"}'), ('', 't', '{NULL}', '{1}')`)
	q := New(pool, "")
	send(t, q, message("good"))
	bad := 0
	for _, d := range await(t, q, 4) {
		if d.Bad != nil {
			bad++
			if len(d.Items) > 0 || d.Type != "t" {
				t.Errorf("%+v", d)
			}
		} else if d.Items[0].Entity != "good" {
			t.Errorf("%+v", d)
		}
	}
	if bad != 3 {
		t.Errorf("%d bad deliveries", bad)
	}
}

func TestACanceledReceiveDoesNotWaitForAConnection(t *testing.T) {
	pool := pgtest.Pool(t)
	for range pool.Config().MaxConns {
		c, err := pool.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Release()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := New(pool, "").Receive(ctx, 1, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Receive returned %v", err)
	}
}
