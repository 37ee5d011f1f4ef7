package worker_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Others have declared the worker dead while it works. It stops what it does, begins a
// new life under a new id, and there is work again.
func TestAWorkerThatIsDeclaredDeadStopsAndBeginsAnew(t *testing.T) {
	for name, class := range map[string]jobs.Effect{"Repeatable": jobs.Repeatable, "Keyed": jobs.Keyed(time.Hour), "Once": jobs.Once} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			g := newGate()
			var runs tally
			causes := make(chan error, 10)
			set := newSet(t, jobs.Job[letter]{Effect: class, Policy: jobs.Policy{Backoff: quickly}, Do: func(ctx context.Context, l letter) error {
				if runs.add(l.Entity()) > 1 {
					return nil
				}
				err := g.pass(ctx, l.Entity())
				causes <- context.Cause(ctx)
				return err
			}})
			enqueue(t, pgq(pool), letter{1}, letter{2})
			w := begin(t, pool, set, worker.Config{Lease: 3 * time.Second, Grace: time.Minute})
			within(t, "one body has begun", g.entered)
			within(t, "the other has begun", g.entered)
			first := count(t, pool, `SELECT id FROM oncemore.worker`)
			mustExec(t, pool, `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'`)
			for range 2 {
				if err := within(t, "a body's context has ended", causes); !errors.Is(err, ledger.ErrLeaseLost) {
					t.Errorf("the cause is %v, want that the lease is lost", err)
				}
			}
			want := "done"
			if class == jobs.Once {
				want = "in_doubt"
			}
			for _, entity := range []string{"1", "2"} {
				eventually(t, "letter "+entity+" is "+want, func() bool { return strings.HasPrefix(standing(t, pool, entity), want) })
			}
			eventuallyRow(t, pool, "no message is left", quiet)
			eventuallyRow(t, pool, "it lives again under another id", `SELECT count(*) = 1 FROM oncemore.worker WHERE id <> $1 AND dead_at IS NULL`, first)
			// It goes on as ever.
			enqueue(t, pgq(pool), letter{3})
			close(g.open)
			eventually(t, "new work is done", func() bool { return standing(t, pool, "3") == "done r 1" })
			mustStop(t, w)
			if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'disputed'`); n != 0 {
				t.Errorf("%d attempts are disputed, and nobody reported success late", n)
			}
		})
	}
}

// The success of a body that was overtaken by another worker is refused, also when the
// first worker does not know yet that it is dead.
func TestI2OneCompletionWhatADeadWorkerReportsAfterATakeoverChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	deaf := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Do: func(_ context.Context, l letter) error {
		return g.pass(context.Background(), l.Entity())
	}})
	prompt := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Do: func(context.Context, letter) error { return nil }})
	enqueue(t, pgq(pool), letter{1})
	// Its lease is so long that it hears of its death late.
	a := begin(t, pool, deaf, worker.Config{Lease: time.Minute})
	within(t, "A's body has begun", g.entered)
	mustExec(t, pool, `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'`)
	// Only B reads this queue, so that it is B who learns of the work.
	other := memqueue.New()
	b := begin(t, pool, prompt, worker.Config{Queues: map[string]queue.Queue{"other": other}})
	enqueue(t, other, letter{1})
	eventually(t, "B has taken it over and completed it", func() bool { return standing(t, pool, "1") == "done r 2" })
	mustStop(t, b)
	facts := `SELECT sum(hashtextextended(l::text, 0)) % 1000000007 FROM oncemore.ledger l`
	before := count(t, pool, facts)
	close(g.open)
	eventuallyRow(t, pool, "A's success is disputed", `SELECT count(*) = 1 FROM oncemore.attempt WHERE outcome = 'disputed'`)
	eventuallyRow(t, pool, "no message is left", quiet)
	if count(t, pool, facts) != before {
		t.Error("the fact has changed")
	}
	mustStop(t, a)
}

