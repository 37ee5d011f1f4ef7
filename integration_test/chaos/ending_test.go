//go:build linux

package chaos_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A load is the work that a story sent and that must not be lost.
type load map[id]work

// message makes one message of works of one type.
func message(t *testing.T, jobType string, ws ...work) queue.Message {
	t.Helper()
	m := queue.Message{Type: jobType}
	for _, w := range ws {
		it, err := jobs.NewItem(of(jobType, w))
		if err != nil {
			t.Fatal(err)
		}
		m.Items = append(m.Items, it)
	}
	return m
}

// numbers are plain works from one number to another.
func numbers(from, to int) []work {
	var ws []work
	for n := from; n <= to; n++ {
		ws = append(ws, work{N: n})
	}
	return ws
}

// add remembers what a message asks for.
func (l load) add(t *testing.T, jobType string, ws ...work) {
	t.Helper()
	for _, w := range ws {
		l[id{jobType, w.Entity()}] = w
	}
}

// send sends works as one pack, and remembers them.
func (l load) send(t *testing.T, pool *pgxpool.Pool, jobType string, ws ...work) {
	t.Helper()
	if err := pgqueue.New(pool, "").Send(t.Context(), message(t, jobType, ws...)); err != nil {
		t.Fatal(err)
	}
	l.add(t, jobType, ws...)
}

// fanOut has a run send keyed works from one number to another.
func (l load) fanOut(t *testing.T, pool *pgxpool.Pool, from, to int) {
	t.Helper()
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, ""), mailing{from, to}); err != nil {
		t.Fatal(err)
	}
	l.add(t, "keyed", numbers(from, to)...)
}

// sendMixed sends n works of each type: half of them in packs of ten, half of them singly,
// and the packs twice, in a random order.
func (l load) sendMixed(t *testing.T, pool *pgxpool.Pool, n int, types ...string) {
	t.Helper()
	var ms []queue.Message
	for from := 1; from <= n; from += 10 {
		for _, jobType := range types {
			ws := numbers(from, min(from+9, n))
			l.add(t, jobType, ws...)
			if from <= n/2 {
				ms = append(ms, message(t, jobType, ws...), message(t, jobType, ws...))
				continue
			}
			for _, w := range ws {
				ms = append(ms, message(t, jobType, w))
			}
		}
	}
	random(t).Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	if err := pgqueue.New(pool, "").Send(t.Context(), ms...); err != nil {
		t.Fatal(err)
	}
}

// settled: nothing is on its way, held or waiting for another attempt. (A claim may lie
// beside a fact that outranks it, for as long as nobody asks for the work again: what is left
// when a worker, or its connection, breaks between the two looks of a claim.)
const settled = `
SELECT NOT EXISTS (SELECT FROM oncemore.message)
   AND NOT EXISTS (
       SELECT FROM oncemore.claim c
       WHERE c.trouble IS DISTINCT FROM 'failed' AND c.trouble IS DISTINCT FROM 'in_doubt'
         AND NOT EXISTS (SELECT FROM oncemore.ledger l WHERE l.job_type = c.job_type AND l.entity = c.entity AND coalesce(l.epoch, 0) >= c.epoch))`

// awaitSettled waits until nothing goes on.
func awaitSettled(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(ask[string](t, pool, whatIsLeft))
		}
	}()
	awaitRow(t, pool, "all work has ended", settled)
}

const whatIsLeft = `
SELECT 'left: ' || coalesce((SELECT string_agg(format(E'\nmessage %s %s of %s: lock %s, received %s, deferred %s, visible in %s', m.type, m.entities[1], cardinality(m.entities), m.lock, m.received, m.deferred, m.visible_at - clock_timestamp()), '') FROM oncemore.message m), '')
    || coalesce((SELECT string_agg(format(E'\nclaim %s %s of worker %s (dead %s): %s, %s attempts, fact %s', t.name, c.entity, c.owner, w.dead_at, c.trouble, c.attempts, l.completed_at), '')
                 FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner LEFT JOIN oncemore.job_type t ON t.id = c.job_type
                 LEFT JOIN oncemore.ledger l ON l.job_type = c.job_type AND l.entity = c.entity), '')`

