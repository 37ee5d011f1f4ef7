package worker_test

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// wanted is a source that tests can change.
const wanted = `CREATE TABLE wanted AS SELECT n FROM generate_series(1, 20) n`

func mailingOf(query string, params ...any) jobs.Job[mailing] {
	return jobs.Job[mailing]{Policy: jobs.Policy{Backoff: quickly, Attempts: 3}, FanOut: func(mailing) jobs.Source { return jobs.SQL[letter](query, params...) }}
}

// lastRun is how the newest run of a mailing stands.
func lastRun(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	var s string
	if err := pool.QueryRow(t.Context(), `
SELECT coalesce((SELECT format('%s, complete=%s, failed %s, in doubt %s, not ready %s', CASE WHEN ended_at IS NULL THEN 'goes on' ELSE 'ended' END, complete, failed, in_doubt, not_ready)
                 FROM oncemore.run ORDER BY id DESC LIMIT 1), 'none')`).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

func awaitRun(t testing.TB, pool *pgxpool.Pool, number int64) string {
	t.Helper()
	eventuallyRow(t, pool, fmt.Sprintf("run %d has ended", number), `
SELECT count(*) >= $1 AND bool_and(ended_at IS NOT NULL) AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.run`, number)
	return lastRun(t, pool)
}

// Of twenty letters one fails for good, one is in doubt, one is not ready, and one is not
// ready and then vanishes from the source. The run ends and says so; it is complete only
// when it is called again after each cause is mended.
func TestI6ARunIsCompleteWhenItsItemsAre(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, wanted)
	var mended atomic.Bool
	var runs tally
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM wanted`), jobs.Job[letter]{
		Effect: jobs.Once, Policy: jobs.Policy{PackSize: 3},
		Ready: func(_ context.Context, l letter) (bool, error) { return mended.Load() || l.N != 3 && l.N != 4, nil },
		Do: func(_ context.Context, l letter) error {
			runs.add(l.Entity())
			switch {
			case l.N == 1 && !mended.Load():
				return jobs.Permanent(jobs.NotApplied(errTrouble))
			case l.N == 2:
				return errTrouble
			}
			return nil
		}})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "all but four are done", `SELECT count(*) = 16 FROM oncemore.ledger`)
	mustExec(t, pool, `DELETE FROM wanted WHERE n = 4`)
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 1, in doubt 1, not ready 2" {
		t.Errorf("the run: %s", got)
	}

	// All are mended but the doubt, which only somebody who knows can end. (A letter 4 is not named any more.)
	mended.Store(true)
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 2); got != "ended, complete=f, failed 0, in doubt 1, not ready 0" {
		t.Errorf("called again while one is in doubt: %s", got)
	}
	operatorSaysDone(t, pool, "letter", "2")
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 3); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Errorf("called again after that: %s", got)
	}
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger`); n != 19 {
		t.Errorf("%d letters are done, want all that are named", n)
	}
	for entity, n := range runs.n {
		if want := map[string]int{"1": 2}[entity]; n != max(1, want) {
			t.Errorf("letter %s was worked %d times", entity, n)
		}
	}
}

func operatorSaysDone(t testing.TB, pool *pgxpool.Pool, jobType, entity string) {
	t.Helper()
	l := ledger.New(pool)
	kind := &ledger.Type{Name: jobType, Effect: ledger.Once}
	if err := l.Register(t.Context(), kind); err != nil {
		t.Fatal(err)
	}
	st, err := l.Look(t.Context(), kind, []ledger.Want{{Entity: entity}})
	if err != nil || st[0].Open == nil {
		t.Fatalf("%s %s is not open: %v, %v", jobType, entity, st, err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return ledger.Resolve(t.Context(), tx, kind, st[0].Open, ledger.Verdict{Done: true, Evidence: ledger.ByOperator, By: "test", Why: "it is so"})
	}); err != nil {
		t.Fatal(err)
	}
}

