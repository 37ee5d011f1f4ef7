package worker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A worker has died over a page of class Once. The first who learns of it is a delivery
// that wants more than the dead one did: it says that the page is in doubt, and waits, for
// the answer to the doubt is no answer to what it wants.
func TestI1NoLossOfForcedOrNewerWorkThatMeetsADoubtFirst(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct{ epoch, revision int64 }{"a forced epoch": {1000, 5}, "a newer source": {0, 6}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var worked tally
			set := newSet(t, jobs.Job[page]{Effect: jobs.Once, Do: func(_ context.Context, p page) error { worked.add(fmt.Sprint(p.Revision)); return nil }})
			newWorker(t, pool, set, worker.Config{}) // registers the job type
			mustExec(t, pool, `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('dead', now(), now()) RETURNING id)
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), 0, 0, 5, 0, t.id, 1, '1', '{"id":1,"source_version":5}'
FROM dead, oncemore.job_type t WHERE t.name = 'page'`)
			m := together(t, page{1, want.revision})
			m.Epoch = want.epoch
			sendMessages(t, pgq(pool), m)
			w := begin(t, pool, set, worker.Config{})
			eventually(t, "it is in doubt", func() bool { return standing(t, pool, "1") == "in_doubt 1" })
			if worked.sum() != 0 {
				t.Fatal("it was worked although the first attempt may have had its effect")
			}
			operatorSaysDone(t, pool, "page", "1")
			eventuallyRow(t, pool, "what was asked for is done, and no message is left", `
SELECT EXISTS (SELECT FROM oncemore.ledger WHERE coalesce(epoch, 0) >= $1 AND source_version = $2) AND NOT EXISTS (SELECT FROM oncemore.message)`, want.epoch, want.revision)
			mustStop(t, w)
			if worked.sum() != 1 {
				t.Errorf("it was worked %d times after the doubt, want once", worked.sum())
			}
		})
	}
}

// The done-check of forced work cannot tell whether the attempt before it had its effect.
func TestI1NoLossOfForcedWorkWhoseDoneCheckCannotTell(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var blind atomic.Bool
	blind.Store(true)
	var worked tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Verifiable(time.Millisecond),
		Done: func(ctx context.Context, _ letter) (bool, error) {
			if blind.Load() {
				return false, errors.New("the provider is away")
			}
			return jobs.Current(ctx).Epoch == 0, nil // the first letter has arrived
		},
		Do: func(ctx context.Context, _ letter) error { worked.add(fmt.Sprint(jobs.Current(ctx).Epoch)); return nil }})
	newWorker(t, pool, set, worker.Config{}) // registers the job type
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, trouble, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), 'retrying', now(), 0, 0, 0, 0, t.id, 1, '1', '{"n":1}' FROM oncemore.job_type t WHERE t.name = 'letter'`)
	m := pack(t, 1, 1)
	m.Epoch = 1000
	sendMessages(t, pgq(pool), m)
	w := begin(t, pool, set, worker.Config{Recheck: 50 * time.Millisecond})
	eventually(t, "it is in doubt", func() bool { return standing(t, pool, "1") == "in_doubt 1" })
	blind.Store(false)
	eventuallyRow(t, pool, "what was asked for is done, and no message is left",
		`SELECT EXISTS (SELECT FROM oncemore.ledger WHERE epoch = 1000) AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, w)
	if got := fmt.Sprint(worked.n); got != "map[1000:1]" {
		t.Errorf("worked: %s, want epoch 1000 once", got)
	}
}

// A has lost its lease, and reports late, but not too late, that it never began. Meanwhile
// B has the message, sees a claim with a dead owner, and is about to say that the letter is
// in doubt: it is outrun, and the message that it holds is the only one there is.
func TestI1NoLossADoubtThatIsOutrunEndsNoMessage(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	var worked tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error { worked.add(l.Entity()); return nil }})
	newWorker(t, direct, set, worker.Config{}) // registers the job type
	mustExec(t, direct, `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('A', now(), now()) RETURNING id)
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), 0, 0, 0, 0, t.id, 2, '1', '{"n":1}' FROM dead, oncemore.job_type t WHERE t.name = 'letter'`)
	reached, goOn := make(chan struct{}), make(chan struct{})
	var one sync.Once
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if b.Has("claim: keep open") {
			one.Do(func() { close(reached); <-goOn })
		}
		return pgproxy.Pass
	})
	sendMessages(t, pgq(direct), pack(t, 1, 1))
	w := begin(t, proxied, set, worker.Config{})
	within(t, "B says that it is in doubt", reached)
	mustExec(t, direct, `UPDATE oncemore.claim SET fence = nextval('oncemore.fence'), owner = NULL, trouble = 'retrying', attempts = 1, first_claimed_at = NULL`)
	close(goOn)
	eventually(t, "it is done", func() bool { return standing(t, direct, "1") == "done r 2" })
	eventuallyRow(t, direct, "no message is left", quiet)
	mustStop(t, w)
	if worked.sum() != 1 {
		t.Errorf("it was worked %d times", worked.sum())
	}
}

