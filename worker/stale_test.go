package worker_test

import (
	"context"
	"iter"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Work can be done and stale at once: a fact is there, and the source has become newer.

const docsSQL = `SELECT id::text AS entity, id, revision AS source_version FROM doc`

// docs are the source of pages, as many as n.
func docs(t testing.TB, pool *pgxpool.Pool, n int, revision string) {
	t.Helper()
	mustExec(t, pool, `CREATE TABLE doc (id int, revision bigint)`)
	mustExec(t, pool, `INSERT INTO doc SELECT id, `+revision+` FROM generate_series(1, $1::int) id`, n)
}

// docsInGo names the same in the order of its keys.
func docsInGo(pool *pgxpool.Pool) jobs.Source {
	return jobs.Seq(func(ctx context.Context, after string) iter.Seq2[page, error] {
		return func(yield func(page, error) bool) {
			rows, err := pool.Query(ctx, `SELECT id, coalesce(revision, 0) FROM doc WHERE id::text COLLATE "C" > $1 ORDER BY id::text COLLATE "C"`, after)
			if err != nil {
				yield(page{}, err)
				return
			}
			defer rows.Close()
			var p page
			for rows.Next() {
				if err := rows.Scan(&p.ID, &p.Revision); !yield(p, err) || err != nil {
					return
				}
			}
			if err := rows.Err(); err != nil {
				yield(page{}, err)
			}
		}
	})
}

// Rows without a version are of version 0, as their arguments say: done once, they are done.
func TestAFanOutWhoseSourceHasNoVersionOfSomeRowsEndsWhenTheyAreDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	docs(t, pool, 20, `CASE WHEN id % 2 = 0 THEN 7 END`)
	set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[page](docsSQL) }},
		jobs.Job[page]{Effect: jobs.Repeatable, Do: func(context.Context, page) error { return nil }})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	if n := count(t, pool, `SELECT items FROM oncemore.run`); n != 20 {
		t.Errorf("the run says %d items, want the 20 that there are", n)
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.run_pack`); n != 1 {
		t.Errorf("%d packs are sealed: what was done was sent again", n)
	}
	mustStop(t, w)
}

// Three of twenty pages have become newer, and cannot be made again yet. They are done, of an
// older source; so the run ends, says how many are not ready, and does not claim to be complete.
func TestI6AFanOutEndsAndIsNotCompleteWhileWhatIsStaleIsNotReady(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]func(*pgxpool.Pool) jobs.Source{
		"a source in SQL": func(*pgxpool.Pool) jobs.Source { return jobs.SQL[page](docsSQL) },
		"a source in Go":  docsInGo,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			docs(t, pool, 20, `1`)
			src := source(pool)
			var ready atomic.Bool
			ready.Store(true)
			set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return src }},
				jobs.Job[page]{Effect: jobs.Repeatable, Do: func(context.Context, page) error { return nil },
					Ready: func(_ context.Context, p page) (bool, error) { return p.Revision == 1 || ready.Load(), nil }})
			w := begin(t, pool, set, worker.Config{})
			enqueue(t, pgq(pool), mailing{1})
			if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
				t.Errorf("the first run: %s", got)
			}
			ready.Store(false)
			mustExec(t, pool, `UPDATE doc SET revision = 2 WHERE id IN (3, 4, 5)`)
			enqueue(t, pgq(pool), mailing{1})
			if got := awaitRun(t, pool, 2); got != "ended, complete=f, failed 0, in doubt 0, not ready 3" {
				t.Errorf("the run of what is stale: %s", got)
			}
			if got := text(t, pool, `SELECT format('%s items in %s packs', r.items, (SELECT count(*) FROM oncemore.run_pack p WHERE p.run = r.id)) FROM oncemore.run r ORDER BY r.id DESC LIMIT 1`); got != "3 items in 4 packs" {
				t.Errorf("it has %s, want 3 that were sent, and sent again three times", got)
			}
			ready.Store(true)
			enqueue(t, pgq(pool), mailing{1})
			if got := awaitRun(t, pool, 3); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
				t.Errorf("the run when they are ready: %s", got)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE source_version = 2`); n != 3 {
				t.Errorf("%d pages are of the newer source, want 3", n)
			}
			mustStop(t, w)
		})
	}
}

