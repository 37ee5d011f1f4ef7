package main

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

func TestARequestUnderOneIdMakesOneUserAndEndsWithItsSession(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Sent: 9, Lost: 2, Ran: 4, Users: 3, Facts: 4,
			Repeated:  answer{201, "user 1", true, 3},
			Double:    []answer{{201, "user 2", false, 1}, {201, "user 2", true, 1}},
			OtherBody: answer{422, "", false, 1}, Over: answer{401, "", false, 1},
			NewSession: answer{409, "", false, 1}, Stranger: answer{201, "user 3", false, 1}}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a first answer to the third try": func(p *proof) { p.Repeated.replayed = false },
		"no answer lost":                  func(p *proof) { p.Lost = 0 },
		"two first answers":               func(p *proof) { p.Double[1].replayed = false },
		"different answers":               func(p *proof) { p.Double[1].body = "user 3" },
		"another body taken":              func(p *proof) { p.OtherBody.status = 201 },
		"an id that outlives its session": func(p *proof) { p.Over = p.Repeated },
		"an id that is known elsewhere":   func(p *proof) { p.Stranger.replayed = true },
		"two accounts for an address":     func(p *proof) { p.NewSession.status = 201 },
		"one user twice":                  func(p *proof) { p.Users++ },
		"the handler run again":           func(p *proof) { p.Ran++ },
		"a cookie in the ledger":          func(p *proof) { p.Shown++ },
		"a request not recorded":          func(p *proof) { p.Facts-- },
	})
}
