package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// The windows through which job systems that keep no ledger run work twice, or lose it,
// and the traps that those with idempotency keys fall into: docs/reliability.md lists
// them, with the test that shows what happens here. Those that no other test tells are
// told here.

// throughProxy is a pool to a database of the test's own, and what stands between.
func throughProxy(t *testing.T) (direct, proxied *pgxpool.Pool, proxy *pgproxy.Proxy) {
	t.Helper()
	direct = pgtest.Pool(t)
	proxy, err := pgproxy.Start(direct.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proxy.Close() })
	proxied, err = pgxpool.New(t.Context(), proxy.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxied.Close)
	return direct, proxied, proxy
}

// A completer that keeps completions in memory and gives up after some tries loses them.
// Here an outcome is recorded however long that takes, as long as its worker may act; it
// is never dropped and never acknowledged before.
func TestOutcomesThatCannotBeRecordedAreTriedUntilTheyAre(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	var effects, refused atomic.Int32
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { effects.Add(1); return nil }})
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if b.Has("fact: complete a claim") && refused.Add(1) <= 8 {
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	begin(t, proxied, set, worker.Config{Lease: time.Minute})
	sendMessages(t, pgq(direct), pack(t, 1, 20))
	eventuallyRow(t, direct, "all are done", `SELECT count(*) = 20 FROM oncemore.ledger`)
	eventuallyRow(t, direct, "all is acknowledged", quiet)
	if refused.Load() < 8 {
		t.Errorf("only %d settlements were cut off: nothing was tried", refused.Load())
	}
	if n := effects.Load(); n != 20 {
		t.Errorf("%d effects of 20 letters", n)
	}
}

// A restart of the database is no fault of the work that could not begin meanwhile: here it has one
// attempt, and still has it.
func TestATransactionThatCannotBeginIsNoAttempt(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	var bodies, refused atomic.Int32
	set := newSet(t, jobs.Job[letter]{Policy: jobs.Policy{Attempts: 1, Timeout: 40 * time.Second}, DoTx: func(context.Context, pgx.Tx, letter) error { bodies.Add(1); return nil }})
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if b.Has("begin") && strings.HasSuffix(b.SQL[0], " = 45000") && refused.Add(1) <= 3 {
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	w := begin(t, proxied, set, worker.Config{Lease: time.Minute})
	enqueue(t, pgq(direct), letter{1})
	eventuallyRow(t, direct, "it is done, or has failed", `SELECT EXISTS (SELECT FROM oncemore.ledger) OR EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'failed')`)
	mustStop(t, w)
	if got := standing(t, direct, "1"); got != "done t 1" || bodies.Load() != 1 || refused.Load() < 4 {
		t.Errorf("%q after %d bodies, %d transactions were begun", got, bodies.Load(), refused.Load())
	}
}

// A job that outlives a rescuer's patience runs twice at once. Here a body may take as
// long as its timeout says: its worker renews the lease and extends the message.
func TestABodyThatOutlivesLeaseAndVisibilityRunsOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var bodies atomic.Int32
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(context.Context, letter) error {
		bodies.Add(1)
		time.Sleep(7 * time.Second)
		return nil
	}})
	for range 2 {
		begin(t, pool, set, worker.Config{Lease: 3 * time.Second, Queues: map[string]queue.Queue{"": pgqueue.New(pool, "").WithVisibility(3 * time.Second)}})
	}
	enqueue(t, pgq(pool), letter{1})
	eventuallyRow(t, pool, "it is done", `SELECT count(*) = 1 FROM oncemore.ledger`)
	eventuallyRow(t, pool, "it is acknowledged", quiet)
	if n := bodies.Load(); n != 1 {
		t.Errorf("%d bodies ran, over two leases", n)
	}
}

