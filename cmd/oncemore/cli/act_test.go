package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker"
)

const lettersSent = `SELECT coalesce(string_agg(e, ',' ORDER BY e), '') FROM oncemore.message m, unnest(m.entities) e WHERE m.type = 'letter'`

func TestEnqueueMakesTheEntityOfTheArgumentsWhereItHasTheJobs(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	with := Options{Set: testSet}
	if a := call(t, with, "enqueue", "letter", `{"n":31}`, `{"n":32}`, "--yes", "--database-url", dsn); a.code != 0 {
		t.Fatalf("%+v", a)
	}
	if a := callWith(t, with, strings.NewReader("{\"n\":33}\n\n  {\"n\":34}"), false, "enqueue", "letter", "-", "--yes", "-o", "json", "--database-url", dsn); a.code != 0 || decodeJSON[proposal](t, a.out).Changed != 2 {
		t.Errorf("%+v", a)
	}
	// Without the jobs somebody must say how.
	if a := call(t, Options{}, "enqueue", "letter", `{"n":35}`, "--yes", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "argument 1: names no entity") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "enqueue", "letter", `{"n":35}`, "--key", "n", "--yes", "--database-url", dsn); a.code != 0 {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "enqueue", "letter", `{"n":36}`, "--entity", "36", "--yes", "--database-url", dsn); a.code != 0 {
		t.Errorf("%+v", a)
	}
	if sent := row[string](t, dsn, lettersSent); sent != "31,32,33,34,35,36" {
		t.Errorf("sent are %s", sent)
	}
}

func TestOfBadLinesEachIsNamedAndNothingIsEnqueued(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	var lines strings.Builder
	for n := range 2000 {
		switch n {
		case 6:
			fmt.Fprintln(&lines, `{"n":"six"}`)
		case 1233:
			fmt.Fprintln(&lines, `{"n":1,`)
		case 1998:
			fmt.Fprintln(&lines, `{"m":1}`)
		default:
			fmt.Fprintf(&lines, "{\"n\":%d}\n", 1000+n)
		}
	}
	a := callWith(t, Options{Set: testSet}, strings.NewReader(lines.String()), false, "enqueue", "letter", "-", "--yes", "--database-url", dsn)
	if a.code != 1 || a.out != "" {
		t.Fatalf("%+v", a)
	}
	for _, want := range []string{"3 inputs are wrong", "line 7: ", "line 1234: ", "line 1999: "} {
		if !strings.Contains(a.err, want) {
			t.Errorf("%q is not said: %s", want, a.err)
		}
	}
	if sent := row[string](t, dsn, lettersSent); sent != "" {
		t.Errorf("sent are %s", sent)
	}
	// Without the jobs: the key must be there.
	a = callWith(t, Options{}, strings.NewReader("{\"n\":1}\n{\"n\":null}\n[]\n"), false, "enqueue", "letter", "-", "--key", "n", "--yes", "--database-url", dsn)
	if a.code != 1 || !strings.Contains(a.err, `line 2: has no field "n"`) || !strings.Contains(a.err, "line 3: is no JSON object") {
		t.Errorf("%+v", a)
	}
}

// What --key says and what the app's jobs.Key says must be one.
func TestKeyOfFieldsIsThatOfTheJobs(t *testing.T) {
	for _, test := range []struct {
		args   string
		fields []string
		want   string
	}{
		{`{"event_id":234,"invitee_id":17}`, []string{"event_id", "invitee_id"}, jobs.Key(234, 17)},
		{`{"path":"a/b%","n":9007199254740993}`, []string{"path", "n"}, jobs.Key("a/b%", int64(9007199254740993))},
		{`{"on":true,"":"x"}`, []string{"on", ""}, jobs.Key(true, "x")},
	} {
		if got, err := keyOf([]byte(test.args), test.fields); err != nil || got != test.want {
			t.Errorf("%s by %q: %q, %v; want %q", test.args, test.fields, got, err, test.want)
		}
	}
}

func TestParkedInputIsSentAgainOrDroppedByHand(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	set, err := testSet(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), pool, set, worker.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	bad := queue.Message{Type: "letter"}
	for n := range 12 { // arguments of another entity than the message's
		bad.Items = append(bad.Items, queue.Item{Entity: fmt.Sprintf("x%02d", n), Args: []byte(`{"n":1}`)})
	}
	if a := callWith(t, Options{}, strings.NewReader(""), false, "parked", "drop", "--all", "--reason", "none", "--yes", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "nothing matches") {
		t.Errorf("%+v", a)
	}
	run := func(parked int) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.Run(ctx) }()
		for limit := time.Now().Add(20 * time.Second); row[int](t, dsn, `SELECT count(*)::int FROM oncemore.parked`) < parked; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatal("not parked within 20 s")
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	send(t, pool, bad)
	run(12)
	a := person{"y\n"}.call(t, Options{}, "parked", "resend", "--all", "--reason-was", "undecodable", "--type", "letter", "--database-url", dsn)
	if a.code != 0 || !strings.Contains(a.err, "About to send 12 parked inputs again") || !strings.Contains(a.err, "and 2 more") {
		t.Errorf("%+v", a)
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.parked`); n != 0 {
		t.Errorf("%d are parked still", n)
	}
	run(12)
	a = call(t, Options{}, "parked", "drop", "--all", "--reason", "the producer is mended", "--yes", "--database-url", dsn)
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.parked`); a.code != 0 || n != 0 {
		t.Errorf("%+v; %d are parked still", a, n)
	}
	if a := call(t, Options{}, "audit", "--action", "drop", "--database-url", dsn); a.code != 0 || !strings.Contains(a.out, "the producer is mended") || strings.Contains(a.out, "resend") {
		t.Errorf("%+v", a)
	}
}

