package admin_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/plan"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// A leaf is made from a revision of a row, and a binder has all of them.
type leaf struct {
	N        int   `json:"n"`
	Revision int64 `json:"source_version"`
}

func (leaf) JobType() string        { return "leaf" }
func (l leaf) Entity() string       { return jobs.Key(l.N) }
func (l leaf) SourceVersion() int64 { return l.Revision }

type binder struct {
	ID int `json:"id"`
}

func (binder) JobType() string  { return "binder" }
func (b binder) Entity() string { return jobs.Key(b.ID) }

const leavesSQL = `SELECT n::text AS entity, n, revision AS source_version FROM leaf`

// leavesInGo names the same in the order of its keys.
func leavesInGo(pool *pgxpool.Pool) jobs.Source {
	return jobs.Seq(func(ctx context.Context, after string) iter.Seq2[leaf, error] {
		return func(yield func(leaf, error) bool) {
			rows, err := pool.Query(ctx, `SELECT n, revision FROM leaf WHERE n::text COLLATE "C" > $1 ORDER BY n::text COLLATE "C"`, after)
			if err != nil {
				yield(leaf{}, err)
				return
			}
			defer rows.Close()
			var l leaf
			for rows.Next() {
				if err := rows.Scan(&l.N, &l.Revision); !yield(l, err) || err != nil {
					return
				}
			}
			if err := rows.Err(); err != nil {
				yield(leaf{}, err)
			}
		}
	})
}

// A bindery makes leaves as the test says, until the test ends.
type bindery struct {
	*testing.T
	pool *pgxpool.Pool
}

