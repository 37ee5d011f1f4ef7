package main

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

func TestEachOrderGoesEachWayOnceWhoeverRacesForIt(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, 20)
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Orders: 10, Shipped: 10, Moves: 30, Facts: 30, Applied: 20, Before: 60, Conflicts: 4, Replayed: 80, Lost: 30, Tries: 40,
			Killed: 1, Charges: 10, Keys: 10, Asked: 13, Receipts: 40}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"one not shipped":          func(p *proof) { p.Shipped-- },
		"a move too few":           func(p *proof) { p.Moves-- },
		"a move twice":             func(p *proof) { p.Twice++ },
		"a fact lost":              func(p *proof) { p.Facts-- },
		"two who applied the same": func(p *proof) { p.Applied++ },
		"one who was not told":     func(p *proof) { p.Applied-- },
		"no race":                  func(p *proof) { p.Before = 0 },
		"no conflict":              func(p *proof) { p.Conflicts = 0 },
		"nothing shown again":      func(p *proof) { p.Replayed = 0 },
		"nothing lost":             func(p *proof) { p.Lost = 0 },
		"no retry":                 func(p *proof) { p.Tries = 0 },
		"nobody killed":            func(p *proof) { p.Killed = 0 },
		"one not charged":          func(p *proof) { p.Charges-- },
		"one charged twice":        func(p *proof) { p.ChargedTwice++ },
		"a new key for a repeat":   func(p *proof) { p.Keys++ },
		"nothing asked again":      func(p *proof) { p.Asked = 10 },
		"a receipt too few":        func(p *proof) { p.Receipts-- },
		"a wrong receipt":          func(p *proof) { p.WrongReceipts++ },
		"one still open":           func(p *proof) { p.Open++ },
	})
}
