package main

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

func TestAProviderThatTimesOutIsMetInFourWays(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, 20)
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Parcels: 10, Notes: 10, Lines: []*line{
			{Way: "fail up", Calls: 10, Attempts: 10, Failed: 10},
			{Way: "degrade", Calls: 10, Attempts: 10, Done: 10, Guessed: 10},
			{Way: "retry", Calls: 20, Attempts: 30, Done: 10},
			{Way: "by breaker", Calls: 4, Spared: 7, Attempts: 14, Done: 10},
		}}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a failure tried again":       func(p *proof) { p.Lines[0].Attempts++ },
		"a failure unlisted":          func(p *proof) { p.Lines[0].Failed-- },
		"a lesser success unmarked":   func(p *proof) { p.Lines[1].Guessed-- },
		"a lesser success unnoted":    func(p *proof) { p.Notes-- },
		"a lesser success that waits": func(p *proof) { p.Lines[1].Attempts++ },
		"a retry that gave up":        func(p *proof) { p.Lines[2].Done, p.Lines[2].Failed = 9, 1 },
		"a retry not charged":         func(p *proof) { p.Lines[2].Attempts-- },
		"a breaker that never opens":  func(p *proof) { p.Lines[3].Calls, p.Lines[3].Attempts = 20, 30 },
		"a breaker that charges all":  func(p *proof) { p.Lines[3].Spared = 0 },
		"a breaker that stays open":   func(p *proof) { p.Lines[3].Done-- },
	})
}
