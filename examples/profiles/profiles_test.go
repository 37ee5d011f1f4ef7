package main

import (
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// The whole story: the users without a profile are selected again and again, and each time
// it is just those.
func TestSelectJustTheUsersThatHaveNoProfile(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, 4000, "@every 1s")
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
	if first := pr.Runs[0]; first.Items < 4000 || first.Failed != 1 {
		t.Errorf("the first run took %d users, of whom %d failed; it should take all, and one should fail", first.Items, first.Failed)
	}
	for _, r := range pr.Runs[1:] {
		if r.Items >= 4000 || r.Failed != 0 {
			t.Errorf("run %d took %d users, of whom %d failed; it should take just the new ones", r.ID, r.Items, r.Failed)
		}
	}
	if why := pr.Missing[0].Error; !strings.Contains(why, `null value in column "name"`) {
		t.Errorf("the user without a name is listed with %q", why)
	}
}

// A proof that cannot fail says nothing.
func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Users: 10, Profiles: 9, Bad: 3, Missing: []missing{{3, "failed", "null"}}, Runs: make([]run, 5), Killed: 1, Made: 1}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a profile too few": func(p *proof) { p.Profiles-- },
		"two for one":       func(p *proof) { p.Twice++ },
		"an old name":       func(p *proof) { p.Differ++ },
		"nobody missing":    func(p *proof) { p.Missing = nil },
		"another missing":   func(p *proof) { p.Missing[0].UserID++ },
		"missing, unlisted": func(p *proof) { p.Missing[0].State = "missing" },
		"planned twice":     func(p *proof) { p.InPlans++ },
		"too few runs":      func(p *proof) { p.Runs = p.Runs[1:] },
		"nobody killed":     func(p *proof) { p.Killed = 0 },
		"no cut-over":       func(p *proof) { p.Made = 0 },
		"not mended":        func(p *proof) { p.Mended++ },
	})
}
