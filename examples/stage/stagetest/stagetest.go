// Package stagetest is what the tests of plays have in common.
package stagetest

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// Main runs the tests of a play, as [pgtest.Main] does. The workers of the story are the
// program started again, which is the test binary here: as such it runs the program's main.
//
//	func TestMain(m *testing.M) { stagetest.Main(m, main) }
func Main(m *testing.M, main func()) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		main()
		return
	}
	pgtest.Main(m)
}

// Holds writes a proof to the test's log, and fails the test when it does not hold.
func Holds(t testing.TB, p stage.Proof) {
	t.Helper()
	p.Write(t.Output())
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}

// Undergo draws a seed, tells the story, and fails the test when it breaks off or its proof does
// not hold; the proof says the seed.
func Undergo[P stage.Proof](t testing.TB, seed *uint64, tell func(context.Context) (P, error)) {
	t.Helper()
	var err error
	if *seed, err = stage.Seed(*seed); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 15*time.Minute, errors.New("the story takes longer than a quarter of an hour"))
	defer cancel()
	p, err := tell(ctx)
	if err != nil {
		t.Fatalf("ONCEMORE_SEED=%d: %v", *seed, err)
	}
	Holds(t, p)
}

// Bites fails the test unless a sound proof holds, and does not any more with each of the
// faults: a proof that cannot fail says nothing.
func Bites[P stage.Proof](t testing.TB, sound func() P, faults map[string]func(P)) {
	t.Helper()
	if err := sound().Check(); err != nil {
		t.Error(err)
	}
	for what, spoil := range faults {
		p := sound()
		if spoil(p); p.Check() == nil {
			t.Errorf("it holds with %s", what)
		}
	}
}
