package main

import (
	"os"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// A short slice of the proof. The whole of it, with kills, is a program: make proof-backfill.
func TestABackfillThatIsPausedDoesEachRowOnce(t *testing.T) {
	o := ordeal{rows: 20_000, workers: 2, pauses: 1, rate: 4_000, stage: stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}}
	stagetest.Undergo(t, &o.seed, o.undergo)
}

// All that can go wrong, with a standby, over fewer rows than in the whole proof: so slowly
// that half of them take longer than a snapshot needs to be called old.
func TestABackfillBearsAStandbyThatFallsBehindAndAnOldSnapshot(t *testing.T) {
	if os.Getenv("ONCEMORE_FULL") == "" {
		t.Skip("ONCEMORE_FULL is not set")
	}
	o := ordeal{rows: 60_000, workers: 3, kills: 4, pauses: 2, lags: 2, held: 40 * time.Second, rate: 1200, stage: stage.Options{Out: t.Output(), Own: true}}
	stagetest.Undergo(t, &o.seed, o.undergo)
}

// Four accounts: one done once, one twice, one that has a fact and no effect, one missing;
// and an effect on none.
func TestTheCountSeesWhatIsTwiceAndWhatIsMissing(t *testing.T) {
	tl := &tale{Stage: &stage.Stage{DB: pgtest.Pool(t)}, ordeal: &ordeal{}, writer: &writer{}}
	for _, sql := range []string{schema,
		`INSERT INTO live.account (balance) VALUES (0), (0), (0), (0)`,
		`INSERT INTO live.effect (account, run) VALUES (1, 1), (2, 1), (2, 1), (9, 1)`,
		`INSERT INTO oncemore.job_type (name) VALUES ('backfill_account')`,
		`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence)
		 SELECT (SELECT id FROM oncemore.job_type WHERE name = 'backfill_account'), e, 0, 1, 't' FROM unnest('{1,2,3}'::text[]) e`,
		`INSERT INTO oncemore.message (queue, type, entities, args) VALUES ('', 'backfill_account', '{4}', '{"{}"}')`,
	} {
		if _, err := tl.DB.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := tl.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := tl.proof
	if p.Accounts != 4 || p.Once != 1 || p.Twice != 1 || p.Missing != 2 || p.Strange != 1 || p.Facts != 3 || p.Unproven != 2 || p.Left != 1 {
		t.Errorf("%+v", p)
	}
}

// A proof that cannot fail says nothing.
func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	o := &ordeal{rows: 90, kills: 4, pauses: 1, lags: 1, held: time.Minute}
	sound := func() *proof {
		return &proof{ordeal: o, Accounts: 100, Opened: 10, Once: 100, Facts: 100, Killed: 4, Lagged: 1, Held: time.Minute,
			Runs:    []run{{1, 90, 0, true, 1}, {2, 10, 90, true, 1}, {3, 0, 100, true, 1}, {4, 0, 100, true, 1}},
			History: []event{{1, "paused", "a"}, {2, "resumed", ""}, {3, "waiting", "replica lag: 3 s"}, {4, "waiting", "oldest transaction: 21 s"}}}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"an account too few":      func(p *proof) { p.Accounts-- },
		"nothing opened":          func(p *proof) { p.Accounts, p.Once, p.Facts, p.Opened = 90, 90, 90, 0 },
		"one done twice":          func(p *proof) { p.Twice++ },
		"one not done":            func(p *proof) { p.Once-- },
		"one missing":             func(p *proof) { p.Missing++ },
		"an effect on nothing":    func(p *proof) { p.Strange++ },
		"a fact too many":         func(p *proof) { p.Facts++ },
		"a fact alone":            func(p *proof) { p.Unproven++ },
		"a claim left":            func(p *proof) { p.Left++ },
		"a kill too few":          func(p *proof) { p.Killed-- },
		"work in a pause":         func(p *proof) { p.InPause++ },
		"no pause":                func(p *proof) { p.History = p.History[1:] },
		"no resumption":           func(p *proof) { p.History[1].Kind = "going" },
		"no lag":                  func(p *proof) { p.Lagged-- },
		"a lag that is not told":  func(p *proof) { p.History[2].Kind = "going" },
		"a snapshot let go":       func(p *proof) { p.Held -= time.Second },
		"a snapshot not told":     func(p *proof) { p.History = p.History[:3] },
		"a run too few":           func(p *proof) { p.Runs = p.Runs[1:] },
		"a run not complete":      func(p *proof) { p.Runs[2].Complete = false },
		"a last run with work":    func(p *proof) { p.Runs[3].Items++ },
		"a run over what is done": func(p *proof) { p.Runs[1].Items++ },
	})
}
