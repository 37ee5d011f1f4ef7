//go:build linux

package chaos_test

import (
	"slices"
	"testing"
	"time"
)

// Two services share a database and its queue, and have no job type in common. One of them
// is away for a while: its messages wait, unread, and are not parked by the other, which
// only receives what it knows. Then both end done, each by its own processes.
func TestTwoServicesOnOneQueueTakeOnlyTheirOwn(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	w := newWorld(t)
	n := size(30, 300)
	mine, theirs := []string{"once", "keyed", "mailing"}, []string{"in_tx", "repeatable"}
	l := load{}
	l.sendMixed(t, pool, n, "in_tx", "repeatable", "once", "keyed")
	l.send(t, pool, "keyed", work{N: n + 1, How: "fail"})
	l.send(t, pool, "repeatable", work{N: n + 1, How: "fail"})
	l.fanOut(t, pool, n+2, 2*n)

	a := service{Database: dsn, World: w, Types: mine, Lease: 15 * time.Second, Visibility: 5 * time.Second}.start(t)
	untouched := `SELECT coalesce(sum(hashtextextended(format('%s %s %s', m.ctid, m.xmin, m), 0)), 0)::text FROM oncemore.message m WHERE type = ANY ($1)`
	before := ask[string](t, pool, untouched, theirs)
	awaitRow(t, pool, "one service has no messages left", `SELECT NOT EXISTS (SELECT FROM oncemore.message WHERE type = ANY ($1))`, mine)
	if ask[string](t, pool, untouched, theirs) != before {
		t.Error("a service touched messages of types that it does not know")
	}
	b := service{Database: dsn, World: w, Types: theirs, Lease: 15 * time.Second, Visibility: 5 * time.Second}.start(t)
	awaitSettled(t, pool)
	if n := ask[int](t, pool, `SELECT count(*) FROM oncemore.parked`); n != 0 {
		t.Errorf("%d messages were parked", n)
	}
	for _, e := range w.events(t, func(e event) bool { return e.Verb == "began" }) {
		if slices.Contains(theirs, e.Type) != (e.Pid == b.pid()) {
			t.Errorf("%s %s was worked by the other service", e.Type, e.Entity)
		}
	}
	stopAll(t, a, b)
	checkEnd(t, pool, w, l)
}
