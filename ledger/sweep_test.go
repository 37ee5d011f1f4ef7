package ledger_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Two deliveries that need no claim meet: the one of the newer source fails for good and is
// listed, the one of the older source completes. What is listed stands for more than the
// fact does, so it stays, whoever looks.
func TestI1NoLossAFactOfAnOlderSourceSweepsNoClaimAway(t *testing.T) {
	w, a, b := two(t, ledger.InTransaction)
	w.settle(b, failed(source(e, 9), claimless, ledger.GaveUp))
	w.settle(a, completed(source(e, 5), claimless))
	st := w.look(source(e, 5))
	w.want("the older source", st.Reason, ledger.Done)
	w.want("to be swept", st.Sweep, false)
	w.want("the newer source", w.look(source(e, 9)).Reason, ledger.Failed)
	w.want("an even newer source", w.look(source(e, 11)).Reason.Run(), true)
}
