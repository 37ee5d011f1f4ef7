package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// working runs a worker with the test's jobs until the test ends.
func working(t *testing.T, dsn string) {
	t.Helper()
	workingOn(t, dsn, testSet)
}

// workingOn runs a worker with jobs of a test until stop, or until the test ends.
func workingOn(t *testing.T, dsn string, jobsOf func(context.Context, *pgxpool.Pool) (*jobs.Set, error)) (stop func()) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jobsOf(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), pool, set, worker.Config{Name: "berta", Log: slog.New(slog.DiscardHandler), Throttles: []throttle.Signal{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		pool.Close()
	})
	t.Cleanup(stop)
	return stop
}

// held has a run of all letters planned, and then held.
func held(t *testing.T, dsn string) {
	t.Helper()
	if a := call(t, Options{}, "runs", "stop-all", "--reason", "the database is moved", "--yes", "--database-url", dsn); a.code != 0 {
		t.Fatalf("%+v", a)
	}
	if a := call(t, Options{}, "rerun", "letter", "--yes", "--reason", "the outage", "--database-url", dsn); a.code != 0 {
		t.Fatalf("%+v", a)
	}
	awaitRow(t, dsn, `SELECT EXISTS (SELECT FROM oncemore.run WHERE waits <> '')`)
}

func awaitRow(t *testing.T, dsn, query string) {
	t.Helper()
	for limit := time.Now().Add(20 * time.Second); !row[bool](t, dsn, query); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("not within 20 s: %s", query)
		}
	}
}

func says(t *testing.T, what, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s: %q is not said:\n%s", what, want, text)
		}
	}
}

func TestARerunIsPreviewedAskedForWorkedAndFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	dry := call(t, Options{}, "rerun", "letter", "--dry-run", "--database-url", dsn)
	if dry.code != 0 || strings.Count(dry.out, "\n") != 11 || !strings.HasPrefix(dry.out, "ENTITY") {
		t.Errorf("%+v", dry)
	}
	says(t, "the dry run", dry.err, "and 5 more", "15  missing\n", "9  done: left alone", "1  failed: left alone", "dry run: it would re-run 15 entities of letter")
	type would struct {
		DryRun  bool `json:"dry_run"`
		Preview admin.Preview
		Run     int64
	}
	limited := call(t, Options{}, "rerun", "letter", "--limit", "4", "--rate", "2", "--dry-run", "-o", "json", "--database-url", dsn)
	if w := decodeJSON[would](t, limited.out); !w.DryRun || w.Run != 0 || w.Preview.Items != 4 || len(w.Preview.First) != 4 || w.Preview.Estimate.Seconds != 2 || !w.Preview.Capped {
		t.Errorf("%+v", limited)
	}
	if no := (person{"n\n"}).call(t, Options{}, "rerun", "letter", "--database-url", dsn); no.code != 1 || no.out != "" || row[int](t, dsn, `SELECT count(*)::int FROM oncemore.run`) != 1 {
		t.Errorf("%+v", no)
	}
	working(t, dsn)
	yes := person{"y\n"}.call(t, Options{}, "rerun", "letter", "--reason", "the outage of Friday", "--watch", "--interval", "100ms", "--database-url", dsn)
	if yes.code != 0 || !strings.Contains(yes.out, "opened") {
		t.Errorf("%+v", yes)
	}
	says(t, "the question", yes.err, "About to re-run 15 entities of letter, in the database", "15  missing", "Go on? [y/N]", "is complete: 15 of 15 done")
	id := fmt.Sprint(row[int](t, dsn, `SELECT max(id)::int FROM oncemore.run`))
	show := call(t, Options{}, "runs", "show", id, "--database-url", dsn)
	says(t, "runs show", show.out, "15 missing; left alone: 9 done, 1 failed", "the outage of Friday", "complete", "opened", "planned", "ended")
	if a := call(t, Options{}, "runs", "watch", id, "-o", "json", "--database-url", dsn); a.code != 0 || decodeJSON[admin.Run](t, a.out).Done != 15 {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "rerun", "letter", "--yes", "--watch", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "nothing matches; nothing was changed") {
		t.Errorf("%+v", a)
	}
	// What failed fails again: that is no success.
	failed := call(t, Options{}, "rerun", "letter", "--failed", "--yes", "--watch", "-o", "json", "--database-url", dsn)
	if r := decodeJSON[reran](t, failed.out); failed.code != 3 || r.Watched == nil || r.Watched.Failed != 1 || r.Watched.State != admin.Ended || r.Preview.Items != 1 {
		t.Errorf("%+v", failed)
	}
	says(t, "the end", failed.err, "has ended, and is not complete", "runs show")
	show = call(t, Options{}, "runs", "show", fmt.Sprint(row[int](t, dsn, `SELECT max(id)::int FROM oncemore.run`)), "--database-url", dsn)
	says(t, "its failures", show.out, "permission denied", "ENTITY", "failed")
}

