// Package mutants takes the guarantees out of the code, one at a time, and demands that a
// test fails for each: a guarantee that no test misses is only hoped for.
//
// A mutant is one change of one place of the source. It is compiled through the go
// command's -overlay, so the working tree stays as it is, and the tests that should miss
// what it lacks are run on it. They must fail, by a test: not by the compiler, not for
// want of a database, and not by running out of time, unless the mutant says that they cannot end without what it lacks.
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
	"errors"
	"fmt"
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

// run returns the names of the tests that fail on it; after the first no other one begins.
func (m mutant) run(t *testing.T) (caught []string, out string) {
	t.Helper()
	pkg, pattern, _ := strings.Cut(m.tests, " ")
	out, err := goTest(t, m.full, "-timeout", "3m", "-failfast", "-overlay", m.write(t, t.TempDir()), "-run", pattern, pkg)
	caught, untried := judge(out, err, m.hangs)
	if untried != "" {
		t.Fatalf("the mutant without %s cannot be tried: %s\n%s", m.lacks, untried, out)
	}
	return caught, out
}

var (
	failed  = regexp.MustCompile(`(?m)^--- FAIL: (\w+)`)
	unbuilt = regexp.MustCompile(`(?m)^FAIL\s.*\[(build|setup) failed\]$`)
	// What pgtest says where a test could not even get its database.
	unserved = regexp.MustCompile(`no PostgreSQL, and TEST_REQUIRE=1|: create database \S+: `)
)

// judge tells from what go test said which tests miss a mutant, or why that is no answer: a
// list with a mutant that does not compile, or a machine without a database, would else
// look like the best of tests.
func judge(out string, err error, hangs bool) (caught []string, untried string) {
	var exit *exec.ExitError
	switch {
	case strings.Contains(out, "[no tests to run]"):
		return nil, "it names no test"
	case err == nil:
		return nil, ""
	case !errors.As(err, &exit) || !exit.Exited():
		return nil, fmt.Sprintf("go test did not end by itself: %v", err)
	case unbuilt.MatchString(out):
		return nil, "it does not compile"
	case unserved.MatchString(out):
		return nil, "a test did not get its database"
	}
	for _, match := range failed.FindAllStringSubmatch(out, -1) {
		caught = append(caught, match[1])
	}
	timedOut := strings.Contains(out, "panic: test timed out")
	switch {
	case hangs && timedOut:
		caught = append(caught, "a test that does not end")
	case len(caught) == 0 && !timedOut: // what takes too long just misses nothing
		return nil, "the test process died, and no test failed"
	}
	return caught, ""
}

func TestACatchIsATestThatFails(t *testing.T) {
	ended := exec.Command("go", "no such command").Run() // an exit code, as that of tests that fail
	const fail = "FAIL\nFAIL\tx/ledger\t0.1s\nFAIL\n"
	for name, c := range map[string]struct {
		out     string
		err     error
		hangs   bool
		caught  string
		untried string
	}{
		"all pass":                       {"ok  \tx/ledger\t0.1s\n", nil, false, "", ""},
		"a test fails":                   {"--- FAIL: TestFence (0.01s)\n    a_test.go:3: two facts\n" + fail, ended, false, "TestFence", ""},
		"a test panics":                  {"--- FAIL: TestFence (0.00s)\npanic: nil map [recovered, repanicked]\n" + fail, ended, false, "TestFence", ""},
		"a race in a test":               {"WARNING: DATA RACE\n--- FAIL: TestFence (0.00s)\n    testing.go:1: race detected during execution of test\n" + fail, ended, false, "TestFence", ""},
		"it does not compile":            {"# x/ledger\nledger/a.go:1: undefined: y\nFAIL\tx/ledger [build failed]\nFAIL\n", ended, false, "", "it does not compile"},
		"it imports what is not there":   {"# x/ledger\nFAIL\tx/ledger [setup failed]\nFAIL\n", ended, false, "", "it does not compile"},
		"no database":                    {"--- FAIL: TestFence (0.01s)\n    a_test.go:3: no PostgreSQL, and TEST_REQUIRE=1: initdb\n" + fail, ended, false, "", "a test did not get its database"},
		"a database that cannot be made": {"--- FAIL: TestFence (0.01s)\n    a_test.go:3: create database a: too many clients\n" + fail, ended, false, "", "a test did not get its database"},
		"the process dies":               {"panic: init\n\ngoroutine 1 [running]:\n" + fail, ended, false, "", "the test process died, and no test failed"},
		"no such test":                   {"ok  \tx/ledger\t0.1s [no tests to run]\n", nil, false, "", "it names no test"},
		"it never ends":                  {"panic: test timed out after 3m0s\n" + fail, ended, false, "", ""},
		"it never ends, and that is how it is missed": {"panic: test timed out after 3m0s\n" + fail, ended, true, "a test that does not end", ""},
		"go test was stopped":                         {"--- FAIL: TestFence (0.01s)\n", context.DeadlineExceeded, false, "", "go test did not end by itself: context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			caught, untried := judge(c.out, c.err, c.hangs)
			if got := strings.Join(caught, ", "); got != c.caught || untried != c.untried {
				t.Errorf("caught by %q, untried because %q; want %q and %q", got, untried, c.caught, c.untried)
			}
		})
	}
}
