package main

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

func TestAKilledWorkerCountsTwiceUnlessItCountsInTheTransactionOfTheFact(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, 40)
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Visits: 10, Carelessly: 10 + slots/2, Once: 10, Seen: 10, Facts: 20, Halfway: slots / 2}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"one never recorded":          func(p *proof) { p.Facts-- },
		"nothing in the middle":       func(p *proof) { p.Halfway, p.Carelessly = 0, 10 },
		"a careless count that is ok": func(p *proof) { p.Carelessly = 10 },
		"half a transaction":          func(p *proof) { p.Rolled++ },
		"one twice":                   func(p *proof) { p.Once++ },
		"one too few":                 func(p *proof) { p.Once-- },
		"one unseen":                  func(p *proof) { p.Seen-- },
	})
}
