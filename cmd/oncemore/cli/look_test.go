package cli

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

// database is one of a test's own.
func database(t *testing.T) (string, *pgxpool.Pool) {
	t.Helper()
	dsn := pgtest.DSN(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return dsn, pool
}

func do(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// withLetters has a worker try letters whose sending ends with err.
func withLetters(t *testing.T, pool *pgxpool.Pool, effect jobs.Effect, err error, args ...jobs.Args) {
	t.Helper()
	set, e := jobs.NewSet(jobs.Job[letter]{Do: func(context.Context, letter) error { return err }, Effect: effect, Policy: jobs.Policy{Attempts: 1}})
	if e != nil {
		t.Fatal(e)
	}
	workertest.Run(t, pool, set, args...)
}

func TestTheExitCodeOfStatusCheckSaysWhetherAllIsDone(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	check := func(o Options, code int, says string) {
		t.Helper()
		a := call(t, o, "status", "--check", "--database-url", dsn)
		if a.code != code || !strings.Contains(a.err, says) || !strings.Contains(a.out, "JOB TYPE") {
			t.Errorf("%+v; want code %d and %q", a, code, says)
		}
	}
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	check(Options{}, 3, "Not all is done: letter: 1 failed; letter: 15 missing.") // 3 comes before 4
	if a := call(t, Options{}, "status", "--check", "-o", "json", "--database-url", dsn); a.code != 3 || len(decodeJSON[admin.Status](t, a.out).Types) != 3 {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "status", "--database-url", dsn); a.code != 0 {
		t.Errorf("without --check: %+v", a)
	}
	do(t, pool, `DELETE FROM oncemore.claim`)
	check(Options{}, 4, "letter: 16 missing")
	check(Options{Set: testSet}, 4, "parcel: 9 missing") // its source in Go is walked
	do(t, pool, `INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity)
		SELECT 1, t.id, 1, 'a', n::text FROM oncemore.job_type t CROSS JOIN generate_series(1, 25) n WHERE t.name IN ('letter', 'parcel') ON CONFLICT DO NOTHING`)
	check(Options{}, 0, "All is done.")
	check(Options{Set: testSet}, 0, "All is done.")
	do(t, pool, `INSERT INTO oncemore.message (queue, type, entities, args) VALUES ('', 'letter', ARRAY['99'], ARRAY['{}'])`)
	check(Options{}, 4, `queue "": 1 messages`)
	do(t, pool, `INSERT INTO oncemore.parked (reason, type, entity, body, error, digest) VALUES ('undecodable', 'letter', 'x', '{', 'unexpected end', 'd')`)
	check(Options{}, 3, "letter: 1 inputs parked: undecodable")
	do(t, pool, `DELETE FROM oncemore.parked; DELETE FROM oncemore.message; UPDATE oncemore.job_type SET source = 'SELECT 1/0 AS entity' WHERE name = 'letter'`)
	check(Options{}, 1, "it is not known whether all is done: letter: what is missing is not known")
}

func TestFailuresAreShownByClassAndListedByEntity(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	withLetters(t, pool, jobs.Once, jobs.Permanent(jobs.NotApplied(errors.New("\x1b[31mno paper\x07\nline two"))), letter{1}, letter{2}, letter{3})
	a := call(t, Options{}, "failures", "--database-url", dsn)
	if a.code != 0 || !strings.HasPrefix(a.out, "TYPE") || !strings.Contains(a.out, "*errors.errorString") || !strings.Contains(a.err, "1 of 1 groups of failures listed") {
		t.Fatalf("%+v", a)
	}
	if strings.ContainsAny(a.out, "\x1b\x07") || !strings.Contains(a.out, "no paper") || strings.Contains(a.out, "line two") {
		t.Errorf("a table shows the first line of an error, without what moves a terminal: %q", a.out)
	}
	found := decodeJSON[admin.Failures](t, call(t, Options{}, "failures", "letter", "-o", "json", "--database-url", dsn).out)
	if len(found.Rows) != 1 || found.Rows[0].Attempts != 3 || found.Rows[0].Failed != (admin.Count{N: 3, Is: admin.Exact}) || !strings.HasSuffix(found.Rows[0].Error, "no paper\x07\nline two") {
		t.Errorf("%+v", found)
	}
	a = call(t, Options{}, "failures", "--list", "--class", "*errors.errorString", "--since", "1h", "-o", "jsonl", "--database-url", dsn)
	if strings.Count(a.out, "\n") != 3 || !strings.Contains(a.err, "3 of 3 failed listed") {
		t.Errorf("%+v", a)
	}
	for line := range strings.Lines(a.out) {
		if o := decodeJSON[admin.Open](t, line); o.Type != "letter" || o.State != "failed" || o.Reason != ledger.Failed || o.Error == "" {
			t.Errorf("%+v", o)
		}
	}
	// Older than what is looked at, yet failed: it is said.
	do(t, pool, `UPDATE oncemore.attempt SET at = at - interval '8 days'`)
	a = call(t, Options{}, "failures", "--database-url", dsn)
	if a.out != "" || !strings.Contains(a.err, "3 entities are failed that these do not show") {
		t.Errorf("%+v", a)
	}
}

// The next page begins where the page before says.
func TestAListTellsHowManyAreLeftAndWhereTheyBegin(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	withLetters(t, pool, jobs.Once, errors.New("reset"), letter{1}, letter{2}, letter{3})
	var seen []string
	args := []string{"doubt", "ls", "--limit", "2", "-o", "jsonl", "--database-url", dsn}
	next := regexp.MustCompile(`--after (\S+)`)
	for {
		a := call(t, Options{}, args...)
		if a.code != 0 {
			t.Fatalf("%+v", a)
		}
		for line := range strings.Lines(a.out) {
			seen = append(seen, decodeJSON[admin.Open](t, line).Entity)
		}
		m := next.FindStringSubmatch(a.err)
		if m == nil {
			if !strings.HasPrefix(a.err, "1 of 3 in doubt listed\n") {
				t.Errorf("the last page: %q", a.err)
			}
			break
		}
		if !strings.HasPrefix(a.err, "2 of 3 in doubt listed; the next page: --after ") {
			t.Errorf("the first page: %q", a.err)
		}
		args = append(args[:0:0], append(args, "--after", m[1])...)
	}
	if strings.Join(seen, " ") != "1 2 3" {
		t.Errorf("seen: %q", seen)
	}
	if a := call(t, Options{}, "doubt", "ls", "--after", "nonsense", "--database-url", dsn); a.code != 2 || !strings.Contains(a.err, "--after") {
		t.Errorf("%+v", a)
	}
}

func TestADoubtIsListedWithTheFenceThatResolvesIt(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	withLetters(t, pool, jobs.Once, errors.New("connection reset"), letter{7})
	a := call(t, Options{}, "doubt", "ls", "letter", "--database-url", dsn)
	for _, want := range []string{"FENCE", "TO DO", "letter", "Once", "connection reset", "doubt resolve"} {
		if !strings.Contains(a.out, want) {
			t.Errorf("no %q in\n%s", want, a.out)
		}
	}
	list := decodeJSON[admin.List[admin.Open]](t, call(t, Options{}, "doubt", "ls", "-o", "json", "--database-url", dsn).out)
	if list.Of.N != 1 || len(list.Rows) != 1 || list.Rows[0].Fence == 0 || list.Rows[0].Owner == nil {
		t.Fatalf("%+v", list)
	}
	a = call(t, Options{}, "doubt", "resolve", "letter", "7", "--as", "done", "--reason", "it is in the box", "--yes",
		"--fence", strconv.FormatInt(list.Rows[0].Fence, 10), "--database-url", dsn)
	if a.code != 0 {
		t.Errorf("%+v", a)
	}
	a = call(t, Options{}, "ledger", "show", "letter", "7", "--database-url", dsn)
	for _, want := range []string{"PLACE", "done", "resolved by an operator", "in doubt", "it is in the box", "audit", "Nothing more: it is done"} {
		if !strings.Contains(a.out, want) {
			t.Errorf("no %q in\n%s", want, a.out)
		}
	}
}

func TestWhatDeadWorkersLeftAndReportedLateIsListed(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	l, ctx := ledger.New(pool), t.Context()
	kind := &ledger.Type{Name: "letter", Effect: ledger.Repeatable, Timeout: time.Minute}
	fatal := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	fatal(l.Declare(ctx, kind, ""))
	w, err := l.Join(ctx, "anna", time.Hour, slog.New(slog.DiscardHandler))
	fatal(err)
	claims, err := l.Claim(ctx, kind, w.ID, []ledger.Candidate{{Want: ledger.Want{Entity: "1"}, Args: "{}"}, {Want: ledger.Want{Entity: "2"}, Args: "{}"}})
	fatal(err)
	fatal(w.Leave(ctx))
	a := call(t, Options{}, "stranded", "--database-url", dsn)
	if a.code != 0 || strings.Count(a.out, "\n") != 3 || !strings.Contains(a.out, "anna") || !strings.Contains(a.err, "2 of 2 stranded listed") {
		t.Errorf("%+v", a)
	}
	do(t, pool, `DELETE FROM oncemore.claim WHERE entity = '1'`)
	out := []*ledger.Outcome{{Want: ledger.Want{Entity: "1"}, State: ledger.Completed, Evidence: ledger.Reported, Fence: claims[0].Fence, Attempts: 1}}
	fatal(l.RunBatch(ctx, func(b *pgx.Batch) { ledger.Settle(b, kind, w.ID, out) }))
	fatal(l.RecordDisputes(ctx, kind, w.ID, out))
	a = call(t, Options{}, "disputed", "letter", "--database-url", dsn)
	if a.code != 0 || !strings.Contains(a.out, "missing") || !strings.Contains(a.out, "twice") || !strings.Contains(a.err, "1 of 1 disputed listed") {
		t.Errorf("%+v", a)
	}
}

// What is parked can be piped on: its body alone is on stdout.
func TestTheBodyOfParkedInputIsPrintedAlone(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	send(t, pool, queue.Message{Type: "letter", Items: []queue.Item{{Entity: "7", Args: []byte(`{"n":"x\u001b"}`)}}})
	withLetters(t, pool, jobs.Once, nil)
	list := decodeJSON[admin.List[admin.SetAside]](t, call(t, Options{}, "parked", "-o", "json", "--database-url", dsn).out)
	if len(list.Rows) != 1 || list.Rows[0].Reason != "undecodable" {
		t.Fatalf("%+v", list)
	}
	id := strconv.FormatInt(list.Rows[0].ID, 10)
	a := call(t, Options{}, "parked", "show", id, "--database-url", dsn)
	if a.code != 0 || a.out != `{"n":"x\u001b"}`+"\n" || !strings.Contains(a.err, "undecodable") || !strings.Contains(a.err, "came 1 time ") {
		t.Errorf("%+v", a)
	}
	a = call(t, Options{}, "parked", "letter", "--reason-was", "undecodable", "--database-url", dsn)
	if a.code != 0 || strings.Count(a.out, "\n") != 2 || !strings.Contains(a.err, "1 of 1 parked listed") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "parked", "show", "4711", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "nothing is parked under this id") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "parked", "show", "seven", "--database-url", dsn); a.code != 2 {
		t.Errorf("%+v", a)
	}
}

