package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A journal keeps what a lease logs.
type journal struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func newJournal() *journal { return &journal{Handler: slog.DiscardHandler} }

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, r.Message)
	return nil
}

func (j *journal) has(line string) bool { return j.count(line) > 0 }

func (j *journal) count(line string) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, l := range j.lines {
		if l == line {
			n++
		}
	}
	return n
}

func (w *world) join(length time.Duration) (*ledger.Lease, *journal) {
	w.Helper()
	j := newJournal()
	s, err := w.Join(w.Context(), "test", length, slog.New(j))
	w.ok(err)
	w.Cleanup(func() { w.ok(s.Leave(context.Background())) })
	return s, j
}

func (w *world) expires(s *ledger.Lease) time.Time {
	w.Helper()
	return value[time.Time](w, `SELECT expires FROM oncemore.worker WHERE id = $1`, s.ID)
}

func (w *world) dead(worker int64) bool {
	w.Helper()
	return value[bool](w, `SELECT dead_at IS NOT NULL FROM oncemore.worker WHERE id = $1`, worker)
}

// awaitLost waits for the end of a lease and returns the server's time of it.
func (w *world) awaitLost(s *ledger.Lease) time.Time {
	w.Helper()
	select {
	case <-s.Context().Done():
	case <-time.After(20 * time.Second):
		w.Fatal("the lease goes on")
	}
	at := value[time.Time](w, `SELECT clock_timestamp()`)
	if cause := context.Cause(s.Context()); !errors.Is(cause, ledger.ErrLeaseLost) {
		w.Errorf("the cause is %v", cause)
	}
	w.want("alive", s.Alive(), false)
	return at
}

func TestALeaseIsRenewedUntilItIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	s, _ := w.join(3 * time.Second)
	for range 3 {
		last := w.expires(s)
		w.await("a renewal", func() bool { return w.expires(s).After(last) })
	}
	w.want("alive", s.Alive(), true)
	w.want("dead", w.dead(s.ID), false)
	w.ok(s.Leave(t.Context()))
	w.want("alive after leaving", s.Alive(), false)
	w.want("how it ended", value[string](w, `SELECT cause FROM oncemore.worker WHERE id = $1 AND dead_at IS NOT NULL`, s.ID), "stopped")
	w.want("its cause", context.Cause(s.Context()), context.Canceled)
	w.ok(s.Leave(t.Context())) // once more does nothing
}

func TestAWorkersNumberIsNeverUsedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	seen := map[int64]bool{}
	for range 3 {
		s, _ := w.join(0)
		if seen[s.ID] {
			t.Errorf("worker %d again", s.ID)
		}
		seen[s.ID] = true
		w.ok(s.Leave(t.Context()))
	}
	w.want("rows outlive their workers", value[int](w, `SELECT count(*) FROM oncemore.worker WHERE dead_at IS NOT NULL`), 3)
}

func TestALeaseEndsWithTheContextThatItWasJoinedUnder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	why := errors.New("the program ends")
	ctx, cancel := context.WithCancelCause(t.Context())
	s, err := w.Join(ctx, "test", 0, slog.New(slog.DiscardHandler))
	w.ok(err)
	cancel(why)
	<-s.Context().Done()
	w.want("cause", context.Cause(s.Context()), why)
	w.want("dead before it left", w.dead(s.ID), false)
	w.ok(s.Leave(t.Context()))
	w.want("dead", w.dead(s.ID), true)
	if _, err := w.Join(ctx, "late", 0, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("joined under a context that has ended")
	}
}

func TestADeclaredDeathEndsTheLeaseAndIsForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	s, j := w.join(500 * time.Millisecond)
	w.die(s.ID)
	w.awaitLost(s)
	w.want("logged", j.has("lease lost: this worker stops what it does"), true)
	w.ok(s.Leave(t.Context()))
	w.want("how it ended", value[string](w, `SELECT cause FROM oncemore.worker WHERE id = $1`, s.ID), "lapsed")
}

// The worker's row is locked by somebody, so that renewals hang.
func TestALeaseThatCannotBeRenewedEndsBeforeItExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	s, j := w.join(5 * time.Second)
	first := w.expires(s)
	w.await("a renewal, from which the beats are counted", func() bool { return w.expires(s).After(first) })
	tx := w.begin()
	_, err := tx.Exec(t.Context(), `SELECT FROM oncemore.worker WHERE id = $1 FOR UPDATE`, s.ID)
	w.ok(err)
	ended := w.awaitLost(s)
	if expires := w.expires(s); !ended.Before(expires) {
		t.Errorf("it stopped at %s, and expired at %s", ended, expires)
	}
	w.want("warned", j.has("lease not renewed"), true)
	w.ok(tx.Rollback(t.Context()))
	w.want("nobody has declared it dead", w.dead(s.ID), false)
}

func TestALeaseOutlivesItsConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	s, j := w.join(5 * time.Second)
	killed := func() int {
		return value[int](w, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE '%UPDATE oncemore.worker SET expires%' AND pid <> pg_backend_pid()`)
	}
	w.await("its connection", func() bool { return killed() > 0 })
	w.await("a failed renewal", func() bool { return j.has("lease not renewed") })
	last := w.expires(s)
	w.await("the next renewal", func() bool { return w.expires(s).After(last) })
	w.want("alive", s.Alive(), true)
}

// crashed is a worker that nobody renews and whose lease is over.
func (w *world) crashed() int64 {
	w.Helper()
	return value[int64](w, `INSERT INTO oncemore.worker (name, expires) VALUES ('crashed', clock_timestamp() - interval '1 hour') RETURNING id`)
}

// awaitDeath returns how long after a time of the server a worker was declared dead.
func (w *world) awaitDeath(worker int64, after time.Time) time.Duration {
	w.Helper()
	w.await("the declaration", func() bool { return w.dead(worker) })
	return value[time.Time](w, `SELECT dead_at FROM oncemore.worker WHERE id = $1`, worker).Sub(after)
}

func TestACrashedWorkerIsDeclaredDeadByOneThatHasRenewedForALease(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Repeatable)
	const length = 3 * time.Second
	gone := w.crashed()
	w.claim(gone, plain("e"))
	begin := value[time.Time](w, `SELECT clock_timestamp()`)
	s, j := w.join(length)
	if took := w.awaitDeath(gone, begin); took < length {
		t.Errorf("declared dead %s after the other one joined", took)
	}
	w.want("its claim", w.reason("e"), ledger.Retry)
	w.want("dead itself", w.dead(s.ID), false)
	w.await("the log", func() bool { return j.has("worker declared dead: its claims may be taken over") })
}

// After the database was away every lease has lapsed. Who comes back first must give the
// others the time to come back as well.
func TestAfterAnOutageNobodyIsDeclaredDeadAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Repeatable)
	const length = 3 * time.Second
	gone := w.crashed()
	s, j := w.join(length)
	w.awaitDeath(gone, time.Time{}) // from now on it declares at every renewal
	tx := w.begin()
	_, err := tx.Exec(t.Context(), `SELECT FROM oncemore.worker WHERE id = $1 FOR UPDATE`, s.ID)
	w.ok(err)
	before := j.count("lease not renewed")
	w.await("a failed renewal", func() bool { return j.count("lease not renewed") > before })
	lapsed := w.crashed()
	back := value[time.Time](w, `SELECT clock_timestamp()`)
	w.ok(tx.Rollback(t.Context()))
	// The renewal that first succeeds again was sent a fifth of a lease ago at most.
	if took := w.awaitDeath(lapsed, back); took < length*7/10 {
		t.Errorf("declared dead %s after the outage", took)
	}
	w.want("dead itself", w.dead(s.ID), false)
}

// The server stood still between being asked and answering: every lease has lapsed by its
// clock, also those of workers that are well and could not renew.
func TestADeclarationThatIsExecutedLateDeclaresNobodyDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	crashed := w.crashed()
	declarer := value[int64](w, `INSERT INTO oncemore.worker (name, expires) VALUES ('w', clock_timestamp() + interval '1 minute') RETURNING id`)
	for _, c := range []struct {
		fresh time.Duration // our own lease must go on for longer
		dies  bool
	}{{time.Hour, false}, {30 * time.Second, true}} {
		_, err := w.pool.Exec(t.Context(), ledger.DeclareSQL, declarer, c.fresh)
		w.ok(err)
		w.want("dead", w.dead(crashed), c.dies)
	}
	other := w.crashed()
	w.die(declarer)
	_, err := w.pool.Exec(t.Context(), ledger.DeclareSQL, declarer, time.Second)
	w.ok(err)
	w.want("declared dead by the dead", w.dead(other), false)
}

func TestOfALateRenewalAndADeclarationExactlyOneHappens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Once)
	declarer := w.worker()
	renewals := 0
	for range 100 {
		id := w.crashed()
		var renewed, declared int64
		var wg sync.WaitGroup
		wg.Go(func() {
			tag, err := w.pool.Exec(t.Context(), ledger.RenewSQL, id, time.Minute)
			if err != nil {
				t.Error(err)
			}
			renewed = tag.RowsAffected()
		})
		wg.Go(func() {
			tag, err := w.pool.Exec(t.Context(), ledger.DeclareSQL, declarer, time.Duration(0))
			if err != nil {
				t.Error(err)
			}
			declared = tag.RowsAffected()
		})
		wg.Wait()
		w.want("renewed or declared", renewed+declared, int64(1))
		w.want("dead", w.dead(id), declared == 1)
		renewals += int(renewed)
	}
	t.Logf("%d of 100 were renewed", renewals)
}

// A suspended machine stops the monotonic clock, and a wall clock may be set back: the
// one that says that more time has passed is believed.
func TestI9TimeIsTheDatabasesAWorkersClocksOnlyStopItEarlier(t *testing.T) {
	now := time.Now()
	for _, c := range []struct{ mono, wall time.Duration }{{0, time.Hour}, {time.Hour, 0}, {time.Hour, -time.Hour}} {
		if got := ledger.Since(now.Add(-c.mono), now.Round(0).Add(-c.wall)); got < time.Hour {
			t.Errorf("%s by one clock and %s by the other counted as %s", c.mono, c.wall, got)
		}
	}
}

// Waiting for work (room.go) reads one too, to know when to look again; what it finds is
// decided by the server's time.
func TestI9TimeIsTheDatabasesNothingButALeaseReadsAClock(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "lease.go" || name == "room.go" {
			continue
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains([]string{"time.Now", "time.Since", "time.Until"}, fmt.Sprint(s.X, ".", s.Sel)) {
				t.Errorf("%s reads this machine's clock", set.Position(n.Pos()))
			}
			return true
		})
	}
}
