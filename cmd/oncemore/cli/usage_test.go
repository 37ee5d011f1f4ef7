package cli

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// noDatabase makes sure that the surroundings name none.
func noDatabase(t *testing.T) {
	t.Helper()
	for _, name := range []string{"DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE"} {
		t.Setenv(name, "")
	}
}

func TestWrongUsageIsTwoAndAnErrorIsOne(t *testing.T) {
	noDatabase(t)
	for _, test := range []struct {
		args string
		code int
		says string
	}{
		{"", 0, ""},
		{"migrate", 0, ""},
		{"status --help", 0, ""},
		{"statsu", 2, "unknown command"},
		{"migrate upp", 2, "unknown command"},
		{"status --nope", 2, "unknown flag"},
		{"status -o xml", 2, "want one of table, json"},
		{"missing", 2, "accepts 1 arg"},
		{"missing a b", 2, "accepts 1 arg"},
		{"missing letter --limit -1", 2, "--limit"},
		{"status", 1, "oncemore dev"},
		{"missing letter", 1, "oncemore dev"},
		{"migrate up", 1, "oncemore dev"},
	} {
		t.Run(test.args, func(t *testing.T) {
			a := call(t, Options{}, strings.Fields(test.args)...)
			if a.code != test.code || !strings.Contains(a.err, test.says) {
				t.Errorf("%+v; want code %d and %q", a, test.code, test.says)
			}
			if a.code != 0 && a.out != "" {
				t.Errorf("an error has something on stdout: %q", a.out)
			}
			if a.code == 2 && !strings.Contains(a.err, "--help'") {
				t.Errorf("wrong usage does not lead to help: %q", a.err)
			}
		})
	}
}

func TestTheHelpNamesTheExitCodesAndHidesTheDemosOwnCommands(t *testing.T) {
	help := call(t, Options{Name: "acme"}, "--help").out
	for _, want := range []string{"Exit codes", "acme [command]", "status", "missing", "demo", "dev", "migrate", "completion"} {
		if !strings.Contains(help, want) {
			t.Errorf("the help has no %q:\n%s", want, help)
		}
	}
	if strings.Contains(help, "demo-") {
		t.Errorf("the help shows hidden commands:\n%s", help)
	}
}

// The nearer to the person who asks, the stronger: a flag beats the variables, also when
// they name only a part.
func TestTheFlagBeatsDATABASE_URLWhichBeatsThePGVariables(t *testing.T) {
	noDatabase(t)
	dsn := pgtest.DSN(t)
	at, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	current := func(a answer) bool { return a.code == 0 && strings.Contains(a.err, "current") }

	t.Setenv("PGDATABASE", "not_there")
	t.Setenv("PGHOST", "/nowhere")
	if a := call(t, Options{}, "migrate", "up", "--database-url", dsn); !current(a) {
		t.Errorf("the flag does not beat PG*: %+v", a)
	}
	t.Setenv("DATABASE_URL", dsn)
	if a := call(t, Options{}, "migrate", "up"); !current(a) {
		t.Errorf("DATABASE_URL does not beat PG*: %+v", a)
	}
	t.Setenv("DATABASE_URL", "postgres:///not_there?host=/nowhere")
	if a := call(t, Options{}, "migrate", "up", "--database-url", dsn); !current(a) {
		t.Errorf("the flag does not beat DATABASE_URL: %+v", a)
	}
	t.Setenv("DATABASE_URL", "")
	t.Setenv("PGHOST", at.Host)
	t.Setenv("PGDATABASE", at.Database)
	t.Setenv("PGUSER", at.User)
	t.Setenv("PGPASSWORD", at.Password)
	if a := call(t, Options{}, "migrate", "up"); !current(a) {
		t.Errorf("PG* alone is not enough: %+v", a)
	}
}

func TestAPasswordIsNeverShown(t *testing.T) {
	noDatabase(t)
	for _, dsn := range []string{
		"postgres://anna:hunter2@127.0.0.1:1/nowhere?connect_timeout=2",
		"postgres://anna:hunter2@127.0.0.1:notaport/nowhere",
		"host=/nowhere password=hunter2 user=anna",
	} {
		a := call(t, Options{}, "status", "--database-url", dsn)
		if a.code != 1 || strings.Contains(a.err+a.out, "hunter2") {
			t.Errorf("%+v", a)
		}
	}
}

func TestDevRunsADatabaseUntilItIsInterrupted(t *testing.T) {
	if _, err := pglocal.FindBin(); err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "oncemore-dev-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, said, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	root := New(Options{})
	root.SetArgs([]string{"dev", "--dir", filepath.Join(dir, "deep", "er")})
	root.SetOut(said)
	root.SetErr(t.Output())
	ended := make(chan int, 1)
	go func() {
		ended <- Execute(root)
		said.Close()
	}()
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err != nil {
		t.Fatalf("no URL: %v", err)
	}
	dsn := strings.TrimSpace(string(line[:n]))
	if u, err := url.Parse(dsn); err != nil || u.Scheme != "postgres" {
		t.Fatalf("%q is no URL of a database: %v", dsn, err)
	}
	if a := call(t, Options{}, "status", "--database-url", dsn); a.code != 0 {
		t.Errorf("%+v", a)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-ended:
		if code != 0 {
			t.Errorf("exit code %d", code)
		}
	case <-time.After(time.Minute):
		t.Fatal("dev goes on after an interrupt")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if conn, err := pgx.Connect(ctx, dsn); err == nil {
		conn.Close(ctx)
		t.Error("the database goes on after dev has ended")
	}
}
