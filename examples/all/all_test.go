package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestEveryExampleIsPlayed(t *testing.T) {
	mains, err := filepath.Glob("../*/main.go")
	if err != nil || len(mains) < 5 {
		t.Fatalf("%q, %v", mains, err)
	}
	for _, m := range mains {
		name := filepath.Base(filepath.Dir(m))
		if _, err := choose([]string{name}); err != nil && name != "all" {
			t.Error(err)
		}
	}
	for _, s := range shows {
		if files, _ := filepath.Glob(filepath.Join("../..", s.path(), "*.go")); len(files) == 0 {
			t.Errorf("%s is in the list, and not in the tree", s.name)
		}
	}
}

// script is an example that is a shell's.
func script(name, proves, text string) *performance {
	return &performance{show: show{name: name, idea: "an idea of " + name, proves: proves}, command: []string{"/bin/sh", "-c", text}}
}

func TestTheTableTellsEachProofAndWhoFailed(t *testing.T) {
	var out strings.Builder
	err := play(t.Context(), &out, []*performance{
		script("one", "", `echo a story; echo "proof: 3 of 3"`),
		script("two", "what its status says", `echo its table`),
		script("three", "", `echo "proof: 2 of 3"; exit 3`),
		script("four", "", `echo no proof`),
	})
	if err == nil || err.Error() != "2 of 4 examples failed" {
		t.Errorf("it ends with %v", err)
	}
	_, table, found := strings.Cut(out.String(), "EXAMPLE")
	if !found || !strings.Contains(out.String(), "== one: an idea of one\na story\n") {
		t.Fatal(out.String())
	}
	rows := strings.Split(table, "\n")
	for i, want := range [][]string{{"one", "an idea of one", "3 of 3", " ok"}, {"two", "what its status says", " ok"}, {"three", "exit status 3", " FAILED"}, {"four", "it proves nothing", " FAILED"}} {
		for _, w := range want {
			if !strings.Contains(rows[i+1], w) {
				t.Errorf("row %q lacks %q", rows[i+1], w)
			}
		}
	}
}

func TestAllIsWellOnlyWhenAllAreWell(t *testing.T) {
	var out strings.Builder
	if err := play(t.Context(), &out, []*performance{script("one", "", `echo "proof: fine"`)}); err != nil {
		t.Error(err)
	}
}

func TestAnInterruptEndsTheShowThatGoesOnAndLeavesTheOthersOut(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	began := filepath.Join(t.TempDir(), "began")
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(began); err == nil {
				stop()
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	var out strings.Builder
	err := play(ctx, &out, []*performance{
		script("one", "", `trap 'echo "it ends"; exit 1' INT; touch `+began+`; while :; do sleep 0.1; done`),
		script("two", "", `echo "proof: it was played"`),
	})
	if err == nil || !strings.Contains(out.String(), "it ends") || strings.Contains(out.String(), "it was played") {
		t.Errorf("%v\n%s", err, &out)
	}
}
