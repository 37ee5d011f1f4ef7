package worker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A forced message meets a claim of an earlier epoch, and the worker ends that claim without
// a new one of its own: it gives it up, or finds it in doubt. The claim stands for less than
// the message wants, so the message goes on, and is worked when its time has come.
func TestI1NoLossForcedWorkOutlivesTheClaimOfAnEarlierEpochThatItMeets(t *testing.T) {
	t.Parallel()
	cannotTell := func(context.Context, letter) (bool, error) { return false, errTrouble }
	for name, c := range map[string]struct {
		job  jobs.Job[letter]
		dead int    // attempts that a worker died over
		ends string // where the claim ends first
	}{
		"given up: its workers died":         {jobs.Job[letter]{Effect: jobs.Repeatable}, 3, "failed"},
		"given up: it cannot be checked":     {jobs.Job[letter]{Effect: jobs.Repeatable, Done: cannotTell}, 2, "failed"},
		"in doubt":                           {jobs.Job[letter]{Effect: jobs.Once}, 1, "in_doubt"},
		"in doubt, and it cannot be checked": {jobs.Job[letter]{Effect: jobs.Verifiable(0), Done: cannotTell}, 1, "in_doubt"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			c.job.Do = func(context.Context, letter) error { return nil }
			c.job.Policy = jobs.Policy{Attempts: 3, Backoff: quickly}
			w := newWorker(t, pool, newSet(t, c.job), worker.Config{}) // registers the job type
			mustExec(t, pool, `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('dead', now(), now()) RETURNING id)
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), 0, 0, 0, 0, t.id, $1, '1', '{"n":1}' FROM dead, oncemore.job_type t WHERE t.name = 'letter'`, c.dead)
			m := together(t, letter{1})
			m.Epoch = count(t, pool, `SELECT nextval('oncemore.epoch')`)
			sendMessages(t, pgq(pool), m)
			r := runWorker(t, w)
			eventuallyRow(t, pool, "the claim has ended", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = $1) OR EXISTS (SELECT FROM oncemore.ledger WHERE epoch = $2)`, c.ends, m.Epoch)
			mustStop(t, r)
			if n := count(t, pool, `SELECT (SELECT count(*) FROM oncemore.message WHERE epoch = $1) + (SELECT count(*) FROM oncemore.ledger WHERE epoch = $1)`, m.Epoch); n != 1 {
				t.Errorf("%d messages and facts are of what was forced, want one", n)
			}
		})
	}
}

// A forced attempt failed, and its retry is carried by the message that had taken the claim
// over: one that was not forced. The app records the work meanwhile, as it was wanted at
// first. That satisfies the message, and not what was forced.
func TestForcedWorkIsDoneThoughTheMessageThatCarriesItIsSatisfiedByLess(t *testing.T) {
	t.Parallel()
	for name, owner := range map[string]string{"it waits for its retry": "NULL", "its worker died": "dead.id"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var runs tally
			set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(_ context.Context, l letter) error { runs.add(l.Entity()); return nil }})
			w := newWorker(t, pool, set, worker.Config{}) // registers the job type
			epoch := count(t, pool, `SELECT nextval('oncemore.epoch')`)
			mustExec(t, pool, `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('dead', now(), now()) RETURNING id)
INSERT INTO oncemore.claim (fence, owner, trouble, not_before, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), `+owner+`, CASE WHEN `+owner+` IS NULL THEN 'retrying' END, now() + interval '2 seconds', 0, $1, 0, 0, t.id, 2, '1', '{"n":1}'
FROM dead, oncemore.job_type t WHERE t.name = 'letter'`, epoch)
			mustExec(t, pool, `INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence) SELECT id, '1', 0, 1, 'a' FROM oncemore.job_type WHERE name = 'letter'`)
			enqueue(t, pgq(pool), letter{1}, letter{1})
			r := runWorker(t, w)
			eventuallyRow(t, pool, "what was forced is done, and nothing is left", `
SELECT EXISTS (SELECT FROM oncemore.ledger WHERE epoch = $1) AND NOT EXISTS (SELECT FROM oncemore.claim) AND NOT EXISTS (SELECT FROM oncemore.message)`, epoch)
			mustStop(t, r)
			if n := runs.of("1"); n != 1 {
				t.Errorf("its body ran %d times", n)
			}
		})
	}
}

// The done-check finds done what is wanted anew: of a newer source, or forced. That is
// recorded as what was wanted; else the message would come again for ever.
func TestWhatIsFoundDoneIsRecordedUnderTheEpochThatWasAskedFor(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, wanted page
		forced         bool
	}{
		"a newer source":                    {before: page{1, 5}, wanted: page{1, 9}},
		"forced":                            {before: page{1, 5}, wanted: page{1, 5}, forced: true},
		"forced, and nothing was done here": {wanted: page{1, 5}, forced: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			set := newSet(t, jobs.Job[page]{Effect: jobs.Verifiable(time.Minute),
				Do:   func(context.Context, page) error { t.Error("it is done, and was done again"); return nil },
				Done: func(context.Context, page) (bool, error) { return true, nil }})
			w := begin(t, pool, set, worker.Config{})
			if c.before != (page{}) {
				enqueue(t, pgq(pool), c.before)
				eventuallyRow(t, pool, "the first is recorded", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
			}
			m := together(t, c.wanted)
			if c.forced {
				m.Epoch = count(t, pool, `SELECT nextval('oncemore.epoch')`)
			}
			sendMessages(t, pgq(pool), m)
			eventuallyRow(t, pool, "what is wanted is recorded", `
SELECT EXISTS (SELECT FROM oncemore.ledger WHERE source_version = $1 AND coalesce(epoch, 0) >= $2 AND evidence = 'c')
   AND NOT EXISTS (SELECT FROM oncemore.message) AND NOT EXISTS (SELECT FROM oncemore.claim)`, c.wanted.Revision, m.Epoch)
			mustStop(t, w)
		})
	}
}

// A retry is looked at while the provider still knows the key, and then waits for a slot
// until it does not.
func TestI4NoBlindRepeatAKeyThatIsForgottenWhileItsWorkWaitsForASlotIsNotTrusted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	var runs tally
	const horizon, timeout = 25 * time.Second, 20 * time.Second
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(horizon), Policy: jobs.Policy{Timeout: timeout}, Do: func(ctx context.Context, l letter) error {
		runs.add(l.Entity())
		return g.pass(ctx, l.Entity())
	}})
	w := newWorker(t, pool, set, worker.Config{Slots: 1})
	enqueue(t, pgq(pool), letter{1})
	r := runWorker(t, w)
	within(t, "the only slot is taken", g.entered)
	callInterrupted(t, pool)
	eventuallyRow(t, pool, "it waits for a slot", `SELECT EXISTS (SELECT FROM oncemore.message WHERE lock > 0 AND entities = '{2}')`)
	eventuallyRow(t, pool, "an attempt that begins now would end past the horizon",
		`SELECT clock_timestamp() > first_claimed_at + $1::interval FROM oncemore.claim WHERE entity = '2'`, horizon-timeout+time.Second) // and it is a second since it was looked at
	close(g.open)
	eventuallyRow(t, pool, "both have ended", `SELECT NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, r)
	if got := standing(t, pool, "2"); got != "in_doubt 1" || runs.of("2") != 0 {
		t.Errorf("%q after %d runs, want it in doubt after none", got, runs.of("2"))
	}
}

