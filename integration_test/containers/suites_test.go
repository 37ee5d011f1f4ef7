package containers

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// A suite is tests of the main module, in the words of go test.
type suite struct {
	name, run string
	packages  []string
}

// The slice that is run for each change. TEST_WHOLE=1 runs the whole packages.
var suites = []suite{
	{"conformance", "^TestConformance$|Peer|Endpoint", []string{"./queue/pgqueue", "./queue/sqsqueue"}},
	{"invariants", "^TestI[0-9]", []string{"./ledger", "./worker", "./worker/admin", "./integration_test/matrix", "./integration_test/model"}},
	{"migrations", "^Test", []string{"./migrations"}},
}

var whole = []suite{{"whole packages", "^Test", []string{"./jobs/...", "./ledger/...", "./migrations", "./queue/...", "./worker/...",
	"./cmd/...", "./integration_test/matrix", "./integration_test/model", "./integration_test/schedule"}}}

// A test of a version says nothing on another.
func TestTheDatabaseIsPostgreSQL17(t *testing.T) {
	need(t)
	var version string
	if err := pgtest.EmptyPool(t).QueryRow(t.Context(), `SHOW server_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if t.Log(version); os.Getenv("TEST_POSTGRES_IMAGE") == "" && !strings.HasPrefix(version, "17.") {
		t.Errorf("%s is of version %s", postgresImage, version)
	}
}

// The tests of the main module, on the containers.
func TestTheSuitesPassOnTheContainers(t *testing.T) {
	need(t)
	if os.Getenv("TEST_WHOLE") == "1" {
		suites = whole
	}
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			before := written(t)
			test := exec.CommandContext(t.Context(), "go", slices.Concat([]string{"test", "-count=1", "-timeout=30m", "-run=" + s.run}, s.packages)...)
			test.Dir = "../.."
			test.Env = append(os.Environ(), "TEST_REQUIRE=1")
			out, err := test.CombinedOutput()
			t.Logf("%s\n%s", test, out)
			if err != nil {
				t.Fatal(err)
			}
			// A suite that ran nothing, or elsewhere, would pass too.
			if n := strings.Count(string(out), "ok  \t"); n < len(s.packages) || strings.Contains(string(out), "[no tests to run]") {
				t.Errorf("tests of %d packages ran", n)
			}
			if n := written(t) - before; n < 1<<20 {
				t.Errorf("the database wrote %d bytes: was it another?", n)
			}
		})
	}
}

// written is how much the server has ever written.
func written(t *testing.T) (n int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), os.Getenv("TEST_DATABASE_URL"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn() - '0/0'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
