package model_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A world is one database, which all stories share; each has entities and a queue of its own.
type world struct {
	pool    *pgxpool.Pool
	ledger  *ledger.Ledger
	kinds   []*kind
	judge   *ledger.Lease // declares the dead
	stories int
	count   map[string]int // what happened, in all stories
}

func newWorld(t *testing.T) *world {
	pool := pgtest.Pool(t)
	w := &world{pool: pool, ledger: ledger.New(pool), kinds: kinds(), count: map[string]int{}}
	for _, k := range w.kinds {
		if err := w.ledger.Register(t.Context(), &k.Type); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pool.Exec(t.Context(), `CREATE TABLE effect (entity text, epoch bigint)`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if w.judge != nil {
			_ = w.judge.Leave(context.Background())
		}
	})
	return w
}

// told fails a test whose stories never came to what they are about. The rarer things need
// many stories.
func (w *world) told(t *testing.T) {
	t.Logf("%d stories: %v", w.stories, w.count)
	must := []string{"completed", "declared dead", "forced", "stale"}
	if w.stories >= 100 {
		must = append(must, "in doubt", "gave up", "resolved")
	}
	if w.stories >= 300 {
		must = append(must, "took over", "disputed", "late completion that stands", "recheck")
	}
	for _, what := range must {
		if w.count[what] == 0 {
			t.Errorf("no story has %q", what)
		}
	}
}

// A machine is one story.
type machine struct {
	*world
	ctx       context.Context
	queue     string
	prefix    string
	now       time.Duration // since the story began, as far as the database can tell
	entities  []*entity
	sent      []queue.Message
	processes []*process
	shown     []*ledger.Open // to the operator, who may decide later
	fences    map[int64]bool // that were seen
	epochs    map[int64]bool // that were drawn
}

func (w *world) begin(t *rapid.T) *machine {
	w.stories++
	m := &machine{world: w, ctx: context.Background(), queue: fmt.Sprint("q", w.stories), prefix: fmt.Sprintf("%06d/", w.stories),
		fences: map[int64]bool{}, epochs: map[int64]bool{}}
	k := rapid.SampledFrom(w.kinds).Draw(t, "kind")
	for i := range rapid.IntRange(1, 3).Draw(t, "entities") {
		e := &entity{kind: k, name: fmt.Sprint(m.prefix, i), sourced: rapid.Bool().Draw(t, "sourced")}
		if e.sourced {
			e.source = 1
		}
		m.entities = append(m.entities, e)
	}
	t.Cleanup(func() {
		for _, p := range m.processes {
			_ = p.lease.Leave(m.ctx)
		}
		if _, err := w.pool.Exec(m.ctx, `DELETE FROM oncemore.message WHERE queue = $1`, m.queue); err != nil {
			t.Error(err)
		}
	})
	m.newProcess(t)
	m.newProcess(t)
	return m
}

func (m *machine) ok(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) exec(t *rapid.T, sql string, args ...any) {
	t.Helper()
	_, err := m.pool.Exec(m.ctx, sql, args...)
	m.ok(t, err)
}

// value reads one value.
func value[T any](m *machine, t *rapid.T, sql string, args ...any) (v T) {
	t.Helper()
	m.ok(t, m.pool.QueryRow(m.ctx, sql, args...).Scan(&v))
	return v
}

// pg is the story's queue, as a process sees it that has just begun: it looks everywhere.
func (m *machine) pg() *pgqueue.Queue {
	return pgqueue.New(m.pool, m.queue).WithVisibility(time.Minute)
}

// --- what producers and apps do

func (m *machine) anyEntity(t *rapid.T) *entity {
	return rapid.SampledFrom(m.entities).Draw(t, "entity")
}

func (m *machine) message(epoch int64, es ...*entity) queue.Message {
	msg := queue.Message{Type: es[0].Name, Epoch: epoch}
	for _, e := range es {
		msg.Items = append(msg.Items, queue.Item{Entity: e.name, Args: fmt.Appendf(nil, `{"source_version":%d}`, e.source)})
	}
	return msg
}

func (m *machine) send(t *rapid.T, msg queue.Message) {
	m.ok(t, m.pg().Send(m.ctx, msg))
	m.sent = append(m.sent, msg)
	for _, it := range msg.Items {
		e, w := m.read(t, msg.Epoch, it)
		e.asked = append(e.asked, want{w.Epoch, w.SourceVersion})
		if e.fact.satisfies(want{w.Epoch, w.SourceVersion}) {
			e.answered = append(e.answered, want{w.Epoch, w.SourceVersion})
		}
	}
}

// enqueue sends one message with one entity, or with all.
func (m *machine) enqueue(t *rapid.T) bool {
	if rapid.Bool().Draw(t, "pack") {
		m.send(t, m.message(0, m.entities...))
	} else {
		m.send(t, m.message(0, m.anyEntity(t)))
	}
	return true
}

