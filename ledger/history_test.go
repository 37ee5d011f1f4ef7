package ledger_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Workers do at random whatever a ledger lets them do to a few entities, all at once, on a
// real database, and write down when each call began, when it returned and what it said.
// Then porcupine looks for one order of all the calls, each at some moment between its
// beginning and its return, in which a ledger that does one thing at a time would have said
// the same (spec, in history_spec_test.go). When there is none, somebody was told what was
// not true.
//
// ONCEMORE_SEED=n has the workers make the choices of an earlier run; how they meet is up
// to the machine. ONCEMORE_FULL=1 makes many histories more.

func TestConcurrentHistoriesHaveAnOrder(t *testing.T) {
	histories := 6
	if os.Getenv("ONCEMORE_FULL") == "1" {
		histories = 400
	}
	s := seed(t)
	w, lossy, lose := lossyWorld(t)
	total, seen, fences := 0, map[string]int{}, map[int64]bool{}
	for n := range histories {
		h := &history{world: w, lossy: lossy, lose: lose, random: rand.New(rand.NewPCG(s, uint64(n)))}
		ops := h.run(fmt.Sprint("h", n))
		if !linearizable(t, ops) {
			t.Fatalf("history %d of ONCEMORE_SEED=%d has no order", n, s)
		}
		total += len(ops)
		for _, op := range ops {
			c, r := op.Input.(call), op.Output.(reply)
			seen[fmt.Sprintf("%s %s", c.do, r.kind())]++
			if r.yes && r.fence != 0 {
				if fences[r.fence] {
					t.Errorf("fence %d was given out twice", r.fence)
				}
				fences[r.fence] = true
			}
		}
	}
	t.Logf("%d calls: %v", total, seen)
	// What never happened was not tested.
	for _, must := range []string{"look done", "look open", "claim yes", "claim no", "take over yes", "complete yes", "complete no", "complete unknown",
		"keep open yes", "keep open no", "first fact yes", "first fact no", "resolve yes", "hold yes", "die yes"} {
		if seen[must] == 0 {
			t.Errorf("no call was %q", must)
		}
	}
}

// seed is that of the environment, or a new one; it is printed, so that it can be given.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64() >> 1
	if env := os.Getenv("ONCEMORE_SEED"); env != "" {
		var err error
		if s, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("ONCEMORE_SEED: %v", err)
		}
	}
	t.Logf("ONCEMORE_SEED=%d", s)
	return s
}

// lossyWorld is a world, and the same one over a connection that loses an answer after
// each call of lose. Nothing is prepared there, so that the answer is that to the commit.
func lossyWorld(t *testing.T) (w, lossy *world, lose func()) {
	w = newWorld(t, ledger.Repeatable)
	armed := &atomic.Bool{}
	cfg := w.pool.Config()
	cfg.MaxConns = 1
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return deafConn{c, armed}, err
	}
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // its answer is not the one to lose
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	w.ok(err)
	t.Cleanup(pool.Close)
	return w, worldOn(t, pool, ledger.Repeatable), func() { armed.Store(true) }
}

// linearizable tells whether there is an order. When there is none it leaves a drawing.
func linearizable(t *testing.T, ops []porcupine.Operation) bool {
	t.Helper()
	result, info := porcupine.CheckOperationsVerbose(spec, ops, time.Minute)
	switch result {
	case porcupine.Ok:
		return true
	case porcupine.Unknown:
		t.Errorf("a history of %d calls could not be checked in a minute", len(ops))
	default:
		for i, part := range spec.Partition(ops) {
			if orders := info.PartialLinearizationsOperations()[i]; len(orders) > 0 {
				explain(t, part, slices.MaxFunc(orders, func(a, b []porcupine.Operation) int { return len(a) - len(b) }))
			}
		}
		drawing := filepath.Join(t.ArtifactDir(), "history.html")
		if err := porcupine.VisualizePath(spec, info, drawing); err != nil {
			t.Error(err)
		}
		t.Logf("drawn in %s (kept with go test -artifacts)", drawing)
	}
	return false
}

