package admin_test

import (
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/plan"
	"github.com/oncemore-jobs/oncemore/ledger"
)

func TestZZPerf(t *testing.T) {
	o := newOffice(t, 1000000)
	timed := func(what string, f func() (any, error)) {
		b := time.Now()
		v, err := f()
		t.Logf("%s: %s %v %v", what, time.Since(b).Round(time.Millisecond), v, err)
	}
	all := func() {
		for _, most := range []int64{0, 100000} {
			timed("preview", func() (any, error) {
				p, err := o.by("anna").Preview(t.Context(), "card", plan.Selection{}, admin.PreviewOptions{Most: most})
				if err != nil {
					return nil, err
				}
				return p.Tally, err
			})
		}
		timed("preview failed", func() (any, error) {
			p, err := o.by("anna").Preview(t.Context(), "card", plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}, admin.PreviewOptions{})
			if err != nil {
				return nil, err
			}
			return p.Tally, err
		})
		timed("missing page", func() (any, error) {
			p, err := admin.Missing(t.Context(), o.pool, nil, "card", admin.Page{Limit: 50}, time.Minute)
			if err != nil {
				return nil, err
			}
			return p.Next, err
		})
		timed("missing page after 5", func() (any, error) {
			p, err := admin.Missing(t.Context(), o.pool, nil, "card", admin.Page{Limit: 50, After: "5"}, time.Minute)
			if err != nil {
				return nil, err
			}
			return p.Next, err
		})
		timed("missing count", func() (any, error) {
			p, err := admin.CountMissing(t.Context(), o.pool, nil, "card", time.Minute)
			return p, err
		})
	}
	all()
	o.exec(`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence, completed_at)
SELECT (SELECT id FROM oncemore.job_type WHERE name = 'card'), n::text, 0, 1, 'r', now() - interval '1 hour' + n * interval '0.1 s' FROM generate_series(1, 999000) n`)
	t.Log("all but 1000 done")
	all()
	o.exec(`VACUUM ANALYZE oncemore.ledger`)
	o.exec(`VACUUM ANALYZE card`)
	all()
}
