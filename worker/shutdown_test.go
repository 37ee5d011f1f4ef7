package worker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

func TestARunningBodyHasItsGraceToFinish(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error { return g.pass(ctx, l.Entity()) }})
	enqueue(t, pgq(pool), letter{1}, letter{2})
	w := begin(t, pool, set, worker.Config{Slots: 1, Grace: time.Minute})
	running := within(t, "one has begun", g.entered)
	eventuallyRow(t, pool, "the other is held and waits", `SELECT count(*) = 2 FROM oncemore.message WHERE lock > 0`)
	w.stopping()
	eventuallyRow(t, pool, "the one that waits is let go", `SELECT count(*) = 1 FROM oncemore.message WHERE lock IS NULL`)
	select {
	case <-w.ended:
		t.Fatal("the worker has not waited for its body")
	default:
	}
	close(g.open)
	mustStop(t, w)
	if got := standing(t, pool, running); got != "done r 1" {
		t.Errorf("%q, want it done at its first attempt", got)
	}
	// A Receive that was under way when the worker stopped may have taken it once more, and let it go.
	if !ask(t, pool, `SELECT count(*) = 1 AND bool_and(lock IS NULL AND visible_at <= clock_timestamp() AND received <= 2) FROM oncemore.message`) {
		t.Error("what is left is not the one message that did not begin, let go of")
	}
}

// An earlier attempt may have had its effect, and the worker stops while the provider is
// asked about it. That is no answer, and puts nothing in doubt: the next worker asks.
func TestADoneCheckThatAShutdownInterruptsIsAskedAgainByTheNextWorker(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Verifiable(0), Do: func(context.Context, letter) error { return nil },
		Done: func(ctx context.Context, l letter) (bool, error) { return false, g.pass(ctx, l.Entity()) }})
	first := newWorker(t, pool, set, worker.Config{Grace: 10 * time.Millisecond})
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, first_claimed_at, claimed_at, trouble, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), now(), now(), 'retrying', 0, 0, 0, 0, t.id, 1, '1', '{"n":1}' FROM oncemore.job_type t WHERE t.name = 'letter'`)
	enqueue(t, pgq(pool), letter{1})
	r := runWorker(t, first)
	within(t, "the provider is asked", g.entered)
	mustStop(t, r)
	if got := standing(t, pool, "1"); got != "retrying 1" {
		t.Errorf("%q after the first worker, want it as it was", got)
	}
	close(g.open)
	run(t, pool, set, worker.Config{}, func() bool { return ask(t, pool, quiet) && standing(t, pool, "1") == "done r 2" })
}

func TestPastTheGraceABodysContextEndsAndSaysWhy(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	cause := make(chan error, 1)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(ctx context.Context, l letter) error {
		err := g.pass(ctx, l.Entity())
		cause <- context.Cause(ctx)
		return err
	}})
	enqueue(t, pgq(pool), letter{1})
	w := begin(t, pool, set, worker.Config{Grace: 10 * time.Millisecond})
	within(t, "the body has begun", g.entered)
	mustStop(t, w)
	if err := <-cause; !errors.Is(err, worker.ErrStopping) {
		t.Errorf("the cause is %v, want ErrStopping", err)
	}
}

func TestWhatHasNotBegunIsReleasedAtOnceAndNotCharged(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	var attempts tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Do: func(ctx context.Context, l letter) error {
		if n := jobs.Current(ctx).Number; n != 1 {
			t.Errorf("letter %d is at its attempt number %d", l.N, n)
		}
		attempts.add(l.Entity())
		return g.pass(ctx, l.Entity())
	}})
	const all = 40
	for n := range all {
		enqueue(t, pgq(pool), letter{n})
	}
	// One worker has two bodies running and all the rest in hand.
	w := begin(t, pool, set, worker.Config{Slots: 2, Grace: time.Minute})
	within(t, "a body has begun", g.entered)
	within(t, "another has begun", g.entered)
	eventuallyRow(t, pool, "the rest is held", `SELECT count(*) > 10 FROM oncemore.message WHERE lock > 0`)
	w.stopping()
	// Another takes the rest promptly, while the first still waits for its two.
	begun := time.Now()
	other := begin(t, pool, set, worker.Config{Slots: all})
	eventually(t, "all others have begun elsewhere", func() bool { return attempts.sum() == all })
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("the others waited %v, as if the first worker had died", took)
	}
	select {
	case <-w.ended:
		t.Error("the first worker has not waited for its two bodies")
	default:
	}
	close(g.open)
	mustStop(t, w)
	eventuallyRow(t, pool, "all are done", `SELECT count(*) = $1 FROM oncemore.ledger WHERE attempts = 1`, all)
	eventuallyRow(t, pool, "no message is left", quiet)
	mustStop(t, other)
	if attempts.sum() != all {
		t.Errorf("%d attempts on %d letters", attempts.sum(), all)
	}
}

func TestRunReturnsWhenNothingOfTheWorkerIsLeft(t *testing.T) {
	// Not parallel: it looks at all goroutines of the process.
	pool := pgtest.Pool(t)
	set := newSet(t,
		jobs.Job[letter]{Effect: jobs.Verifiable(time.Millisecond), Do: func(context.Context, letter) error { return nil }, Done: func(context.Context, letter) (bool, error) { return false, nil }},
		jobs.Job[mailing]{FanOut: func(mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 500) n`)
		}})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{Recheck: time.Millisecond})
	eventuallyRow(t, pool, "work is going on", `SELECT count(*) > 100 FROM oncemore.ledger`)
	mustStop(t, w)
	// Packages worker, ledger and pgqueue: its loops, its lease and its listening.
	// What has signalled its end may still have to return.
	var still []string
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if still = ours(); len(still) == 0 {
			break
		}
	}
	if len(still) > 0 {
		t.Errorf("still there after Run has returned:\n%s", strings.Join(still, "\n\n"))
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL`); n != 0 {
		t.Errorf("%d workers are registered still", n)
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.message WHERE lock > 0`); n != 0 {
		t.Errorf("%d messages are held by nobody", n)
	}
	// The pool itself takes a moment to close connections whose work was canceled.
	eventually(t, "all connections have come back to the pool", func() bool { return pool.Stat().AcquiredConns() == 0 })
}

