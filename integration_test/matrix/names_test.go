package matrix_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
)

// The folders whose statements the matrix answers for.
var folders = []string{"ledger", "ledger/ledgerhttp", "queue/pgqueue", "worker"}

// The folders beside them. Operators write in worker/admin, in one transaction for each act, and
// see whether it succeeds: these writes have names as all have, but no scenario loses them. The
// others only read.
var operators = []string{"worker/admin", "worker/plan", "worker/throttle", "cmd/oncemore/cli"}

// A write without a name would be a write that no test can point at. (That those which
// come over the wire have one is seen by every tap; this finds those that no scenario
// sends as well.)
func TestEveryStatementThatWritesHasAName(t *testing.T) {
	found := statements(t, folders...)
	if len(found) < 20 {
		t.Errorf("only %d statements were found: the search is broken", len(found))
	}
	acts := statements(t, operators...)
	if len(acts) < 8 {
		t.Errorf("only %d statements of operators were found: the search is broken", len(acts))
	}
	maps.Copy(found, acts)
	for sql, where := range found {
		if pgproxy.Name(sql) == "" {
			t.Errorf("%s: the statement writes and does not begin with its name: %s", where, sql)
		}
	}
}

// seen are the names that came over the wire, in a batch that writes.
var seen sync.Map

// unseen are the names of statements that no scenario sent.
func unseen(t testing.TB) (names []string) {
	for sql := range statements(t, folders...) {
		if _, is := seen.Load(pgproxy.Name(sql)); !is {
			names = append(names, pgproxy.Name(sql))
		}
	}
	return names
}

// byTheTest are sent by apps and operators alone. Here these are the test itself, which must
// not be killed; all other faults befall them.
var byTheTest = []string{
	"message: hold", "message: send", "run: hasten", "run: release", "run: revive its carrier", "run: stop all", "run: wake", "run: want",
	"stats: ask", "stats: begin", "stats: close", "stats: sum", "transition: record", "sqs: send",
}

// unstrikable are sent by no worker that is recorded over the carrier, so that none can be aimed at.
var unstrikable = [carriers]map[string]string{
	postgres: {
		"limit: permit back":      "a worker gives back what it has wanted nothing of for a while, and the limited scenario is over by then",
		"lease: declare dead":     "only who has lived for a lease sends it, and a worker may have done the longest work before",
		"run: stop at the canary": "a recording need not have it among its first writes: some have passed the canary, and not stopped there",
		"claim: give back":        "only who is overtaken between two looks sends it, which nothing brings about for certain",
	},
	fifo: {"sqs: extend": "no scenario that lasts is carried: extensions are struck over the other queue of SQS"},
}

// sqsCalls are the names of callName.
var sqsCalls = []string{"sqs: send", "sqs: receive", "sqs: delete", "sqs: extend", "sqs: release"}

// strikable are the points that a full run over the carrier must have struck. Over SQS these
// are its calls, for the statements are struck without.
func (c carrier) strikable(t testing.TB) (all []point) {
	names := sqsCalls
	if c == postgres {
		names = nil
		for sql := range statements(t, folders...) {
			names = append(names, pgproxy.Name(sql))
		}
	}
	for _, name := range names {
		by := victim
		if slices.Contains(byTheTest, name) {
			by = producer
		}
		for _, f := range c.faults() {
			if _, not := unstrikable[c][name]; !not && f.befalls(write{role: by, name: name, brings: name == "sqs: receive"}) {
				all = append(all, point{name, f})
			}
		}
	}
	return all
}

// unstruck are those of them that were not, and the names that were spared most faults.
func (c carrier) unstruck(t testing.TB, struck map[point]bool) (all int, missing, spared []string) {
	points := c.strikable(t)
	balance := map[string]int{} // faults that have befallen it, less those that have not
	for _, p := range points {
		if struck[p] {
			balance[p.name]++
		} else {
			balance[p.name]--
			missing = append(missing, p.String())
		}
	}
	for name, n := range balance {
		if n < 0 {
			spared = append(spared, name)
		}
	}
	slices.Sort(missing)
	slices.Sort(spared)
	return len(points), missing, spared
}

// A name in these lists that no statement has would excuse nothing, and hide that the statement
// has got another name.
func TestWhatCannotBeStruckIsListedByNamesThatExist(t *testing.T) {
	exist := slices.Clone(sqsCalls)
	for sql := range statements(t, folders...) {
		exist = append(exist, pgproxy.Name(sql))
	}
	listed := slices.Clone(byTheTest)
	for _, of := range unstrikable {
		listed = slices.AppendSeq(listed, maps.Keys(of))
	}
	for _, name := range listed {
		if !slices.Contains(exist, name) {
			t.Errorf("%s is listed, and no statement and no call has this name", name)
		}
	}
}

// advice is what a person may run, in a sentence that says what for. It is not run from here.
var advice = regexp.MustCompile(`^[a-z][a-z ]*: [A-Z]`)

// statements returns where the statements that write stand in the code of some folders.
func statements(t testing.TB, folders ...string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join("..", "..", folder, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no file in %s, error %v", folder, err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				e, is := n.(ast.Expr)
				if !is {
					return true
				}
				text, whole := literal(e)
				clause := strings.HasPrefix(strings.TrimSpace(text), "ON CONFLICT") // its statement has the name
				if whole && !clause && pgproxy.Writes(text) && !advice.MatchString(text) {
					found[text] = set.Position(e.Pos()).String()
				}
				return !whole
			})
		}
	}
	return found
}

// literal returns the text of a string, or of a sum with strings in it, leaving out the
// parts that are not literal.
func literal(e ast.Expr) (text string, is bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		text, err := strconv.Unquote(e.Value)
		return text, err == nil
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return "", false
		}
		left, inLeft := literal(e.X)
		right, inRight := literal(e.Y)
		return left + right, inLeft || inRight
	}
	return "", false
}
