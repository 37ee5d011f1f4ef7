package ledger_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A looks, B completes what A wants, A claims it under an epoch drawn for that, and dies
// with its claim committed. The epoch is higher than that of B's fact, so the fact would not
// outrank the claim: it must not be there.
func TestACrashAfterAClaimOfWorkThatSomebodyElseDidMeanwhileLeavesNothing(t *testing.T) {
	w, lossy, lose := deaf(t, ledger.Once)
	a, b := w.worker(), w.worker()
	for _, entity := range []string{"other", e} {
		w.settle(a, completed(source(entity, 5), w.claim(a, source(entity, 5))))
	}
	w.settle(a, completed(source("other", 9), lossy.claim(a, source("other", 9)))) // prepares the statements
	seen := w.look(source(e, 9))
	w.settle(b, completed(source(e, 9), w.claim(b, source(e, 9))))
	drawn := value[int64](w, `SELECT last_value FROM oncemore.epoch`)
	lose()
	_, err := lossy.Claim(t.Context(), w.kind, a, []ledger.Candidate{{Want: source(e, 9), Standing: seen, Args: `{}`}})
	if err == nil {
		t.Fatal("the answer was not lost")
	}
	w.want("the epochs drawn", value[int64](w, `SELECT last_value FROM oncemore.epoch`), drawn+1)
	w.die(a)
	w.want("claims", value[int64](w, `SELECT count(*) FROM oncemore.claim`), int64(0))
	w.want("a yet newer source", w.look(source(e, 10)).Reason, ledger.StaleSource)
}