// Who has a scheduler of his own (cron on three machines, say) makes each tick an entity. Then
// three may send it, and it runs once; and a tick that was missed is made good by the next,
// since it asks for all that is missing. Our schedules have their own stories, of I7.
func TestATickThatSeveralSchedulersSendIsOneAndAMissedOneIsMadeGood(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE due (n int)`)
	var ticks atomic.Int32
	set := newSet(t,
		jobs.Job[errand]{DoTx: func(ctx context.Context, tx pgx.Tx, _ errand) error {
			ticks.Add(1)
			return jobs.Enqueue(ctx, pgq(pool).Tx(tx), mailing{1})
		}},
		jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[letter](`SELECT n::text AS entity, n FROM due`) }},
		jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }})
	begin(t, pool, set, worker.Config{})
	mustExec(t, pool, `INSERT INTO due SELECT generate_series(1, 5)`)
	for range 3 {
		enqueue(t, pgq(pool), errand{"nightly at 2026-01-01T02:00Z"})
	}
	eventuallyRow(t, pool, "the first tick's letters are done", `SELECT count(*) = 5 FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = 'letter'`)
	eventuallyRow(t, pool, "nothing is left to do", quiet)
	if n := ticks.Load(); n != 1 {
		t.Errorf("the tick ran %d times", n)
	}
	mustExec(t, pool, `INSERT INTO due SELECT generate_series(6, 9)`) // the second tick is missed, and the third is not
	enqueue(t, pgq(pool), errand{"nightly at 2026-01-03T02:00Z"})
	eventuallyRow(t, pool, "what was due is done", `SELECT count(*) = 9 FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = 'letter'`)
}

// A completion inside a transaction that succeeds on what is completed already has the effect
// twice. Here two deliveries of one letter meet at its fact: the second waits until the first has
// committed, and is told that it is not its effect to make.
func TestI3InTransactionEffectsHappenOnceWhenTwoDeliveriesMeetAtTheFact(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"DoTx", "DoMany"} {
		t.Run(body, func(t *testing.T) {
			pool := pgtest.Pool(t)
			mustExec(t, pool, `CREATE TABLE effect (n int)`)
			g := newGate()
			effect := func(ctx context.Context, tx pgx.Tx, l letter) error {
				if _, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, l.N); err != nil {
					return err
				}
				return g.pass(ctx, l.Entity())
			}
			j := jobs.Job[letter]{DoTx: effect}
			if body == "DoMany" {
				j = jobs.Job[letter]{DoMany: func(ctx context.Context, tx pgx.Tx, ls []letter) error { return effect(ctx, tx, ls[0]) }}
			}
			w := begin(t, pool, newSet(t, j), worker.Config{Slots: 2})
			enqueue(t, pgq(pool), letter{1})
			within(t, "the first has had its effect", g.entered)
			enqueue(t, pgq(pool), letter{1})
			// It waits for two seconds at most, and the gate opens at once.
			eventuallyRow(t, pool, "the second waits at the fact", `
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INSERT INTO oncemore.ledger%')`)
			close(g.open)
			eventuallyRow(t, pool, "it is done, and no message is left", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
			mustStop(t, w)
			if n := count(t, pool, `SELECT count(*) FROM effect`); n != 1 {
				t.Errorf("%d effects of one letter", n)
			}
		})
	}
}

// A record of completion that expires is permission to run again.
func TestAFactOfTenYearsAgoStillCounts(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var bodies atomic.Int32
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { bodies.Add(1); return nil }})
	begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), letter{1})
	eventuallyRow(t, pool, "it is done", `SELECT count(*) = 1 FROM oncemore.ledger`)
	mustExec(t, pool, `ALTER TABLE oncemore.ledger DISABLE TRIGGER archive_fact; UPDATE oncemore.ledger SET completed_at = now() - interval '10 years'`)
	enqueue(t, pgq(pool), letter{1}, letter{2})
	eventuallyRow(t, pool, "another one is done", `SELECT count(*) = 2 FROM oncemore.ledger`)
	eventuallyRow(t, pool, "both are acknowledged", quiet)
	if n := bodies.Load(); n != 2 {
		t.Errorf("%d bodies of two letters", n)
	}
}