// explain prints the longest order that could be found, and what does not fit behind it.
func explain(t *testing.T, all, order []porcupine.Operation) {
	t.Helper()
	if len(order) == len(all) {
		return
	}
	used := map[porcupine.Operation]int{}
	state := spec.Init()
	for _, op := range order {
		used[op]++
		_, state = spec.Step(state, op.Input, op.Output)
		t.Logf("%8.3f-%.3f ms by %d: %s\n\t\t%s", ms(op.Call), ms(op.Return), op.ClientId, spec.DescribeOperation(op.Input, op.Output), spec.DescribeState(state))
	}
	t.Logf("%s: %d of %d calls have an order, whose end is above; then none of these fits:", all[0].Input.(call).entity, len(order), len(all))
	slices.SortFunc(all, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	most := 20
	for _, op := range all {
		if used[op]--; used[op] < 0 && most > 0 {
			most--
			t.Logf("%8.3f-%.3f ms by %d: %s", ms(op.Call), ms(op.Return), op.ClientId, spec.DescribeOperation(op.Input, op.Output))
		}
	}
}

func ms(at int64) float64 { return float64(at) / 1e6 }

// A history is one round of workers and what they were told.
type history struct {
	*world // its methods that may end the test are for the test's own goroutine
	lossy  *world
	lose   func()
	random *rand.Rand
	start  time.Time
	names  []string       // of the entities
	forced []atomic.Int64 // the highest epoch that was asked for, by entity
	ids    atomic.Int64   // of workers: small numbers, for the specification

	mu     sync.Mutex
	ops    []porcupine.Operation
	failed error
}

const (
	historyActors   = 5
	historyEntities = 4
	historySteps    = 40
)

func (h *history) run(name string) []porcupine.Operation {
	h.start = time.Now()
	h.forced = make([]atomic.Int64, historyEntities)
	for i := range historyEntities {
		h.names = append(h.names, fmt.Sprint(name, "/", i))
	}
	var actors sync.WaitGroup
	for i := range historyActors {
		a := &actor{history: h, client: i, random: rand.New(rand.NewPCG(h.random.Uint64(), uint64(i)))}
		a.join()
		actors.Go(func() {
			for range historySteps {
				if err := a.step(); err != nil {
					h.mu.Lock()
					h.failed = cmp.Or(h.failed, err)
					h.mu.Unlock()
					return
				}
			}
		})
	}
	actors.Wait()
	h.ok(h.failed)
	return h.ops
}

// now is a moment of the history.
func (h *history) now() int64 { return int64(time.Since(h.start)) }

// note writes down a call that began at the given moment, for each of its entities. What
// it said of it may be unknown: then it may have happened at any time since.
func (h *history) note(client int, began int64, c call, r reply) {
	end := h.now()
	if r.unknown {
		end = 1 << 60
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: c, Output: r, Call: began, Return: end})
}

// An actor is one worker after the other: when it dies, what it held it still tries to end.
type actor struct {
	*history
	client int
	random *rand.Rand
	number int // of the worker in the specification
	worker int64
	held   []holding
}

type holding struct {
	worker int64
	want   ledger.Want
	claim  ledger.Claim
}

func (a *actor) join() {
	a.number = int(a.ids.Add(1))
	a.worker = a.world.worker()
}

func (a *actor) chance(percent int) bool { return a.random.IntN(100) < percent }

func (a *actor) step() error {
	switch n := a.random.IntN(100); {
	case n < 3:
		return a.die()
	case n < 12:
		return a.first(plain(a.names[a.random.IntN(len(a.names))])) // as the app does, without a look
	case n < 65 && len(a.held) > 0:
		i := a.random.IntN(len(a.held))
		h := a.held[i]
		if !a.chance(15) { // now and then somebody reports twice
			a.held = slices.Delete(a.held, i, i+1)
		}
		return a.end(h)
	default:
		return a.set()
	}
}

// die declares this worker dead, as somebody else would, and goes on as another one.
func (a *actor) die() error {
	if a.ids.Load() > 55 {
		return nil // the specification counts up to 63
	}
	began := a.now()
	if _, err := a.pool.Exec(a.Context(), `UPDATE oncemore.worker SET dead_at = clock_timestamp() WHERE id = $1`, a.worker); err != nil {
		return err
	}
	for _, name := range a.names {
		a.note(a.client, began, call{entity: name, do: "die", worker: a.number}, reply{yes: true})
	}
	a.number = int(a.ids.Add(1))
	return a.pool.QueryRow(a.Context(), `INSERT INTO oncemore.worker (name, expires) VALUES ('w', clock_timestamp() + interval '1 day') RETURNING id`).Scan(&a.worker)
}

