package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Every order in which the statements of two transactions can reach the server is played,
// on rows of its own. Who waits for a lock is passed over until it is free.

// A pacedTx makes each statement wait for its turn.
type pacedTx struct {
	pgx.Tx
	*racer
}

func (p pacedTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	p.begin(ctx)
	defer p.end(ctx)
	return p.Tx.Exec(ctx, sql, args...)
}

func (p pacedTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return pacedRow{p, ctx, func() pgx.Row { return p.Tx.QueryRow(ctx, sql, args...) }}
}

func (p pacedTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	p.begin(ctx)
	return pacedBatch{p.Tx.SendBatch(ctx, b), p, ctx}
}

type pacedBatch struct {
	pgx.BatchResults
	p   pacedTx
	ctx context.Context
}

func (b pacedBatch) Close() error {
	defer b.p.end(b.ctx)
	return b.BatchResults.Close()
}

type pacedRow struct {
	p   pacedTx
	ctx context.Context
	row func() pgx.Row
}

func (r pacedRow) Scan(into ...any) error {
	r.p.begin(r.ctx)
	defer r.p.end(r.ctx)
	return r.row().Scan(into...)
}

// A racer is one transaction on its way.
type racer struct {
	tr      ledger.Transition
	commits bool // else its process dies where it would commit
	pid     uint32
	turn    chan struct{}
	over    chan struct{} // a statement was answered
	ended   chan struct{}
	waits   bool // it has its turn, and waits for a lock
	gone    bool

	applied  bool // what it was told, and committed
	conflict bool
	err      error // any other; read when ended is closed
}

// begin waits for the turn, or the end of the test.
func (r *racer) begin(ctx context.Context) {
	select {
	case <-r.turn:
	case <-ctx.Done():
	}
}

func (r *racer) end(ctx context.Context) {
	select {
	case r.over <- struct{}{}:
	case <-ctx.Done():
	}
}

func (r *racer) run(ctx context.Context, pool *pgxpool.Pool, begun chan<- error) {
	defer close(r.ended)
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	begun <- err
	if err != nil {
		return
	}
	r.pid = tx.Conn().PgConn().PID()
	applied, err := applyIn(ctx, pacedTx{tx, r}, r.tr)
	r.begin(ctx)
	_, r.conflict = errors.AsType[*ledger.ConflictError](err)
	switch {
	case err != nil:
		_ = tx.Rollback(ctx)
	case !r.commits:
		_ = tx.Conn().Close(ctx) // as the kernel does for the dead
		_ = tx.Rollback(ctx)     // lets go of what is left of it here
	default:
		err = tx.Commit(ctx)
		r.applied = applied && err == nil
	}
	if err != nil && !r.conflict {
		r.err = err
	}
}

// play runs two racers in an order: choices says at each point where both could go on who
// does; behind its end it is always the first. It returns the choices that there were.
func (w *world) play(rs [2]*racer, choices []int) (made []int) {
	w.Helper()
	for _, r := range rs {
		r.turn, r.over, r.ended = make(chan struct{}), make(chan struct{}), make(chan struct{})
		begun := make(chan error)
		go r.run(w.Context(), w.pool, begun)
		w.ok(<-begun)
	}
	for {
		var able []int
		for i, r := range rs {
			if !r.gone && !r.waits {
				able = append(able, i)
			}
		}
		if len(able) == 0 {
			if rs[0].gone && rs[1].gone {
				return made
			}
			if !rs[0].gone && !rs[1].gone {
				w.Fatal("both wait")
			}
			for _, r := range rs {
				w.observe(r) // who waits for the dead, until the server has noticed
			}
			continue
		}
		next := able[0]
		if len(able) == 2 {
			if len(made) < len(choices) {
				next = choices[len(made)]
			}
			made = append(made, next)
		}
		r := rs[next]
		r.turn <- struct{}{}
		r.waits = true
		w.observe(r)
		if other := rs[1-next]; other.waits {
			w.observe(other)
		}
	}
}

// observe waits until r is through with its statement, or has ended, or is seen to wait for
// a lock.
func (w *world) observe(r *racer) {
	w.Helper()
	if r.gone {
		return
	}
	for blocked := 0; ; {
		select {
		case <-r.over:
			r.waits = false
			return
		case <-r.ended:
			r.waits, r.gone = false, true
			return
		case <-time.After(time.Millisecond):
		}
		if r.pid != 0 && value[bool](w, `SELECT cardinality(pg_blocking_pids($1)) > 0`, int32(r.pid)) {
			if blocked++; blocked == 2 {
				return
			}
		}
	}
}

