package worker_test

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// The answer to a claim is lost: the claim stands in the table under the living worker's
// id, and nobody in its process has it. Nobody else may take it while that worker lives, so
// the worker itself must find it when the message comes again.
func TestI1AClaimWhoseAnswerWasLostIsTakenUpByItsOwnWorker(t *testing.T) {
	pool := pgtest.Pool(t)
	var done tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }})
	sent := false
	run(t, pool, set, crashConfig(pool), func() bool {
		if !sent {
			if count(t, pool, `SELECT count(*) FROM oncemore.worker`) == 0 {
				return false
			}
			orphan(t, pool, 7)
			if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), letter{7}, letter{7}); err != nil {
				t.Fatal(err)
			}
			sent = true
		}
		return count(t, pool, `SELECT count(*) FROM oncemore.ledger`) == 1 && count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0
	})
	if done.n["7"] != 1 {
		t.Errorf("the letter was worked %d times, want once", done.n["7"])
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.claim`); n != 0 {
		t.Errorf("%d claims are left", n)
	}
}

// orphan makes a claim of letter n as one whose answer was lost: held by the living worker,
// and nobody in its process has it.
func orphan(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, owner, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), w.id, now(), 0, 0, 0, 0, t.id, 1, $1::text, format('{"n":%s}', $1) FROM oncemore.worker w, oncemore.job_type t WHERE t.name = 'letter'`, strconv.Itoa(n))
}

// Its message may come to other workers again and again, who put it off longer each time,
// because its owner lives.
func TestI1AClaimWhoseAnswerWasLostIsGivenBackThoughItsMessageComesToOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	working, rest := make(chan bool), make(chan bool)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error {
		working <- true
		<-rest
		return nil
	}})
	begin(t, pool, set, worker.Config{Recheck: 10 * time.Millisecond})
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), letter{1}); err != nil {
		t.Fatal(err)
	}
	<-working // it holds a claim that is somebody's
	orphan(t, pool, 7)
	const returned = `SELECT count(*) FROM oncemore.claim WHERE entity = '7' AND owner IS NULL AND trouble = 'retrying' AND attempts = 0 AND first_claimed_at IS NULL`
	eventually(t, "it is given back, as if it had not been", func() bool { return count(t, pool, returned) == 1 })
	if n := count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE entity = '1' AND owner IS NOT NULL`); n != 1 {
		t.Error("the claim of what is being worked was given back as well")
	}
	close(rest)
	eventually(t, "the other is done", func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE entity = '1'`) == 1 })
	if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt`); n != 1 {
		t.Errorf("%d entries among the attempts, want that of what was given back", n)
	}
}

// The end of an attempt could not be recorded before the lease was lost. Its claim stands in the
// table under our id, and nobody works on it any more, as with an orphan; but it was begun. A
// duplicate that is just looking at it must not give it back as if it had not been.
func TestI4NoBlindRepeatWhatWasBegunAndCouldNotBeRecordedIsNoOrphan(t *testing.T) {
	t.Parallel()
	direct, proxied, proxy := throughProxy(t)
	g := newGate()
	var runs tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error {
		runs.add(l.Entity())
		return g.pass(context.WithoutCancel(ctx), l.Entity())
	}})
	unrecorded := newWatch("outcomes not recorded")
	w := begin(t, proxied, set, worker.Config{Lease: 6 * time.Second, Log: slog.New(slog.NewTextHandler(unrecorded, nil))})
	enqueue(t, pgq(direct), letter{1})
	within(t, "it is being worked", g.entered)

	looking, goOn := make(chan struct{}), make(chan struct{})
	var cut atomic.Bool
	var one sync.Once
	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
		look := func(sql string) bool { return strings.Contains(sql, "SELECT l.* FROM oncemore.ledger l") }
		switch {
		case !b.Writes && slices.ContainsFunc(b.SQL, look):
			one.Do(func() {
				close(looking)
				select {
				case <-goOn:
				case <-t.Context().Done():
				}
			})
		case cut.Load() && b.Writes:
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	enqueue(t, pgq(direct), letter{1})
	within(t, "its duplicate is being looked at", looking)
	cut.Store(true)
	close(g.open)
	within(t, "what came of it could not be recorded", unrecorded.seen)
	cut.Store(false)
	close(goOn)
	eventually(t, "it is in doubt", func() bool { return standing(t, direct, "1") == "in_doubt 1" })
	mustStop(t, w)
	if n := runs.of("1"); n != 1 {
		t.Errorf("it was worked %d times", n)
	}
}

// A watch waits for a text in a log.
type watch struct {
	text string
	seen chan struct{}
	once sync.Once
}

func newWatch(text string) *watch { return &watch{text: text, seen: make(chan struct{})} }

func (w *watch) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.text)) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}