// Workers have died over each of ten letters twice. One of them may be the cause, so they
// run one at a time, and none begins before the end of the one before it is recorded: else
// the next death would charge that one once more.
func TestWhatWorkersDiedOverRunsAloneUntilItsEndIsRecorded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Do: func(context.Context, letter) error {
		if n := count(t, pool, `SELECT count(*) FROM oncemore.claim c JOIN oncemore.worker w ON w.id = c.owner WHERE w.dead_at IS NULL`); n != 1 {
			t.Errorf("%d letters are claimed by the living, want the one that is being worked", n)
		}
		return nil
	}})
	newWorker(t, pool, set, worker.Config{}) // registers the job type
	mustExec(t, pool, `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('dead', now(), now()) RETURNING id)
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), 0, 0, 0, 0, t.id, 2, n::text, format('{"n":%s}', n)
FROM dead, oncemore.job_type t, generate_series(1, 10) n WHERE t.name = 'letter'`)
	sendMessages(t, pgq(pool), pack(t, 1, 10))
	w := begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "all are done", `SELECT count(*) = 10 AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.ledger WHERE attempts = 3`)
	mustStop(t, w)
}

// Every connection to the database breaks, twice, in the middle of the work.
func TestI1NoLossWhenAllConnectionsBreak(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE effect (n int, kind text)`)
	const all = 1500
	var bodies tally
	set := newSet(t,
		jobs.Job[letter]{Policy: jobs.Policy{Backoff: quickly, Attempts: 50}, DoTx: func(ctx context.Context, tx pgx.Tx, l letter) error {
			bodies.add("letter")
			_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1, 'tx')`, l.N)
			return err
		}},
		jobs.Job[errand]{Effect: jobs.Keyed(time.Hour), Policy: jobs.Policy{Backoff: quickly, Attempts: 50}, Do: func(context.Context, errand) error {
			bodies.add("errand")
			return nil
		}},
		jobs.Job[mailing]{FanOut: func(mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, $1::int) n`, all)
		}})
	var errands []errand
	for n := range 300 {
		errands = append(errands, errand{fmt.Sprint("e", n)})
	}
	sendMessages(t, pgq(pool), together(t, errands...))
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{Lease: 2 * time.Second})
	// The test asks over a connection of its own, which is spared.
	conn := ownConn(t, pool)
	asks := func(query string, args ...any) (is bool) {
		if err := conn.QueryRow(t.Context(), query, args...).Scan(&is); err != nil {
			t.Fatal(err)
		}
		return is
	}
	for _, share := range []int{all / 4, all / 2} {
		eventually(t, "a part is done", func() bool {
			return asks(`SELECT count(*) >= $1 FROM oncemore.ledger WHERE entity NOT LIKE 'e%'`, share)
		})
		if !asks(`SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`) {
			t.Fatal("nobody was connected")
		}
	}
	eventually(t, "all is done", func() bool {
		return asks(`SELECT count(*) = $1 AND NOT EXISTS (SELECT FROM oncemore.claim) AND NOT EXISTS (SELECT FROM oncemore.message) AND (SELECT bool_and(complete) FROM oncemore.run) FROM oncemore.ledger`, all+300)
	})
	mustStop(t, w)
	if !asks(`SELECT count(*) = $1 AND count(DISTINCT n) = $1 FROM effect`, all) {
		t.Error("effects in the transaction of their facts happened twice, or not at all")
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.worker`); n > 3 {
		t.Errorf("it needed %d lives for two breaks", n)
	}
}

func ownConn(t testing.TB, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestWorkThatIsNotReadyIsLeftToItsSourceOrComesAgain(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]jobs.Source{
		"with a source": jobs.SQL[letter](`SELECT '1' AS entity, 1 AS n`), "without": {},
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			var mu sync.Mutex
			ready, runs := false, 0
			set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Source: source,
				Ready: func(context.Context, letter) (bool, error) { mu.Lock(); defer mu.Unlock(); return ready, nil },
				Do:    func(context.Context, letter) error { mu.Lock(); defer mu.Unlock(); runs++; return nil }})
			enqueue(t, pgq(pool), letter{1})
			w := begin(t, pool, set, worker.Config{})
			if name == "without" {
				eventuallyRow(t, pool, "it is sent on for later", `SELECT EXISTS (SELECT FROM oncemore.message WHERE deferred >= 1 AND lock = 0)`)
			} else {
				eventuallyRow(t, pool, "the message is gone", quiet)
			}
			if n := count(t, pool, `SELECT (SELECT count(*) FROM oncemore.claim) + (SELECT count(*) FROM oncemore.attempt) + (SELECT count(*) FROM oncemore.parked) + (SELECT count(*) FROM oncemore.ledger)`); n != 0 {
				t.Errorf("%d traces of work that was only not ready", n)
			}
			mu.Lock()
			ready = true
			mu.Unlock()
			if name != "without" {
				enqueue(t, pgq(pool), letter{1}) // a later call, by what the source says is missing
			}
			eventually(t, "it is done", func() bool { return standing(t, pool, "1") == "done r 1" })
			eventuallyRow(t, pool, "no message is left", quiet)
			mustStop(t, w)
			if runs != 1 {
				t.Errorf("it ran %d times", runs)
			}
		})
	}
}