// The done-check that is asked again about a doubt ends its goroutine, as t.Fatal does. That is no
// answer, as an error is none; and whoever asks goes on to ask, and to look after everything else.
func TestADoneCheckThatEndsItsGoroutineIsAskedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var asked tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Verifiable(time.Millisecond),
		Done: func(_ context.Context, l letter) (bool, error) {
			if asked.add(l.Entity()) == 1 {
				runtime.Goexit()
			}
			return true, nil
		},
		Do: func(context.Context, letter) error { return nil }})
	newWorker(t, pool, set, worker.Config{}) // registers the job type
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, trouble, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), 'in_doubt', now(), 0, 0, 0, 0, t.id, 1, '1', '{"n":1}' FROM oncemore.job_type t WHERE t.name = 'letter'`)
	w := begin(t, pool, set, worker.Config{Recheck: 10 * time.Millisecond})
	eventually(t, "the doubt is over", func() bool { return standing(t, pool, "1") == "done c 1" })
	orphan(t, pool, 7)
	eventuallyRow(t, pool, "what nobody has in hand is given back", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE entity = '7' AND owner IS NULL)`)
	mustStop(t, w)
}

// Of what may happen once a done-check can say that it did. That it did not see it is no proof, since
// nobody has said how long it may take to be seen: so it ends no doubt, and begins nothing.
func TestADoneCheckEndsADoubtOfOnceOnlyBySayingThatItHappened(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var asked, worked tally
	var seen atomic.Bool
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once,
		Done: func(_ context.Context, l letter) (bool, error) { asked.add(l.Entity()); return seen.Load(), nil },
		Do:   func(_ context.Context, l letter) error { worked.add(l.Entity()); return errTrouble }})
	w := begin(t, pool, set, worker.Config{Recheck: 10 * time.Millisecond})
	enqueue(t, pgq(pool), letter{1})
	eventually(t, "it was asked about again, and again", func() bool { return asked.sum() > 3 })
	if got := standing(t, pool, "1"); got != "in_doubt 1" || worked.sum() != 1 {
		t.Errorf("%s, worked %d times", got, worked.sum())
	}
	seen.Store(true)
	eventually(t, "the doubt is over", func() bool { return standing(t, pool, "1") == "done c 1" })
	mustStop(t, w)
}

// The done-check that is asked again about a doubt waits for a provider that never answers, without
// looking at its context. Whoever asks looks after everything else as before, asks no second one of
// the type meanwhile, and the worker stops.
func TestADoneCheckThatNeverEndsIsLeftBehindWhenItIsAskedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	t.Cleanup(func() { close(g.open) })
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Verifiable(time.Millisecond), Policy: jobs.Policy{Timeout: 50 * time.Millisecond},
		Done: func(_ context.Context, l letter) (bool, error) { return true, g.pass(context.Background(), l.Entity()) },
		Do:   func(context.Context, letter) error { return nil }})
	newWorker(t, pool, set, worker.Config{}) // registers the job type
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, trouble, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), 'in_doubt', now(), 0, 0, 0, 0, t.id, 1, n::text, format('{"n":%s}', n) FROM oncemore.job_type t, generate_series(1, 2) n WHERE t.name = 'letter'`)
	w := beginImpatient(t, pool, set, worker.Config{Recheck: 10 * time.Millisecond})
	within(t, "it is asked", g.entered)
	orphan(t, pool, 7)
	eventuallyRow(t, pool, "what nobody has in hand is given back", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE entity = '7' AND owner IS NULL)`)
	mustStop(t, w)
	if n := len(g.entered); n != 0 {
		t.Errorf("%d more checks were begun beside the one that does not end", n)
	}
}
