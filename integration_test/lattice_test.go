package integration_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/oncemore-jobs/oncemore"

// The parts of the library that an application imports.
var library = []string{"queue", "queue/memqueue", "queue/pgqueue", "ledger", "ledger/ledgerhttp", "jobs", "jobs/cron", "worker", "worker/admin", "worker/plan", "worker/throttle", "worker/workertest", "migrations"}

// lattice says which of our packages the files of each folder may import. A new
// folder is a decision: write it down here, and in docs/design.md.
var lattice = map[string][]string{
	"queue":      {},
	"ledger":     {},
	"migrations": {},

	"ledger/ledgerhttp": {"ledger"},

	"queue/memqueue":  {"queue"},
	"queue/pgqueue":   {"queue"},
	"queue/queuetest": {"queue"},

	"queue/sqsqueue":         {"queue"},
	"queue/sqsqueue/sqsfake": {},

	"jobs":              {"queue", "ledger"},
	"jobs/cron":         {},
	"worker":            {"queue", "queue/pgqueue", "ledger", "jobs", "jobs/cron", "migrations", "worker/plan", "worker/throttle"},
	"worker/admin":      {"queue", "queue/pgqueue", "ledger", "jobs", "jobs/cron", "migrations", "worker", "worker/plan", "worker/throttle"},
	"worker/plan":       {"queue", "ledger", "jobs"},
	"worker/throttle":   {},
	"worker/workertest": {"queue", "queue/memqueue", "queue/pgqueue", "ledger", "jobs", "migrations", "worker"},

	"cmd/oncemore":          append([]string{"cmd/oncemore/cli"}, library...),
	"cmd/oncemore/cli":      append([]string{"queue/sqsqueue", "queue/sqsqueue/sqsfake", "cmd/oncemore/pglocal", "cmd/oncemore/sqslocal", "examples/invitations", "examples/invitations/smtpd"}, library...),
	"cmd/oncemore/pglocal":  {},                         // pgtest needs it, and everything's tests need pgtest
	"cmd/oncemore/sqslocal": {"queue/sqsqueue/sqsfake"}, // sqspeer needs it

	"examples/invitations":       append([]string{"examples/invitations/smtpd"}, library...),
	"examples/invitations/smtpd": {},
	"examples/stage":             append([]string{"cmd/oncemore/pglocal"}, library...), // what the plays have in common
	"examples/stage/stagetest":   {"examples/stage", "integration_test/pgtest"},
	"examples/profiles":          append([]string{"cmd/oncemore/cli", "examples/stage"}, library...),
	"examples/tags":              append([]string{"cmd/oncemore/cli", "examples/stage"}, library...),
	"examples/orders":            append([]string{"examples/stage"}, library...),
	"examples/signup":            append([]string{"examples/stage"}, library...),
	"examples/publish":           append([]string{"examples/stage"}, library...),
	"examples/counter":           append([]string{"examples/stage"}, library...),
	"examples/countries":         append([]string{"examples/stage"}, library...),
	"examples/platform":          append([]string{"examples/stage", "queue/sqsqueue", "queue/sqsqueue/sqsfake"}, library...), // its Amazon
	"examples/timeouts":          append([]string{"examples/stage"}, library...),
	"examples/all":               {}, // plays them as programs
	"examples/sqs":               append([]string{"queue/sqsqueue", "cmd/oncemore/sqslocal", "examples/invitations", "examples/invitations/smtpd", "examples/stage"}, library...),

	"integration_test": append([]string{"queue/queuetest", "queue/sqsqueue", "cmd/oncemore/cli", "cmd/oncemore/pglocal",
		"examples/invitations", "examples/invitations/smtpd"}, library...),
	"integration_test/pgtest":    {"cmd/oncemore/pglocal", "migrations"},
	"integration_test/pgproxy":   {},
	"integration_test/sqspeer":   {"cmd/oncemore/sqslocal"},
	"integration_test/schedule":  {"queue", "ledger"},
	"integration_test/model":     {"queue", "ledger"},
	"integration_test/matrix":    append([]string{"integration_test/pgproxy", "queue/sqsqueue"}, library...),
	"integration_test/soak":      append([]string{"cmd/oncemore/pglocal", "integration_test/pgproxy"}, library...),
	"integration_test/chaos":     append([]string{"cmd/oncemore/pglocal"}, library...),
	"integration_test/mutants":   {},
	"integration_test/backfill":  append([]string{"cmd/oncemore/pglocal", "examples/stage"}, library...),
	"integration_test/httpproof": append([]string{"examples/stage"}, library...),
	"integration_test/sqsproof":  append([]string{"queue/sqsqueue", "queue/sqsqueue/sqsfake", "cmd/oncemore/sqslocal", "examples/stage"}, library...),
}

// Test files may also import these, and the package that they test.
var forTests = []string{"integration_test/pgtest", "integration_test/pgproxy", "integration_test/sqspeer", "queue", "queue/sqsqueue/sqsfake", "queue/pgqueue", "queue/memqueue", "queue/queuetest", "migrations", "worker/workertest", "examples/stage/stagetest"}