func TestDoctorsExitCodeSaysWhetherSomethingIsBad(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	doctor := func(args ...string) answer {
		// The tests' own server does not sync, and others are on it.
		return call(t, Options{}, append([]string{"doctor", "--skip", "settings,connections,replication", "--database-url", dsn}, args...)...)
	}
	if a := doctor("--strict"); a.code != 0 || !strings.HasPrefix(a.out, "STATE") || !strings.Contains(a.err, "0 bad, 0 warnings") || strings.Contains(a.out, "fsync") {
		t.Errorf("%+v", a)
	}
	do(t, pool, `ALTER TABLE oncemore.claim RESET (autovacuum_vacuum_threshold)`)
	if a := doctor(); a.code != 0 || !strings.Contains(a.out, "warn") || !strings.Contains(a.out, "do: ") {
		t.Errorf("a warning: %+v", a)
	}
	if a := doctor("--strict"); a.code != 3 || !strings.Contains(a.err, "0 bad, 1 warnings") {
		t.Errorf("a warning that counts: %+v", a)
	}
	do(t, pool, `DROP INDEX oncemore.message_ready`)
	a := doctor("-o", "jsonl")
	if a.code != 3 {
		t.Errorf("%+v", a)
	}
	bad := map[string]bool{}
	for line := range strings.Lines(a.out) {
		if c := decodeJSON[admin.Check](t, line); c.State == admin.Bad {
			bad[c.Name] = true
		}
	}
	if len(bad) != 2 || !bad["indexes"] || !bad["plans"] {
		t.Errorf("bad are %v", bad)
	}
	if checks := decodeJSON[[]admin.Check](t, doctor("-o", "json").out); len(checks) < 15 {
		t.Errorf("%+v", checks)
	}
	if a := doctor("--skip", "indexes", "--skip", "plans"); a.code != 0 {
		t.Errorf("%+v", a)
	}
	if a := doctor("--skip", "moon"); a.code != 2 || !strings.Contains(a.err, "no such check") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "doctor", "--database-url", pgtest.EmptyDSN(t)); a.code != 3 || !strings.Contains(a.out, "run 'migrate up'") {
		t.Errorf("without the schema: %+v", a)
	}
}

