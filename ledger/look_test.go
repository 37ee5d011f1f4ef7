package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger"
)

func TestLookTellsMissingOpenAndDoneInTheOrderAsked(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	open := w.claim(a, plain("open"))
	done := w.claim(a, plain("done"))
	w.settle(a, ended(plain("done"), done, ledger.Completed))

	sts, err := w.Look(t.Context(), w.kind, []ledger.Want{plain("missing"), plain("done"), plain("open"), plain("done")})
	w.ok(err)
	for i, want := range []ledger.Reason{ledger.Missing, ledger.Done, ledger.Ongoing, ledger.Done} {
		w.want(fmt.Sprint("reason ", i), sts[i].Reason, want)
	}
	o := sts[2].Open
	if o.Fence != open.Fence || o.Owner != a || !o.Held() || o.Attempts != 1 || o.Args != `{}` || o.Fingerprint != someArgs {
		t.Errorf("the claim is shown as %+v", o)
	}
	f := sts[1].Fact
	if f.Entity != "done" || f.Attempts != 1 || f.Evidence != ledger.Reported || f.Fingerprint != someArgs || f.Epoch != 0 || f.Run != 0 || f.Version != 0 {
		t.Errorf("the fact is shown as %+v", f)
	}
}

func TestLookKeepsJobTypesApart(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	other := w.register(&ledger.Type{Name: "other", Effect: ledger.Repeatable})
	w.settle(w.worker(), ended(plain("e"), ledger.Claim{}, ledger.Completed))
	sts, err := w.Look(t.Context(), other, []ledger.Want{plain("e")})
	w.ok(err)
	w.want("another type's fact", sts[0].Reason, ledger.Missing)
}

func TestARenamedTypeKeepsItsFacts(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	w.settle(w.worker(), ended(plain("e"), ledger.Claim{}, ledger.Completed))
	w.kind = w.register(&ledger.Type{Name: "invite", Effect: ledger.Repeatable}, "never_was", "send_invitation")
	w.want("under the new name", w.reason("e"), ledger.Done)
	again := w.register(&ledger.Type{Name: "invite", Effect: ledger.Repeatable})
	w.want("without the alias, later", again.ID, w.kind.ID)
}

func TestAMissingSchemaSaysWhatToDo(t *testing.T) {
	l := ledger.New(pgtest.EmptyPool(t))
	err := l.Register(t.Context(), &ledger.Type{Name: "t", Effect: ledger.Once})
	if err == nil || !strings.Contains(err.Error(), "oncemore migrate up") {
		t.Errorf("got %v", err)
	}
}

// rows is the ledger and the claims with where and by whom they were written: it changes
// with every write, even one that changes no value.
func (w *world) rows() string {
	w.Helper()
	return value[string](w, `
		SELECT coalesce(string_agg(r, E'\n' ORDER BY r), '') FROM (
			SELECT 'fact ' || l.ctid || l.xmin || l.xmax || l::text FROM oncemore.ledger l UNION ALL
			SELECT 'claim ' || c.ctid || c.xmin || c.xmax || c::text FROM oncemore.claim c) AS all_rows(r)`)
}

// written is how many row versions were written to the schema's tables.
func (w *world) written() int64 {
	w.Helper()
	// Each connection reports what it wrote when it is idle, at the latest when it is asked.
	conns := w.pool.AcquireAllIdle(w.Context())
	for _, c := range conns {
		_, err := c.Exec(w.Context(), `SELECT pg_stat_force_next_flush()`)
		w.ok(err)
		c.Release()
	}
	return value[int64](w, `SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables, pg_stat_clear_snapshot() WHERE schemaname = 'oncemore'`)
}

func TestI5SkippingWritesNothing(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	const n = 100
	wants := make([]ledger.Want, n)
	for i := range wants {
		wants[i] = plain(fmt.Sprintf("%d/%d", i%7, i))
		w.settle(a, ended(wants[i], ledger.Claim{}, ledger.Completed))
	}
	w.claim(a, plain("open"))
	rows, written := w.rows(), w.written()
	if written < n {
		t.Fatalf("the statistics tell of %d writes, after %d: they cannot be believed", written, n)
	}
	for range 20 {
		sts, err := w.Look(t.Context(), w.kind, append(wants, plain("open"), plain("missing")))
		w.ok(err)
		for i := range wants {
			w.want(wants[i].Entity, sts[i].Reason, ledger.Done)
		}
	}
	w.want("rows written by looking", w.written()-written, int64(0))
	if after := w.rows(); after != rows {
		t.Errorf("looking changed rows:\n%s\nto\n%s", rows, after)
	}
}