// set looks at one to three entities at once, and sets out on what is to run.
func (a *actor) set() error {
	var wants []ledger.Want
	for _, i := range a.random.Perm(len(a.names))[:1+a.random.IntN(len(a.names))] {
		if a.chance(25) {
			a.forced[i].Add(1)
		}
		epoch := a.forced[i].Load()
		if a.chance(15) {
			epoch = 0
		}
		wants = append(wants, forced(a.names[i], epoch))
	}
	began := a.now()
	standings, err := a.Look(a.Context(), a.kind, wants)
	if err != nil {
		return err
	}
	var candidates []ledger.Candidate
	for i, st := range standings {
		a.noteLook(began, wants[i], st)
		c := ledger.Candidate{Want: wants[i], Standing: st, Args: `{}`}
		switch o := st.Open; {
		case st.Sweep:
			err = a.sweep(o)
		case st.Reason == ledger.Missing && o == nil && wants[i].Epoch == 0 && a.chance(40):
			err = a.first(wants[i])
		case o != nil && !o.Held() && st.Reason != ledger.Done && (!st.Reason.Run() || a.chance(15)):
			err = a.resolve(o)
		case st.Reason.Run():
			candidates = append(candidates, c)
		}
		if err != nil {
			return err
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	return a.claim(candidates)
}

func (a *actor) noteLook(began int64, w ledger.Want, st ledger.Standing) {
	r := reply{done: st.Reason == ledger.Done}
	if !r.done && st.Open != nil {
		r.fence, r.epoch = st.Open.Fence, st.Open.Epoch
	}
	a.note(a.client, began, call{entity: w.Entity, do: "look", epoch: w.Epoch}, r)
}

// ledgerOf is the ledger to use for one call: now and then one that loses the answer.
func (a *actor) ledgerOf() (l *ledger.Ledger, loses bool) {
	if !a.chance(10) {
		return a.world.Ledger, false
	}
	a.lose()
	return a.lossy.Ledger, true
}

func (a *actor) claim(cs []ledger.Candidate) error {
	began := a.now()
	l, loses := a.ledgerOf()
	claims, err := l.Claim(a.Context(), a.kind, a.worker, cs)
	if err != nil && !loses {
		return err
	}
	for i, c := range cs {
		in := call{entity: c.Entity, do: "claim", worker: a.number, epoch: c.Epoch}
		if c.Open != nil {
			in.do, in.fence = "take over", c.Open.Fence
		}
		if err != nil {
			r := reply{unknown: true}
			if c.Open != nil {
				r.epoch = c.Open.Epoch // which a takeover keeps, if it is the higher one
			}
			a.note(a.client, began, in, r)
			continue
		}
		a.note(a.client, began, in, reply{yes: claims[i].Won, fence: claims[i].Fence, epoch: claims[i].Epoch})
		if claims[i].Won {
			a.note(a.client, began, call{entity: c.Entity, do: "claim looks"}, reply{yes: true, epoch: claims[i].Epoch})
			a.held = append(a.held, holding{a.worker, c.Want, claims[i]})
		}
	}
	if err != nil {
		return a.die() // else nobody ever gets what it may have claimed
	}
	return nil
}

// end ends an attempt: in a transaction of its effect, or by a settlement.
func (a *actor) end(h holding) error {
	o := ended(h.want, h.claim, ledger.Completed)
	if a.chance(25) {
		return a.hold(o)
	}
	in := call{entity: h.want.Entity, do: "complete", fence: o.Fence, epoch: o.Epoch}
	if a.chance(40) {
		in.do = "keep open"
		o = failed(h.want, h.claim, []ledger.State{ledger.ToRetry, ledger.GaveUp, ledger.Unclear, ledger.Unclear, ledger.Returned}[a.random.IntN(5)])
	}
	began := a.now()
	l, loses := a.ledgerOf()
	settle := func() error {
		return l.RunBatch(a.Context(), func(b *pgx.Batch) { o.Refused = false; ledger.Settle(b, a.kind, h.worker, []*ledger.Outcome{o}) })
	}
	err := settle()
	if ledger.IsTaken(err) { // a fact is there already: it failed whole
		o.Again = true
		err = settle()
	}
	if err != nil && !loses {
		return err
	}
	a.note(a.client, began, in, reply{yes: !o.Refused, unknown: err != nil})
	return nil
}

// hold completes in a transaction, which is rolled back where the work is not its own, and
// sometimes where it is.
func (a *actor) hold(o *ledger.Outcome) error {
	began := a.now()
	tx, err := a.pool.Begin(a.Context())
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(a.Context())) }()
	mine, err := ledger.Hold(a.Context(), tx, a.kind, 20*time.Millisecond, []*ledger.Outcome{o})
	if errors.Is(err, ledger.ErrBusy) {
		return nil // nothing was said, and nothing was done
	}
	if err != nil {
		return err
	}
	if mine[0] && a.chance(30) {
		return nil
	}
	if mine[0] {
		if err := tx.Commit(a.Context()); err != nil {
			return err
		}
	}
	a.note(a.client, began, call{entity: o.Entity, do: "hold", fence: o.Fence, epoch: o.Epoch}, reply{yes: mine[0]})
	return nil
}