func TestWrongUseOfTheCommandsThatLook(t *testing.T) {
	noDatabase(t)
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"failures a b", 2, "accepts at most 1 arg"},
		{"failures --limit -1", 2, "--limit"},
		{"failures --since never", 2, "--since"},
		{"failures --after x", 2, "--list"},
		{"failures -o csv", 2, "want one of table, json, jsonl"},
		{"doubt ls a b", 2, "accepts at most 1 arg"},
		{"stranded -o xml", 2, "want one of"},
		{"ledger show letter", 2, "accepts 2 arg"},
		{"ledger sho", 2, "unknown command"},
		{"parked show", 2, "accepts 1 arg"},
		{"doctor now", 2, "unknown command"},
		{"doctor", 1, "oncemore dev"},
		{"failures", 1, "oncemore dev"},
		{"ledger", 0, ""},
	} {
		if a := call(t, Options{}, strings.Fields(test.args)...); a.code != test.code || !strings.Contains(a.err, test.says) {
			t.Errorf("%s: %+v; want code %d and %q", test.args, a, test.code, test.says)
		}
	}
}

func TestATypeThatNobodyRegisteredIsNamedWithThoseThatThereAre(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	withLetters(t, pool, jobs.Once, nil)
	for _, args := range []string{"failures lettre", "failures lettre --list", "doubt ls lettre", "stranded lettre", "disputed lettre", "ledger show lettre 1", "missing lettre"} {
		a := call(t, Options{}, append(strings.Fields(args), "--database-url", dsn)...)
		if a.code != 1 || !strings.Contains(a.err, `"lettre"`) || !strings.Contains(a.err, "there are: letter") {
			t.Errorf("%s: %+v", args, a)
		}
	}
	for _, args := range []string{"failures", "doubt ls", "stranded", "disputed", "parked", "ledger show", "missing"} {
		a := call(t, Options{}, append(strings.Fields("__complete "+args), "--database-url", dsn, "")...)
		if a.code != 0 || !slices.Contains(strings.Split(a.out, "\n"), "letter") {
			t.Errorf("completion of %s: %+v", args, a)
		}
	}
}