func newBindery(t *testing.T, leaves int, source func(*pgxpool.Pool) jobs.Source, job jobs.Job[leaf]) *bindery {
	b := &bindery{T: t, pool: pgtest.Pool(t)}
	b.exec(`CREATE TABLE leaf AS SELECT n, 1::bigint AS revision FROM generate_series(1, $1::int) n`, leaves)
	src := source(b.pool)
	job.Source = src
	set, err := jobs.NewSet(jobs.Job[binder]{FanOut: func(binder) jobs.Source { return src }}, job)
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), b.pool, set, worker.Config{Log: slog.New(slog.DiscardHandler), Throttles: []throttle.Signal{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bindery) exec(statement string, args ...any) {
	b.Helper()
	if _, err := b.pool.Exec(b.Context(), statement, args...); err != nil {
		b.Fatal(err)
	}
}

// call calls the fan-out.
func (b *bindery) call() {
	b.Helper()
	if err := jobs.Enqueue(b.Context(), pgqueue.New(b.pool, ""), binder{1}); err != nil {
		b.Fatal(err)
	}
}

// parts are what a run is the sum of.
func parts(r *admin.Run) string {
	return fmt.Sprintf("%s: %d = %d done, %d open, %d failed, %d in doubt, %d missing, %d not sent", r.State, r.Items, r.Done, r.Open, r.Failed, r.InDoubt, r.Missing, r.NotSent)
}

// newest waits until the newest run, of so many, is as wanted. Whenever it is listed its parts
// are the whole.
func (b *bindery) newest(number int64, what string, is func(*admin.Run) bool) (r admin.Run) {
	b.Helper()
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		err := admin.Read(b.Context(), b.pool, 10*time.Second, func(tx pgx.Tx) error {
			l, err := admin.ListRuns(b.Context(), tx, admin.RunFilter{}, admin.Page{Limit: 1})
			if err == nil && l.Of.N >= number {
				r = l.Rows[0]
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		if r.Done+r.Open+r.Failed+r.InDoubt+r.Missing+r.NotSent != r.Items || min(r.Done, r.Open, r.Failed, r.InDoubt, r.Missing, r.NotSent) < 0 {
			b.Fatalf("the parts are not the whole: %s", parts(&r))
		}
		if r.ID != 0 && is(&r) {
			return r
		}
		if time.Now().After(limit) {
			b.Fatalf("after a minute: not yet %s: %s", what, parts(&r))
		}
	}
}

// wantEnd waits until the newest run, of so many, is over, and wants it to be shown the same
// wherever it is.
func (b *bindery) wantEnd(number int64, want string) {
	b.Helper()
	listed := b.newest(number, "over", func(r *admin.Run) bool { return r.State.Over() })
	if got := parts(&listed); got != want {
		b.Errorf("listed: %s, want %s", got, want)
	}
	if listed.Waits != "" {
		b.Errorf("it is over, and waits for %q", listed.Waits)
	}
	var shown *admin.RunStory
	err := admin.Read(b.Context(), b.pool, 10*time.Second, func(tx pgx.Tx) (err error) {
		shown, err = admin.ShowRun(b.Context(), tx, listed.ID)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	if got := parts(&shown.Run); got != want {
		b.Errorf("shown: %s, want %s", got, want)
	}
	watched, _, err := (&admin.Watch{Pool: b.pool, Run: listed.ID}).Look(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if got := parts(watched); got != want {
		b.Errorf("watched: %s, want %s", got, want)
	}
}

func sources() map[string]func(*pgxpool.Pool) jobs.Source {
	return map[string]func(*pgxpool.Pool) jobs.Source{
		"a source in SQL": func(*pgxpool.Pool) jobs.Source { return jobs.SQL[leaf](leavesSQL) },
		"a source in Go":  leavesInGo,
	}
}

// Three of its leaves are done of an older source and are not ready: the facts that are there do
// not make them done, whoever shows the run, and however long after.
func TestARunThatHasEndedIsShownAsItsLastVisitCountedIt(t *testing.T) {
	t.Parallel()
	for name, source := range sources() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var ready atomic.Bool
			b := newBindery(t, 20, source, jobs.Job[leaf]{Effect: jobs.Repeatable, Do: func(context.Context, leaf) error { return nil },
				Ready: func(_ context.Context, l leaf) (bool, error) { return l.Revision == 1 || ready.Load(), nil }})
			b.call()
			b.wantEnd(1, "complete: 20 = 20 done, 0 open, 0 failed, 0 in doubt, 0 missing, 0 not sent")
			b.exec(`UPDATE leaf SET revision = 2 WHERE n <= 3`)
			b.call()
			want := "ended: 3 = 0 done, 0 open, 0 failed, 0 in doubt, 3 missing, 0 not sent"
			b.wantEnd(2, want)
			b.exec(`DELETE FROM oncemore.run_pack`)            // plans of runs that have ended may be pruned
			b.exec(`UPDATE oncemore.run SET waits = 'paused'`) // as it does when it is cancelled then
			b.wantEnd(2, want)
		})
	}
}

// What an earlier call left in doubt is named by the source, and not sent again: it is of the
// later run all the same, while that goes on and at its end.
func TestARunCountsTheDoubtsThatAnEarlierCallLeft(t *testing.T) {
	t.Parallel()
	for name, source := range sources() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gate := make(chan struct{})
			open := sync.OnceFunc(func() { close(gate) })
			t.Cleanup(open)
			b := newBindery(t, 5, source, jobs.Job[leaf]{Effect: jobs.Once, Do: func(ctx context.Context, l leaf) error {
				if l.N <= 5 {
					return errors.New("no answer")
				}
				select {
				case <-gate:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}})
			b.call()
			b.wantEnd(1, "ended: 5 = 0 done, 0 open, 0 failed, 5 in doubt, 0 missing, 0 not sent")
			b.call()
			b.wantEnd(2, "ended: 5 = 0 done, 0 open, 0 failed, 5 in doubt, 0 missing, 0 not sent")
			b.exec(`INSERT INTO leaf VALUES (6, 1), (7, 1)`)
			b.call()
			b.newest(3, "at the new ones", func(r *admin.Run) bool { return !r.State.Over() && r.Open == 2 })
			open()
			b.wantEnd(3, "ended: 7 = 2 done, 0 open, 0 failed, 5 in doubt, 0 missing, 0 not sent")
		})
	}
}

// All but the first few of a run that is cancelled have not begun. Its visits have seen the first
// of its packs alone, and it says what has become of all of them. Facts from before the run are
// those of stale work, which it has not done.
func TestACancelledRunSaysThatItHasNotDoneWhatHasNotBegun(t *testing.T) {
	t.Parallel()
	for name, stale := range map[string]bool{"missing": false, "stale": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const leaves = 1000
			b := newBindery(t, leaves, sources()["a source in SQL"], jobs.Job[leaf]{Effect: jobs.Repeatable, Policy: jobs.Policy{PackSize: 2, Limit: jobs.Limit{Running: 2}},
				Do: func(ctx context.Context, l leaf) error {
					<-ctx.Done()
					return ctx.Err()
				}})
			if stale {
				b.exec(`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, source_version, attempts, evidence)
SELECT (SELECT id FROM oncemore.job_type WHERE name = 'leaf'), n::text, 0, 1, 0, 'a' FROM leaf`)
				b.exec(`UPDATE leaf SET revision = 2`)
			}
			b.call()
			r := b.newest(1, "at the first", func(r *admin.Run) bool { return r.PlannedAt != nil && r.Open > 0 })
			if _, err := (&admin.Operator{Pool: b.pool, Actor: "anna"}).Cancel(t.Context(), r.ID, "wrong text"); err != nil {
				t.Fatal(err)
			}
			r = b.newest(1, "over", func(r *admin.Run) bool { return r.State.Over() })
			if r.State != admin.Cancelled || r.Items != leaves || r.Done != 0 || r.Open == 0 || r.Open+r.Missing != leaves {
				t.Errorf("%s", parts(&r))
			}
		})
	}
}

// What failed is failed again when the run that was to try it is cancelled. It was not sent, and
// is not counted twice.
func TestARerunOfWhatFailedThatIsCancelledBeforeItBeginsHasDoneNothing(t *testing.T) {
	t.Parallel()
	b := newBindery(t, 12, sources()["a source in SQL"], jobs.Job[leaf]{Effect: jobs.Repeatable,
		Do: func(context.Context, leaf) error { return jobs.Permanent(errors.New("no ink")) }})
	b.call()
	b.wantEnd(1, "ended: 12 = 0 done, 0 open, 12 failed, 0 in doubt, 0 missing, 0 not sent")
	op := &admin.Operator{Pool: b.pool, Actor: "anna"}
	if _, err := op.Brake(t.Context(), "", "not yet"); err != nil {
		t.Fatal(err)
	}
	opened, err := op.Rerun(t.Context(), worker.Order{Type: "leaf", Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}, Reason: "there is ink"})
	if err != nil {
		t.Fatal(err)
	}
	b.newest(2, "planned", func(r *admin.Run) bool { return r.State == admin.Held })
	if _, err := op.Cancel(t.Context(), opened.Run, "not that one"); err != nil {
		t.Fatal(err)
	}
	b.wantEnd(2, "cancelled: 12 = 0 done, 0 open, 0 failed, 0 in doubt, 0 missing, 12 not sent")
}
