package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/integration_test/sqspeer"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// The wire format is what docs/wire-format.md says, not what our own library happens to
// write: the producer is Amazon's SDK for JavaScript and some lines.
func TestEachInvitationThatAProducerInNodeAsksForIsSentOnce(t *testing.T) {
	peer := sqspeer.Start(t)
	peer.Setenv(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 5*time.Minute, errors.New("the story takes longer than five minutes"))
	defer cancel()
	p, err := tell(ctx, stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, peer.Endpoint, 150)
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, p)
	if p.Invitees != 150 {
		t.Errorf("%d were invited, want 150", p.Invitees)
	}
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Died: 30, Asked: 200, Invitees: 100, Facts: 100, Delivered: 100, Killed: 1,
			Parked: []parked{{"undecodable", "", ""}, {"undecodable", "", ""}, {"unknown_type", "", ""}}}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a producer that did not die":  func(p *proof) { p.Died = 100 },
		"a message too few":            func(p *proof) { p.Asked-- },
		"a fact too many":              func(p *proof) { p.Facts++ },
		"one missing":                  func(p *proof) { p.Missing++ },
		"a fact about nobody":          func(p *proof) { p.Strange++ },
		"one open":                     func(p *proof) { p.Open++ },
		"a message left in Postgres":   func(p *proof) { p.Waiting++ },
		"an invitation not delivered":  func(p *proof) { p.Delivered-- },
		"one delivered twice":          func(p *proof) { p.Twice++ },
		"one sent when all was done":   func(p *proof) { p.SentAgain++ },
		"rubbish that is not listed":   func(p *proof) { p.Parked = p.Parked[1:] },
		"rubbish listed as something":  func(p *proof) { p.Parked[0].Reason = "not_ready" },
		"a message left in SQS":        func(p *proof) { p.Left++ },
		"a message with the dead":      func(p *proof) { p.Dead++ },
		"a worker that was not killed": func(p *proof) { p.Killed-- },
	})
}
