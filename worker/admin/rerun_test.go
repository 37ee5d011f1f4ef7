package admin_test

import (
	"errors"
	"testing"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

func only(reasons ...ledger.Reason) plan.Selection { return plan.Selection{Reasons: reasons} }

// The old fact stands beside the claim that is to replace it. Whoever calls again what
// failed, or is in doubt, must not take it for done: the claim would be left with nobody
// who carries it on.
func TestForcedWorkThatCameToNothingIsCalledAgainUnderItsEpoch(t *testing.T) {
	for _, test := range []struct {
		name   string
		effect jobs.Effect
		error  error
		reason ledger.Reason
	}{
		{"failed", jobs.Repeatable, jobs.Permanent(errors.New("no ink")), ledger.Failed},
		{"in doubt", jobs.Once, errors.New("no answer"), ledger.InDoubt},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOffice(t, 10)
			o.effect = test.effect
			o.opens(0)
			o.over(o.rerun(worker.Order{}))
			o.says(func(c card) error {
				if c.N == 3 || c.N == 4 {
					return test.error
				}
				return nil
			})
			if r := o.over(o.rerun(worker.Order{Selection: plan.Selection{Force: true}, Reason: "a new address"})); r.State != admin.Ended || r.Done != 8 || r.Failed+r.InDoubt != 2 {
				t.Fatalf("forced: %s", r.Words())
			}
			o.says(func(card) error { return nil })
			if r := o.over(o.rerun(worker.Order{Selection: only(test.reason), Reason: "looked into"})); r.State != admin.Complete || r.Done != 2 {
				t.Errorf("called again: %s", r.Words())
			}
			var facts, claims int
			if err := o.pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM oncemore.ledger WHERE epoch > 0), (SELECT count(*) FROM oncemore.claim)`).Scan(&facts, &claims); err != nil || facts != 10 {
				t.Errorf("%d facts of the forced epoch, %d claims, %v", facts, claims, err)
			}
			if o.written[3] != 3 || o.written[5] != 2 {
				t.Errorf("written: %v", o.written)
			}
		})
	}
}

func TestACanaryThatFailsPausesTheRunAndWhoResumesItLetsTheRestFollow(t *testing.T) {
	o := newOffice(t, 100)
	o.says(func(card) error { return jobs.Permanent(errors.New("no ink")) })
	o.opens(0)
	id := o.rerun(worker.Order{Canary: 10, CanaryShare: 0.2})
	if r := o.until(id, "paused", func(r *admin.Run) bool { return r.State == admin.Paused }); r.Failed != 10 || r.NotSent != 90 {
		t.Errorf("%+v", r)
	}
	o.says(func(card) error { return nil })
	if _, err := o.by("bea").Resume(t.Context(), id, "ink is here"); err != nil {
		t.Fatal(err)
	}
	if r := o.over(id); r.State != admin.Ended || r.Done != 90 || r.Failed != 10 {
		t.Errorf("%+v", r)
	}
}

func TestARowWithoutAnEntityHoldsUpNoOther(t *testing.T) {
	o := newOffice(t, 100)
	o.exec(`INSERT INTO card VALUES (NULL)`)
	o.opens(0)
	if r := o.over(o.rerun(worker.Order{})); r.State != admin.Ended || r.Done != 100 || r.Items != 101 {
		t.Errorf("%+v", r)
	}
}

func TestALimitTakesTheNextOnesEachTime(t *testing.T) {
	o := newOffice(t, 100)
	o.opens(0)
	for _, want := range []int64{30, 30, 30, 10} {
		if r := o.over(o.rerun(worker.Order{Selection: plan.Selection{Limit: 30}})); r.State != admin.Complete || r.Done != want || r.Seen.Capped != (want == 30) {
			t.Errorf("%d, want %d: %+v", r.Done, want, r)
		}
	}
}