// next is the next of all choices in depth-first order; nil: there is none.
func next(made []int) []int {
	for i := len(made) - 1; i >= 0; i-- {
		if made[i] == 0 {
			return append(slices.Clone(made[:i]), 1)
		}
	}
	return nil
}

func TestEveryInterleavingOfTwoTransitionsAppliesEachOnce(t *testing.T) {
	type end struct {
		state    string
		applied  int
		conflict int
	}
	for _, test := range []struct {
		name   string
		first  []ledger.Transition // applied before
		racers [2]ledger.Transition
		dies   bool // the first of the two
		ends   []end
	}{
		{"the same, without a version", nil, [2]ledger.Transition{{From: "A", To: "B"}, {From: "A", To: "B"}}, false, []end{{"B 2", 1, 0}}},
		{"the same, at a version", nil, [2]ledger.Transition{{From: "A", To: "B", Version: 1}, {From: "A", To: "B", Version: 1}}, false, []end{{"B 2", 1, 0}}},
		{"the same, and one dies", nil, [2]ledger.Transition{{From: "A", To: "B", Version: 1}, {From: "A", To: "B", Version: 1}}, true, []end{{"B 2", 1, 0}}},
		{"to different states", nil, [2]ledger.Transition{{From: "A", To: "B"}, {From: "A", To: "C"}}, false, []end{{"B 2", 1, 1}, {"C 2", 1, 1}}},
		{"to different states, and one dies", nil, [2]ledger.Transition{{From: "A", To: "B", Version: 1}, {From: "A", To: "C", Version: 1}}, true, []end{{"C 2", 1, 0}, {"C 2", 1, 1}}},
		{"from different states", nil, [2]ledger.Transition{{From: "A", To: "B"}, {From: "D", To: "B"}}, false, []end{{"B 2", 1, 1}}},
		{"one after the other", nil, [2]ledger.Transition{{From: "A", To: "B", Version: 1}, {From: "B", To: "C", Version: 2}}, false, []end{{"C 3", 2, 0}, {"B 2", 1, 1}}},
		{"another round, and a late repeat of the first", []ledger.Transition{{From: "A", To: "B", Version: 1}, {From: "B", To: "A", Version: 2}},
			[2]ledger.Transition{{From: "A", To: "B", Version: 3}, {From: "A", To: "B", Version: 1}}, false, []end{{"B 4", 1, 0}}},
		{"another round, twice", []ledger.Transition{{From: "A", To: "B", Version: 1}, {From: "B", To: "A", Version: 2}},
			[2]ledger.Transition{{From: "A", To: "B", Version: 3}, {From: "A", To: "B", Version: 3}}, false, []end{{"B 4", 1, 0}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newShop(t)
			seen := map[end]int{}
			n := 0
			for choices := []int{}; choices != nil; n++ {
				id := fmt.Sprint(n)
				w.order(id, "A", 1)
				for _, tr := range test.first {
					tr.Type, tr.Entity = w.kind, id
					w.applies(tr, true)
				}
				var rs [2]*racer
				for i, tr := range test.racers {
					tr.Type, tr.Entity = w.kind, id
					rs[i] = &racer{tr: tr, commits: i == 1 || !test.dies}
				}
				made := w.play(rs, choices)
				got := end{state: w.state(id)}
				for _, r := range rs {
					w.ok(r.err)
					if r.applied {
						got.applied++
					}
					if r.conflict {
						got.conflict++
					}
				}
				seen[got]++
				if !slices.Contains(test.ends, got) {
					t.Errorf("order %v ends with %+v", made, got)
				}
				if moves := w.moves(id); moves != got.applied+len(test.first) {
					t.Errorf("order %v: the row was changed %d times, and %d times somebody was told so", made, moves, got.applied+len(test.first))
				}
				facts := value[int](w, `SELECT count(*) FROM (SELECT entity FROM oncemore.ledger UNION ALL SELECT entity FROM oncemore.ledger_history) f WHERE entity LIKE $1 || '/%'`, id)
				if facts != got.applied+len(test.first) {
					t.Errorf("order %v: %d facts", made, facts)
				}
				choices = next(made)
			}
			t.Logf("%d orders, their ends: %v", n, seen)
			if n < 10 {
				t.Errorf("only %d orders", n)
			}
			for _, e := range test.ends {
				if seen[e] == 0 {
					t.Errorf("no order ends with %+v", e)
				}
			}
		})
	}
}
