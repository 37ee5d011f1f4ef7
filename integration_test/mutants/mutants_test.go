// Package mutants takes the guarantees out of the code, one at a time, and demands that a
// test fails for each: a guarantee that no test misses is only hoped for.
//
// A mutant is one change of one place of the source. It is compiled through the go
// command's -overlay, so the working tree stays as it is, and the tests that should miss
// what it lacks are run on it. They must fail, by a test: not by the compiler, and not by
// running out of time, unless the mutant says that they cannot end without what it lacks.
// The same tests are run on the code as it is before, and must pass there: a test that fails
// anyway misses nothing. All that takes a compilation and some tests for each, so it runs
// with ONCEMORE_FULL=1 only:
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
	"slices"
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
	hangs    bool   // they may miss it by never ending
	full     bool   // they miss it only in full, with ONCEMORE_FULL=1
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
	chosen := slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !strings.Contains(m.lacks, only) })
	if len(chosen) == 0 {
		t.Fatalf("no mutant has %q in its name", only)
	}
	if !t.Run("the code as it is", func(t *testing.T) { sound(t, chosen) }) {
		t.Fatal("what fails anyway catches no mutant")
	}
	for _, m := range chosen {
		t.Run(strings.ReplaceAll(m.lacks, " ", "_"), func(t *testing.T) {
			caught, out := m.run(t)
			if len(caught) == 0 {
				t.Errorf("no test misses it: %s\n%s", m.lacks, out)
			}
			t.Logf("without %s: caught by %s", m.lacks, strings.Join(caught, ", "))
		})
	}
}

// sound runs the tests of ms on the code as it is: those of one package together, each once.
func sound(t *testing.T, ms []mutant) {
	type run struct {
		pkg  string
		full bool
	}
	patterns := map[run][]string{}
	for _, m := range ms {
		pkg, pattern, _ := strings.Cut(m.tests, " ")
		r := run{pkg, m.full}
		if !slices.Contains(patterns[r], pattern) {
			patterns[r] = append(patterns[r], pattern)
		}
	}
	for r, p := range patterns {
		t.Run(r.pkg, func(t *testing.T) {
			if out, err := goTest(t, r.full, "-timeout", "10m", "-run", strings.Join(p, "|"), r.pkg); err != nil || strings.Contains(out, "[no tests to run]") {
				t.Errorf("the tests do not pass: %v\n%s", err, out)
			}
		})
	}
}

// goTest runs go test, in the short form unless it is to be full: what the tests for a mutant
// do is a matter of the mutant, and not of how all of them are called.
func goTest(t *testing.T, full bool, args ...string) (out string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute) // go test has a limit of its own, which is shorter
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-vet=off"}, args...)...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ONCEMORE_FULL=") })
	cmd.Env = append(cmd.Env, "TEST_REQUIRE=1")
	if full {
		cmd.Env = append(cmd.Env, "ONCEMORE_FULL=1")
	}
	cmd.WaitDelay = 10 * time.Second
	b, err := cmd.CombinedOutput()
	return string(b), err
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

// run returns the names of the tests that fail on it; after the first no other one begins.
func (m mutant) run(t *testing.T) (caught []string, out string) {
	t.Helper()
	pkg, pattern, _ := strings.Cut(m.tests, " ")
	out, err := goTest(t, m.full, "-timeout", "3m", "-failfast", "-overlay", m.write(t, t.TempDir()), "-run", pattern, pkg)
	if strings.Contains(out, "[build failed]") || strings.Contains(out, "[no tests to run]") {
		t.Fatalf("the mutant without %s cannot be tried:\n%s", m.lacks, out)
	}
	if err == nil {
		return nil, out
	}
	for _, match := range failed.FindAllStringSubmatch(out, -1) {
		caught = append(caught, match[1])
	}
	if m.hangs && strings.Contains(out, "panic: test timed out") {
		caught = append(caught, "a test that does not end")
	}
	return caught, out
}
