package worker_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// crowd counts who is inside at once.
type crowd struct{ now, most atomic.Int32 }

func (c *crowd) enter() {
	n := c.now.Add(1)
	for m := c.most.Load(); n > m && !c.most.CompareAndSwap(m, n); m = c.most.Load() {
	}
}

func (c *crowd) leave() { c.now.Add(-1) }

func letters(from, to int) (as []jobs.Args) {
	for n := from; n <= to; n++ {
		as = append(as, letter{n})
	}
	return as
}

func TestALimitBoundsTheBodiesOfItsTypeAndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	for name, packed := range map[string]bool{"one by one": false, "in packs": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var limited, free crowd
			g := newGate()
			set := newSet(t,
				jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error {
					limited.enter()
					defer limited.leave()
					return g.pass(ctx, l.Entity())
				}, Policy: jobs.Policy{Limit: jobs.Limit{Running: 3}}},
				jobs.Job[errand]{Effect: jobs.Once, Do: func(context.Context, errand) error { free.enter(); defer free.leave(); return nil }})
			if packed {
				sendMessages(t, pgq(pool), pack(t, 1, 200), pack(t, 201, 400))
			} else {
				enqueue(t, pgq(pool), letters(1, 400)...)
			}
			begin(t, pool, set, worker.Config{Slots: 5})
			for range 3 {
				within(t, "as many run as may", g.entered)
			}
			for n := range 50 {
				enqueue(t, pgq(pool), errand{fmt.Sprint(n)})
			}
			eventuallyRow(t, pool, "the other type is done beside it", `SELECT count(*) = 50 FROM oncemore.ledger`)
			close(g.open)
			eventuallyRow(t, pool, "all is done", `SELECT count(*) = 450 FROM oncemore.ledger`)
			eventuallyRow(t, pool, "all is acknowledged", quiet)
			if n := limited.most.Load(); n != 3 {
				t.Errorf("%d bodies ran at once, the limit is 3", n)
			}
		})
	}
}

func TestARateSpreadsWhatBeginsEvenly(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var mu sync.Mutex
	var begun []time.Time
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error {
		mu.Lock()
		defer mu.Unlock()
		begun = append(begun, time.Now())
		return nil
	}, Policy: jobs.Policy{Limit: jobs.Limit{Rate: 100}}})
	sendMessages(t, pgq(pool), pack(t, 1, 60))
	begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "all is done", `SELECT count(*) = 60 FROM oncemore.ledger`)
	// A rate of 100 and a tenth of a second to catch up: 10 and one more than the time allows.
	// Between the line and the body lie a claim, which some share, and a machine that may be
	// busy, so this is generous; without a limit all 60 begin at once.
	for i := range begun {
		for j := i + 1; j < len(begun); j++ {
			if n, most := j-i+1, 100*begun[j].Sub(begun[i]).Seconds()+40; float64(n) > most {
				t.Fatalf("%d began within %v: the rate is 100 in a second", n, begun[j].Sub(begun[i]))
			}
		}
	}
	if took := begun[59].Sub(begun[0]); took < 300*time.Millisecond {
		t.Errorf("60 took %v, want about half a second", took)
	}
}

