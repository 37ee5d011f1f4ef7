package worker_test

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// An outage outlasts all attempts. Whoever then calls a fan-out again asks for what is not
// done, failed or not; and for nothing that the call does not name.
func TestCallingAgainAfterAnOutageTriesWhatHadFailed(t *testing.T) {
	sources := map[string]func(m mailing) jobs.Source{
		"SQL": func(m mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series($1 * 100 + 10, $1 * 100 + 29) n`, m.ID)
		},
		"Go": func(m mailing) jobs.Source {
			return jobs.Seq(func(_ context.Context, after string) iter.Seq2[letter, error] {
				return func(yield func(letter, error) bool) {
					for n := m.ID*100 + 10; n < m.ID*100+30; n++ {
						if l := (letter{n}); l.Entity() > after && !yield(l, nil) {
							return
						}
					}
				}
			})
		},
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var outage atomic.Bool
			outage.Store(true)
			set := newSet(t, jobs.Job[mailing]{FanOut: source},
				jobs.Job[letter]{Effect: jobs.Once, Policy: jobs.Policy{Attempts: 2, Backoff: quickly}, Do: func(_ context.Context, l letter) error {
					if outage.Load() && l.N%2 == 0 {
						return jobs.NotApplied(errors.New("the mail server is away"))
					}
					return nil
				}})
			failed := func() int64 { return count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE trouble = 'failed'`) }
			call := func(until func() bool, ms ...mailing) {
				t.Helper()
				if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), ms...); err != nil {
					t.Fatal(err)
				}
				run(t, pool, set, worker.Config{}, func() bool { return until() && count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0 })
			}
			call(func() bool { return failed() == 20 }, mailing{1}, mailing{2})
			if n := count(t, pool, `SELECT count(*) FROM oncemore.run WHERE ended_at IS NOT NULL AND NOT complete AND failed = 10`); n != 2 {
				t.Errorf("%d runs have ended with 10 failed, want 2", n)
			}
			outage.Store(false)
			call(func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.run WHERE complete`) == 1 }, mailing{1})
			if n := failed(); n != 10 {
				t.Errorf("%d letters are listed as failed, want the 10 of the mailing that was not called again", n)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger`); n != 30 {
				t.Errorf("%d letters are done, want 30", n)
			}
		})
	}
}

// An addressee is one whose address may turn out to be wrong.
type addressee struct {
	N     int    `json:"n"`
	Email string `json:"email"`
}

func (addressee) JobType() string  { return "addressee" }
func (a addressee) Entity() string { return strconv.Itoa(a.N) }