func TestWhoAsksForTheSameIsToldThatItGoesOnAndMayFollowIt(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	// Nobody has planned it yet: who asks joins.
	for _, want := range []string{"opened", "joined"} {
		a := call(t, Options{}, "rerun", "letter", "--missing", "--stale", "--yes", "--database-url", dsn)
		if a.code != 0 || !strings.Contains(a.out, want) {
			t.Errorf("%s: %+v", want, a)
		}
	}
	working(t, dsn)
	awaitRow(t, dsn, `SELECT count(*) = 0 FROM oncemore.run WHERE ended_at IS NULL`)
	row[int](t, dsn, `WITH d AS (DELETE FROM oncemore.ledger WHERE entity > '15' RETURNING 1) SELECT count(*)::int FROM d`)
	held(t, dsn)
	acts := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.audit`)
	a := call(t, Options{}, "rerun", "letter", "--yes", "--database-url", dsn)
	if a.code != 0 || !strings.Contains(a.out, "goes on") {
		t.Errorf("%+v", a)
	}
	says(t, "the same again", a.err, "is being worked already: 0 of", "; waits: all runs are stopped: the database is moved; nothing was changed", "runs watch")
	says(t, "runs ls", call(t, Options{}, "runs", "ls", "--going", "--database-url", dsn).err, "all re-runs are stopped since", "the database is moved", "runs release")
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.audit`); n != acts {
		t.Errorf("%d acts where nothing was changed", n-acts)
	}
	if a := (person{"y\n"}).call(t, Options{}, "runs", "release", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "About to let go on all re-runs") {
		t.Errorf("%+v", a)
	}
	if a := (person{"y\n"}).call(t, Options{}, "rerun", "letter", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "Follow it?") && !strings.Contains(a.err, "nothing matches") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "runs", "release", "--yes", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "nothing matches") {
		t.Errorf("released twice: %+v", a)
	}
}