// resolveDoubts does what an operator does about effects in doubt: looks at the world, and
// says what is there. It returns how many there were.
func resolveDoubts(t *testing.T, pool *pgxpool.Pool, w world) (n int) {
	t.Helper()
	effects := w.effects(t)
	for _, name := range outsideTypes {
		typ := &ledger.Type{Name: name}
		err := pool.QueryRow(t.Context(), `SELECT id FROM oncemore.job_type WHERE name = $1`, name).Scan(&typ.ID)
		if err == pgx.ErrNoRows {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		var doubts []*ledger.Open
		for o, err := range ledger.New(pool).Opens(t.Context(), typ, ledger.Doubtful, "", 10_000) {
			if err != nil {
				t.Fatal(err)
			}
			doubts = append(doubts, o)
		}
		for _, o := range doubts {
			n++
			happened := len(effects[id{name, o.Entity}]) > 0
			verdict := ledger.Verdict{Done: happened, Evidence: ledger.ByOperator, By: "the test", Why: "the world's log"}
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if err := ledger.Resolve(t.Context(), tx, typ, o, verdict); err != nil || happened {
					return err
				}
				return pgqueue.New(pool, "").Tx(tx).Send(t.Context(), queue.Message{Type: name, Items: []queue.Item{{Entity: o.Entity, Args: []byte(o.Args)}}})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// checkEnd compares the ledger with what was sent and with the world, when all has ended:
// everything is done once, and effects were repeated as far as their class allows.
func checkEnd(t *testing.T, pool *pgxpool.Pool, w world, l load) {
	t.Helper()
	done := facts(t, pool)
	effects := w.effects(t)
	lost := 0
	for thing := range l {
		if !done[thing] {
			lost++
			t.Errorf("%s %s was sent and is not done: %s", thing.Type, thing.Entity, standing(t, pool, thing))
		}
	}
	inside := insideEffects(t, pool)
	twice, missing := map[string]int{}, map[string]int{}
	for thing := range done {
		switch n := len(effects[thing]); thing.Type {
		case "mailing":
		case "in_tx", "many":
			if inside[thing] != 1 {
				t.Errorf("%s %s has %d effects in the transaction of its fact, want 1", thing.Type, thing.Entity, inside[thing])
			}
		case "once", "verifiable":
			if n != 1 {
				t.Errorf("%s %s has %d effects, want 1", thing.Type, thing.Entity, n)
			}
		default:
			if n == 0 {
				missing[thing.Type]++
				t.Errorf("%s %s is done, and has no effect", thing.Type, thing.Entity)
			}
			if n > 1 {
				twice[thing.Type]++
			}
			if thing.Type == "keyed" && n > 1 && keys(effects[thing]) != 1 {
				t.Errorf("keyed %s has %d effects under %d keys: a provider would have had it twice", thing.Entity, n, keys(effects[thing]))
			}
		}
	}
	t.Logf("%d sent, %d done, %d lost; repeated as their class allows: %v", len(l), len(done), lost, twice)
	for thing, n := range inside {
		if !done[thing] {
			t.Errorf("%s %s has %d effects in a transaction, and no fact", thing.Type, thing.Entity, n)
		}
	}
}

func keys(es []event) int {
	ks := map[string]bool{}
	for _, e := range es {
		ks[e.Key] = true
	}
	return len(ks)
}

// facts are what is done.
func facts(t *testing.T, pool *pgxpool.Pool) map[id]bool {
	t.Helper()
	return collect(t, pool, `SELECT t.name, l.entity, true FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type`, map[id]bool{})
}

// insideEffects counts the effects that were had inside transactions.
func insideEffects(t *testing.T, pool *pgxpool.Pool) map[id]int {
	t.Helper()
	return collect(t, pool, `SELECT type, entity, count(*)::int FROM effect GROUP BY 1, 2`, map[id]int{})
}

func collect[V any](t *testing.T, pool *pgxpool.Pool, query string, into map[id]V) map[id]V {
	t.Helper()
	rows, err := pool.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	var key id
	var v V
	if _, err := pgx.ForEachRow(rows, []any{&key.Type, &key.Entity, &v}, func() error { into[key] = v; return nil }); err != nil {
		t.Fatal(err)
	}
	return into
}

// standing is where an entity is: "done r 2" (the evidence and the attempts), "failed 3"
// (the trouble and the attempts), "held 1" or "missing".
func standing(t *testing.T, pool *pgxpool.Pool, thing id) string {
	t.Helper()
	return ask[string](t, pool, `
SELECT coalesce((SELECT 'done ' || l.evidence::text || ' ' || l.attempts FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = $1 AND l.entity = $2),
                (SELECT coalesce(c.trouble, 'held') || ' ' || c.attempts FROM oncemore.claim c JOIN oncemore.job_type t ON t.id = c.job_type WHERE t.name = $1 AND c.entity = $2), 'missing')`,
		thing.Type, thing.Entity)
}

// attempts counts the recorded attempts with an outcome.
func attempts(t *testing.T, pool *pgxpool.Pool, jobType, outcome string) int {
	t.Helper()
	return ask[int](t, pool, `SELECT count(*) FROM oncemore.attempt a JOIN oncemore.job_type t ON t.id = a.job_type WHERE t.name = $1 AND a.outcome = $2`, jobType, outcome)
}

func stopAll(t *testing.T, ps ...*process) {
	t.Helper()
	for _, p := range ps {
		p.stop(t)
	}
}