// An acknowledgement before the completion is committed loses the work in a crash between
// the two. On a queue that cannot share the transaction the fact is there first.
func TestTheAcknowledgementComesAfterTheFact(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var early atomic.Int32
	q := &witness{Queue: memqueue.New(), seen: func(ctx context.Context, ds []queue.Delivery) {
		for _, d := range ds {
			for _, it := range d.Items {
				var done bool
				if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE entity = $1)`, it.Entity).Scan(&done); err != nil || !done {
					early.Add(1)
				}
			}
		}
	}}
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }})
	begin(t, pool, set, worker.Config{Queues: map[string]queue.Queue{"": q}})
	for n := 0; n < 200; n += 10 {
		sendMessages(t, q, pack(t, n, n+9))
	}
	eventually(t, "all are acknowledged", func() bool { return q.acked.Load() == 20 })
	if n := early.Load(); n > 0 {
		t.Errorf("%d entities were acknowledged before they were facts", n)
	}
}

// witness looks on when messages are acknowledged.
type witness struct {
	queue.Queue
	seen  func(context.Context, []queue.Delivery)
	acked atomic.Int32
}

func (w *witness) Ack(ctx context.Context, ds ...queue.Delivery) error {
	w.seen(ctx, ds)
	defer w.acked.Add(int32(len(ds)))
	return w.Queue.Ack(ctx, ds...)
}

// A key that nobody gave must not mean that there is none.
func TestWorkWithoutAnIdentityIsRefusedWhereItIsSent(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if err := jobs.Enqueue(t.Context(), pgq(pool), errand{""}); !errors.Is(err, queue.ErrInvalid) {
		t.Errorf("an errand without an entity: %v", err)
	}
}

// A source version that is read after the work hides a change that came during it. Here it
// is read when the work is named: the change comes as a delivery of its own, and is done.
func TestASourceThatChangesDuringTheWorkIsWorkedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var revision atomic.Int64
	revision.Store(1)
	g := newGate()
	var written atomic.Int64
	set := newSet(t, jobs.Job[page]{Effect: jobs.Repeatable, Do: func(ctx context.Context, p page) error {
		read := revision.Load()
		if p.Revision == 1 {
			if err := g.pass(ctx, p.Entity()); err != nil {
				return err
			}
		}
		written.Store(read)
		return nil
	}})
	begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), page{1, 1})
	within(t, "the work on the first revision has read it", g.entered)
	revision.Store(2)
	enqueue(t, pgq(pool), page{1, 2})
	close(g.open)
	eventuallyRow(t, pool, "the second revision is done", `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE source_version = 2)`)
	if n := written.Load(); n != 2 {
		t.Errorf("what is written is of revision %d", n)
	}
}

// A version that is a hash of the program makes everything stale with each deploy.
func TestADeployOfOtherCodeMakesNothingStale(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var bodies tally
	deploy := func(build string) jobs.Definition {
		return jobs.Job[letter]{DoTx: func(_ context.Context, _ pgx.Tx, l letter) error { bodies.add(build); return nil }}
	}
	for n, build := range []string{"monday", "tuesday"} {
		w := begin(t, pool, newSet(t, deploy(build)), worker.Config{})
		for m := range n + 2 {
			enqueue(t, pgq(pool), letter{m})
		}
		eventuallyRow(t, pool, "all are done", `SELECT count(*) = $1 FROM oncemore.ledger`, n+2)
		eventuallyRow(t, pool, "all are acknowledged", quiet)
		mustStop(t, w)
	}
	if got := fmt.Sprint(bodies.of("monday"), bodies.of("tuesday")); got != "2 1" {
		t.Errorf("bodies run by the two builds: %s, want 2 and the new one", got)
	}
	// Both are this program, so whatever could be made of it would be the same for the two.
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE version IS NOT NULL`); n > 0 {
		t.Errorf("%d facts have a version that nobody gave", n)
	}
}

// A dead worker gives back what it never began, in the moment in which another says that
// it is in doubt. The other's word is refused then, and its message is the only carrier.
func TestAMessageWhoseDoubtIsRefusedComesAgain(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }})
	newWorker(t, direct, set, worker.Config{}) // registers the type
	mustExec(t, direct, `INSERT INTO oncemore.worker (name, expires, dead_at, cause) VALUES ('thawing', clock_timestamp(), clock_timestamp(), 'lapsed')`)
	in, err := jobs.NewItem(letter{1})
	if err != nil {
		t.Fatal(err)
	}
	e, _ := set.Lookup("letter")
	decoded, err := e.Decode(in.Entity, in.Args)
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, direct, `
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), w.id, now(), $1, 0, 0, 0, t.id, 1, '1', $2 FROM oncemore.worker w, oncemore.job_type t WHERE t.name = 'letter'`, decoded.Fingerprint, string(in.Args))
	var once atomic.Bool
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if b.Has("claim: keep open") && once.CompareAndSwap(false, true) {
			if _, err := direct.Exec(context.Background(), `UPDATE oncemore.claim SET fence = nextval('oncemore.fence'), owner = NULL, trouble = 'retrying', first_claimed_at = NULL, attempts = 0`); err != nil {
				t.Error(err)
			}
		}
		return pgproxy.Pass
	})
	enqueue(t, pgq(direct), letter{1})
	begin(t, proxied, set, worker.Config{})
	eventuallyRow(t, direct, "it is done, by the message that found it in doubt", `SELECT count(*) = 1 FROM oncemore.ledger`)
	eventuallyRow(t, direct, "it is acknowledged", quiet)
	if !once.Load() {
		t.Error("nobody said that it was in doubt")
	}
}

// Work that is forced, or done once more because it was reported late, may have been named
// when the source was older.
func TestForcedWorkIsOfTheNewestSourceThatTheLedgerKnows(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var written atomic.Int64
	set := newSet(t, jobs.Job[page]{Effect: jobs.Repeatable, Do: func(_ context.Context, p page) error { written.Store(p.Revision); return nil }})
	begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), page{1, 5})
	eventuallyRow(t, pool, "it is done", `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE source_version = 5)`)
	m := together(t, page{1, 3})
	if err := pool.QueryRow(t.Context(), `SELECT nextval('oncemore.epoch')`).Scan(&m.Epoch); err != nil {
		t.Fatal(err)
	}
	sendMessages(t, pgq(pool), m)
	eventuallyRow(t, pool, "it is done again", `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE epoch = $1)`, m.Epoch)
	if n := count(t, pool, `SELECT source_version FROM oncemore.ledger`); n != 5 || written.Load() != 5 {
		t.Errorf("the fact is of source %d and the output of %d, the newest known is 5", n, written.Load())
	}
}
