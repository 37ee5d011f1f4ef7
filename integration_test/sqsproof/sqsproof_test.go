package main

import (
	"os"
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// A short slice of the proof. The whole of it is a program: make proof-sqs.
func TestWhatIsDoubledAndRefusedAndLosesTwoOfThreeWorkersIsDoneOnce(t *testing.T) {
	holds(t, ordeal{entities: 2000, peer: "fake"})
}

func TestTheSameHoldsOverAnSQSThatSomebodyElseWrote(t *testing.T) {
	if os.Getenv("ONCEMORE_FULL") == "" {
		t.Skip("ONCEMORE_FULL is not set")
	}
	holds(t, ordeal{entities: 20_000, peer: "fauxqs"})
}

func holds(t *testing.T, o ordeal) {
	o.twice, o.refused, o.workers, o.kills = 0.1, 0.05, 3, 2
	o.stage = stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}
	stagetest.Undergo(t, &o.seed, o.undergo)
}

// Entities 0 to 8: a post, a charge and a shipping, and over again. What is wrong with each
// is in its comment.
func TestTheCountSeesWhatIsLostAndWhatIsTwice(t *testing.T) {
	tl := &tale{Stage: &stage.Stage{DB: pgtest.Pool(t)}, ordeal: &ordeal{entities: 9, peer: "fake"}, killed: []string{"worker-1"}}
	var err error
	if tl.sqs, err = openSQS(t.Context(), tl.ordeal); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tl.sqs.stop)
	const fact = `INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence)
		SELECT (SELECT id FROM oncemore.job_type WHERE name = $1), e, 0, 1, 't' FROM unnest($2::text[]) e`
	for _, s := range []struct {
		sql  string
		args []any
	}{
		{sql: schema},
		{sql: `INSERT INTO oncemore.job_type (name) VALUES ('post'), ('charge'), ('ship')`},
		{sql: fact, args: []any{"post", []string{"0", "3", "10"}}},                                        // 6 is lost, 10 is nothing
		{sql: fact, args: []any{"charge", []string{"1", "4", "7"}}},                                       //
		{sql: fact, args: []any{"ship", []string{"2", "5", "8"}}},                                         //
		{sql: `INSERT INTO proof.posting VALUES ('0', 'worker-1'), ('3', 'worker-2'), ('3', 'worker-2')`}, // 3 is twice, 10 has none
		{sql: `INSERT INTO proof.called VALUES
			('charge', '1', 'worker-1'), ('charge', '1', 'worker-2'),  -- again, for the one that was killed
			('charge', '4', 'worker-3'), ('charge', '4', 'worker-2'),  -- again, for nobody
			('charge', '7', 'worker-3'),
			('ship', '2', 'worker-1'), ('ship', '2', 'worker-3'),      -- it could be asked
			('ship', '5', 'worker-3'),
			('ship', '11', 'worker-3')                                 -- nothing; and 8 has none
		`},
		{sql: `INSERT INTO oncemore.message (queue, type, entities, args) VALUES ('', 'post', '{6}', '{"{}"}')`},
	} {
		if _, err := tl.DB.Exec(t.Context(), s.sql, s.args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := tl.count(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := tl.proof
	if p.Facts != 9 || p.Missing != 1 || p.Strange != 1 || p.Unproven != 3 || p.Posted != 1 || p.Again != 3 || p.Blind != 2 || p.Left != 1 || p.Killed != 1 {
		t.Errorf("%+v", p)
	}
}

// A proof that cannot fail says nothing.
func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	o := &ordeal{entities: 1000, twice: 0.1, refused: 0.05, kills: 2}
	sound := func() *proof {
		return &proof{ordeal: o, Entities: 1000, Sent: 1100, Twice: 100, Facts: 1000, Again: 4, Killed: 2, Held: 9, Charged: 4,
			Tally: sqsfake.Tally{HandedOut: 1300, Duplicates: 130, Entries: 3000, Refused: 150}}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a message too few":         func(p *proof) { p.Sent-- },
		"nothing sent twice":        func(p *proof) { p.Sent, p.Twice = 1000, 0 },
		"a fact too many":           func(p *proof) { p.Facts++ },
		"one lost":                  func(p *proof) { p.Missing++ },
		"a fact of nothing":         func(p *proof) { p.Strange++ },
		"a fact alone":              func(p *proof) { p.Unproven++ },
		"two effects":               func(p *proof) { p.Posted++ },
		"a body blindly again":      func(p *proof) { p.Blind++ },
		"a body too many again":     func(p *proof) { p.Again++ },
		"a charge not made again":   func(p *proof) { p.Again--; p.Lapsed++ },
		"a kill too few":            func(p *proof) { p.Killed-- },
		"a kill over nothing":       func(p *proof) { p.Charged, p.Again = 0, 0 },
		"nothing doubled":           func(p *proof) { p.Tally.Duplicates = 0 },
		"nothing refused":           func(p *proof) { p.Tally.Refused = 0 },
		"a claim left":              func(p *proof) { p.Left++ },
		"one visible":               func(p *proof) { p.Queue.Visible++ },
		"one in flight":             func(p *proof) { p.Queue.InFlight++ },
		"one delayed":               func(p *proof) { p.Queue.Delayed++ },
		"one dead letter":           func(p *proof) { p.Grave.Visible++ },
		"one dead letter in flight": func(p *proof) { p.Grave.InFlight++ },
	})
}