// first ends a first delivery without a claim.
func (a *actor) first(w ledger.Want) error {
	began := a.now()
	if a.chance(30) {
		o := failed(w, claimless, ledger.ToRetry)
		err := a.RunBatch(a.Context(), func(b *pgx.Batch) { ledger.Settle(b, a.kind, a.worker, []*ledger.Outcome{o}) })
		if err == nil {
			a.note(a.client, began, call{entity: w.Entity, do: "first failure"}, reply{})
		}
		return err
	}
	in := call{entity: w.Entity, do: "first fact"}
	if a.chance(50) {
		var fresh []bool
		err := pgx.BeginFunc(a.Context(), a.pool, func(tx pgx.Tx) (err error) {
			fresh, err = ledger.Record(a.Context(), tx, a.kind, w)
			return err
		})
		if err == nil {
			a.note(a.client, began, in, reply{yes: fresh[0]})
		}
		return err
	}
	o := completed(w, claimless)
	err := a.RunBatch(a.Context(), func(b *pgx.Batch) { ledger.Settle(b, a.kind, a.worker, []*ledger.Outcome{o}) })
	if err != nil && !ledger.IsTaken(err) {
		return err
	}
	a.note(a.client, began, in, reply{yes: err == nil})
	return nil
}

func (a *actor) sweep(o *ledger.Open) error {
	began := a.now()
	err := a.Sweep(a.Context(), a.kind, []*ledger.Open{o})
	if err == nil {
		a.note(a.client, began, call{entity: o.Entity, do: "sweep", fence: o.Fence}, reply{})
	}
	return err
}

func (a *actor) resolve(o *ledger.Open) error {
	v := ledger.Verdict{Done: a.chance(30), Evidence: ledger.ByOperator, By: "ann"}
	in := call{entity: o.Entity, do: "resolve", fence: o.Fence, epoch: o.Epoch}
	if !v.Done {
		in.do = "deny"
	}
	began := a.now()
	err := a.world.resolve(o, v)
	if err != nil && !errors.Is(err, ledger.ErrChanged) {
		return err
	}
	a.note(a.client, began, in, reply{yes: err == nil})
	return nil
}

// A claim commits after its second look. In between the app may record the same work as done, and
// somebody may see that before he sees the claim. The app's fact stands, and what the claim's holder
// completes only removes it: as if the app had come a moment later.
func TestAFirstFactMayComeBetweenTheSecondLookOfAClaimAndItsCommit(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	worker, h := w.worker(), &history{world: w, start: time.Now()}
	w.exec(`CREATE FUNCTION commit_late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END'`)
	w.exec(`CREATE CONSTRAINT TRIGGER late AFTER INSERT ON oncemore.claim DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION commit_late()`)
	claimed := make(chan ledger.Claim, 1)
	missing, began := w.look(plain("e")), h.now()
	go func() { claimed <- w.claimAs(worker, plain("e"), missing) }()
	w.await("the claim is about to commit", func() bool {
		return value[bool](w, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')`)
	})
	at := h.now()
	var fresh []bool
	w.in(func(tx pgx.Tx) {
		var err error
		fresh, err = ledger.Record(t.Context(), tx, w.kind, plain("e"))
		w.ok(err)
	})
	h.note(1, at, call{entity: "e", do: "first fact"}, reply{yes: fresh[0]})
	at = h.now()
	st := w.look(forced("e", 3))
	w.want("C sees no claim", st.Open == nil && st.Fact != nil, true)
	h.note(2, at, call{entity: "e", do: "look", epoch: 3}, reply{})
	c := <-claimed
	w.want("A has it", c.Won, true)
	for _, do := range []string{"claim", "claim looks"} {
		h.note(3, began, call{entity: "e", do: do, worker: 1}, reply{yes: true, fence: c.Fence, epoch: c.Epoch})
	}
	at = h.now()
	o := completed(plain("e"), c)
	o.Again = true // a fact is there
	w.settle(worker, o)
	h.note(3, at, call{entity: "e", do: "complete", fence: c.Fence}, reply{yes: !o.Refused})
	w.want("facts, claims", fmt.Sprint(w.facts(), " ", w.opens()), "1 0")
	if !linearizable(t, h.ops) {
		t.Error("the specification does not know of it")
	}
}