// By its source what was forced is done: no later call would find it there.
func TestI1NoLossForcedWorkThatIsNotReadyComesAgainThoughItsSourceHasItAsDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var ready atomic.Bool
	ready.Store(true)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Source: jobs.SQL[letter](`SELECT '1' AS entity, 1 AS n`),
		Ready: func(context.Context, letter) (bool, error) { return ready.Load(), nil },
		Do:    func(context.Context, letter) error { return nil }})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), letter{1})
	eventually(t, "it is done", func() bool { return standing(t, pool, "1") == "done r 1" })
	ready.Store(false)
	forced := together(t, letter{1})
	forced.Epoch = count(t, pool, `SELECT nextval('oncemore.epoch')`)
	sendMessages(t, pgq(pool), forced)
	eventuallyRow(t, pool, "what was forced is sent on for later", `SELECT EXISTS (SELECT FROM oncemore.message WHERE deferred >= 1 AND lock = 0 AND epoch = $1)`, forced.Epoch)
	ready.Store(true)
	eventuallyRow(t, pool, "it is done anew", `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE epoch = $1) AND NOT EXISTS (SELECT FROM oncemore.message)`, forced.Epoch)
	mustStop(t, w)
}

// The first attempt failed, and at its retry it is not ready. Its claim holds it back from
// every plan, so its message must not end there.
func TestI1NoLossARetryThatIsNotReadyComesAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var asked, runs tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Source: jobs.SQL[letter](`SELECT '1' AS entity, 1 AS n`), Policy: jobs.Policy{Backoff: quickly},
		Ready: func(_ context.Context, l letter) (bool, error) { return asked.add(l.Entity()) != 2, nil },
		Do: func(_ context.Context, l letter) error {
			if runs.add(l.Entity()) == 1 {
				return errTrouble
			}
			return nil
		}})
	enqueue(t, pgq(pool), letter{1})
	w := begin(t, pool, set, worker.Config{})
	eventually(t, "it is done", func() bool { return standing(t, pool, "1") == "done r 2" })
	eventuallyRow(t, pool, "no message is left", quiet)
	mustStop(t, w)
}

