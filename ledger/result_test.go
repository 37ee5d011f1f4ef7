package ledger_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// returning is o with a result.
func returning(o *ledger.Outcome, json string) *ledger.Outcome {
	o.Result = []byte(json)
	return o
}

// result is what is stored for e; empty: nothing.
func (w *world) result() string {
	w.Helper()
	return value[string](w, `SELECT coalesce(max(value || ' of ' || epoch), '') FROM oncemore.result WHERE entity = $1`, e)
}

func TestAResultIsStoredWithTheFact(t *testing.T) {
	t.Parallel()
	t.Run("without a claim", func(t *testing.T) {
		w, a, _ := two(t, ledger.Repeatable)
		w.settle(a, returning(completed(plain(e), claimless), `7`), completed(plain("other"), claimless))
		w.want("stored", w.result(), `7 of 0`)
		w.want("results", value[int](w, `SELECT count(*) FROM oncemore.result`), 1)
		w.want("the time to live", value[bool](w, `SELECT expires_at = stored_at + interval '7 days' FROM oncemore.result`), true)
	})
	t.Run("under a claim", func(t *testing.T) {
		w, a, _ := two(t, ledger.Once)
		w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `{"id":7}`))
		w.want("stored", w.result(), `{"id":7} of 0`)
	})
	t.Run("in a transaction with its effect", func(t *testing.T) {
		w := newWorld(t, ledger.InTransaction)
		o := returning(completed(plain(e), claimless), `"seven"`)
		w.in(func(tx pgx.Tx) {
			_, err := ledger.Hold(t.Context(), tx, w.kind, time.Second, []*ledger.Outcome{o})
			w.ok(err)
			b := &pgx.Batch{}
			ledger.KeepResults(b, w.kind, []*ledger.Outcome{o})
			w.ok(tx.SendBatch(t.Context(), b).Close())
		})
		w.want("stored", w.result(), `"seven" of 0`)
	})
	t.Run("by a verdict", func(t *testing.T) {
		w, a, _ := two(t, ledger.Once)
		w.settle(a, failed(plain(e), w.claim(a, plain(e)), ledger.Unclear))
		w.in(func(tx pgx.Tx) {
			w.ok(ledger.Resolve(t.Context(), tx, w.kind, w.look(plain(e)).Open, ledger.Verdict{Done: true, Evidence: ledger.DoneCheck, Result: []byte(`8`)}))
		})
		w.want("stored", w.result(), `8 of 0`)
	})
}

func TestWhatHasNoResultWritesNoneAndSendsNoStatementForIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, ledger.Repeatable)
	queued := func(o *ledger.Outcome) int {
		b := &pgx.Batch{}
		ledger.Settle(b, w.kind, 1, []*ledger.Outcome{o})
		return b.Len()
	}
	w.want("statements for a completion", queued(completed(plain(e), claimless)), 1)
	w.want("with a result", queued(returning(completed(plain(e), claimless), `7`)), 2)
	w.want("for a failure that had returned something", queued(returning(failed(plain(e), claimless, ledger.ToRetry), `7`)), queued(failed(plain(e), claimless, ledger.ToRetry)))
}

func TestARefusedCompletionStoresNoResult(t *testing.T) {
	t.Parallel()
	w, a, b := two(t, ledger.Repeatable)
	w.settle(a, failed(plain(e), w.claim(a, plain(e)), ledger.ToRetry))
	ca := w.claim(a, plain(e))
	w.die(a)
	cb := w.claim(b, plain(e))
	late := returning(completed(plain(e), ca), `"late"`)
	w.settle(a, late)
	w.want("refused", late.Refused, true)
	w.want("stored", w.result(), ``)
	w.settle(b, returning(completed(plain(e), cb), `"in time"`))
	w.settle(a, late)
	w.want("stored", w.result(), `"in time" of 0`)
}

func TestWhoFindsTheFactStoresNoResult(t *testing.T) {
	t.Parallel()
	w, a, b := two(t, ledger.Repeatable)
	w.settle(a, returning(completed(plain(e), claimless), `"first"`))
	w.settle(b, returning(completed(plain(e), claimless), `"second"`)) // its settlement finds the fact
	w.want("stored", w.result(), `"first" of 0`)

	w.exec(`DELETE FROM oncemore.ledger; DELETE FROM oncemore.result`)
	c := w.claim(a, plain(e))
	w.in(func(tx pgx.Tx) { _, err := ledger.Record(t.Context(), tx, w.kind, plain(e)); w.ok(err) })
	w.settle(a, returning(completed(plain(e), c), `"not the app's"`))
	w.want("beside an adopted fact", w.result(), ``)
}

func TestASettlementThatIsRepeatedKeepsItsResult(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Repeatable)
	for range 2 { // the reply to the first was lost
		o := returning(completed(plain(e), claimless), `7`)
		o.Again = true
		twin := returning(completed(plain(e), claimless), `8`)
		w.settle(a, o, twin)
	}
	w.want("stored", w.result(), `7 of 0`)
}

func TestAResultOfAHigherEpochReplaces(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `"old"`))
	w.settle(a, returning(completed(forced(e, 7), w.claim(a, forced(e, 7))), `"new"`))
	w.want("stored", w.result(), `"new" of 7`)
	w.settle(a, completed(forced(e, 8), w.claim(a, forced(e, 8)))) // returns nothing: what is there is of another fact
	w.want("stored", w.result(), `"new" of 7`)
	w.done(8)
}

// An expired result is no permission to do the work again.
func TestAnExpiredResultGoesAndTheFactStays(t *testing.T) {
	t.Parallel()
	w, a, _ := two(t, ledger.Once)
	w.kind.ResultTTL = time.Minute
	w.settle(a, returning(completed(plain(e), w.claim(a, plain(e))), `7`))
	n, err := w.ExpireResults(t.Context(), 10)
	w.ok(err)
	w.want("deleted before its time", n, int64(0))
	w.exec(`UPDATE oncemore.result SET expires_at = now() - interval '1 second' WHERE expires_at < now() + interval '2 minutes'`)
	n, err = w.ExpireResults(t.Context(), 10)
	w.ok(err)
	w.want("deleted", n, int64(1))
	w.want("stored", w.result(), ``)
	w.want("the work", w.reason(e), ledger.Done)

	w.kind.ResultTTL = -1
	w.settle(a, returning(completed(plain("for ever"), w.claim(a, plain("for ever"))), `7`))
	w.want("kept", value[bool](w, `SELECT expires_at > now() + interval '99 years' FROM oncemore.result`), true)
}