// callInterrupted calls letter 2, of which an attempt was made just now, and nobody knows how it ended.
func callInterrupted(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, first_claimed_at, trouble, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), clock_timestamp(), 'retrying', 0, 0, 0, 0, t.id, 1, '2', '{"n":2}' FROM oncemore.job_type t WHERE t.name = 'letter'`)
	enqueue(t, pgq(pool), letter{2})
}

// As above, but what takes the time is the ready-check of the retry itself.
func TestI4NoBlindRepeatAKeyThatIsForgottenDuringTheReadyCheckIsNotTrusted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	var runs tally
	const horizon, timeout = 28 * time.Second, 20 * time.Second
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Keyed(horizon), Policy: jobs.Policy{Timeout: timeout},
		Ready: func(ctx context.Context, l letter) (bool, error) { return true, g.pass(ctx, l.Entity()) },
		Do:    func(_ context.Context, l letter) error { runs.add(l.Entity()); return nil }})
	w := newWorker(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), letter{1})
	r := runWorker(t, w)
	within(t, "the type is known", g.entered)
	callInterrupted(t, pool)
	within(t, "the retry is asked whether it is ready", g.entered)
	eventuallyRow(t, pool, "an attempt that begins now would end past the horizon",
		`SELECT clock_timestamp() > first_claimed_at + $1::interval FROM oncemore.claim WHERE entity = '2'`, horizon-timeout)
	close(g.open)
	eventuallyRow(t, pool, "both have ended", `SELECT NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, r)
	if got := standing(t, pool, "2"); got != "in_doubt 1" || runs.of("2") != 0 {
		t.Errorf("%q after %d runs, want it in doubt after none", got, runs.of("2"))
	}
	if runs.of("1") != 1 {
		t.Errorf("the first attempt of the other ran %d times", runs.of("1"))
	}
}

