package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A person is asked at a terminal, and types.
type person struct{ types string }

// call is call with somebody, or a file, at the program's input.
func (p person) call(t testing.TB, o Options, args ...string) answer {
	t.Helper()
	return callWith(t, o, strings.NewReader(p.types), true, args...)
}

func callWith(t testing.TB, o Options, in io.Reader, terminal bool, args ...string) answer {
	t.Helper()
	var out, err bytes.Buffer
	if o.Name == "" {
		o.Name = "oncemore"
	}
	root := (&program{Options: o, interactive: func(io.Reader) bool { return terminal }}).root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(&out)
	root.SetErr(&err)
	code := Execute(root)
	return answer{code, out.String(), err.String()}
}

// row asks the database one thing.
func row[T any](t testing.TB, dsn, query string, args ...any) (v T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func trouble(t testing.TB, dsn, entity string) string {
	t.Helper()
	return row[string](t, dsn, `SELECT coalesce((SELECT trouble FROM oncemore.claim WHERE entity = $1), 'none')`, entity)
}

// The worst that a command can do is the right thing in the wrong database.
func TestAPersonIsToldWhatHowMuchAndWhereAndThenAsked(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	name := row[string](t, dsn, `SELECT current_database()`)
	for _, test := range []struct {
		types string
		code  int
		then  string // of the entity
	}{
		{"n\n", 1, "failed"},
		{"\n", 1, "failed"},
		{"no, wait\n", 1, "failed"},
		{"yes please\n", 1, "failed"},
		{"", 2, "failed"}, // the terminal went away
		{"y\n", 0, "retrying"},
	} {
		a := person{test.types}.call(t, Options{}, "retry", "letter", "--all", "--reason", "the mailbox is mended", "--database-url", dsn)
		if a.code != test.code || trouble(t, dsn, "3") != test.then {
			t.Errorf("%q: %+v, and the entity is %s", test.types, a, trouble(t, dsn, "3"))
		}
		for _, want := range []string{"About to retry 1 entity of letter", "in the database " + name + " on ", "Go on? [y/N]", "permission"} {
			if !strings.Contains(a.err, want) {
				t.Errorf("%q: the question does not say %q:\n%s", test.types, want, a.err)
			}
		}
		if (a.out == "") != (test.code != 0) {
			t.Errorf("%q: on stdout is %q", test.types, a.out)
		}
	}
	var e []admin.AuditEntry
	if a := call(t, Options{}, "audit", "-o", "json", "--database-url", dsn); a.code != 0 {
		t.Fatalf("%+v", a)
	} else {
		e = decodeJSON[[]admin.AuditEntry](t, a.out)
	}
	if len(e) != 1 || e[0].Action != "retry" || e[0].Type != "letter" || e[0].Entities != 1 || e[0].Reason != "the mailbox is mended" {
		t.Errorf("%+v", e)
	}
	me, err := user.Current()
	host, _ := os.Hostname()
	if err == nil && e[0].Actor != me.Username+"@"+host {
		t.Errorf("the actor is %q", e[0].Actor)
	}
}

func TestWhereNobodyCanBeAskedNothingIsDoneWithoutYes(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	for _, args := range [][]string{
		{"retry", "letter", "--all"},
		{"retry", "letter", "3"},
		{"doubt", "resolve", "letter", "3", "--as", "done", "--reason", "why"},
		{"enqueue", "letter", "--key", "n", `{"n":99}`},
		{"parked", "resend", "--all"},
		{"parked", "drop", "--all", "--reason", "why"},
		{"rerun", "letter"},
		{"runs", "cancel", "1"},
		{"runs", "stop-all", "--reason", "why"},
	} {
		args = append(args, "--database-url", dsn)
		a := callWith(t, Options{}, strings.NewReader("y\n"), false, args...)
		if a.code != 2 || a.out != "" || !strings.Contains(a.err, "--yes") || !strings.Contains(a.err, "no terminal") {
			t.Errorf("%q: %+v", args, a)
		}
		// A program that reads our JSON is no person, terminal or not.
		a = person{"y\n"}.call(t, Options{}, append(args, "-o", "json")...)
		if a.code != 2 || a.out != "" || !strings.Contains(a.err, "--yes") || !strings.Contains(a.err, "-o json") {
			t.Errorf("%q -o json: %+v", args, a)
		}
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.audit`); n != 0 {
		t.Errorf("%d acts all the same", n)
	}
}

func TestADryRunTellsWhatTheSameCommandWouldDo(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	dry := call(t, Options{}, "retry", "letter", "--all", "--dry-run", "-o", "json", "--database-url", dsn)
	would := decodeJSON[proposal](t, dry.out)
	if dry.code != 0 || !would.DryRun || would.Matched != 1 || would.Changed != 0 || would.Audit != 0 || !strings.Contains(dry.err, "dry run") {
		t.Errorf("%+v", dry)
	}
	if s := dry.out; !strings.Contains(s, `"entity": "3"`) || !strings.Contains(s, `"error_class": "*errors.errorString"`) {
		t.Errorf("the sample is not there: %s", s)
	}
	if trouble(t, dsn, "3") != "failed" {
		t.Error("a dry run has changed something")
	}
	table := call(t, Options{}, "retry", "letter", "--all", "--dry-run", "--database-url", dsn)
	if table.code != 0 || !strings.HasPrefix(table.out, "ENTITY") || !strings.Contains(table.out, "\n3 ") {
		t.Errorf("%+v", table)
	}
	wet := call(t, Options{}, "retry", "letter", "--all", "--yes", "-o", "json", "--database-url", dsn)
	did := decodeJSON[proposal](t, wet.out)
	if wet.code != 0 || did.DryRun || did.Matched != 1 || did.Changed != 1 || did.Audit == 0 || len(did.Left) != 0 || did.Database != would.Database {
		t.Errorf("%+v", wet)
	}
	none := call(t, Options{}, "retry", "letter", "--all", "--yes", "--database-url", dsn)
	if none.code != 0 || !strings.Contains(none.err, "nothing matches") {
		t.Errorf("a second time: %+v", none)
	}
}

// What is left alone is no error, but a script must hear of it.
func TestWhatIsLeftAloneIsNamedAndTheExitCodeIsThree(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	a := call(t, Options{}, "retry", "letter", "3", "1", "--yes", "--database-url", dsn)
	if a.code != 3 || !strings.Contains(a.err, "left alone: 1 is not failed or stranded") || trouble(t, dsn, "3") != "retrying" {
		t.Errorf("%+v", a)
	}
	a = call(t, Options{}, "retry", "letter", "3", "--yes", "--database-url", dsn)
	if a.code != 3 || !strings.Contains(a.err, "left alone: 3") {
		t.Errorf("once more: %+v", a)
	}
	if a := call(t, Options{}, "parked", "resend", "7", "--yes", "--database-url", dsn); a.code != 3 || !strings.Contains(a.err, "left alone: 7 is not parked") {
		t.Errorf("%+v", a)
	}
}

// Between the listing and the verdict of an operator another attempt may have been made.
func TestAFenceBindsAVerdictToWhatWasListed(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	row[int](t, dsn, `WITH d AS (UPDATE oncemore.claim SET trouble = 'in_doubt' WHERE entity = '3' RETURNING 1) SELECT count(*)::int FROM d`)
	fence := row[int64](t, dsn, `SELECT fence FROM oncemore.claim WHERE entity = '3'`)
	resolve := func(fence int64) answer {
		return call(t, Options{}, "doubt", "resolve", "letter", "3", "--as", "done", "--fence", strconv.FormatInt(fence, 10),
			"--reason", "it is in the box", "--actor", "anna", "--yes", "--database-url", dsn)
	}
	if a := resolve(fence - 1); a.code != 3 || !strings.Contains(a.err, "left alone: 3 has changed since it was listed") || trouble(t, dsn, "3") != "in_doubt" {
		t.Errorf("%+v", a)
	}
	if a := resolve(fence); a.code != 0 || row[string](t, dsn, `SELECT evidence::text FROM oncemore.ledger WHERE entity = '3'`) != "o" {
		t.Errorf("%+v", a)
	}
	if who := row[string](t, dsn, `SELECT actor || ': ' || reason || ' (' || detail || ')' FROM oncemore.audit`); who != "anna: it is in the box (as done: 1 named)" {
		t.Error(who)
	}
}

// A Ctrl-C at the question is an answer too.
func TestAnInterruptAtTheQuestionChangesNothing(t *testing.T) {
	dsn := worked(t)
	in, typing := io.Pipe()
	defer typing.Close()
	asked := &untilSaid{what: "Go on?", said: func() {
		p, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = p.Signal(os.Interrupt)
		}
		if err != nil {
			t.Error(err)
		}
	}}
	root := (&program{Options: Options{Name: "oncemore"}, interactive: func(io.Reader) bool { return true }}).root()
	root.SetArgs([]string{"retry", "letter", "--all", "--database-url", dsn})
	root.SetIn(in)
	root.SetOut(io.Discard)
	root.SetErr(asked)
	if code := Execute(root); code != 130 || trouble(t, dsn, "3") != "failed" {
		t.Errorf("exit code %d, and the entity is %s:\n%s", code, trouble(t, dsn, "3"), asked.all.String())
	}
}

// untilSaid is a writer that tells when something was written.
type untilSaid struct {
	all  bytes.Buffer
	what string
	said func()
}

func (u *untilSaid) Write(b []byte) (int, error) {
	u.all.Write(b)
	if u.said != nil && strings.Contains(u.all.String(), u.what) {
		u.said()
		u.said = nil
	}
	return len(b), nil
}

func TestWrongUseOfTheCommandsThatChangeSomething(t *testing.T) {
	noDatabase(t)
	for _, test := range []struct {
		args string
		says string
	}{
		{"retry", "requires at least 1 arg"},
		{"retry letter", "--all"},
		{"retry letter 3 --all", "one of the two"},
		{"retry letter 3 --class timeout", "are for --all"},
		{"retry letter --all --limit -1", "--limit"},
		{"retry letter --all --since yesterday", "is no time"},
		{"retry letter --all --since -2h", "--since"},
		{"retry letter --all --until 2h", "is no time"},
		{"retry letter --all --fence 7", "one ENTITY"},
		{"doubt resolve letter 3 --reason why --yes", "--as done or --as not-applied"},
		{"doubt resolve letter 3 --as dunno --reason why --yes", "want one of done, not-applied"},
		{"doubt resolve letter 3 --as done --yes", "--reason is needed"},
		{"parked drop 3 --yes", "--reason is needed"},
		{"parked drop", "--all"},
		{"parked resend three", "they are numbers"},
		{"parked resend 3 --type letter", "are for --all"},
		{"enqueue letter", "requires at least 2 arg"},
		{"enqueue letter - --entity 3 --yes", "--key"},
		{"enqueue letter -", "--yes"},
		{"enqueue letter {} {} --entity 3", "--key"},
		{"enqueue letter {} --entity 3 --key n", "one of the two"},
		{"work", "cli.Options{Set: mySet}"},
		{"work --slots -1", "--slots"},
		{"audit --limit 0", "--limit"},
		{"rerun", "accepts 1 arg"},
		{"rerun letter", "--yes"},
		{"rerun letter --force --failed --yes --reason why", "reasons cannot be given"},
		{"rerun letter --canary-failures 5% --yes", "is for --canary"},
		{"rerun letter --canary 9 --canary-failures 500% --yes", "is no share"},
		{"rerun letter --rate -1 --yes", "--rate"},
		{"rerun letter --rate inf --yes", "--rate: a rate is a number of entities a second"},
		{"rerun letter --rate NaN --yes", "--rate: a rate is a number of entities a second"},
		{"rerun letter --rate 1e19 --yes", "nor above 1000000000"},
		{"rerun letter --entities-from - --watch", "nobody can be asked"},
		{"rerun letter --dry-run --watch", "--dry-run"},
		{"rerun letter --since yesterday --yes", "is no time"},
		{"runs show letter", "is no run"},
		{"runs rate 7 fast --yes", "is no rate"},
		{"runs rate 7 inf --yes", "is no rate"},
		{"runs rate 7 nan --yes", "is no rate"},
		{"runs rate 7 1e19 --yes", "is no rate"},
		{"runs watch 7 --interval 0s", "--interval"},
		{"runs stop-all --yes", "--reason is needed"},
	} {
		t.Run(test.args, func(t *testing.T) {
			a := call(t, Options{}, strings.Fields(test.args)...)
			if a.code != 2 || a.out != "" || !strings.Contains(a.err, test.says) {
				t.Errorf("%+v; want code 2 and %q", a, test.says)
			}
		})
	}
}

func TestAPersonIsOnlyAtATerminal(t *testing.T) {
	open := func(name string) *os.File {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for what, in := range map[string]io.Reader{"a pipe": r, "nothing": open(os.DevNull), "a text": strings.NewReader("y\n"), "a file": open("mutate_test.go")} {
		if terminalInput(in) {
			t.Errorf("%s is taken for a terminal", what)
		}
	}
	if !terminalInput(open("/dev/ptmx")) {
		t.Error("a terminal is not taken for one")
	}
}
