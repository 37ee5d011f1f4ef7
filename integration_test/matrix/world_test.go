package matrix_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// Short, so that takeovers are soon.
const (
	lease      = 1500 * time.Millisecond
	visibility = time.Second
)

// A world is one run of a scenario, with a database to itself.
type world struct {
	testing.TB
	*scenario
	*database
	sqs    *sqsfake.Fake // nil on Postgres
	writer *pgxpool.Pool // of the producer, behind its own proxy
	sender queue.Sender  // the same's
	sent   []queue.Message

	producing, working *tap // what the producer and the victim write
	quiet              *tap // strikes at nothing: the way of everybody else to SQS

	victim *run // the worker behind the proxy
	mu     sync.Mutex
	second *run            // another one, once it is needed
	struck []point         // what the fault has befallen; known at the end
	held   map[string]bool // what the victim still held when it was gone, by entity
}

// newWorld prepares a run, in an empty database, in which hit strikes.
func newWorld(t testing.TB, d *database, s *scenario, hit strike) *world {
	t.Helper()
	w := &world{TB: t, scenario: s, database: d}
	if s.prepare != "" {
		w.exec(s.prepare)
	}
	var err error
	if name := s.over.queue(); name != "" {
		w.sqs = sqsfake.New()
		t.Cleanup(w.sqs.Close)
		if _, err = w.sqs.CreateQueue(name, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.producing, w.working = w.newTap(hit.when(hit.target.role == producer)), w.newTap(hit.when(hit.target.role == victim))
	w.quiet = w.newTap(strike{})
	if w.writer, err = openPool(w.producing.proxy.DSN(), "producer", 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.writer.Close)
	w.sender = w.open(w.producing, w.writer)
	return w
}

func openPool(dsn, name string, conns int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	config.MaxConns = conns
	config.ConnConfig.RuntimeParams["application_name"] = name
	config.ConnConfig.RuntimeParams["jit"] = "off" // the tables are small, and the planner does not know
	return pgxpool.NewWithConfig(context.Background(), config)
}

func (w *world) exec(sql string) {
	w.Helper()
	if _, err := w.pool.Exec(context.Background(), sql); err != nil {
		w.Fatal(err)
	}
}

func ask[T any](w *world, sql string, args ...any) (v T) {
	w.Helper()
	if err := w.pool.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		w.Fatalf("%v, asking %s", err, sql)
	}
	return v
}

// send sends as a producer does: again, until it is told that it worked.
func (w *world) send(ms ...queue.Message) {
	w.Helper()
	for try := 1; ; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := w.sender.Send(ctx, ms...)
		cancel()
		if err == nil {
			break
		}
		if try == 20 {
			w.Fatalf("after %d tries: %v", try, err)
		}
	}
	w.sent = append(w.sent, ms...)
}

// open opens the queue for sending.
func (w *world) open(by *tap, pool *pgxpool.Pool) queue.Sender {
	w.Helper()
	q, _, err := openQueue(context.Background(), by.address(), pool)
	if err != nil {
		w.Fatal(err)
	}
	return q
}

// await waits until a query is true.
func (w *world) await(what, sql string) {
	w.Helper()
	if !w.eventually(what, sql) {
		w.FailNow()
	}
}

// patience is much more than anything takes, also on a busy machine: what a living worker
// has is put off for twice as long each time.
const patience = 3 * time.Minute

// eventually is await for other goroutines than the test's own: it tells whether it came.
func (w *world) eventually(what, sql string) bool {
	w.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(25 * time.Millisecond) {
		var is bool
		err := w.pool.QueryRow(context.Background(), sql).Scan(&is)
		switch {
		case err != nil:
			w.Errorf("%v, asking %s", err, sql)
			return false
		case is:
			return true
		case w.Failed():
			return false // perhaps nobody is left who would do it
		case time.Now().After(end):
			w.Errorf("after %v: not yet: %s\n%s", patience, what, w.story())
			return false
		}
	}
}

// settle waits for the end: nothing is on its way or held, and nothing waits.
func (w *world) settle() {
	w.Helper()
	w.emptied()
	w.await("everything is settled", `SELECT NOT EXISTS (SELECT FROM oncemore.message)
AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE (owner IS NOT NULL OR trouble = 'retrying') AND NOT `+outranked+`)
AND NOT EXISTS (SELECT FROM oncemore.run WHERE ended_at IS NULL)`)
	if w.done != "" {
		w.await("the end of the scenario", w.done)
	}
}

// story is what the tables say, for a failure.
func (w *world) story() string {
	return ask[string](w, `
SELECT concat_ws(E'\n',
  (SELECT 'messages: ' || string_agg(to_jsonb(m)::text, E'\n  ') FROM oncemore.message m),
  (SELECT 'claims: ' || string_agg(to_jsonb(c)::text, E'\n  ') FROM oncemore.claim c),
  (SELECT 'facts: ' || string_agg(to_jsonb(l)::text, E'\n  ') FROM oncemore.ledger l),
  (SELECT 'history: ' || string_agg(to_jsonb(l)::text, E'\n  ') FROM oncemore.ledger_history l),
  (SELECT 'attempts: ' || string_agg(to_jsonb(a)::text, E'\n  ') FROM oncemore.attempt a),
  (SELECT 'runs: ' || string_agg(to_jsonb(r)::text, E'\n  ') FROM oncemore.run r),
  (SELECT 'ticks: ' || string_agg(to_jsonb(k)::text, E'\n  ') FROM oncemore.schedule_tick k),
  (SELECT 'schedules: ' || string_agg(to_jsonb(s)::text, E'\n  ') FROM oncemore.schedule s),
  (SELECT 'parked: ' || string_agg(to_jsonb(p)::text, E'\n  ') FROM oncemore.parked p),
  (SELECT 'workers: ' || string_agg(to_jsonb(o)::text, E'\n  ') FROM oncemore.worker o),
  (SELECT 'effects outside: ' || string_agg(to_jsonb(o)::text, E'\n  ') FROM outside o),
  (SELECT 'effects inside: ' || string_agg(to_jsonb(o)::text, E'\n  ') FROM inside o))`)
}