func TestColoursAreForTerminalsAndForThoseWhoWantThem(t *testing.T) {
	terminal, err := os.OpenFile("/dev/null", os.O_WRONLY, 0) // a character device, as a terminal is
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if got := painted(terminal, red, "bad"); got != "\x1b[31mbad\x1b[0m" {
		t.Errorf("%q", got)
	}
	if len(painted(terminal, bold, "")) != len(painted(terminal, green, "")) {
		t.Error("colours differ in length, so columns are not aligned")
	}
	t.Setenv("NO_COLOR", "1")
	if got := painted(terminal, red, "bad"); got != "bad" {
		t.Errorf("with NO_COLOR: %q", got)
	}
	t.Setenv("NO_COLOR", "")
	if got := painted(t.Output(), red, "bad"); got != "bad" {
		t.Errorf("into a file: %q", got)
	}
}

func TestACellIsOneLineAndCannotMoveTheCursor(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", " a\tb\r\nc": "a b …", "a\x1b[2Jb": "a\uFFFD[2Jb", "\n\n": "", "äöüäöüäöüä": "äöüäöüäöüä", "äöüäöüäöüäö": "äöüäöüäöü…", "a\u202eb": "a\uFFFDb", "a\n": "a",
	} {
		if got := cell(in, 10); got != want {
			t.Errorf("%q is shown as %q, want %q", in, got, want)
		}
	}
}

// Behind a pooler in transaction mode there are no named statements.
func TestLookingNeedsNoNamedStatements(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	withLetters(t, pool, jobs.Once, errors.New("reset"), letter{1})
	and := "?"
	if strings.Contains(dsn, "?") {
		and = "&"
	}
	for _, args := range []string{"status", "failures --since 1h", "failures --list --class x --until 2030-01-01", "doubt ls --since 1h", "stranded", "disputed --since 1h", "parked letter", "ledger show letter 1", "doctor --skip settings"} {
		a := call(t, Options{}, append(strings.Fields(args), "-o", "json", "--database-url", dsn+and+"default_query_exec_mode=exec")...)
		if a.code != 0 || strings.Contains(a.out, `"unseen"`) && !strings.Contains(a.out, `"unseen": []`) {
			t.Errorf("%s: %+v", args, a)
		}
	}
}