func TestI1NoLossWhatNeverGetsReadyIsListedInTheEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(time.Hour), Policy: jobs.Policy{Backoff: quickly},
		Ready: func(ctx context.Context, l letter) (bool, error) {
			return l.N == 2 && count(t, pool, `SELECT count(*) FROM oncemore.claim`) == 0, nil
		},
		Do: func(context.Context, letter) error { return jobs.RetryAfter(time.Hour, errTrouble) }})
	first := pack(t, 1, 2)
	w := begin(t, pool, set, worker.Config{})
	sendMessages(t, pgq(pool), first)
	eventually(t, "letter 2 has been tried", func() bool { return standing(t, pool, "2") == "retrying 1" })
	eventuallyRow(t, pool, "both wait", `SELECT count(*) = 2 FROM oncemore.message WHERE lock = 0`)
	// A day later: both have been sent on for later as often as that is done.
	mustExec(t, pool, `UPDATE oncemore.claim SET not_before = now()`)
	mustExec(t, pool, `DELETE FROM oncemore.message`)
	first.Deferred = 30
	sendMessages(t, pgq(pool), first)
	eventually(t, "letter 2, which was begun, is listed as failed", func() bool { return standing(t, pool, "2") == "failed 1" })
	eventuallyRow(t, pool, "letter 1 is parked", `SELECT EXISTS (SELECT FROM oncemore.parked WHERE reason = 'not_ready' AND entity = '1') AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, w)
}

func TestARaisedVersionHasRepeatableWorkDoneAgainUnderAHigherEpoch(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var keys tally
	version := func(v int) *jobs.Set {
		return newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Policy: jobs.Policy{Version: v}, Do: func(ctx context.Context, _ letter) error {
			keys.add(jobs.Current(ctx).EffectKey())
			return nil
		}})
	}
	awaitDone(t, pool, version(1), worker.Config{}, 1, letter{1})
	awaitDone(t, pool, version(1), worker.Config{}, 1, letter{1})
	if keys.sum() != 1 {
		t.Errorf("worked %d times under the same version", keys.sum())
	}
	awaitDone(t, pool, version(2), worker.Config{}, 1, letter{1}, letter{1})
	if keys.sum() != 2 || len(keys.n) != 2 {
		t.Errorf("%d runs with %d keys, want two with a key each", keys.sum(), len(keys.n))
	}
	if !ask(t, pool, `SELECT l.version = 2 AND h.version = 1 AND coalesce(h.epoch, 0) = 0 AND l.epoch > 0 FROM oncemore.ledger l, oncemore.ledger_history h`) {
		t.Error("the fact of version 2 did not replace, under a higher epoch, that of version 1")
	}
	// A process of the old version, still there during a deployment, leaves it alone.
	awaitDone(t, pool, version(1), worker.Config{}, 1, letter{1})
	if keys.sum() != 2 {
		t.Error("the old version worked it again")
	}
}

func TestANewerSourceIsWorkedAgainAndAnOlderOneSkipped(t *testing.T) {
	t.Parallel()
	for name, class := range map[string]jobs.Effect{"Repeatable": jobs.Repeatable, "Once": jobs.Once} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			var runs tally
			set := newSet(t, jobs.Job[page]{Effect: class, Do: func(_ context.Context, p page) error { runs.add(fmt.Sprint(p.Revision)); return nil }})
			for _, revision := range []int64{5, 5, 4, 6, 5, 6} {
				awaitDone(t, pool, set, worker.Config{}, 1, page{1, revision})
			}
			if fmt.Sprint(runs.n) != "map[5:1 6:1]" {
				t.Errorf("runs by revision: %v, want 5 and 6 once each", runs.n)
			}
			if n := count(t, pool, `SELECT source_version FROM oncemore.ledger`); n != 6 {
				t.Errorf("the fact is of revision %d", n)
			}
			if n := count(t, pool, `SELECT source_version FROM oncemore.ledger_history`); n != 5 {
				t.Errorf("the archived fact is of revision %d", n)
			}
		})
	}
}

// Revision 5 is being worked when 6 is asked for, and the other way round. Whatever comes
// of it, the last that is written is of 6.
func TestOfTwoRevisionsAtOnceTheNewerIsWrittenLast(t *testing.T) {
	bodies := func(do func(context.Context, page) error) map[string]jobs.Job[page] {
		return map[string]jobs.Job[page]{
			"Repeatable": {Effect: jobs.Repeatable, Do: do},
			"Keyed":      {Effect: jobs.Keyed(time.Hour), Do: do},
			"DoTx":       {DoTx: func(ctx context.Context, _ pgx.Tx, p page) error { return do(ctx, p) }},
		}
	}
	for name := range bodies(nil) {
		for _, first := range []int64{5, 6} {
			t.Run(fmt.Sprintf("%s, %d first", name, first), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				g := newGate()
				var mu sync.Mutex
				var written []int64
				j := bodies(func(ctx context.Context, p page) error {
					if p.Revision == first {
						if err := g.pass(ctx, p.Entity()); err != nil {
							return err
						}
					}
					mu.Lock()
					defer mu.Unlock()
					written = append(written, p.Revision)
					return nil
				})[name]
				j.Timeout = 20 * time.Second
				set := newSet(t, j)
				second := 11 - first
				enqueue(t, pgq(pool), page{1, first})
				w := begin(t, pool, set, worker.Config{})
				within(t, "the first is being worked", g.entered)
				enqueue(t, pgqueue.New(pool, ""), page{1, second})
				// The second is done beside it, or waits for it.
				eventually(t, "the second has been seen", func() bool {
					mu.Lock()
					defer mu.Unlock()
					return len(written) > 0 || ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.message WHERE deferred > 0) OR count(*) < 2 FROM oncemore.message`)
				})
				close(g.open)
				eventuallyRow(t, pool, "all ends", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
				mustStop(t, w)
				if n := count(t, pool, `SELECT source_version FROM oncemore.ledger`); n != 6 {
					t.Errorf("the fact is of revision %d, want 6", n)
				}
				if written[len(written)-1] != 6 {
					t.Errorf("written: %v; the last should be of the newest", written)
				}
			})
		}
	}
}
