package main

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

func TestWhatExistsBeforeItsFirstLetterIsPublishedOnce(t *testing.T) {
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()}, 40)
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Authors: 8, Deleted: 2, Sent: 90, Lost: 30, Posts: 12, Published: 6, Drafts: 3, Announced: 8, Asked: 11}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"no answer lost":            func(p *proof) { p.Lost = 0 },
		"no post too many":          func(p *proof) { p.Posts = 8 },
		"an article too many":       func(p *proof) { p.Published++ },
		"nothing deleted":           func(p *proof) { p.Deleted, p.Published = 0, 8 },
		"an old text":               func(p *proof) { p.Unlike++ },
		"announced, though no more": func(p *proof) { p.Announced++ },
		"not asked for twice":       func(p *proof) { p.Asked = 8 },
		"announced twice":           func(p *proof) { p.Twice++ },
		"a draft left":              func(p *proof) { p.Left++ },
	})
}