// What becomes ready while a run goes on is done in it, and what is late has its chance: both
// are progress, and what is still not ready is sent again for as long as there is some.
func TestI6AFanOutGoesOnWhileWhatIsStaleBecomesReady(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	docs(t, pool, 20, `1`)
	var refused atomic.Int64
	set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[page](docsSQL) }},
		jobs.Job[page]{Effect: jobs.Repeatable, Do: func(context.Context, page) error { return nil },
			// The first is refused twice, the next one then twice, and so on: six times in all.
			Ready: func(_ context.Context, p page) (bool, error) {
				if p.Revision == 1 || p.ID < 3 || p.ID == 3 && refused.Load() >= 2 || p.ID == 4 && refused.Load() >= 4 || p.ID == 5 && refused.Load() >= 6 {
					return true, nil
				}
				if p.ID == 3 || p.ID == 4 && refused.Load() >= 2 || p.ID == 5 && refused.Load() >= 4 {
					refused.Add(1)
				}
				return false, nil
			}})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the first run: %s", got)
	}
	mustExec(t, pool, `UPDATE doc SET revision = 2 WHERE id <= 5`)
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 2); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run of what is stale: %s", got)
	}
	if n := count(t, pool, `SELECT items FROM oncemore.run ORDER BY id DESC LIMIT 1`); n != 5 {
		t.Errorf("the run says %d items, want the 5 that were stale", n)
	}
	mustStop(t, w)
}

// One page never gets ready, and another becomes newer now and then, and is made again each time.
// That it is there for once is no progress of the first: the run has an end.
func TestAFanOutEndsThoughSomeOfItsSourceChangesNowAndThen(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	docs(t, pool, 2, `1`)
	var asked atomic.Int64
	set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[page](docsSQL) }},
		jobs.Job[page]{Effect: jobs.Repeatable, Do: func(context.Context, page) error { return nil },
			Ready: func(ctx context.Context, p page) (bool, error) {
				if p.ID == 2 {
					return true, nil
				}
				if asked.Add(1)%2 == 0 {
					_, err := pool.Exec(ctx, `UPDATE doc SET revision = revision + 1 WHERE id = 2`)
					return false, err
				}
				return false, nil
			}})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); !strings.HasPrefix(got, "ended, complete=f, failed 0, in doubt 0, not ready") {
		t.Errorf("the run: %s", got)
	}
	if n := asked.Load(); n > 8 {
		t.Errorf("what is not ready was asked about %d times", n)
	}
	mustStop(t, w)
}

// One page never gets ready, and each time that it is asked about another one becomes newer, or
// comes new. All of those are done, and each of them is another one: the run ends all the same.
func TestAFanOutEndsThoughOthersOfItsSourceChangeAllTheTime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ change, want string }{
		"another becomes newer": {`UPDATE doc SET revision = 2 WHERE id = $1::int`, "ended, complete=f, failed 0, in doubt 0, not ready 2"},
		"another comes":         {`INSERT INTO doc VALUES (200 + $1::int, 1)`, "ended, complete=f, failed 0, in doubt 0, not ready 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			docs(t, pool, 200, `1`)
			var asked atomic.Int64
			set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[page](docsSQL) }},
				jobs.Job[page]{Effect: jobs.Repeatable, Do: func(context.Context, page) error { return nil },
					Ready: func(ctx context.Context, p page) (bool, error) {
						if p.ID != 1 {
							return true, nil
						}
						_, err := pool.Exec(ctx, c.change, asked.Add(1)+1)
						return false, err
					}})
			w := begin(t, pool, set, quietly(t))
			enqueue(t, pgq(pool), mailing{1})
			eventually(t, "the run has ended", func() bool {
				if n := asked.Load(); n > 8 {
					t.Fatalf("what is not ready was asked about %d times", n)
				}
				return ask(t, pool, `SELECT count(*) = 1 FROM oncemore.run WHERE ended_at IS NOT NULL`)
			})
			if got := awaitRun(t, pool, 1); got != c.want {
				t.Errorf("the run: %s, want %s", got, c.want)
			}
			mustStop(t, w)
		})
	}
}

