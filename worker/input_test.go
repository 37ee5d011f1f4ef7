package worker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

func TestI5SkippingWritesNothing(t *testing.T) {
	t.Parallel()
	bodies := map[string]jobs.Job[letter]{
		"DoTx":       {DoTx: func(context.Context, pgx.Tx, letter) error { return nil }},
		"Repeatable": {Effect: jobs.Repeatable, Do: func(context.Context, letter) error { return nil }},
		"Once":       {Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }},
		"Verifiable": {Effect: jobs.Verifiable(0), Do: func(context.Context, letter) error { return nil }, Done: func(context.Context, letter) (bool, error) { return false, nil }},
	}
	for name, j := range bodies {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			set := newSet(t, j)
			sendMessages(t, pgq(pool), pack(t, 1, 100))
			run(t, pool, set, worker.Config{}, func() bool {
				return ask(t, pool, `SELECT count(*) = 100 AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.ledger`)
			})
			before := writes(t, pool)
			// The whole pack again, and some of it singly; once of them to a worker that had it, always to another process's eyes.
			sendMessages(t, pgq(pool), pack(t, 1, 100), pack(t, 5, 9))
			enqueue(t, pgq(pool), letter{1}, letter{1}, letter{50})
			run(t, pool, set, worker.Config{}, func() bool { return ask(t, pool, quiet) })
			if after := writes(t, pool); after != before {
				t.Errorf("skipping wrote:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}

// writes tells what was ever written to the tables of the ledger: the statistics of all
// sessions, and a digest over the versions of all rows.
func writes(t testing.TB, pool *pgxpool.Pool) (s string) {
	t.Helper()
	// A session reports its counts when it ends, at the latest.
	pool.Reset()
	eventually(t, "all sessions have ended", func() bool {
		return ask(t, pool, `SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`)
	})
	if err := pool.QueryRow(t.Context(), `
SELECT (SELECT string_agg(format('%s: %s inserted, %s updated, %s deleted', relname, n_tup_ins, n_tup_upd, n_tup_del), '; ' ORDER BY relname)
        FROM pg_stat_user_tables WHERE schemaname = 'oncemore' AND relname IN ('ledger', 'claim', 'attempt', 'ledger_history', 'parked')) ||
       (SELECT format('; rows %s', md5(string_agg(format('%s %s %s %s', l.ctid, l.xmin, l.xmax, l), '; ' ORDER BY l.entity))) FROM oncemore.ledger l) ||
       (SELECT format('; claims %s', count(*)) FROM oncemore.claim)`).Scan(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestI8OtherArgumentsForDoneWorkAreParkedAndNeverRun(t *testing.T) {
	t.Parallel()
	for _, class := range []jobs.Effect{jobs.Repeatable, jobs.Once} {
		t.Run(class.String(), func(t *testing.T) {
			pool := pgtest.Pool(t)
			var texts tally
			set := newSet(t, jobs.Job[note]{Effect: class, Do: func(_ context.Context, n note) error { texts.add(n.Text); return nil }})
			awaitDone(t, pool, set, worker.Config{}, 1, note{ID: 1, Text: "first"})
			facts := `SELECT sum(hashtextextended(l::text, 0)) % 1000000007 FROM oncemore.ledger l`
			before := count(t, pool, facts)
			awaitDone(t, pool, set, worker.Config{}, 1, note{ID: 1, Text: "other"}, note{ID: 1, Text: "other"}, note{ID: 1, Text: "first"})
			if texts.sum() != 1 || texts.of("first") != 1 {
				t.Errorf("worked: %v, want the first arguments once", texts.n)
			}
			if after := count(t, pool, facts); after != before {
				t.Error("the fact has changed")
			}
			wantParked(t, pool, "conflict 1 other ×2")
		})
	}
}

func TestI8OtherArgumentsForOpenWorkAreParkedAndNeverRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var texts tally
	g := newGate()
	set := newSet(t, jobs.Job[note]{Effect: jobs.Keyed(time.Hour), Policy: jobs.Policy{Backoff: func(int) time.Duration { return 2 * time.Second }},
		Do: func(ctx context.Context, n note) error {
			if texts.add(n.Text) == 1 {
				if err := g.pass(ctx, n.Entity()); err != nil {
					return err
				}
				return errTrouble
			}
			return nil
		}})
	enqueue(t, pgq(pool), note{ID: 1, Text: "first"})
	w := begin(t, pool, set, worker.Config{})
	within(t, "the first is being worked", g.entered)
	enqueue(t, pgq(pool), note{ID: 1, Text: "other, while it is held"})
	parked := `SELECT count(*) = $1 FROM oncemore.parked`
	eventuallyRow(t, pool, "what came while it was held is parked", parked, 1)
	close(g.open)
	eventuallyRow(t, pool, "it waits for its retry", `SELECT EXISTS (SELECT FROM oncemore.claim WHERE trouble = 'retrying')`)
	enqueue(t, pgq(pool), note{ID: 1, Text: "other, while it waits"})
	eventuallyRow(t, pool, "all ends", `SELECT EXISTS (SELECT FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.message)`)
	mustStop(t, w)
	if texts.sum() != 2 || texts.of("first") != 2 {
		t.Errorf("worked: %v, want the first arguments only", texts.n)
	}
	wantParked(t, pool, "conflict 1 other, while it is held ×1", "conflict 1 other, while it waits ×1")
}

// Whoever asked for the second must be able to learn that it did not happen, or happened
// beside the first: one of the two is done, the other is listed.
func TestI8OtherArgumentsThatComeTogetherDoNotPassUnnoticed(t *testing.T) {
	t.Parallel()
	for name, j := range map[string]jobs.Job[note]{
		"Repeatable": {Effect: jobs.Repeatable, Do: func(context.Context, note) error { return nil }},
		"Keyed":      {Effect: jobs.Keyed(time.Hour), Do: func(context.Context, note) error { return nil }},
		"DoTx":       {DoTx: func(context.Context, pgx.Tx, note) error { return nil }},
		"DoMany":     {DoMany: func(context.Context, pgx.Tx, []note) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			set := newSet(t, j)
			one, other := note{ID: 1, Text: "one"}, note{ID: 1, Text: "other"}
			sendMessages(t, pgq(pool), together(t, one), together(t, other), together(t, note{ID: 2}, note{ID: 3, Text: "one"}, note{ID: 3, Text: "other"}))
			run(t, pool, set, worker.Config{}, func() bool {
				return ask(t, pool, `SELECT count(*) = 3 AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.ledger`)
			})
			for _, entity := range []string{"1", "3"} {
				noticed := count(t, pool, `SELECT (SELECT count(*) FROM oncemore.parked WHERE entity = $1 AND reason = 'conflict') +
					(SELECT count(*) FROM oncemore.attempt WHERE entity = $1 AND outcome = 'disputed')`, entity)
				if noticed != 1 {
					t.Errorf("note %s was asked for in two ways, and %d of them are listed as not done so", entity, noticed)
				}
			}
		})
	}
}

func TestI8ArgumentsThatABodyChangesDoNotChangeWhatIsCompleted(t *testing.T) {
	t.Parallel()
	spoil := func(n note) {
		n.Tags[0], n.More["key"], *n.To = "spoilt", "spoilt", "spoilt"
		n.More["new"] = "spoilt"
	}
	var last tally
	fails := func(ctx context.Context, n note) error {
		if n.Tags[0] == "spoilt" || n.More["key"] == "spoilt" || *n.To == "spoilt" {
			return jobs.Permanent(errors.New("the next attempt got what the last one had changed"))
		}
		spoil(n)
		if last.add(n.Entity()) == 1 {
			return jobs.NotApplied(errTrouble)
		}
		return nil
	}
	for name, j := range map[string]jobs.Job[note]{
		"Repeatable": {Effect: jobs.Repeatable, Do: fails},
		"Once":       {Effect: jobs.Once, Do: fails},
		"DoTx":       {DoTx: func(ctx context.Context, _ pgx.Tx, n note) error { return fails(ctx, n) }},
		"Ready": {Effect: jobs.Once, Do: fails, Ready: func(ctx context.Context, n note) (bool, error) {
			n.ID = 99
			return true, nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			last = tally{}
			j.Backoff = quickly
			to := "alice"
			n := note{ID: 1, Text: "hello", Tags: []string{"a", "b"}, More: map[string]string{"key": "value"}, To: &to}
			awaitDone(t, pool, newSet(t, j), worker.Config{}, 1, n)
			if got := standing(t, pool, "1"); got[:4] != "done" {
				t.Fatal(got)
			}
			// The fact is of the arguments as they were sent: the same again are done, not a conflict.
			awaitDone(t, pool, newSet(t, j), worker.Config{}, 1, n)
			if p := count(t, pool, `SELECT count(*) FROM oncemore.parked`); p != 0 || last.of("1") != 2 {
				t.Errorf("%d parked, %d attempts: the fact has other arguments than those that were sent", p, last.of("1"))
			}
		})
	}
}

func wantParked(t testing.TB, pool *pgxpool.Pool, want ...string) {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
SELECT format('%s %s %s ×%s', reason, entity, CASE WHEN left(body, 1) = '{' THEN body::json ->> 'text' ELSE body END, times) FROM oncemore.parked ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("parked: %q, want %q", got, want)
	}
}

func TestWhatNoWorkerCanReadIsParkedOnceHoweverOftenItComes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var done tally
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }})
	memory := memqueue.New()
	q := &spoiling{Queue: memory}
	stranger := queue.Message{Type: "stranger", Items: []queue.Item{{Entity: "x", Args: []byte(`{"text":"unknown"}`)}}}
	wrong := queue.Message{Type: "letter", Items: []queue.Item{{Entity: "7", Args: []byte(`{"n":"seven"}`)}}}
	notItsOwn := queue.Message{Type: "letter", Items: []queue.Item{{Entity: "7", Args: []byte(`{"n":8}`)}}}
	garbage := queue.Message{Type: "spoilt", Items: []queue.Item{{Entity: "x", Args: []byte(`{}`)}}} // arrives as bytes that do not decode
	sendMessages(t, q, stranger, stranger, wrong, garbage, wrong, notItsOwn, garbage, garbage, pack(t, 1, 2), stranger)
	w := begin(t, pool, set, worker.Config{Queues: map[string]queue.Queue{"": q}})
	eventually(t, "all are acknowledged", func() bool { return memory.Len() == 0 })
	mustStop(t, w)
	got := map[string]int64{}
	for _, reason := range []string{"unknown_type", "undecodable"} {
		got[reason] = count(t, pool, `SELECT count(*) FROM oncemore.parked WHERE reason = $1`, reason)
	}
	if got["unknown_type"] != 1 || got["undecodable"] != 3 {
		t.Errorf("parked: %v, want one of an unknown type, and three that do not decode", got)
	}
	for body, times := range map[string]int64{`{"text":"unknown"}`: 3, `{"n":"seven"}`: 2, `{"n":8}`: 1, "no \uFFFDJSON": 3} {
		if n := count(t, pool, `SELECT coalesce((SELECT times FROM oncemore.parked WHERE body = $1), 0)`, body); n != times {
			t.Errorf("%s was seen %d times, want %d", body, n, times)
		}
	}
	if done.sum() != 2 {
		t.Errorf("done: %v, want the two good letters", done.n)
	}
}