func TestAnOperatorResolvesDoubtsFromTheCommandLine(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	row[int](t, dsn, `WITH d AS (UPDATE oncemore.claim SET trouble = 'in_doubt' WHERE entity = '3' RETURNING 1) SELECT count(*)::int FROM d`)
	a := person{"y\n"}.call(t, Options{}, "doubt", "resolve", "letter", "--all", "--as", "not-applied", "--reason", "the box is empty", "--database-url", dsn)
	if a.code != 0 || !strings.Contains(a.err, "as not applied") || !strings.Contains(a.err, "it happens twice") || trouble(t, dsn, "3") != "retrying" {
		t.Errorf("%+v", a)
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.message WHERE entities = '{3}'`); n != 1 {
		t.Errorf("%d messages carry it", n)
	}
	if why := row[string](t, dsn, `SELECT error FROM oncemore.attempt WHERE outcome = 'resolved'`); !strings.HasPrefix(why, "not done, says ") || !strings.HasSuffix(why, ": the box is empty") {
		t.Errorf("the entity's story says %q", why)
	}
}

func send(t testing.TB, pool *pgxpool.Pool, m queue.Message) {
	t.Helper()
	entities, args := []string{}, []string{}
	for _, it := range m.Items {
		entities, args = append(entities, it.Entity), append(args, string(it.Args))
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO oncemore.message (queue, type, entities, args) VALUES ('', $1, $2, $3)`, m.Type, entities, args); err != nil {
		t.Fatal(err)
	}
}

// Kubernetes says SIGTERM, and expects that what runs is finished.
func TestWorkWorksUntilItIsToldToStopAndThenFinishesWhatRuns(t *testing.T) {
	dsn := worked(t)
	began, finish := make(chan struct{}, 1), make(chan struct{})
	var command context.Context
	set := func(ctx context.Context, _ *pgxpool.Pool) (*jobs.Set, error) {
		command = ctx
		return jobs.NewSet(jobs.Job[letter]{Effect: jobs.Once, Do: func(ctx context.Context, l letter) error {
			began <- struct{}{}
			<-finish
			return ctx.Err()
		}})
	}
	logged := &untilSaid{}
	root := New(Options{Set: set, Worker: worker.Config{Name: "from options", Slots: 3}})
	root.SetArgs([]string{"work", "--slots", "2", "--grace", "20s", "--database-url", dsn})
	root.SetOut(io.Discard)
	root.SetErr(logged)
	ended := make(chan int, 1)
	go func() { ended <- Execute(root) }()
	if a := call(t, Options{Set: testSet}, "enqueue", "letter", `{"n":77}`, "--yes", "--database-url", dsn); a.code != 0 {
		t.Fatalf("%+v", a)
	}
	<-began
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-command.Done() // it was heard
	close(finish)
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d:\n%s", code, logged.all.String())
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on after SIGTERM")
	}
	if e := row[string](t, dsn, `SELECT evidence::text FROM oncemore.ledger WHERE entity = '77'`); e != "r" {
		t.Errorf("evidence %s", e)
	}
	if cause := row[string](t, dsn, `SELECT cause FROM oncemore.worker WHERE name = 'from options'`); cause != "stopped" {
		t.Errorf("the worker is %s", cause)
	}
	if s := logged.all.String(); !strings.Contains(s, "slots=2") {
		t.Errorf("the flag does not beat the options:\n%s", s)
	}
}

func TestAShellCompletesTypesAndOpenEntities(t *testing.T) {
	dsn := worked(t)
	t.Setenv("DATABASE_URL", dsn)
	for args, want := range map[string]string{
		"retry ":                       "letter\n",
		"retry letter ":                "3\tfailed permission denied",
		"retry letter 9":               "",
		"retry letter 3 ":              "",
		"doubt resolve letter ":        "",
		"doubt resolve letter 3 --as ": "not-applied\n",
		"audit --action ":              "enqueue\n",
		"enqueue ":                     "letter\n",
		"rerun ":                       "letter\n",
		"runs show ":                   "1\tletter ended",
		"runs pause ":                  "",
		"runs stop-all --type ":        "parcel\n",
		"retry letter --all --output ": "json\n",
		"parked resend ":               "",
	} {
		a := call(t, Options{}, append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if a.code != 0 || !strings.Contains(a.out, want) || want == "" && a.out != ":4\n" {
			t.Errorf("%q: %+v", args, a)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if a := call(t, Options{}, "completion", shell); a.code != 0 || !strings.Contains(a.out, "__complete") {
			t.Errorf("completion %s: %d, %d bytes", shell, a.code, len(a.out))
		}
	}
}

// Nobody waits for a tab.
func TestCompletionGivesUpOnADatabaseThatDoesNotAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer func(d time.Duration) { completeTime = d }(completeTime)
	completeTime = time.Second
	t.Setenv("DATABASE_URL", "postgres://anna@"+l.Addr().String()+"/nowhere?sslmode=disable")
	for _, args := range []string{"retry ", "retry letter ", "doubt resolve letter "} {
		began := time.Now()
		a := call(t, Options{}, append([]string{"__complete"}, strings.Split(args, " ")...)...)
		if took := time.Since(began); a.code != 0 || took > 5*time.Second {
			t.Errorf("%q: %+v after %s", args, a, took)
		}
	}
}