// duplicate sends once more what was sent.
func (m *machine) duplicate(t *rapid.T) bool {
	if len(m.sent) == 0 {
		return false
	}
	m.send(t, rapid.SampledFrom(m.sent).Draw(t, "message"))
	return true
}

// force asks for it once more, whatever there is.
func (m *machine) force(t *rapid.T) bool {
	epoch := value[int64](m, t, `SELECT nextval('oncemore.epoch')`)
	m.epochs[epoch] = true
	m.send(t, m.message(epoch, m.anyEntity(t)))
	m.count["forced"]++
	return true
}

// change makes a newer version of a source.
func (m *machine) change(t *rapid.T) bool {
	var es []*entity
	for _, e := range m.entities {
		if e.sourced {
			es = append(es, e)
		}
	}
	if len(es) == 0 {
		return false
	}
	rapid.SampledFrom(es).Draw(t, "entity").source++
	return true
}

// adopt records what the app has done itself.
func (m *machine) adopt(t *rapid.T) bool {
	e := m.anyEntity(t)
	var fresh []bool
	m.ok(t, pgx.BeginFunc(m.ctx, m.pool, func(tx pgx.Tx) (err error) {
		fresh, err = ledger.Record(m.ctx, tx, &e.Type, ledger.Want{Entity: e.name, Fingerprint: someArgs, SourceVersion: e.source})
		return err
	}))
	if fresh[0] != (e.fact == nil) {
		t.Fatalf("%s: Record says fresh=%t, and the fact was %+v", e.name, fresh[0], e.fact)
	}
	if fresh[0] {
		e.become(fact{0, e.source})
	}
	return true
}

// --- what happens to processes

func (m *machine) join(t *rapid.T) bool {
	living := 0
	for _, p := range m.processes {
		if !p.gone && !p.dead {
			living++
		}
	}
	if living >= 3 {
		return false
	}
	m.newProcess(t)
	return true
}

var quiet = slog.New(slog.DiscardHandler)

func (m *machine) newProcess(t *rapid.T) *process {
	lease, err := m.ledger.Join(m.ctx, m.queue, time.Hour, quiet) // it does not end by itself
	m.ok(t, err)
	p := &process{machine: m, lease: lease, pg: m.pg()}
	m.processes = append(m.processes, p)
	return p
}

// pick draws one of the processes that are so; nil: there is none.
func (m *machine) pick(t *rapid.T, is func(*process) bool) *process {
	var ps []*process
	for _, p := range m.processes {
		if is(p) {
			ps = append(ps, p)
		}
	}
	if len(ps) == 0 {
		return nil
	}
	return rapid.SampledFrom(ps).Draw(t, "process")
}

// stop is a shutdown: nothing runs any more, and what has not begun is given back.
func (m *machine) stop(t *rapid.T) bool {
	p := m.pick(t, func(p *process) bool { return p.runs() && !p.dead && p.begun() == 0 })
	if p == nil {
		return false
	}
	for _, it := range p.items {
		it.end = ending{keep: true}
	}
	p.finish(t, p.items...)
	m.ok(t, p.lease.Leave(m.ctx))
	p.gone, p.dead, p.died = true, true, m.now
	return true
}

// crash is a kill -9, of a process that has something in hand.
func (m *machine) crash(t *rapid.T) bool {
	p := m.pick(t, func(p *process) bool { return !p.gone && len(p.items) > 0 })
	if p == nil {
		return false
	}
	p.gone, p.items = true, nil
	return true
}

// freeze stops a process in the middle of an attempt: a virtual machine that is moved, a
// disk that hangs.
func (m *machine) freeze(t *rapid.T) bool {
	p := m.pick(t, func(p *process) bool { return p.runs() && !p.dead && p.begun() > 0 })
	if p == nil {
		return false
	}
	p.frozen = true
	return true
}

func (m *machine) thaw(t *rapid.T) bool {
	p := m.pick(t, func(p *process) bool { return p.frozen && !p.gone })
	if p == nil {
		return false
	}
	p.frozen = false
	return true
}

// expire lets the lease of a process run out that does not renew it, and has that noticed:
// by a lease that does nothing else.
func (m *machine) expire(t *rapid.T) bool {
	p := m.pick(t, func(p *process) bool { return (p.gone || p.frozen) && !p.dead })
	if p == nil {
		return false
	}
	m.declare(t, p)
	return true
}

func (m *machine) declare(t *rapid.T, p *process) {
	m.exec(t, `UPDATE oncemore.worker SET expires = clock_timestamp() - interval '1 second' WHERE id = $1`, p.lease.ID)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if m.judge == nil || !m.judge.Alive() { // it may be late itself on a busy machine
			var err error
			m.judge, err = m.ledger.Join(m.ctx, "judge", 150*time.Millisecond, quiet)
			m.ok(t, err)
		}
		if value[bool](m, t, `SELECT dead_at IS NOT NULL FROM oncemore.worker WHERE id = $1`, p.lease.ID) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("nobody has declared worker %d dead", p.lease.ID)
		}
	}
	p.dead, p.died = true, m.now
	m.count["declared dead"]++
}