// spoiling delivers messages of the type "spoilt" as a broker would that cannot decode them.
type spoiling struct{ queue.Queue }

func (s *spoiling) Receive(ctx context.Context, max int, types []string) ([]queue.Delivery, error) {
	ds, err := s.Queue.Receive(ctx, max, nil) // and it cannot leave types to others
	for i := range ds {
		if ds[i].Type == "spoilt" {
			ds[i].Message, ds[i].Bad = queue.Message{}, []byte("no \xffJSON")
		}
	}
	return ds, err
}

func TestOnPostgresMessagesOfOtherTypesStayForThoseWhoKnowThem(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	do := func(context.Context, letter) error { return nil }
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: do})
	enqueue(t, pgq(pool), jobs.Args(errand{"x"}), letter{1}, errand{"y"})
	state := func() int64 {
		return count(t, pool, `SELECT coalesce(sum(hashtextextended(format('%s %s %s', m.ctid, m.xmin, m), 0)) % 1000000007, 0)::bigint FROM oncemore.message m WHERE type = 'errand'`)
	}
	before := state()
	run(t, pool, set, worker.Config{}, func() bool { return standing(t, pool, "1") == "done r 1" })
	if state() != before {
		t.Error("a worker touched messages of a type that it does not know")
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.parked`); n != 0 {
		t.Errorf("%d messages were parked", n)
	}
	// Somebody who knows them takes them.
	knows := newSet(t, jobs.Job[errand]{Effect: jobs.Once, Do: func(context.Context, errand) error { return nil }})
	run(t, pool, knows, worker.Config{}, func() bool { return ask(t, pool, quiet) && standing(t, pool, "x") == "done r 1" })
}

func TestAnItemThatDoesNotDecodeIsParkedAndItsNeighboursAreDone(t *testing.T) {
	t.Parallel()
	for name, j := range map[string]jobs.Job[letter]{
		"Once":   {Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }},
		"DoTx":   {DoTx: func(context.Context, pgx.Tx, letter) error { return nil }},
		"DoMany": {DoMany: func(context.Context, pgx.Tx, []letter) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			pool := pgtest.Pool(t)
			m := pack(t, 1, 20)
			m.Items[3].Args = []byte(`[]`)
			m.Items[7].Args = []byte(`{"n":9}`)
			m.Items[11].Args = []byte(`null`)
			sendMessages(t, pgq(pool), m, m)
			run(t, pool, newSet(t, j), worker.Config{}, func() bool {
				return ask(t, pool, `SELECT count(*) = 17 AND NOT EXISTS (SELECT FROM oncemore.message) FROM oncemore.ledger`)
			})
			if n := count(t, pool, `SELECT count(*) FROM oncemore.parked WHERE reason = 'undecodable' AND times >= 2 AND entity IN ('4', '8', '12')`); n != 3 { // more often, where one message met the other's claims and came back
				t.Errorf("%d items are parked, want three, seen at least twice each", n)
			}
		})
	}
}

func TestJobsEnqueuedInADoTxExistExactlyWhenItCommits(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	q := pgqueue.New(pool, "")
	var tries, done tally
	set := newSet(t,
		jobs.Job[errand]{Policy: jobs.Policy{Backoff: quickly, Attempts: 2}, DoTx: func(ctx context.Context, tx pgx.Tx, e errand) error {
			n := tries.add(e.What)
			// Another letter at each try, to see which try it came from.
			if err := jobs.Enqueue(ctx, q.Tx(tx), letter{len(e.What)*10 + n}); err != nil {
				return err
			}
			if e.What == "never" || n == 1 {
				return errTrouble
			}
			return nil
		}},
		jobs.Job[letter]{Effect: jobs.Once, Do: func(_ context.Context, l letter) error { done.add(l.Entity()); return nil }})
	enqueue(t, q, errand{"never"}, errand{"later on"})
	run(t, pool, set, worker.Config{}, func() bool {
		return ask(t, pool, quiet) && standing(t, pool, "never") == "failed 2" && standing(t, pool, "later on") == "done t 2"
	})
	if done.sum() != 1 || done.of("82") != 1 {
		t.Errorf("letters: %v, want the one of the try that committed", done.n)
	}
}

func TestABodyMayNotEndTheTransactionThatItWasLent(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{DoTx: func(ctx context.Context, tx pgx.Tx, l letter) error {
		if l.N == 1 {
			if err := tx.Commit(ctx); err == nil {
				t.Error("Commit was not refused")
			}
		}
		if err := tx.Rollback(ctx); err == nil {
			t.Error("Rollback was not refused")
		}
		return nil
	}})
	awaitDone(t, pool, set, worker.Config{}, 2, letter{1}, letter{2})
}

func TestAPoolOfTwoConnectionsIsEnoughForSixteenSlots(t *testing.T) {
	t.Parallel()
	cfg := pgtest.Pool(t).Config()
	cfg.MaxConns = 2
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	mustExec(t, pool, `CREATE TABLE effect (n int)`)
	body := func(ctx context.Context, tx pgx.Tx, n int) error {
		_, err := tx.Exec(ctx, `INSERT INTO effect VALUES ($1)`, n)
		return err
	}
	var failed tally
	set := newSet(t,
		jobs.Job[letter]{Policy: jobs.Policy{Backoff: quickly, PackSize: 10}, DoTx: func(ctx context.Context, tx pgx.Tx, l letter) error {
			if l.N%10 == 0 && failed.add(l.Entity()) == 1 {
				return errTrouble
			}
			return body(ctx, tx, l.N)
		}},
		jobs.Job[errand]{DoMany: func(ctx context.Context, tx pgx.Tx, es []errand) error {
			for range es {
				if err := body(ctx, tx, 0); err != nil {
					return err
				}
			}
			return nil
		}},
		jobs.Job[mailing]{FanOut: func(mailing) jobs.Source {
			return jobs.SQL[letter](`SELECT n::text AS entity, n FROM generate_series(1, 300) n`)
		}})
	var errands []errand
	for n := range 100 {
		errands = append(errands, errand{fmt.Sprintf("e%d", n)})
	}
	sendMessages(t, pgq(pool), together(t, errands...))
	// Two workers, on the same two connections.
	other := begin(t, pool, set, worker.Config{Slots: 16})
	enqueue(t, pgq(pool), mailing{1}, mailing{2})
	run(t, pool, set, worker.Config{Slots: 16}, func() bool {
		return ask(t, pool, quiet) && ask(t, pool, `SELECT count(*) = 400 FROM oncemore.ledger`)
	})
	mustStop(t, other)
	if n := count(t, pool, `SELECT count(*) FROM effect`); n != 400 {
		t.Errorf("%d effects, want 400", n)
	}
}

// No producer may send so much. But a source is our own table, and nobody else brings what is in it.
func TestArgumentsOfASourceMayBeLongerThanAMessageOfAProducer(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var done tally
	set := newSet(t, jobs.Job[note]{Effect: jobs.Repeatable, Source: jobs.SQL[note](`SELECT '1' AS entity, 1 AS id, repeat('x', 70000) AS text`),
		Do: func(_ context.Context, n note) error {
			if len(n.Text) != 70000 {
				t.Errorf("the text has %d bytes", len(n.Text))
			}
			if done.add("1") == 1 {
				return errTrouble
			}
			return nil
		}, Policy: jobs.Policy{Backoff: quickly}})
	w := begin(t, pool, set, quietly(t))
	rerun(t, pool, worker.Order{Type: "note"})
	if got := awaitRun(t, pool, 1); got != "ended, complete=t, failed 0, in doubt 0, not ready 0" || done.sum() != 2 {
		t.Errorf("the run: %s, tried %d times", got, done.sum())
	}
	mustStop(t, w)
}