// While the first letter is sent again a second one comes late and is not ready either, and then
// the source names neither. The run says of both that they were not ready.
func TestAFanOutWhoseSourceForgetsThemSaysHowManyWereNotReady(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE wanted AS SELECT 1 AS n`)
	var asked atomic.Int64
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM wanted`), jobs.Job[letter]{Effect: jobs.Repeatable,
		Do: func(context.Context, letter) error { return nil },
		Ready: func(ctx context.Context, l letter) (bool, error) {
			var err error
			switch {
			case l.N == 2:
				_, err = pool.Exec(ctx, `DELETE FROM wanted`)
			case asked.Add(1) == 2:
				_, err = pool.Exec(ctx, `INSERT INTO wanted VALUES (2)`)
			}
			return false, err
		}})
	w := begin(t, pool, set, quietly(t))
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 0, in doubt 0, not ready 2" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if got := text(t, pool, `SELECT format('%s of %s open', open, items) FROM oncemore.run`); got != "2 of 2 open" {
		t.Errorf("the run says %s", got)
	}
}

// Pages become newer one after the other while a run goes on, and each is made again. None was
// sent in vain: the run goes on with them, and is complete.
func TestAFanOutGoesOnWhileOtherPagesBecomeNewerEachTime(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const n = 6
	docs(t, pool, n, `1`)
	set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[page](docsSQL) }},
		jobs.Job[page]{Effect: jobs.Repeatable, Do: func(ctx context.Context, p page) error {
			if p.ID == 1 || p.Revision == 2 { // while it is made, the next one becomes newer
				_, err := pool.Exec(ctx, `UPDATE doc SET revision = 2 WHERE id = $1`, p.ID+1)
				return err
			}
			return nil
		}})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("the run: %s", got)
	}
	if got := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE source_version = 2`); got != n-1 {
		t.Errorf("%d pages are of the newer source, want %d", got, n-1)
	}
	mustStop(t, w)
}

// A re-run has done nothing about what it picked as stale, or about what the app recorded
// meanwhile as done of an older source: the facts that are there do not satisfy its plan.
func TestI6ARerunIsNotCompleteWhileItsStaleWorkIsNotReady(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]func(*pgxpool.Pool) jobs.Source{
		"a source in SQL": func(*pgxpool.Pool) jobs.Source { return jobs.SQL[page](docsSQL) },
		"a source in Go":  docsInGo,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			docs(t, pool, 20, `1`)
			var ready atomic.Bool
			set := newSet(t, jobs.Job[page]{Effect: jobs.Repeatable, Source: source(pool), Do: func(context.Context, page) error { return nil },
				Ready: func(_ context.Context, p page) (bool, error) { return p.Revision == 1 || ready.Load(), nil }})
			w := begin(t, pool, set, worker.Config{})
			rerun(t, pool, worker.Order{Type: "page"})
			if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
				t.Errorf("the first run: %s", got)
			}

			mustExec(t, pool, `UPDATE doc SET revision = 2 WHERE id = 3`)
			mustExec(t, pool, `INSERT INTO doc VALUES (21, 2), (22, 1)`)
			control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.SetBrake(ctx, tx, "", "not yet", "test") })
			rerun(t, pool, worker.Order{Type: "page"})
			eventuallyRow(t, pool, "it is planned", `SELECT planned_at IS NOT NULL FROM oncemore.run ORDER BY id DESC LIMIT 1`)
			mustExec(t, pool, `INSERT INTO oncemore.ledger (job_type, entity, fingerprint, source_version, attempts, evidence) SELECT id, '21', 0, 1, 0, 'a' FROM oncemore.job_type WHERE name = 'page'`)
			control(t, pool, func(ctx context.Context, tx pgx.Tx) error { return worker.ReleaseBrake(ctx, tx, "") })
			if got := awaitRun(t, pool, 2); got != "ended, complete=f, failed 0, in doubt 0, not ready 2" {
				t.Errorf("the run of what is stale: %s", got)
			}

			ready.Store(true)
			rerun(t, pool, worker.Order{Type: "page"})
			if got := awaitRun(t, pool, 3); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
				t.Errorf("the run when they are ready: %s", got)
			}
			if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE source_version = 2`); n != 2 {
				t.Errorf("%d pages are of the newer source, want 2", n)
			}
			mustStop(t, w)
		})
	}
}