func TestWhatWaitsForItsLimitIsGivenBackAtShutdown(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error { return g.pass(ctx, l.Entity()) },
		Policy: jobs.Policy{Limit: jobs.Limit{Running: 1}}})
	enqueue(t, pgq(pool), letters(1, 10)...)
	w := begin(t, pool, set, worker.Config{Grace: time.Minute})
	within(t, "one runs", g.entered)
	eventuallyRow(t, pool, "the others are held", `SELECT count(*) = 10 FROM oncemore.message WHERE lock > 0`)
	w.stopping()
	eventuallyRow(t, pool, "and are let go, while the one still runs", `SELECT count(*) = 9 FROM oncemore.message WHERE lock IS NULL`)
	close(g.open)
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.claim`); n != 0 {
		t.Errorf("%d claims are left: nothing else began", n)
	}
}

func TestAQueueThatCannotTellTypesApartGetsBackWhatMayNotRunYet(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mem := blind{memqueue.New()}
	var c crowd
	set := newSet(t,
		jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error {
			c.enter()
			defer c.leave()
			time.Sleep(time.Millisecond)
			return nil
		},
			Policy: jobs.Policy{Limit: jobs.Limit{Running: 1, Rate: 200}}},
		jobs.Job[errand]{Effect: jobs.Once, Do: func(context.Context, errand) error { return nil }})
	for n := 1; n <= 300; n++ {
		enqueue(t, mem, letter{n})
	}
	enqueue(t, mem, errand{"behind them all"})
	w := newWorker(t, pool, set, worker.Config{Queues: map[string]queue.Queue{"": mem}})
	w.SetAwayFor(time.Second)
	runWorker(t, w)
	eventuallyRow(t, pool, "all is done", `SELECT count(*) = 301 FROM oncemore.ledger`)
	if n := c.most.Load(); n != 1 {
		t.Errorf("%d ran at once", n)
	}
}

// blind is a queue that ignores types.
type blind struct{ *memqueue.Queue }

func (b blind) Receive(ctx context.Context, max int, _ []string) ([]queue.Delivery, error) {
	return b.Queue.Receive(ctx, max, nil)
}

// overlap is how many bodies of the table inside ran at once at most. The body of a killed
// worker counts until the worker was declared dead: till then nobody else may know.
const overlap = `
SELECT coalesce(max(n), 0) FROM (
    SELECT sum(e.step) OVER (ORDER BY e.at, e.step) AS n FROM inside i
    CROSS JOIN LATERAL (VALUES (i.began, 1), (least(i.ended, (
        SELECT min(w.dead_at) FROM oncemore.worker w WHERE w.name = i.worker AND w.dead_at > i.began), clock_timestamp()), -1)) e (at, step)
) x`

const inside = `CREATE TABLE inside (entity text, worker text, began timestamptz DEFAULT clock_timestamp(), ended timestamptz)`

// lingering is a body that says when it is inside.
func lingering(pool *pgxpool.Pool, name string, d time.Duration) func(context.Context, letter) error {
	return func(ctx context.Context, l letter) error {
		if _, err := pool.Exec(ctx, `INSERT INTO inside (entity, worker) VALUES ($1, $2)`, l.Entity(), name); err != nil {
			return err
		}
		time.Sleep(d)
		_, err := pool.Exec(context.WithoutCancel(ctx), `UPDATE inside SET ended = clock_timestamp() WHERE entity = $1 AND worker = $2 AND ended IS NULL`, l.Entity(), name)
		return err
	}
}

func TestALimitAcrossTheFleetHoldsWhileWorkersAreKilled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, inside)
	enqueue(t, pgq(pool), letters(1, 150)...)
	dsn := pool.Config().ConnString()
	var fleet []*process
	for range 3 {
		fleet = append(fleet, start(t, "Fleet", dsn))
	}
	for i := range 3 {
		eventuallyRow(t, pool, "work goes on", `SELECT count(*) >= $1 FROM oncemore.ledger`, 20*(i+1))
		fleet[i].kill()
		fleet = append(fleet, start(t, "Fleet", dsn))
	}
	eventuallyRow(t, pool, "all is done", `SELECT count(*) = 150 FROM oncemore.ledger`)
	if n := count(t, pool, overlap); n > fleetRunning || n < fleetRunning-1 {
		t.Errorf("%d bodies ran at once in the fleet, the limit is %d", n, fleetRunning)
	}
	eventuallyRow(t, pool, "permits are given back", `SELECT NOT EXISTS (SELECT FROM oncemore.permit p JOIN oncemore.worker w ON w.id = p.worker WHERE w.dead_at IS NULL)`)
}

const fleetRunning = 4

func TestMessagesDoNotWaitWithAWorkerThatGetsNoPermit(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, inside)
	enqueue(t, pgq(pool), letters(1, 40)...)
	for n := range 4 { // four workers, one permit
		name := fmt.Sprint("worker ", n)
		set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: lingering(pool, name, 5*time.Millisecond),
			Policy: jobs.Policy{FleetLimit: jobs.Limit{Running: 1}}})
		begin(t, pool, set, worker.Config{Name: name})
	}
	eventuallyRow(t, pool, "all is done", `SELECT count(*) = 40 FROM oncemore.ledger`)
	if n := count(t, pool, overlap); n != 1 {
		t.Errorf("%d bodies ran at once, there is one permit", n)
	}
}

func TestARateAcrossTheFleetHoldsForAllWorkersTogether(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, inside)
	for from := 1; from <= 300; from += 10 {
		sendMessages(t, pgq(pool), pack(t, from, from+9))
	}
	for n := range 3 {
		name := fmt.Sprint("worker ", n)
		set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: lingering(pool, name, 0),
			Policy: jobs.Policy{FleetLimit: jobs.Limit{Rate: 100}}})
		begin(t, pool, set, worker.Config{Name: name, Slots: 4})
	}
	eventuallyRow(t, pool, "all is done", `SELECT count(*) = 300 FROM oncemore.ledger`)
	// 44 may begin ahead of the rate: a tenth of a second's worth and one more for each worker
	// and for the turnstile. Without a limit it takes some milliseconds; with one in each
	// worker, and none across them, a third of the time.
	if n := count(t, pool, `SELECT (1000 * extract(epoch FROM max(began) - min(began)))::bigint FROM inside`); n < 2000 {
		t.Errorf("300 took %d ms at a rate of 100, want more than two seconds and a half", n)
	}
}

// Somebody else is deciding who may have the permits: whoever decides next must see what
// was given out.
func TestPermitsAcrossTheFleetAreGivenOutByOneDecisionAtATime(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var worked tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{FleetLimit: jobs.Limit{Running: 1}},
		Do: func(_ context.Context, l letter) error { worked.add(l.Entity()); return nil }})
	config := newWorker(t, pool, set, worker.Config{}) // opens the turnstile
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM oncemore.fleet_limit FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	enqueue(t, pgq(pool), letter{1})
	w := runWorker(t, config)
	eventuallyRow(t, pool, "the worker waits for its turn", `SELECT EXISTS (
SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '/* limit: lock */%')`)
	if n := worked.sum(); n != 0 {
		t.Errorf("%d letters were written without a permit", n)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventuallyRow(t, pool, "it is done", `SELECT count(*) = 1 FROM oncemore.ledger`)
	mustStop(t, w)
}

// A worker was declared dead, and has not noticed yet: for the others its permits are free,
// so that whatever it were given would be given twice.
func TestAWorkerThatWasDeclaredDeadGetsNoPermit(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{FleetLimit: jobs.Limit{Running: 4}},
		Do: func(context.Context, letter) error { return nil }})
	w := newWorker(t, pool, set, worker.Config{}) // opens the turnstile
	mustExec(t, pool, `INSERT INTO oncemore.worker (id, name, expires, dead_at) OVERRIDING SYSTEM VALUE