// Each mailing has letters of its own. What failed in one must not be lost to it when
// another is called.
func TestI6CallingOneFanOutLeavesTheFailedOfOthersToThem(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var mended atomic.Bool
	set := newSet(t,
		jobs.Job[mailing]{FanOut: func(m mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series($1::int, $1::int + 4) n`, 10*m.ID)
		}},
		jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(_ context.Context, l letter) error {
			if l.N == 12 && !mended.Load() {
				return jobs.Permanent(errTrouble)
			}
			return nil
		}})
	w := begin(t, pool, set, worker.Config{})
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 1, in doubt 0, not ready 0" {
		t.Error(got)
	}
	enqueue(t, pgq(pool), mailing{2})
	if got := awaitRun(t, pool, 2); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Error(got)
	}
	if got := standing(t, pool, "12"); got != "failed 1" {
		t.Errorf("letter 12 of mailing 1 is %q after a call of mailing 2", got)
	}
	mended.Store(true)
	enqueue(t, pgq(pool), mailing{1})
	if got := awaitRun(t, pool, 3); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Error(got)
	}
	mustStop(t, w)
}

func TestI6WhatTheSourceNamesDuringARunBelongsToIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, wanted)
	g := newGate()
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM wanted`), jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error {
		if l.N == 7 {
			return g.pass(ctx, l.Entity())
		}
		return nil
	}})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{})
	within(t, "one letter is being worked", g.entered)

	// Meanwhile more are wanted, and the mailing is called again and again: that joins the run.
	mustExec(t, pool, `INSERT INTO wanted SELECT generate_series(101, 110)`)
	enqueue(t, pgq(pool), mailing{1}, mailing{1})
	enqueue(t, pgq(pool), mailing{1})
	eventuallyRow(t, pool, "the other calls have been seen", `SELECT count(*) = 0 FROM oncemore.message WHERE type = 'mailing' AND received = 0`)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.run`); n != 1 {
		t.Errorf("%d runs, want all calls in one", n)
	}
	close(g.open)
	eventuallyRow(t, pool, "the run is complete", `SELECT count(*) > 0 FROM oncemore.run WHERE complete`)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger WHERE entity = ANY ('{101,102,103,104,105,106,107,108,109,110}')`); n != 10 {
		t.Errorf("%d of ten late letters were done when the run was complete", n)
	}
	if n := count(t, pool, `SELECT items FROM oncemore.run ORDER BY id LIMIT 1`); n != 30 {
		t.Errorf("the run says %d items, want 20 and the late 10", n)
	}
	mustStop(t, w)
}

// inGo is a source in Go that names n letters from number 100,000 on, so that the order of
// their numbers is that of their entities. It tells where each reading of it begins.
func inGo(n *atomic.Int64, begins func(after string)) jobs.Source {
	return jobs.Seq(func(_ context.Context, after string) iter.Seq2[letter, error] {
		return func(yield func(letter, error) bool) {
			begins(after)
			first := 100_000
			if after != "" {
				first, _ = strconv.Atoi(after)
				first++
			}
			for i := first; i < 100_000+int(n.Load()); i++ {
				if !yield(letter{i}, nil) {
					return
				}
			}
		}
	})
}