// Work is looked at and waits for a slot. Meanwhile another attempt, of a newer source, took its
// claim over, and it is not known what came of that. The key is that attempt's now, and what is
// done under it is what that attempt was to do.
func TestI4NoBlindRepeatWhatWaitedForASlotIsDoneOfTheNewestSourceThatWasTried(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	var sent tally
	set := newSet(t, jobs.Job[page]{Effect: jobs.Keyed(time.Hour), Do: func(ctx context.Context, p page) error {
		sent.add(fmt.Sprint(p.Entity(), " of ", p.Revision))
		return g.pass(ctx, p.Entity())
	}})
	eyes := &looks{of: "2", seen: make(chan time.Time, 100)}
	cfg := pool.Config()
	cfg.ConnConfig.Tracer = eyes
	seeing, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(seeing.Close)
	w := newWorker(t, seeing, set, worker.Config{Slots: 1})
	enqueue(t, pgq(pool), page{1, 1})
	r := runWorker(t, w)
	within(t, "the only slot is taken", g.entered)
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, first_claimed_at, trouble, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), clock_timestamp(), 'retrying', 0, 0, 5, 0, t.id, 1, '2', '{"id":2,"source_version":5}' FROM oncemore.job_type t WHERE t.name = 'page'`)
	enqueue(t, pgq(pool), page{2, 5})
	at := within(t, "it was looked at, and waits for the slot", eyes.seen)
	epoch := count(t, pool, `SELECT nextval('oncemore.epoch')`)
	mustExec(t, pool, `UPDATE oncemore.claim SET fence = nextval('oncemore.fence'), epoch = $1, source_version = 9, args = '{"id":2,"source_version":9}' WHERE entity = '2'`, epoch)
	eventually(t, "that is more than a second ago, so it is looked at again", func() bool { return time.Since(at) > 1100*time.Millisecond })
	close(g.open)
	eventually(t, "it is done", func() bool {
		return sent.of("2 of 5") > 0 || ask(t, pool, `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE entity = '2' AND epoch = $1 AND source_version = 9)`, epoch)
	})
	mustStop(t, r)
	if sent.of("2 of 5") != 0 || sent.of("2 of 9") != 1 {
		t.Errorf("of source 5 it was sent %d times, of source 9 %d times", sent.of("2 of 5"), sent.of("2 of 9"))
	}
}

// looks tells when a claim of one entity was read, for the connections whose tracer it is.
type looks struct {
	of   string
	seen chan time.Time
}

func (l *looks) TraceBatchQuery(_ context.Context, _ *pgx.Conn, q pgx.TraceBatchQueryData) {
	for _, arg := range q.Args {
		if es, is := arg.([]string); is && slices.Contains(es, l.of) && strings.Contains(q.SQL, "oncemore.claim c") && !pgproxy.Writes(q.SQL) {
			l.seen <- time.Now()
		}
	}
}

func (*looks) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}
func (*looks) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
func (*looks) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (*looks) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A forced attempt is carried by a message that asks for less. The app records the work as it
// was wanted at first, and then the transaction of what was forced is not committed. What the
// app has recorded says nothing of that transaction.
func TestALostCommitOfForcedWorkIsNotMistakenForAFactOfLess(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	set := newSet(t, jobs.Job[letter]{Policy: jobs.Policy{Backoff: quickly}, DoTx: func(context.Context, pgx.Tx, letter) error { return nil }})
	w := newWorker(t, proxied, set, worker.Config{}) // registers the job type
	epoch := count(t, direct, `SELECT nextval('oncemore.epoch')`)
	mustExec(t, direct, `
INSERT INTO oncemore.claim (fence, trouble, not_before, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), 'retrying', now(), 0, $1, 0, 0, t.id, 2, '1', '{"n":1}' FROM oncemore.job_type t WHERE t.name = 'letter'`, epoch)
	var recorded, lost atomic.Bool
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		const hold = "fact: complete a claim"
		switch {
		case b.Has(hold) && recorded.CompareAndSwap(false, true):
			if _, err := direct.Exec(context.Background(), `INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence) SELECT id, '1', 0, 1, 'a' FROM oncemore.job_type WHERE name = 'letter'`); err != nil {
				t.Error(err)
			}
		case b.Has("commit") && slices.Contains(b.Tx, hold) && lost.CompareAndSwap(false, true):
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	enqueue(t, pgq(direct), letter{1})
	r := runWorker(t, w)
	eventuallyRow(t, direct, "what was forced is done, and nothing is left", `
SELECT EXISTS (SELECT FROM oncemore.ledger WHERE epoch = $1) AND NOT EXISTS (SELECT FROM oncemore.claim) AND NOT EXISTS (SELECT FROM oncemore.message)`, epoch)
	mustStop(t, r)
	if !lost.Load() {
		t.Error("no commit was lost")
	}
}