func TestI5SkippingWritesNothingNotEvenATransactionNumber(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	w.settle(w.worker(), ended(plain("done"), ledger.Claim{}, ledger.Completed))
	w.claim(w.worker(), plain("open"))
	w.in(func(tx pgx.Tx) {
		sts, err := ledger.LookIn(t.Context(), tx, w.kind, []ledger.Want{plain("done"), plain("open"), plain("missing")})
		w.ok(err)
		w.want("done", sts[0].Reason, ledger.Done)
		var assigned bool
		w.ok(tx.QueryRow(t.Context(), `SELECT pg_current_xact_id_if_assigned() IS NOT NULL`).Scan(&assigned))
		w.want("a look has a transaction number", assigned, false)
	})

	// A session that may not write, and so could run on a replica, can look.
	cfg := w.pool.Config()
	cfg.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	reader, err := pgxpool.NewWithConfig(t.Context(), cfg)
	w.ok(err)
	defer reader.Close()
	sts, err := ledger.New(reader).Look(t.Context(), w.kind, []ledger.Want{plain("done"), plain("open"), plain("missing")})
	w.ok(err)
	w.want("done, in a read-only session", sts[0].Reason, ledger.Done)
}

func TestI5SkippingWritesNothingInOneSharedRead(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	trips := &counter{}
	cfg := w.pool.Config()
	cfg.ConnConfig.Tracer, cfg.MaxConns = trips, 1
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	w.ok(err)
	defer pool.Close()
	wants := make([]ledger.Want, 1000)
	for i := range wants {
		wants[i] = plain(fmt.Sprint(i))
	}
	_, err = ledger.New(pool).Look(t.Context(), w.kind, wants)
	w.ok(err)
	w.want("round trips to look at 1000 entities", trips.batches, 1)
	w.want("statements beside them", trips.queries, 0)
}

// A counter counts round trips of one connection.
type counter struct{ batches, queries int }

func (c *counter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.batches++
	return ctx
}
func (c *counter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *counter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.queries++
	return ctx
}
func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// What is due is said by the server's clock, whatever this process believes.
func TestI9TimeIsTheDatabasesForWhatIsDue(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	before := value[time.Time](w, `SELECT clock_timestamp()`)
	o := failed(plain("e"), w.claim(a, plain("e")), ledger.ToRetry)
	o.Delay = time.Hour
	w.settle(a, o)
	st := w.look(plain("e"))
	w.want("with an hour to go", st.Reason, ledger.Waiting)
	due := st.Open.NotBefore.Sub(before)
	if due < time.Hour || due > time.Hour+time.Minute {
		t.Errorf("due in %s of the server's time", due)
	}
	w.exec(`UPDATE oncemore.claim SET not_before = clock_timestamp() - interval '1 microsecond'`)
	w.want("a microsecond after", w.reason("e"), ledger.Retry)
}

// Sweep is said of a claim that a fact outranks, and removes just that one.
func TestAFactOutranksAClaimThatNobodyHoldsAndSweepsItAway(t *testing.T) {
	w := newWorld(t, ledger.Repeatable)
	a := w.worker()
	for _, entity := range []string{"retrying", "changed", "in doubt"} {
		state := ledger.ToRetry
		if entity == "in doubt" {
			state = ledger.Unclear
		}
		w.settle(a, failed(plain(entity), w.claim(a, plain(entity)), state))
	}
	w.claim(a, plain("held"))
	var opens []*ledger.Open
	for _, entity := range []string{"retrying", "changed", "in doubt", "held"} {
		w.in(func(tx pgx.Tx) {
			_, err := ledger.Record(t.Context(), tx, w.kind, plain(entity))
			w.ok(err)
		})
		st := w.look(plain(entity))
		w.want(entity, st.Reason, ledger.Done)
		w.want("sweep "+entity, st.Sweep, entity != "held")
		if st.Sweep {
			opens = append(opens, st.Open)
		}
	}
	w.exec(`UPDATE oncemore.claim SET fence = nextval('oncemore.fence') WHERE entity = 'changed'`)
	w.ok(w.Sweep(t.Context(), w.kind, opens))
	w.want("claims left", value[string](w, `SELECT string_agg(entity, ',' ORDER BY entity) FROM oncemore.claim`), "changed,held")
}
