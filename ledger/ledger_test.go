package ledger_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A world is one database with one job type. Its workers are rows without a process, so
// that a test says when one dies.
type world struct {
	*testing.T
	pool *pgxpool.Pool
	*ledger.Ledger
	kind *ledger.Type
}

func newWorld(t *testing.T, e ledger.Effect) *world {
	t.Helper()
	return worldOn(t, pgtest.Pool(t), e)
}

func worldOn(t *testing.T, pool *pgxpool.Pool, e ledger.Effect) *world {
	t.Helper()
	w := &world{T: t, pool: pool, Ledger: ledger.New(pool)}
	w.kind = w.register(&ledger.Type{Name: "send_invitation", Effect: e, Timeout: time.Minute})
	return w
}

func (w *world) register(k *ledger.Type, aliases ...string) *ledger.Type {
	w.Helper()
	w.ok(w.Register(w.Context(), k, aliases...))
	return k
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) exec(sql string, args ...any) {
	w.Helper()
	_, err := w.pool.Exec(w.Context(), sql, args...)
	w.ok(err)
}

// value reads one value.
func value[T any](w *world, sql string, args ...any) (v T) {
	w.Helper()
	w.ok(w.pool.QueryRow(w.Context(), sql, args...).Scan(&v))
	return v
}

func (w *world) want(what string, got, want any) {
	w.Helper()
	if got != want {
		w.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// worker joins a worker whose lease does not end by itself.
func (w *world) worker() int64 {
	w.Helper()
	return value[int64](w, `INSERT INTO oncemore.worker (name, expires) VALUES ('w', clock_timestamp() + interval '1 day') RETURNING id`)
}

// die is what another worker's declaration does.
func (w *world) die(worker int64) {
	w.Helper()
	w.exec(`UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed' WHERE id = $1 AND dead_at IS NULL`, worker)
}

func (w *world) look(want ledger.Want) ledger.Standing {
	w.Helper()
	sts, err := w.Look(w.Context(), w.kind, []ledger.Want{want})
	w.ok(err)
	return sts[0]
}

func (w *world) reason(entity string) ledger.Reason {
	w.Helper()
	return w.look(plain(entity)).Reason
}

// claimAs claims what was seen, as the given worker.
func (w *world) claimAs(worker int64, want ledger.Want, seen ledger.Standing) ledger.Claim {
	w.Helper()
	cs, err := w.Claim(w.Context(), w.kind, worker, []ledger.Candidate{{Want: want, Standing: seen, Args: `{}`}})
	w.ok(err)
	return cs[0]
}

// claim looks and claims, and must win.
func (w *world) claim(worker int64, want ledger.Want) ledger.Claim {
	w.Helper()
	st := w.look(want)
	if !st.Reason.Run() {
		w.Fatalf("%s is %s, not to run", want.Entity, st.Reason)
	}
	c := w.claimAs(worker, want, st)
	if !c.Won {
		w.Fatalf("the claim of %s was lost", want.Entity)
	}
	return c
}

// settle settles outcomes as a worker does.
func (w *world) settle(worker int64, outs ...*ledger.Outcome) {
	w.Helper()
	w.ok(w.trySettle(w.Context(), worker, outs...))
}

func (w *world) trySettle(ctx context.Context, worker int64, outs ...*ledger.Outcome) error {
	settle := func(b *pgx.Batch) {
		for _, o := range outs {
			o.Refused = false
		}
		ledger.Settle(b, w.kind, worker, outs)
	}
	err := w.RunBatch(ctx, settle)
	if ledger.IsTaken(err) {
		outs = w.untaken(outs)
		err = w.RunBatch(ctx, settle)
	}
	if err != nil {
		return err
	}
	return w.RecordDisputes(ctx, w.kind, worker, outs)
}

// untaken takes out first completions that somebody else has recorded, or the same settlement is
// about to, as a worker does.
func (w *world) untaken(outs []*ledger.Outcome) (left []*ledger.Outcome) {
	w.Helper()
	done := map[string]bool{}
	for _, o := range outs {
		o.Again = true
		if o.State == ledger.Completed && o.Fence == 0 {
			sts, err := w.Look(w.Context(), w.kind, []ledger.Want{o.Want})
			w.ok(err)
			if done[o.Entity] || sts[0].Fact != nil {
				continue
			}
			done[o.Entity] = true
		}
		left = append(left, o)
	}
	return left
}

// in runs f in a transaction that commits.
func (w *world) in(f func(tx pgx.Tx)) {
	w.Helper()
	w.ok(pgx.BeginFunc(w.Context(), w.pool, func(tx pgx.Tx) error { f(tx); return nil }))
}

func (w *world) begin() pgx.Tx {
	w.Helper()
	tx, err := w.pool.Begin(w.Context())
	w.ok(err)
	w.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func (w *world) facts() int { w.Helper(); return value[int](w, `SELECT count(*) FROM oncemore.ledger`) }
func (w *world) opens() int { w.Helper(); return value[int](w, `SELECT count(*) FROM oncemore.claim`) }
func (w *world) attempts(outcome string) int {
	w.Helper()
	return value[int](w, `SELECT count(*) FROM oncemore.attempt WHERE outcome = $1`, outcome)
}

// awaitBlocked waits until n connections to this database wait for a lock.
func (w *world) awaitBlocked(n int) {
	w.Helper()
	w.await(fmt.Sprintf("%d blocked", n), func() bool {
		return value[int](w, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) >= n
	})
}

func (w *world) await(what string, cond func() bool) {
	w.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("%s: it never came", what)
		}
	}
}

const someArgs = 1<<56 | 42  // a fingerprint
const otherArgs = 1<<56 | 43 // of other arguments

// plain is a want without any wishes.
func plain(entity string) ledger.Want { return ledger.Want{Entity: entity, Fingerprint: someArgs} }

func forced(entity string, epoch int64) ledger.Want {
	want := plain(entity)
	want.Epoch = epoch
	return want
}

func source(entity string, version int64) ledger.Want {
	want := plain(entity)
	want.SourceVersion = version
	return want
}

// ended is the outcome of an attempt under a claim.
func ended(want ledger.Want, c ledger.Claim, s ledger.State) *ledger.Outcome {
	o := &ledger.Outcome{Want: want, State: s, Fence: c.Fence, Attempts: max(1, c.Attempts), Evidence: ledger.Reported, Args: `{}`}
	o.Epoch = max(want.Epoch, c.Epoch)
	return o
}

func failed(want ledger.Want, c ledger.Claim, s ledger.State) *ledger.Outcome {
	o := ended(want, c, s)
	o.Class, o.Error = "*errors.errorString", "the mail server said no"
	return o
}