// play runs the scenario to its end, with whatever befalls its worker.
func (w *world) play(hit strike) {
	w.Helper()
	w.send(w.sends...)
	if hit.fault.kills() {
		w.victim = w.inOwnProcess(w.working.proxy.DSN(), w.working.address())
		w.working.pid <- w.victim.pid
	} else {
		w.victim = w.inProcess("victim", w.working.proxy.DSN(), w.working.address())
	}
	over := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-w.working.came:
			w.takeOver(hit.fault)
		case <-over:
		}
	})
	for _, s := range w.steps {
		w.await("a step", s.until)
		s.take(w)
	}
	w.settle()
	if w.hasSecond() {
		w.victim.stop()
		w.settle()
	}
	w.skipAgain()
	w.victim.stop()
	close(over)
	watching.Wait()
	if w.hasSecond() {
		w.settle() // the stop itself may have been struck
		w.second.stop()
	}
	w.await("its sessions have ended", sessionsEnded)
	if hit.target.role == producer {
		w.struck = w.producing.hits()
	} else {
		w.struck = w.working.hits()
	}
}

const sessionsEnded = `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'victim')`

func (w *world) hasSecond() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.second != nil
}

// takeOver starts another worker when the fault has befallen the victim, where the victim
// is not to cope with it alone.
func (w *world) takeOver(f fault) {
	if f.kills() {
		<-w.victim.ended
		if !w.eventually("the sessions of the dead have ended", sessionsEnded) {
			return
		}
		w.noteHeld()
	}
	if f != lost && f != reportedLost {
		w.startSecond()
	}
}

// noteHeld notes what the victim holds now that it is gone, beside what it was noted to hold.
func (w *world) noteHeld() {
	held, err := w.heldClaims()
	if err != nil {
		w.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = map[string]bool{}
	}
	maps.Copy(w.held, held)
}

// resolve ends all doubts as an operator does who knows how to find out.
func (w *world) resolve() {
	w.Helper()
	ctx := context.Background()
	t := &ledger.Type{Name: "once", Effect: ledger.Once}
	l := ledger.New(w.pool)
	if err := l.Register(ctx, t); err != nil {
		w.Fatal(err)
	}
	for o, err := range l.Opens(ctx, t, ledger.Doubtful, "", 10) {
		if err != nil {
			w.Fatal(err)
		}
		done := ask[bool](w, `SELECT EXISTS (SELECT FROM outside WHERE entity = $1)`, o.Entity)
		err := pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
			err := ledger.Resolve(ctx, tx, t, o, ledger.Verdict{Done: done, Evidence: ledger.ByOperator, By: "the operator", Why: "asked"})
			if err != nil || done {
				return err
			}
			m := queue.Message{Type: t.Name, Items: []queue.Item{{Entity: o.Entity, Args: []byte(o.Args)}}}
			return pgqueue.New(w.pool, "").Tx(tx).Send(ctx, m)
		})
		if err != nil && !errors.Is(err, ledger.ErrChanged) {
			w.Fatal(err)
		}
	}
}

// heldClaims are the entities that the victim holds.
func (w *world) heldClaims() (map[string]bool, error) {
	rows, err := w.pool.Query(context.Background(), `SELECT c.entity FROM oncemore.claim c JOIN oncemore.worker w ON w.id = c.owner WHERE w.name = 'victim'`)
	if err != nil {
		return nil, err
	}
	held := map[string]bool{}
	var entity string
	_, err = pgx.ForEachRow(rows, []any{&entity}, func() error { held[entity] = true; return nil })
	return held, err
}

// skipAgain sends all that was sent once more, and sees that nothing is written for it (I5),
// but that a claim which its fact outranks may be swept, as it may at any time.
func (w *world) skipAgain() {
	w.Helper()
	const rows = `SELECT concat_ws(' | ', (SELECT string_agg(concat_ws(' ', l.xmin, l.ctid, l), E'\n' ORDER BY l.entity) FROM oncemore.ledger l),
(SELECT string_agg(concat_ws(' ', c.xmin, c.ctid, c), E'\n' ORDER BY c.entity) FROM oncemore.claim c WHERE NOT ` + outranked + `))`
	before := ask[string](w, rows)
	var again []queue.Message
	for _, m := range w.sent {
		if !strings.HasPrefix(m.Type, "call ") { // which plans anew
			again = append(again, m)
		}
	}
	if len(again) == 0 {
		return
	}
	if err := w.open(w.quiet, w.pool).Send(context.Background(), again...); err != nil {
		w.Fatal(err)
	}
	w.emptied()
	w.await("the duplicates are skipped", `SELECT NOT EXISTS (SELECT FROM oncemore.message)`)
	if after := ask[string](w, rows); after != before {
		w.Errorf("I5: something was written for deliveries of settled work\nbefore %s\nafter  %s", before, after)
	}
}