func TestWhatIsForcedOrRuledOnNeedsAReason(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	for _, flag := range []string{"--force", "--in-doubt"} {
		if a := call(t, Options{}, "rerun", "letter", flag, "--yes", "--database-url", dsn); a.code != 2 || !strings.Contains(a.err, "--reason is needed") {
			t.Errorf("%s: %+v", flag, a)
		}
	}
	dry := call(t, Options{}, "rerun", "letter", "--force", "--prefix", "2", "--dry-run", "--database-url", dsn)
	says(t, "forced", dry.err, "Selected: everything, forced, prefix 2", "1  forced", "6  missing", "re-run 7 entities")
	working(t, dsn)
	a := call(t, Options{}, "rerun", "letter", "--force", "--entity", "2", "--entity", "5", "--reason", "the address was wrong", "--yes", "--watch", "--interval", "100ms", "--database-url", dsn)
	if a.code != 0 || !strings.Contains(a.err, "complete: 2 of 2 done") {
		t.Errorf("%+v", a)
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.ledger WHERE epoch > 0 AND entity IN ('2', '5')`); n != 2 || row[int](t, dsn, `SELECT count(*)::int FROM oncemore.ledger_history`) != 2 {
		t.Errorf("%d facts are forced", n)
	}
}

// A program without the jobs cannot ask a source in Go. The workers can.
func TestWhatOnlyTheWorkersKnowIsPlannedByThem(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	dry := call(t, Options{}, "rerun", "parcel", "--dry-run", "--database-url", dsn)
	says(t, "without the jobs", dry.err, "What is missing is not known here, and the workers will ask")
	says(t, "with them", call(t, Options{Set: testSet}, "rerun", "parcel", "--dry-run", "--database-url", dsn).err, "9  missing", "1  done: left alone")
	working(t, dsn)
	a := call(t, Options{}, "rerun", "parcel", "--yes", "--watch", "--interval", "100ms", "--database-url", dsn)
	if a.code != 0 || !strings.Contains(a.err, "is complete: 9 of 9 done") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "rerun", "unheard", "--yes", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "there are: letter, mailing, parcel") {
		t.Errorf("%+v", a)
	}
	// What carries re-runs is no job type of the application's.
	if a := call(t, Options{}, "status", "--database-url", dsn); a.code != 0 || strings.Contains(a.out, "oncemore.rerun") || !strings.Contains(a.out, "re-run of parcel") {
		t.Errorf("%+v", a)
	}
}

func TestEntitiesAreReadFromAFileOrTheInput(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	file := filepath.Join(t.TempDir(), "entities")
	if err := os.WriteFile(file, []byte("12\r\n13\n\n99\n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := call(t, Options{}, "rerun", "letter", "--entities-from", file, "--dry-run", "--database-url", dsn)
	says(t, "from a file", a.err, "2  missing", "1  done: left alone", "of 4 named", "re-run 2 entities")
	a = callWith(t, Options{}, strings.NewReader("14\n15\n16\n"), false, "rerun", "letter", "--entities-from", "-", "--dry-run", "--database-url", dsn)
	says(t, "from the input", a.err, "3  missing", "re-run 3 entities")
	if a := call(t, Options{}, "rerun", "letter", "--entities-from", file+"x", "--dry-run", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "read the entities") {
		t.Errorf("%+v", a)
	}
}

func TestARunIsPausedResumedSlowedAndCancelledFromTheCommandLine(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	working(t, dsn)
	held(t, dsn)
	id := fmt.Sprint(row[int](t, dsn, `SELECT max(id)::int FROM oncemore.run`))
	for _, test := range []struct{ args, asks, then string }{
		{"pause " + id + " --reason so", "About to pause run " + id + " of letter", `SELECT paused IS NOT NULL FROM oncemore.run_control WHERE run = ` + id},
		{"rate " + id + " 2.5", "About to change the rate of run", `SELECT rate = 2.5 FROM oncemore.run_control WHERE run = ` + id},
		{"resume " + id, "About to resume", `SELECT paused IS NULL FROM oncemore.run_control WHERE run = ` + id},
		{"cancel " + id, "About to cancel", `SELECT cancelled FROM oncemore.run WHERE id = ` + id},
	} {
		args := append([]string{"runs"}, append(strings.Fields(test.args), "--database-url", dsn)...)
		if a := (person{"n\n"}).call(t, Options{}, args...); a.code != 1 {
			t.Errorf("%s, no: %+v", test.args, a)
		}
		a := person{"y\n"}.call(t, Options{}, args...)
		if a.code != 0 || !strings.Contains(a.err, test.asks) {
			t.Errorf("%s: %+v", test.args, a)
		}
		awaitRow(t, dsn, test.then)
	}
	if a := call(t, Options{}, "runs", "watch", id, "--database-url", dsn); a.code != 3 || !strings.Contains(a.err, "was cancelled: 0 of 15 done, 15 not begun") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "runs", "pause", id, "--yes", "--database-url", dsn); a.code != 3 || !strings.Contains(a.err, "has ended") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "runs", "pause", "77", "--yes", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "no such run") {
		t.Errorf("%+v", a)
	}
	if got := row[string](t, dsn, `SELECT string_agg(action, ' ' ORDER BY id) FROM oncemore.audit`); got != "stop-all rerun pause rate resume cancel" {
		t.Errorf("the audit: %s", got)
	}
	if a := call(t, Options{}, "missing", "letter", "--database-url", dsn); !strings.Contains(a.err, "15 of letter missing") {
		t.Errorf("%+v", a)
	}
}

// Who stops watching has not stopped the run, and is told so.
func TestAnInterruptEndsTheWatchingAndNotTheRun(t *testing.T) {
	dsn := worked(t)
	working(t, dsn)
	held(t, dsn)
	id := fmt.Sprint(row[int](t, dsn, `SELECT max(id)::int FROM oncemore.run`))
	told := &untilSaid{what: "waits: ", said: func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Error(err)
		}
	}}
	root := New(Options{Name: "acme"})
	root.SetArgs([]string{"runs", "watch", id, "--interval", "50ms", "--database-url", dsn})
	root.SetOut(io.Discard)
	root.SetErr(told)
	if code := Execute(root); code != 130 {
		t.Errorf("exit code %d", code)
	}
	says(t, "the farewell", told.all.String(), "run "+id+" goes on in the workers", "acme runs watch "+id, "acme runs pause "+id, "acme runs resume "+id)
	if !row[bool](t, dsn, `SELECT ended_at IS NULL FROM oncemore.run WHERE id = `+id) {
		t.Error("the run has ended with it")
	}
	if a := call(t, Options{}, "runs", "release", "--yes", "--database-url", dsn); a.code != 0 {
		t.Errorf("%+v", a)
	}
	lines := call(t, Options{}, "runs", "watch", id, "--interval", "50ms", "-o", "jsonl", "--database-url", dsn)
	all := strings.Split(strings.TrimSpace(lines.out), "\n")
	if last := decodeJSON[admin.Run](t, all[len(all)-1]); lines.code != 0 || last.State != admin.Complete || last.Done != 15 {
		t.Errorf("%+v", lines)
	}
}

func TestProgressIsOneLineThatSaysHowFarAndWhatHoldsItUp(t *testing.T) {
	eta := 90.0
	for _, test := range []struct {
		run  admin.Run
		want string
	}{
		{admin.Run{State: admin.Planning}, "planning"},
		{admin.Run{State: admin.Planning, Items: 20000}, "planning, 20,000 so far"},
		{admin.Run{State: admin.Going, Items: 1000, Done: 400, Open: 16, Missing: 84, NotSent: 500, Pace: 123.4, ETA: &eta}, "400 of 1,000 done, 16 open, 123/s, 90 s left"},
		{admin.Run{State: admin.Held, Items: 10, Done: 4, NotSent: 6, Waits: "replica lag: 12 s"}, "4 of 10 done; waits: replica lag: 12 s"},
		{admin.Run{State: admin.Cancelling, Items: 10, Done: 4, NotSent: 6}, "4 of 10 done; cancelling"},
		{admin.Run{State: admin.Ended, Items: 10, Done: 7, Failed: 2, InDoubt: 1}, "7 of 10 done, 2 failed, 1 in doubt, ended"},
		{admin.Run{State: admin.Ended, Items: 10, Done: 7, Missing: 3}, "7 of 10 done, 3 not ready, ended"},
	} {
		if got := progressWords(&test.run); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
	r := admin.Run{State: admin.Going, Items: 8, Done: 3, Failed: 1, NotSent: 4}
	if got := bar(io.Discard, &r); got != strings.Repeat("█", 12)+strings.Repeat("░", 12)+"  50%  3 of 8 done, 1 failed" {
		t.Errorf("%q", got)
	}
	var out strings.Builder
	l := &statusLine{w: &out, is: true}
	l.show("one")
	l.show("two")
	l.clear()
	l.clear()
	if strings.Count(out.String(), "\n") != 0 || strings.Count(out.String(), "\r") != 3 {
		t.Errorf("%q", out.String())
	}
	for seconds, want := range map[float64]string{0.2: "less than a second", 90: "90 s", 600: "10 min", 9000: "2 h 30 min", 1e12: "11574 days"} {
		if got := span(seconds); got != want {
			t.Errorf("%g s: %q, want %q", seconds, got, want)
		}
	}
}