// 25,000 entities are planned in three pieces. The worker is stopped after the first; the
// next one goes on behind it.
func TestI6ASourceInGoIsPlannedInPiecesAndGoesOnAfterAStop(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var n atomic.Int64
	n.Store(25_000)
	var ready atomic.Bool
	asked := make(chan string, 100)
	stalled := make(chan struct{})
	src := inGo(&n, func(after string) {
		asked <- after
		if after != "" {
			<-stalled // the second piece takes until the worker is gone
		}
	})
	set := newSet(t, jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return src }},
		jobs.Job[letter]{Policy: jobs.Policy{PackSize: 1000},
			// Two of the first and the last piece are not ready for a while.
			Ready: func(_ context.Context, l letter) (bool, error) {
				return ready.Load() || l.N != 100_010 && l.N != 124_999, nil
			},
			DoMany: func(context.Context, pgx.Tx, []letter) error { return nil }})
	enqueue(t, pgq(pool), mailing{1})
	config := worker.Config{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))} // not 25,000 lines
	first := begin(t, pool, set, config)
	for after := ""; after == ""; after = within(t, "the second piece is read", asked) {
	}
	first.stopping()
	close(stalled)
	mustStop(t, first)
	if !ask(t, pool, `SELECT count(*) = 1 FROM oncemore.run`) {
		t.Error("not one run")
	}
	second := begin(t, pool, set, config)
	eventuallyRow(t, pool, "all but two are done", `SELECT count(*) = 24998 FROM oncemore.ledger`)
	ready.Store(true)
	n.Add(3) // and some come late
	eventuallyRow(t, pool, "the run is complete", `SELECT bool_and(complete) FROM oncemore.run HAVING bool_and(ended_at IS NOT NULL)
UNION ALL SELECT false LIMIT 1`)
	mustStop(t, second)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger`); n != 25_003 {
		t.Errorf("%d are done, want 25,003", n)
	}
	if n := count(t, pool, `SELECT items FROM oncemore.run`); n != 25_003 {
		t.Errorf("the run says %d items, want 25,003", n)
	}
}

func TestAFanOutThatPanicsIsTriedAgainAndListed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var calls tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }},
		jobs.Job[mailing]{Policy: jobs.Policy{Backoff: quickly, Attempts: 3}, FanOut: func(m mailing) jobs.Source {
			calls.add(m.Entity())
			panic("no such event")
		}})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{})
	eventually(t, "it is listed as failed", func() bool { return standing(t, pool, "1") == "failed 3" })
	eventuallyRow(t, pool, "no message is left", quiet)
	mustStop(t, w)
	if calls.of("1") != 3 {
		t.Errorf("it was called %d times, want 3", calls.of("1"))
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE error_class = 'panic' AND error LIKE '%no such event%runs_test.go%'`); n != 3 {
		t.Errorf("%d attempts are recorded with the panic and its stack, want 3", n)
	}
}

// The operator's promise: when the cause is mended, just call it again.
func TestAFanOutWhoseSourceFailsIsListedAndCanBeCalledAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM wanted`), jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{})
	eventually(t, "it is listed as failed", func() bool { return standing(t, pool, "1") == "failed 3" })
	eventuallyRow(t, pool, "no message is left", quiet)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.attempt WHERE error LIKE '%"wanted" does not exist%'`); n != 3 {
		t.Errorf("%d attempts say why, want 3", n)
	}
	mustExec(t, pool, wanted)
	enqueue(t, pgq(pool), mailing{1})
	eventuallyRow(t, pool, "called again, it is complete", `SELECT EXISTS (SELECT FROM oncemore.run WHERE complete)`)
	mustStop(t, w)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.ledger`); n != 20 {
		t.Errorf("%d letters are done, want 20", n)
	}
}

// A query may name anything. What cannot be worked is listed, the others are done, and
// the run does not claim to be complete.
func TestI6ASourceMayNameWhatCannotBeWorked(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var runs tally
	set := newSet(t, mailingOf(`
SELECT n::text AS entity, n FROM generate_series(1, 20) n
UNION ALL SELECT '7', 7 UNION ALL SELECT '7', 7
UNION ALL SELECT NULL, 21
UNION ALL SELECT '22', 23
UNION ALL SELECT repeat('x', 600), 24`),
		jobs.Job[letter]{Effect: jobs.Once, Policy: jobs.Policy{PackSize: 8}, Do: func(_ context.Context, l letter) error { runs.add(l.Entity()); return nil }})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{})
	if got := awaitRun(t, pool, 1); got != "ended, complete=f, failed 0, in doubt 0, not ready 3" {
		t.Errorf("the run: %s", got)
	}
	mustStop(t, w)
	if len(runs.n) != 20 || runs.sum() != 20 {
		t.Errorf("worked: %v, want 20 letters once each", runs.n)
	}
	rows, err := pool.Query(t.Context(), `SELECT format('%s %s %s', reason, length(entity), body) FROM oncemore.parked ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	parked, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if want := []string{`undecodable 0 {"n":21}`, `undecodable 2 {"n":23}`, `undecodable 512 {"n":24}`}; err != nil || !slices.Equal(parked, want) && !(len(parked) == 3 && strings.HasPrefix(parked[2], "undecodable 51")) {
		t.Errorf("parked: %q, %v, want %q", parked, err, want)
	}
}

