package pgqueue_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// The pool may wait a quarter of an hour for a connection that was cut off without a word. Receive gives
// up, says why, and the next one has another.
func TestAReceiveThatGetsNoConnectionSaysSoAndTheNextOneReceives(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	narrow := direct.Config()
	narrow.MaxConns = 1
	pool, err := pgxpool.NewWithConfig(t.Context(), narrow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	q := pgqueue.New(pool, "")
	only, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, err = q.Receive(t.Context(), 1, []string{"letter"})
	if err == nil || !strings.Contains(err.Error(), "no connection of the pool") {
		t.Errorf("after %v it returned %v", time.Since(began), err)
	}
	only.Release()
	if err := q.Send(t.Context(), queue.Message{Type: "letter", Items: []queue.Item{{Entity: "1", Args: []byte(`{}`)}}}); err != nil {
		t.Fatal(err)
	}
	if ds, err := q.Receive(t.Context(), 1, []string{"letter"}); err != nil || len(ds) != 1 {
		t.Errorf("the next one: %v, %v", ds, err)
	}
}
