//go:build linux

package chaos_test

import (
	"slices"
	"testing"
	"time"
)

// Three workers are at work when the database goes away, and comes back before their
// leases are over: they go on as who they are.
func TestI1NoLossWhenPostgresIsRestartedUnderLoad(t *testing.T) {
	t.Parallel()
	const lease = 15 * time.Second
	for name, away := range map[string]func(*server, *testing.T){"fast shutdown": (*server).stop, "kill -9 of all its processes": (*server).kill} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, newFolder(t))
			migrate(t, s.pool)
			w := newWorld(t)
			ps := service{Database: s.DSN, World: w, Pause: 15 * time.Millisecond, Lease: lease}.fleet(t, s.pool, 3)
			l := load{}
			l.sendMixed(t, s.pool, size(40, 200), allTypes...)
			longest := time.Duration(0)
			for i := range size(1, 5) {
				await(t, "a part of the work is done", func() bool { return w.busy((i + 1) * len(l) / 10) })
				began := time.Now()
				away(s, t)
				s.start(t)
				longest = max(longest, time.Since(began))
				// A lease outlasts one restart, not one after the other.
				awaitRow(t, s.pool, "the leases are renewed", `SELECT bool_and(expires > clock_timestamp() + $1 * interval '1 second') FROM oncemore.worker WHERE dead_at IS NULL`, (lease*4/5 - time.Second).Seconds())
			}
			awaitSettled(t, s.pool)
			// A machine on which a restart takes so long has little time for renewals either.
			if n := ask[int](t, s.pool, `SELECT count(*) FROM oncemore.worker`); n != 3 && longest < lease/4 {
				t.Errorf("%d lives of three workers, and the database was away for no more than %s", n, longest)
			}
			if !slices.ContainsFunc(ps, func(p *process) bool { return p.said("settling failed") || p.said("receiving failed") }) {
				t.Error("nobody noticed that the database was away")
			}
			resolveDoubts(t, s.pool, w)
			awaitSettled(t, s.pool)
			stopAll(t, ps...)
			checkEnd(t, s.pool, w, l)
		})
	}
}

// The database is away for longer than a lease: all leases have lapsed, and nobody is dead
// for that. Each worker gives up its life by itself, and begins another one.
func TestNobodyIsDeclaredDeadWronglyWhenPostgresWasAwayForLongerThanALease(t *testing.T) {
	t.Parallel()
	const lease = 2 * time.Second
	s := newServer(t, newFolder(t))
	migrate(t, s.pool)
	w := newWorld(t)
	ps := service{Database: s.DSN, World: w, Pause: 15 * time.Millisecond, Lease: lease}.fleet(t, s.pool, 3)
	l := load{}
	l.sendMixed(t, s.pool, size(40, 200), allTypes...)
	for i := range size(1, 4) {
		await(t, "a part of the work is done", func() bool { return w.busy((i + 1) * len(l) / 10) })
		before := ask[int](t, s.pool, `SELECT max(id)::int FROM oncemore.worker`)
		if i%2 == 0 {
			s.kill(t)
		} else {
			s.stop(t)
		}
		time.Sleep(lease * 3 / 2) // so long it is away
		s.start(t)
		awaitRow(t, s.pool, "three workers live anew", `SELECT count(*) = 3 FROM oncemore.worker WHERE id > $1 AND dead_at IS NULL`, before)
	}
	awaitSettled(t, s.pool)
	doubts := resolveDoubts(t, s.pool, w)
	awaitSettled(t, s.pool)
	awaitRow(t, s.pool, "three workers live", `SELECT count(*) = 3 FROM oncemore.worker WHERE dead_at IS NULL`)
	for _, p := range ps {
		if !p.said("lease lost") {
			t.Error("a worker went on without a lease")
		}
		if p.said("another worker declared this one dead") {
			t.Error("a worker learned from the database that it was declared dead: it had not given up by itself before")
		}
	}
	stopAll(t, ps...)
	t.Logf("%d were in doubt", doubts)
	checkEnd(t, s.pool, w, l)
}
