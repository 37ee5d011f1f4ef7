package matrix_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
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
