package pgqueue

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// With hints a message is picked up long before the next poll, also after the
// listener's connection was lost.
func TestHintsComeAheadOfPolls(t *testing.T) {
	pool := pgtest.Pool(t)
	receiver, sender := New(pool, "q"), New(pool, "q")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { receiver.Listen(ctx) })
	defer wg.Wait()
	defer cancel()
	listeners := `SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database() AND state = 'idle'`
	for round := range 2 {
		eventually(t, "somebody listens", func() bool { return count(t, pool, listeners) == 1 })
		// The hint is what is looked at, so that no poll is mistaken for it.
		eventually(t, "the hint of the new connection", func() bool { return len(receiver.hint) == 1 })
		<-receiver.hint
		New(pool, "other").notify.allow(time.Now())
		send(t, New(pool, "other"), message("e"))
		send(t, sender, message("e"))
		eventually(t, "the hint of the message", func() bool { return len(receiver.hint) == 1 })
		<-receiver.hint
		if round == 0 {
			mustExec(t, pool, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()`)
		}
	}
	if n := pool.Stat().AcquiredConns(); n != 0 {
		t.Errorf("the listener holds %d connections of the pool", n)
	}
}

// NOTIFY takes a lock on the whole server until the commit.
func TestHintsAreFew(t *testing.T) {
	var d debounce
	now := time.Now()
	if !d.allow(now) || d.allow(now.Add(notifyEvery-1)) || !d.allow(now.Add(notifyEvery)) {
		t.Error("one hint is let through in", notifyEvery)
	}
	if !d.allow(now.Add(-time.Hour)) {
		t.Error("a clock that was set back stops the hints")
	}
}

// A receive is under way while a sender elsewhere commits.
func TestPickUpIsQuick(t *testing.T) {
	pool := pgtest.Pool(t)
	q, sender := New(pool, ""), New(pool, "")
	go q.Listen(t.Context())
	best := time.Hour
	for range 20 {
		sent := make(chan time.Time, 1)
		time.AfterFunc(60*time.Millisecond, func() {
			sent <- time.Now()
			send(t, sender, message("e"))
		})
		ds := await(t, q, 1)
		best = min(best, time.Since(<-sent))
		if err := q.Ack(t.Context(), ds...); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the quickest of 20 took %v from before the send", best)
	if best > 100*time.Millisecond {
		t.Errorf("the quickest of 20 took %v", best)
	}
}