func TestAFanOutSendsToTheQueueAndWithThePriorityOfItsLetters(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	bulk := pgqueue.New(pool, "bulk")
	set := newSet(t, mailingOf(`SELECT n::text AS entity, n FROM generate_series(1, 4) n`),
		jobs.Job[letter]{Effect: jobs.Once, Policy: jobs.Policy{Queue: "slow", Priority: -7, PackSize: 2}, Do: func(ctx context.Context, l letter) error { return g.pass(ctx, l.Entity()) }})
	enqueue(t, pgq(pool), mailing{1})
	w := begin(t, pool, set, worker.Config{Queues: map[string]queue.Queue{"slow": bulk}})
	within(t, "a letter is being worked", g.entered)
	if n := count(t, pool, `SELECT sum(cardinality(entities)) FROM oncemore.message WHERE type = 'letter' AND queue = 'bulk' AND priority = -7 AND cardinality(entities) <= 2`); n != 4 {
		t.Errorf("%d letters in small packs in the queue bulk with priority -7, want 4", n)
	}
	close(g.open)
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" {
		t.Error(got)
	}
	mustStop(t, w)
}

func TestNewRefusesWhatItCannotWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	source := func(query string, params ...any) jobs.Job[letter] {
		return jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }, Source: jobs.SQL[letter](query, params...)}
	}
	beside, err := pgxpool.New(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(beside.Close)
	queued := source(`SELECT '1' AS entity, 1 AS n`)
	queued.Queue = "elsewhere"
	for name, c := range map[string]struct {
		job    jobs.Job[letter]
		config worker.Config
		want   string // in the error; empty: it is accepted
	}{
		"a good source":               {job: source(`SELECT n::text AS entity, n FROM generate_series(1, 3) n`)},
		"a good source, empty":        {job: source(`SELECT n::text AS entity, n FROM generate_series(1, 0) n`)},
		"a good source, parameters":   {job: source(`SELECT n::text AS entity, n FROM generate_series(1, $1::int) n`, 3)},
		"a queue nobody reads":        {job: queued, want: `queue "elsewhere"`},
		"a syntax error":              {job: source(`SELEC 1`), want: "syntax error"},
		"a table that is not there":   {job: source(`SELECT entity, n FROM nowhere`), want: `"nowhere" does not exist`},
		"no column entity":            {job: source(`SELECT 1 AS n`), want: "no column entity"},
		"a misspelt column":           {job: source(`SELECT '1' AS entity, 1 AS number`), want: `unknown field "number"`},
		"a misspelt column, empty":    {job: source(`SELECT '1' AS entity, 1 AS number WHERE false`), want: `unknown field "number"`},
		"a column of another type":    {job: source(`SELECT '1' AS entity, 'one' AS n`), want: "json: cannot unmarshal"},
		"an entity of something else": {job: source(`SELECT 'letter/1' AS entity, 1 AS n`), want: `of entity "1"`},
		"an entity that is missing":   {job: source(`SELECT NULL::text AS entity, 1 AS n`), want: `of entity "1"`},
		"parameters that are missing": {job: source(`SELECT '1' AS entity, $1::int AS n`), want: "expected 1 arguments, got 0"},
		"negative slots":              {job: source(`SELECT '1' AS entity, 1 AS n`), config: worker.Config{Slots: -1}, want: "negative"},
		"a lease of a day":            {job: source(`SELECT '1' AS entity, 1 AS n`), config: worker.Config{Lease: 24 * time.Hour}, want: "at most 10m"},
		"a queue in another database": {job: source(`SELECT '1' AS entity, 1 AS n`), config: worker.Config{Queues: map[string]queue.Queue{"mails": pgq(pgtest.Pool(t))}}, want: `queue "mails": it is in another database`},
		"a queue by another pool":     {job: source(`SELECT '1' AS entity, 1 AS n`), config: worker.Config{Queues: map[string]queue.Queue{"mails": pgqueue.New(beside, "mails")}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := worker.New(t.Context(), pool, newSet(t, c.job), c.config)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want an error that says %q", err, c.want)
			}
		})
	}
	empty := pgtest.EmptyPool(t)
	if _, err := worker.New(t.Context(), empty, newSet(t, source(`SELECT '1' AS entity, 1 AS n`)), worker.Config{}); err == nil || !strings.Contains(err.Error(), "oncemore migrate up") {
		t.Errorf("without the schema: %v, want to be told what to run", err)
	}
}