// The letter to addressee 7 has failed for good. Then the row is mended, and the fan-out is called
// again: it names other arguments than those that have failed, or none that decode. They are parked,
// as other arguments always are; what has failed is not tried again in their place, and stays listed.
// And the run ends: it does not wait for a message that nobody has sent.
func TestAFanOutEndsThatNamesWhatHasFailedWithOtherArguments(t *testing.T) {
	t.Parallel()
	const query = `SELECT entity, n, email FROM addressee`
	for name, c := range map[string]struct {
		inGo         bool
		mend, parked string
	}{
		"by a query":            {false, `UPDATE addressee SET email = 'good'`, "conflict"},
		"in Go":                 {true, `UPDATE addressee SET email = 'good'`, "conflict"},
		"and they are nobody's": {false, `UPDATE addressee SET email = 'good', n = 8`, "undecodable"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			mustExec(t, pool, `CREATE TABLE addressee AS SELECT '7' AS entity, 7 AS n, 'bad' AS email`)
			var tried tally
			source := jobs.SQL[addressee](query)
			if c.inGo {
				source = jobs.Seq(func(ctx context.Context, after string) iter.Seq2[addressee, error] {
					return func(yield func(addressee, error) bool) {
						var a addressee
						var entity string
						if err := pool.QueryRow(ctx, query).Scan(&entity, &a.N, &a.Email); err != nil || entity > after {
							yield(a, err)
						}
					}
				})
			}
			set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return source }},
				jobs.Job[addressee]{Effect: jobs.Repeatable, Do: func(_ context.Context, a addressee) error {
					if tried.add(a.Email); a.Email == "bad" {
						return jobs.Permanent(errors.New("no such address"))
					}
					return nil
				}})
			w := begin(t, pool, set, worker.Config{})
			for call := range int64(3) {
				enqueue(t, pgq(pool), mailing{1})
				if got := awaitRun(t, pool, call+1); got != "ended, complete=f, failed 1, in doubt 0, not ready 0" {
					t.Errorf("call %d: the run %s", call+1, got)
				}
				mustExec(t, pool, c.mend)
			}
			if !ask(t, pool, `SELECT count(*) = 1 AND bool_and(trouble = 'failed' AND args LIKE '%bad%' AND error LIKE '%no such address%') FROM oncemore.claim`) {
				t.Error("what has failed is not listed any more")
			}
			if !ask(t, pool, `SELECT count(*) = 1 AND bool_and(reason = $1 AND body LIKE '%good%' AND times = 2) FROM oncemore.parked`, c.parked) {
				t.Error("nobody is told of what was named instead")
			}
			if tried.of("bad") != 1 || tried.of("good") != 0 {
				t.Errorf("tried: %v", tried.n)
			}
			if c.parked == "conflict" { // and then there is a way
				forced := together(t, addressee{7, "good"})
				forced.Epoch = count(t, pool, `SELECT nextval('oncemore.epoch')`)
				sendMessages(t, pgq(pool), forced)
				eventually(t, "it is done", func() bool { return standing(t, pool, "7") == "done r 1" || standing(t, pool, "7") == "done r 2" })
			}
			mustStop(t, w)
		})
	}
}

// Beside the fact of one address lies the failure of another, and a new version of the code makes
// the fact stale. A fan-out that is called then names the first: neither may go unnoticed, also
// where workers sweep what a fact has made moot at every turn.
func TestI8AFailureBesideAStaleFactOfOtherArgumentsStaysListed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source {
		return jobs.SQL[addressee](`SELECT '7' AS entity, 7 AS n, 'the one' AS email`)
	}}, jobs.Job[addressee]{Effect: jobs.Repeatable, Policy: jobs.Policy{Version: 1}, Do: func(context.Context, addressee) error { return nil }})
	newWorker(t, pool, set, worker.Config{}) // registers the job type
	fingerprint := func(email string) int64 {
		e, _ := set.Lookup("addressee")
		item := together(t, addressee{7, email}).Items[0]
		in, err := e.Decode(item.Entity, item.Args)
		if err != nil {
			t.Fatal(err)
		}
		return in.Fingerprint
	}
	mustExec(t, pool, `
INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence) SELECT t.id, '7', $1, 1, 'r' FROM oncemore.job_type t WHERE t.name = 'addressee'`, fingerprint("the one"))
	mustExec(t, pool, `
INSERT INTO oncemore.claim (fence, trouble, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), 'failed', $1, 0, 0, 0, t.id, 1, '7', '{"n":7,"email":"the other"}' FROM oncemore.job_type t WHERE t.name = 'addressee'`, fingerprint("the other"))
	w := begin(t, pool, set, worker.Config{Recheck: time.Millisecond})
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 1, in doubt 0, not ready 0" {
		t.Errorf("the run %s", got)
	}
	mustStop(t, w)
	if !ask(t, pool, `SELECT count(*) = 1 AND bool_and(trouble = 'failed' AND args LIKE '%the other%') FROM oncemore.claim`) {
		t.Error("what has failed is not listed any more")
	}
	if !ask(t, pool, `SELECT count(*) = 1 AND bool_and(reason = 'conflict' AND body LIKE '%the one%') FROM oncemore.parked`) {
		t.Error("nobody is told of what is to be done again")
	}
}
