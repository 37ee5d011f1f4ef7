// Package mutants takes the guarantees out of the code, one at a time, and demands that a
// test fails for each: a guarantee that no test misses is only hoped for.
//
// A mutant is one change of one place of the source. It is compiled through the go
// command's -overlay, so the working tree stays as it is, and the tests that should miss
// what it lacks are run on it. They must fail, by a test and not by the compiler. Each
// takes a compilation and some tests, so this runs with ONCEMORE_FULL=1 only:
//
//	make mutants                      # all of them
//	make mutants MUTANT=fence         # those whose names have the word
package mutants

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// A mutant lacks one guarantee.
type mutant struct {
	lacks    string // in a few words
	file     string // from the root of the module
	old, new string // old is there once
	tests    string // package, and the pattern of the tests that must miss it
}

func TestEveryMutantIsCaught(t *testing.T) {
	if os.Getenv("ONCEMORE_FULL") == "" {
		// The short form still sees to it that each mutant has its place in the code.
		for _, m := range mutants {
			m.write(t, t.TempDir())
		}
		t.Skip("the mutants have their places; ONCEMORE_FULL=1 runs the tests on each")
	}
	only := os.Getenv("MUTANT")
	for _, m := range mutants {
		if !strings.Contains(m.lacks, only) {
			continue
		}
		t.Run(strings.ReplaceAll(m.lacks, " ", "_"), func(t *testing.T) {
			caught, out := m.run(t)
			if len(caught) == 0 {
				t.Errorf("no test misses it: %s\n%s", m.lacks, out)
			}
			t.Logf("without %s: caught by %s", m.lacks, strings.Join(caught, ", "))
		})
	}
}

// write puts the mutant's source and its overlay into dir, and returns the overlay.
func (m mutant) write(t *testing.T, dir string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(source, []byte(m.old)); n != 1 {
		t.Fatalf("%s: the place for the mutant without %s is there %d times:\n%s", m.file, m.lacks, n, m.old)
	}
	changed := filepath.Join(dir, "mutant.go")
	if err := os.WriteFile(changed, bytes.Replace(source, []byte(m.old), []byte(m.new), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

var failed = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)

// run returns the names of the tests that fail on it.
func (m mutant) run(t *testing.T) (caught []string, out string) {
	t.Helper()
	pkg, pattern, _ := strings.Cut(m.tests, " ")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-timeout", "3m", "-overlay", m.write(t, t.TempDir()), "-run", pattern, pkg)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "TEST_REQUIRE=1")
	b, err := cmd.CombinedOutput()
	out = string(b)
	if strings.Contains(out, "[build failed]") || strings.Contains(out, "[no tests to run]") {
		t.Fatalf("the mutant without %s cannot be tried:\n%s", m.lacks, out)
	}
	if err == nil {
		return nil, out
	}
	for _, match := range failed.FindAllStringSubmatch(out, -1) {
		caught = append(caught, match[1])
	}
	if strings.Contains(out, "panic: test timed out") {
		caught = append(caught, "a test that does not end")
	}
	return caught, out
}