VALUES (101, 'living', now() + interval '1 hour', NULL), (102, 'declared dead', now(), now())`)
	if n, err := w.Negotiate(t.Context(), "letter", 101, 0, 9); err != nil || n != 4 {
		t.Fatalf("the living worker gets %d permits, %v", n, err)
	}
	if n, err := w.Negotiate(t.Context(), "letter", 102, 0, 9); err == nil || n != 0 {
		t.Errorf("the one that was declared dead gets %d permits, %v", n, err)
	}
	if n := count(t, pool, `SELECT coalesce(sum(bodies), 0) FROM oncemore.permit`); n != 4 {
		t.Errorf("%d permits are given out, there are 4", n)
	}
	if n, err := w.Negotiate(t.Context(), "letter", 101, 4, 9); err != nil || n != 4 {
		t.Errorf("then the living worker has %d permits, %v", n, err)
	}
}

// A worker had all permits when it died. Whoever asks next has them, and nothing is left of it.
func TestThePermitsOfADeadWorkerAreFree(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{FleetLimit: jobs.Limit{Running: 4}},
		Do: func(context.Context, letter) error { return nil }})
	w := newWorker(t, pool, set, worker.Config{}) // opens the turnstile
	mustExec(t, pool, `INSERT INTO oncemore.worker (id, name, expires) OVERRIDING SYSTEM VALUE
VALUES (101, 'about to die', now() + interval '1 hour'), (102, 'living', now() + interval '1 hour')`)
	if n, err := w.Negotiate(t.Context(), "letter", 101, 0, 9); err != nil || n != 4 {
		t.Fatalf("the first worker gets %d permits, %v", n, err)
	}
	if n, err := w.Negotiate(t.Context(), "letter", 102, 0, 9); err != nil || n != 0 {
		t.Errorf("while it lives the other gets %d permits, %v", n, err)
	}
	mustExec(t, pool, `UPDATE oncemore.worker SET dead_at = now() WHERE id = 101`)
	if n, err := w.Negotiate(t.Context(), "letter", 102, 0, 9); err != nil || n != 4 {
		t.Errorf("when it is dead the other gets %d permits, %v", n, err)
	}
	if !ask(t, pool, `SELECT bool_and(worker = 102) FROM oncemore.permit`) {
		t.Error("the dead has permits still")
	}
}

// Two packs have more than a worker ever holds, and begin one in a long while. What has ended of them
// makes no room for itself: it is over, and other types are received.
func TestWhatHasEndedOfAPackThatWaitsForItsRateTakesNoRoom(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var begun, free tally
	const rate = 50
	set := newSet(t,
		jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{Limit: jobs.Limit{Rate: rate}},
			Do: func(_ context.Context, l letter) error { begun.add(l.Entity()); return nil }},
		jobs.Job[errand]{Effect: jobs.Repeatable, Do: func(_ context.Context, e errand) error { free.add(e.What); return nil }})
	w := newWorker(t, pool, set, worker.Config{Slots: 1}) // holds about a hundred
	sendMessages(t, pgq(pool), pack(t, 1, 1000))
	runWorker(t, w)
	eventually(t, "more have ended than a worker holds", func() bool { return begun.sum() > 150 })
	for _, what := range []string{"bread", "milk"} { // for the first a receive may have been waiting since there was room
		enqueue(t, pgq(pool), errand{What: what})
		eventually(t, "the errand is run", func() bool { return free.of(what) == 1 })
	}
	if begun.sum() == 1000 {
		t.Error("the pack was over before the errands")
	}
}