// ours are the stacks of all goroutines of a worker.
func ours() (stacks []string) {
	buf := make([]byte, 4<<20)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")[1:] {
		for _, name := range []string{"oncemore/worker.", "oncemore/ledger.", "oncemore/queue"} {
			if strings.Contains(stack, name) && !strings.Contains(stack, "worker_test.Test") {
				stacks = append(stacks, stack)
				break
			}
		}
	}
	return stacks
}

func TestABodyThatIgnoresItsContextDoesNotKeepRunFromReturning(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	left := make(chan struct{})
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error {
		defer close(left)
		return g.pass(context.Background(), l.Entity()) // deaf
	}})
	enqueue(t, pgq(pool), letter{1})
	w := beginImpatient(t, pool, set, worker.Config{Grace: 10 * time.Millisecond})
	within(t, "the body has begun", g.entered)
	err := w.stop()
	if err == nil || !strings.Contains(err.Error(), "1 bodies running that ignore") {
		t.Errorf("Run returned %v, want it to say what it left behind", err)
	}
	// The claim speaks for it: what it does no longer counts, and nobody guesses.
	close(g.open)
	within(t, "the body has ended", left)
	next := begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "it is in doubt", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'in_doubt') AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, next)
	if got := standing(t, pool, "1"); got != "in_doubt 1" {
		t.Error(got)
	}
}

func TestAWorkerRunsOnceAtATime(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }})
	w := begin(t, pool, set, worker.Config{})
	eventually(t, "it is healthy", func() bool { return w.Health() == nil })
	if err := w.Run(t.Context()); err == nil {
		t.Error("a second Run began")
	}
	mustStop(t, w)
	if err := w.Health(); err == nil {
		t.Error("a stopped worker is healthy")
	}
	// After one life it may have another.
	again := runWorker(t, w.Worker)
	enqueue(t, pgq(pool), letter{1})
	eventually(t, "the letter is done", func() bool { return fmt.Sprint(standing(t, pool, "1")) == "done r 1" })
	mustStop(t, again)
}
