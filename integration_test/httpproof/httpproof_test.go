package main

import (
	"os"
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// A short slice of the proof. The whole of it is a program: make proof-http.
func TestRequestsAreDoneOnceAndAnsweredAlikeThroughKillsAndBrokenConnections(t *testing.T) {
	o := ordeal{requests: 1000, clients: 24, servers: 2, kills: 3, breaks: 0.02, stage: stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}}
	if os.Getenv("ONCEMORE_FULL") != "" {
		o.requests, o.clients, o.servers, o.kills = 10_000, 64, 3, 6
	}
	stagetest.Undergo(t, &o.seed, o.undergo)
}

// Five keys: one done once, one twice, one refused and done all the same, one answered in
// another way than is stored, and one that nobody asked for.
func TestTheCountSeesWhatIsTwiceAndWhatDiffers(t *testing.T) {
	tl := &tale{Stage: &stage.Stage{DB: pgtest.Pool(t)}, ordeal: &ordeal{}, network: &network{}, crowd: &crowd{}}
	for _, sql := range []string{schema,
		`INSERT INTO shop.effect (key, nonce) VALUES ('once', ''), ('twice', ''), ('twice', ''), ('refused', ''), ('differs', ''), ('nobody''s', '')`,
		`INSERT INTO oncemore.job_type (name) VALUES ('` + order + `'), ('` + refuse + `')`,
		`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence)
		 SELECT (SELECT id FROM oncemore.job_type WHERE name = '` + order + `'), 'POST anna ' || e, 0, 1, 't' FROM unnest('{once,twice,differs}'::text[]) e`,
		`INSERT INTO oncemore.response (job_type, entity, epoch, status, headers, body, expires_at)
		 SELECT l.job_type, l.entity, 0, 201, '{Etag,x}', 'body', now() FROM oncemore.ledger l`,
	} {
		if _, err := tl.DB.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	sound := func(key string) reply {
		return reply{ask{order, key}, 201, map[string][]string{"Etag": {"x"}}, "body", false}
	}
	replayed, differs, refused := sound("once"), sound("differs"), reply{ask: ask{refuse, "refused"}, status: 500}
	replayed.replayed = true
	differs.header = map[string][]string{"Etag": {"y"}}
	tl.crowd.replies = []reply{sound("once"), replayed, sound("once"), sound("twice"), differs, refused}
	for _, r := range tl.crowd.replies {
		tl.asks = append(tl.asks, r.ask)
	}
	if err := tl.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := proof{Requests: 6, Refused: 1, Once: 2, Twice: 1, Strange: 2, Facts: 3, Answers: 3, Replayed: 1, Originals: 5, SecondOri: 1, Unlike: 2, Wrong: 1}
	if tl.proof != want {
		t.Errorf("%+v, want %+v", tl.proof, want)
	}
}

// A proof that cannot fail says nothing.
func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	o := &ordeal{requests: 100, kills: 4}
	sound := func() *proof {
		return &proof{ordeal: o, Requests: 100, Keys: 30, Refused: 5, Once: 25, Facts: 30, Answers: 30, Replayed: 72, Originals: 28, Killed: 4, Broken: 10, Retries: 20}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a request without an answer": func(p *proof) { p.Requests--; p.Replayed-- },
		"no duplicates":               func(p *proof) { p.Keys, p.Once, p.Facts, p.Answers = 100, 95, 100, 100 },
		"one done twice":              func(p *proof) { p.Twice++ },
		"one not done":                func(p *proof) { p.Once-- },
		"an effect of nothing":        func(p *proof) { p.Strange++ },
		"a fact too many":             func(p *proof) { p.Facts++ },
		"an answer too few":           func(p *proof) { p.Answers-- },
		"a claim left":                func(p *proof) { p.Left++ },
		"a dispute":                   func(p *proof) { p.Disputed++ },
		"a reply that differs":        func(p *proof) { p.Unlike++ },
		"a reply that is wrong":       func(p *proof) { p.Wrong++ },
		"two originals":               func(p *proof) { p.SecondOri++ },
		"too few shown again":         func(p *proof) { p.Replayed, p.Originals = 69, 31 },
		"a kill too few":              func(p *proof) { p.Killed-- },
		"nothing broken":              func(p *proof) { p.Broken = 0 },
		"nothing sent again":          func(p *proof) { p.Retries = 0 },
	})
}
