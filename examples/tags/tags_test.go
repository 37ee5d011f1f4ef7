package main

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// The whole story: the index is a cache, and can be rebuilt at any time.
func TestDeleteAllRowsAndRebuild(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, 600)
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
	if pr.Documents != 600 {
		t.Errorf("there are %d documents", pr.Documents)
	}
}

// A proof that cannot fail says nothing.
func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Documents: 10, Edits: 5, Tags: 30, Wiped: 20, Epoch: 4, Archived: 9, Again: 2, Failed: "not UTF-8", FailedAgain: "not UTF-8"}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"an empty index":       func(p *proof) { p.Tags = 0 },
		"nothing edited":       func(p *proof) { p.Edits = 0 },
		"a tag too few":        func(p *proof) { p.Absent++ },
		"a tag too many":       func(p *proof) { p.Surplus++ },
		"an old revision":      func(p *proof) { p.Stale++ },
		"one missing":          func(p *proof) { p.Missing++ },
		"nothing wiped":        func(p *proof) { p.Wiped = 0 },
		"no new epoch":         func(p *proof) { p.Epoch = 0 },
		"one not rebuilt":      func(p *proof) { p.Older++ },
		"a fact lost":          func(p *proof) { p.Archived-- },
		"indexed only once":    func(p *proof) { p.Again-- },
		"the bad one unlisted": func(p *proof) { p.Failed = "" },
		"not tried again":      func(p *proof) { p.FailedAgain = "" },
		"one still open":       func(p *proof) { p.Open++ },
	})
}

func TestTagsAreExtractedOnceAndOnlyFromText(t *testing.T) {
	tags, err := extract([]byte("#b #a naïve #b"))
	if err != nil || len(tags) != 2 || tags[0] != "a" || tags[1] != "b" {
		t.Errorf("%q, %v", tags, err)
	}
	if tags, err := extract([]byte(badText)); err == nil {
		t.Errorf("%q were extracted from what is no text", tags)
	}
}
