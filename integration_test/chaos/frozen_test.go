//go:build linux

package chaos_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// freeze starts a worker on one work whose body holds, freezes the worker in it, and
// starts another one.
func freeze(t *testing.T, pool *pgxpool.Pool, told service, jobType, how string) (l load, thing id, frozen, other *process) {
	t.Helper()
	l = load{}
	thing = id{jobType, "1"}
	l.send(t, pool, jobType, work{N: 1, How: how})
	frozen = told.start(t)
	await(t, "the body holds", func() bool { return len(told.World.events(t, func(e event) bool { return e.Verb == "held" })) == 1 })
	frozen.signal(t, syscall.SIGSTOP)
	other = told.start(t)
	return l, thing, frozen, other
}

// thaw lets the frozen worker go on, and only then lets its body finish.
func thaw(t *testing.T, w world, frozen *process) {
	t.Helper()
	frozen.signal(t, syscall.SIGCONT)
	w.mark("open")
	await(t, "the frozen body goes on", func() bool {
		return len(w.events(t, func(e event) bool { return e.Verb == "went_on" && e.Pid == frozen.pid() })) == 1
	})
}

const twoLive = `SELECT count(*) = 2 FROM oncemore.worker WHERE dead_at IS NULL`

const factsSum = `SELECT coalesce(sum(hashtextextended(l::text, 0)), 0)::text FROM oncemore.ledger l`

// A worker is frozen in a body for longer than its lease, and then goes on. Others have
// the work by then. What it completes late is refused, and listed: it is evidence that the
// effect may have happened twice.
func TestI2OneCompletionOfAWorkerThatWasFrozenPastItsLeaseIsRefusedAndDisputed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		jobType, how string
		meanwhile    string // where the work stands before it thaws
	}{
		"Keyed":                           {"keyed", "hold", "done"},
		"Once":                            {"once", "hold", "in_doubt"}, // nobody may try again
		"Repeatable, at a second attempt": {"repeatable", "fail hold", "done"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn, pool := database(t)
			told := service{Database: dsn, World: newWorld(t), Lease: 1500 * time.Millisecond, Visibility: 4 * time.Second}
			l, thing, frozen, other := freeze(t, pool, told, c.jobType, c.how)
			await(t, "it is "+c.meanwhile, func() bool { return strings.HasPrefix(standing(t, pool, thing), c.meanwhile) })
			awaitRow(t, pool, "nothing is on its way", settled)
			before := ask[string](t, pool, factsSum)
			if n := attempts(t, pool, c.jobType, "disputed"); n != 0 {
				t.Fatalf("%d disputes before anything was late", n)
			}
			thaw(t, told.World, frozen)
			await(t, "its late success is disputed", func() bool { return attempts(t, pool, c.jobType, "disputed") == 1 })
			if now := standing(t, pool, thing); ask[string](t, pool, factsSum) != before || !strings.HasPrefix(now, c.meanwhile) {
				t.Errorf("a fenced worker changed what is recorded: now it is %s", now)
			}
			pids := map[int]bool{}
			for _, e := range told.World.effects(t)[thing] {
				pids[e.Pid] = true
			}
			if again := c.jobType != "once"; !pids[frozen.pid()] || pids[other.pid()] != again {
				t.Errorf("the effect was had by %v, want the frozen worker %d and, if the class allows, the other", pids, frozen.pid())
			}
			if !ask[bool](t, pool, `SELECT coalesce(bool_or(cause = 'lapsed'), false) FROM oncemore.worker WHERE name LIKE '%/' || $1::int`, frozen.pid()) {
				t.Error("nobody declared the frozen worker dead")
			}
			resolveDoubts(t, pool, told.World)
			awaitRow(t, pool, "it lives anew", twoLive)
			stopAll(t, frozen, other)
			checkEnd(t, pool, told.World, l)
		})
	}
}

// The first delivery of repeatable work needs no claim, so there is nothing to refuse: the
// work was done twice, which the class allows, and the first fact stands.
func TestI2OneCompletionOfRepeatableWorkWithoutAClaim(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	told := service{Database: dsn, World: newWorld(t), Lease: 1500 * time.Millisecond, Visibility: 4 * time.Second}
	l, thing, frozen, other := freeze(t, pool, told, "repeatable", "hold")
	await(t, "another worker has done it", func() bool { return facts(t, pool)[thing] })
	awaitRow(t, pool, "nothing is on its way", settled)
	before := ask[string](t, pool, factsSum)
	thaw(t, told.World, frozen)
	await(t, "the frozen worker had its effect as well", func() bool {
		return slices.ContainsFunc(told.World.effects(t)[thing], func(e event) bool { return e.Pid == frozen.pid() })
	})
	awaitRow(t, pool, "it lives anew", twoLive)
	stopAll(t, frozen, other)
	if ask[string](t, pool, factsSum) != before {
		t.Error("the fact has changed")
	}
	checkEnd(t, pool, told.World, l)
}

// A worker is frozen inside a transaction that holds its effect and its fact. The server
// ends the transaction when it has idled for longer than a body may take, others do the work, and the
// late commit finds nothing to commit.
func TestI3InTransactionEffectsHappenOnceWhenAWorkerIsFrozenInATransaction(t *testing.T) {
	t.Parallel()
	for _, jobType := range []string{"in_tx", "many"} {
		t.Run(jobType, func(t *testing.T) {
			t.Parallel()
			dsn, pool := database(t)
			told := service{Database: dsn, World: newWorld(t), Lease: 1500 * time.Millisecond, Visibility: 4 * time.Second, Timeout: time.Second}
			l, thing, frozen, other := freeze(t, pool, told, jobType, "hold")
			await(t, "another worker has done it", func() bool { return facts(t, pool)[thing] })
			awaitRow(t, pool, "nothing is on its way", settled)
			before := ask[string](t, pool, factsSum)
			thaw(t, told.World, frozen)
			awaitRow(t, pool, "the frozen worker lives anew", twoLive)
			frozen.stop(t)
			if pid := ask[int](t, pool, `SELECT pid FROM effect`); pid != other.pid() {
				t.Errorf("the effect is that of process %d, want that of the other worker", pid)
			}
			if ask[string](t, pool, factsSum) != before {
				t.Error("the fact has changed")
			}
			other.stop(t)
			checkEnd(t, pool, told.World, l)
		})
	}
}

// As above, but it thaws while its transaction is still there: it is late for its lease,
// and first at the fact, which is the lock. It may commit; what matters is that only one does.
func TestI3InTransactionEffectsHappenOnceWhenAFrozenWorkerThawsInTimeForItsTransaction(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	told := service{Database: dsn, World: newWorld(t), Lease: 1500 * time.Millisecond, Visibility: 4 * time.Second, Timeout: time.Minute}
	l, _, frozen, other := freeze(t, pool, told, "in_tx", "hold")
	awaitRow(t, pool, "it is declared dead", `SELECT count(*) = 1 FROM oncemore.worker WHERE cause = 'lapsed'`)
	awaitRow(t, pool, "the other has claimed it, which the first delivery had not", `SELECT EXISTS (SELECT FROM oncemore.claim)`)
	thaw(t, told.World, frozen)
	awaitSettled(t, pool)
	awaitRow(t, pool, "no claim is left: it would hold up whoever wants the work again", `SELECT NOT EXISTS (SELECT FROM oncemore.claim)`)
	awaitRow(t, pool, "it lives anew", twoLive)
	stopAll(t, frozen, other)
	checkEnd(t, pool, told.World, l)
}