// outside says where packages that are not ours may be imported at all: in these
// folders and those below them. What is not listed may be imported anywhere.
var outside = []struct {
	prefix  string // of the import path, ending between two of its elements
	folders []string
	why     string
}{
	{"github.com/aws", []string{"queue/sqsqueue"}, "users of other queues shall not carry it"},
	{"github.com/robfig", []string{"jobs/cron"}, "jobs/cron knows its traps"},
	{"github.com/spf13/cobra", []string{"cmd"}, "the library has no command line"},
	{"github.com/pressly/goose", []string{"migrations"}, "migrations hide it"},
	{"github.com/wneessen", []string{"examples"}, "the library sends no mail"},
	{"github.com/emersion", []string{"examples"}, "the library sends no mail"},
	{"github.com/sony", []string{"examples"}, "the library breaks no circuits: that is for who knows the provider"},
	{"github.com/hashicorp", []string{"integration_test/httpproof"}, "who retries is the client"},
	{"github.com/riverqueue", nil, "a peer belongs in a nested module"},
	{"github.com/testcontainers", nil, "containers belong in a nested module"},
	{"log", []string{"cmd"}, "use log/slog"},
}

func TestNoPackageImportsWhatItMayNot(t *testing.T) {
	found, files, err := violations("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found {
		t.Error(v)
	}
	if files == 0 {
		t.Error("no Go file was read")
	}
}

// A rule that cannot fail says nothing.
func TestTheImportRulesFailOnTreesThatBreakThem(t *testing.T) {
	for _, test := range []struct{ tree, want string }{
		{"clean", ""},
		{"upward", "queue/queue.go imports our jobs"},
		{"sideways", "ledger/ledger.go imports our queue"},
		{"upward_in_test", "ledger/ledger_test.go imports our worker"},
		{"test_helper", "queue/pgqueue/pgqueue.go imports our integration_test/pgtest"},
		{"not_there", "worker/worker.go imports our queue/rabbitqueue"},
		{"unknown_folder", "helpers is a folder that the lattice does not know"},
		{"cobra", "jobs/jobs.go imports github.com/spf13/cobra: the library has no command line"},
		{"aws", "queue/pgqueue/pgqueue.go imports github.com/aws/aws-sdk-go-v2/service/sqs: users"},
		{"goose", "worker/worker.go imports github.com/pressly/goose/v3: migrations hide it"},
		{"log", "ledger/ledger.go imports log: use log/slog"},
	} {
		t.Run(test.tree, func(t *testing.T) {
			found, _, err := violations(filepath.Join("testdata/lattice", test.tree))
			switch {
			case err != nil:
				t.Fatal(err)
			case test.want == "" && len(found) > 0:
				t.Errorf("found %q, want nothing", found)
			case test.want != "" && (len(found) != 1 || !strings.HasPrefix(found[0], test.want)):
				t.Errorf("found %q, want only %q", found, test.want)
			}
		})
	}
}

// violations reads the files themselves: what `go list` says would be taken from
// the test cache although an import changed. Build tags hide nothing from it.
func violations(root string) (found []string, files int, err error) {
	unknown := map[string]bool{}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && skipped(name) {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(rel) != ".go" {
			return nil
		}
		files++
		folder := path.Dir(rel)
		if _, ok := lattice[folder]; !ok {
			if !unknown[folder] {
				found = append(found, folder+" is a folder that the lattice does not know: decide who may import whom, and write it there")
			}
			unknown[folder] = true
			return nil
		}
		imports, err := importsOf(name)
		if err != nil {
			return err
		}
		for _, imp := range imports {
			if problem := check(folder, strings.HasSuffix(rel, "_test.go"), imp); problem != "" {
				found = append(found, rel+" imports "+problem)
			}
		}
		return nil
	})
	return found, files, err
}

// skipped folders are those that the go command skips, and other modules.
func skipped(dir string) bool {
	base := filepath.Base(dir)
	if base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func importsOf(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, spec := range f.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// check says what is wrong with one import of a file in folder, or nothing.
func check(folder string, isTest bool, imp string) string {
	if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
		if slices.Contains(lattice[folder], ours) || isTest && (ours == folder || slices.Contains(forTests, ours)) {
			return ""
		}
		return fmt.Sprintf("our %s, allowed to %s are %q", ours, folder, lattice[folder])
	}
	for _, rule := range outside {
		if within(imp, rule.prefix) && !slices.ContainsFunc(rule.folders, func(f string) bool { return within(folder, f) }) {
			return imp + ": " + rule.why
		}
	}
	return ""
}

// within reports whether p is the path parent or lies below it. The one-element
// path "log" is the package alone: log/slog is another thing.
func within(p, parent string) bool {
	return p == parent || parent != "log" && strings.HasPrefix(p, parent+"/")
}
