package admin_test

import (
	"os"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// After an outage there are many. An act is one transaction, and a person waits for it.
func TestAsManyAsOneActMayChangeAreChangedInOneAct(t *testing.T) {
	n, bound := 3000, 20*time.Second
	if os.Getenv("ONCEMORE_FULL") != "" {
		n, bound = admin.MaxAct+7, 2*time.Minute
	}
	y := newYard(t)
	y.work(draw{Page: "registers"}, pay{"registers"})
	many := func(jobType, trouble string) {
		y.exec(`
INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, trouble, entity, args, error)
SELECT nextval('oncemore.fence'), 0, 0, 0, 0, (SELECT id FROM oncemore.job_type WHERE name = $1), 10, $2, 'e' || n, '{}', 'an error of some length, as errors have it'
FROM generate_series(1, $3::int) n`, jobType, trouble, n)
		y.exec(`
INSERT INTO oncemore.attempt (job_type, entity, number, outcome, error_class, error)
SELECT c.job_type, c.entity, 10, c.trouble, CASE WHEN entity LIKE '%7' THEN 'timeout' ELSE '*net.OpError' END, c.error FROM oncemore.claim c WHERE c.trouble = $1`, trouble)
	}
	many("draw", "failed")
	many("pay", "in_doubt")
	if n > 10_000 {
		y.exec(`ANALYZE`)
	}
	began := time.Now()
	lap := func(what string) {
		t.Helper()
		took := time.Since(began).Round(time.Millisecond)
		t.Logf("%s: %s", what, took)
		if took > bound {
			t.Errorf("%s took longer than %s", what, bound)
		}
		began = time.Now()
	}
	some := y.retryable(admin.Selection{Type: "draw", Class: "timeout", Window: admin.Window{Within: time.Hour}})
	lap("select by class and time")
	same(t, "of one class", len(some.Entries), (n+3)/10)
	all := y.retryable(admin.Selection{Type: "draw"})
	lap("select all")
	most := min(n, admin.MaxAct)
	same(t, "all", []any{len(all.Entries), all.More}, []any{most, n > most})
	r, err := y.by("anna").Retry(t.Context(), all, "")
	if err != nil {
		t.Fatal(err)
	}
	lap("retry")
	same(t, "retried", []int{r.Changed, len(r.Left), y.messages()}, []int{most, 0, most})
	doubts := y.inDoubt(admin.Selection{Type: "pay"})
	began = time.Now()
	if r, err = y.by("anna").Resolve(t.Context(), doubts, true, "the statement has them all"); err != nil {
		t.Fatal(err)
	}
	lap("resolve")
	same(t, "resolved", []int{r.Changed, len(r.Left)}, []int{most, 0})
}
