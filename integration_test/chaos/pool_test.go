//go:build linux

package chaos_test

import (
	"testing"
	"time"
)

// Sixteen slots share two connections, and the bodies use the same two for their effects
// in transactions; retries, packs and a fan-out too. Nobody waits for ever, and the lease
// lives on: it has a connection of its own.
func TestAPoolSmallerThanTheSlotsGoesOnAndKeepsItsLease(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	w := newWorld(t)
	l := load{}
	n := size(30, 300)
	l.sendMixed(t, pool, n, allTypes...)
	l.send(t, pool, "in_tx", work{N: n + 1, How: "fail"}, work{N: n + 2, How: "fail"})
	l.send(t, pool, "many", work{N: n + 1}, work{N: n + 2, How: "fail"}, work{N: n + 3})
	l.fanOut(t, pool, n+1, 2*n)
	told := service{Database: dsn, World: w, Slots: 16, Conns: 2, Pause: 5 * time.Millisecond, Lease: 15 * time.Second}
	ps := []*process{told.start(t), told.start(t)}
	awaitSettled(t, pool)
	if n := ask[int](t, pool, `SELECT count(*) FROM oncemore.worker`); n != len(ps) {
		t.Errorf("%d lives of %d workers: a lease was lost for want of a connection", n, len(ps))
	}
	stopAll(t, ps...)
	checkEnd(t, pool, w, l)
}
