package integration_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/integration_test/sqspeer"
)

// buildProgram returns the program oncemore, made from this tree.
func buildProgram(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "oncemore")
	build := exec.Command("go", "build", "-o", program, "../cmd/oncemore")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return program
}

func needsPostgres(t testing.TB) {
	t.Helper()
	if _, err := pglocal.FindBin(); err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// demoFolders are what demos leave while they run, and must not leave afterwards.
func demoFolders(t testing.TB, tmp string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(tmp, "oncemore-demo-*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// temp is a folder for a demo's own folder; the database's user must be able to enter it.
func temp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "oncemore-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A demoResult is what a demo prints of how it went.
type demoResult struct {
	Invited         *int `json:"invited"`
	Delivered       *int `json:"delivered"`
	DeliveredTwice  *int `json:"delivered_twice"`
	SkippedDone     *int `json:"skipped_done"`
	InDoubtResolved *int `json:"in_doubt_resolved"`
	Missing         *int `json:"missing"`
	KilledWorkers   *int `json:"killed_workers"`
	SQS             *struct {
		HandedOut  int `json:"handed_out"`
		Twice      int `json:"handed_out_twice"`
		Refused    int `json:"refused"`
		Unanswered int `json:"unanswered"`
	} `json:"sqs"`
}

// playDemo plays one to its end, and fails the test when an invitation is missing or there
// twice.
func playDemo(t *testing.T, args ...string) (got demoResult) {
	t.Helper()
	needsPostgres(t)
	tmp := temp(t)
	demo := exec.Command(buildProgram(t), append([]string{"demo", "-o", "json"}, args...)...)
	demo.Env = append(os.Environ(), "TMPDIR="+tmp)
	var story bytes.Buffer
	demo.Stderr = &story
	out, err := demo.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &story)
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	is := func(n *int, ok func(int) bool) bool { return n != nil && ok(*n) }
	if !is(got.Invited, func(n int) bool { return n == 1000 }) || !is(got.Delivered, func(n int) bool { return n == 1000 }) ||
		!is(got.DeliveredTwice, func(n int) bool { return n == 0 }) || !is(got.SkippedDone, func(n int) bool { return n >= 1000 }) ||
		!is(got.InDoubtResolved, func(n int) bool { return n > 0 }) || !is(got.Missing, func(n int) bool { return n == 0 }) ||
		!is(got.KilledWorkers, func(n int) bool { return n == 1 }) {
		t.Errorf("%s\n%s", out, &story)
	}
	if left := demoFolders(t, tmp); len(left) > 0 {
		t.Errorf("the demo left %q", left)
	}
	return got
}

func TestTheDemoDeliversEachInvitationOnceThroughAnOutageAndAKill(t *testing.T) {
	t.Parallel()
	if got := playDemo(t); got.SQS != nil {
		t.Errorf("it went through SQS: %+v", *got.SQS)
	}
}

func TestTheDemoDeliversEachInvitationOnceThroughAnSQSThatDoublesRefusesAndGoesAway(t *testing.T) {
	t.Parallel()
	sqspeer.Start(t) // where it cannot run, this test is skipped
	got := playDemo(t, "--queue", "sqs")
	if q := got.SQS; q == nil || q.HandedOut < 2000 || q.Twice == 0 || q.Refused == 0 || q.Unanswered == 0 {
		t.Errorf("SQS did %+v", q)
	}
}

func TestADemoThatIsInterruptedLeavesNothingBehind(t *testing.T) {
	needsPostgres(t)
	tmp := temp(t)
	demo := exec.Command(buildProgram(t), "demo")
	demo.Env = append(os.Environ(), "TMPDIR="+tmp)
	var story bytes.Buffer
	demo.Stdout, demo.Stderr = &story, &story // our end of the pipe closes when no process of it is left
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- demo.Wait() }()
	for limit := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if logs, _ := filepath.Glob(filepath.Join(tmp, "oncemore-demo-*", "logs", "worker-*")); len(logs) == 3 {
			break // all that it starts is there, or about to be
		}
		if time.Now().After(limit) {
			t.Fatal("the demo has not started its workers in two minutes")
		}
	}
	if err := demo.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		demo.Process.Kill()
		t.Fatalf("the demo goes on 30 s after an interrupt:\n%s", &story)
	}
	if code := demo.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit code %d, want 130:\n%s", code, &story)
	}
	if left := demoFolders(t, tmp); len(left) > 0 {
		t.Errorf("the demo left %q:\n%s", left, &story)
	}
}