// pass lets time pass: as the database sees it, everything was some time earlier. It cannot
// pass while a living process makes an attempt that would have timed out by then.
func (m *machine) pass(t *rapid.T) bool {
	most := horizon + time.Minute
	for _, p := range m.processes {
		for _, it := range p.items {
			if p.runs() && !p.dead && it.stage != looked {
				most = min(most, it.started+timeout-m.now)
			}
		}
	}
	var ds []time.Duration
	for _, d := range []time.Duration{2 * time.Minute, settling + time.Minute, horizon + time.Minute} {
		if d <= most {
			ds = append(ds, d)
		}
	}
	if len(ds) == 0 {
		return false
	}
	d := rapid.SampledFrom(ds).Draw(t, "time")
	m.later(t, d)
	return true
}

func (m *machine) later(t *rapid.T, d time.Duration) {
	m.now += d
	b := &pgx.Batch{}
	b.Queue(`UPDATE oncemore.claim SET claimed_at = claimed_at - $1::interval, first_claimed_at = first_claimed_at - $1::interval, not_before = not_before - $1::interval WHERE starts_with(entity, $2)`, d, m.prefix)
	b.Queue(`UPDATE oncemore.message SET visible_at = visible_at - $1::interval WHERE queue = $2`, d, m.queue)
	b.Queue(`UPDATE oncemore.message_receive SET check_at = check_at - $1::interval WHERE queue = $2`, d, m.queue)
	b.Queue(`UPDATE oncemore.worker SET dead_at = dead_at - $1::interval WHERE name = $2`, d, m.queue)
	m.ok(t, m.pool.SendBatch(m.ctx, b).Close())
}

// --- what operators do

// opens lists what is open of this story.
func (m *machine) opens(t *rapid.T, trouble ledger.Trouble) (os []*ledger.Open) {
	for o, err := range m.ledger.Opens(m.ctx, &m.entities[0].Type, trouble, m.prefix, len(m.entities)) {
		m.ok(t, err)
		if strings.HasPrefix(o.Entity, m.prefix) {
			os = append(os, o)
		}
	}
	return os
}

// show lists what is open, for somebody who decides later.
func (m *machine) show(t *rapid.T) bool {
	if m.shown = m.opens(t, ledger.NoTrouble); len(m.shown) == 0 {
		return false
	}
	return true
}

// resolve says of something that was shown what the world says, in doubt or failed.
func (m *machine) resolve(t *rapid.T) bool {
	var os []*ledger.Open
	for _, o := range m.shown {
		if o.Trouble == ledger.Doubtful || o.Trouble == ledger.FailedFor || o.Abandoned() {
			os = append(os, o)
		}
	}
	if len(os) == 0 {
		return false
	}
	o := rapid.SampledFrom(os).Draw(t, "open")
	m.judgeOpen(t, o, ledger.ByOperator)
	return true
}

// recheck asks the done-check about what is in doubt.
func (m *machine) recheck(t *rapid.T) bool {
	if !m.entities[0].Checked {
		return false
	}
	os := m.opens(t, ledger.Doubtful)
	if len(os) == 0 {
		return false
	}
	for _, o := range os {
		m.judgeOpen(t, o, ledger.DoneCheck)
	}
	return true
}

// judgeOpen resolves o by what the world says now, with the message of another attempt in
// the same transaction.
func (m *machine) judgeOpen(t *rapid.T, o *ledger.Open, by ledger.Evidence) {
	e := m.entity(t, o.Entity)
	v := ledger.Verdict{Done: e.happened(o.Epoch), Evidence: by, By: "ann", Why: "the world says so"}
	if by == ledger.DoneCheck {
		v.Done = e.shows(o.Epoch, 0, m.now)
	}
	current := e.open != nil && e.open.fence == o.Fence && !o.Held()
	err := pgx.BeginFunc(m.ctx, m.pool, func(tx pgx.Tx) error {
		if err := ledger.Resolve(m.ctx, tx, &e.Type, o, v); err != nil || v.Done {
			return err
		}
		return m.pg().Tx(tx).Send(m.ctx, queue.Message{Type: e.Name, Epoch: o.Epoch, Items: []queue.Item{{Entity: o.Entity, Args: []byte(o.Args)}}})
	})
	if err != nil && !errors.Is(err, ledger.ErrChanged) {
		t.Fatal(err)
	}
	if (err == nil) != current {
		t.Fatalf("%s: it was %+v and is shown as fence %d: Resolve says %v", e.name, e.open, o.Fence, err)
	}
	if !current {
		return
	}
	m.count["resolved"]++
	if v.Done {
		e.become(fact{e.open.epoch, e.open.source})
		e.open = nil
		return
	}
	e.open.fence, e.open.owner, e.open.trouble, e.open.evidence = 0, 0, ledger.Retrying, false
}
