package integration_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The documents whose Go blocks are compiled. The README must have some.
var documents = []string{"../README.md", "../docs/*.md"}

// A block without a package clause gets one, and those of these imports whose names it
// uses. All others are complete files. Blocks of one document with the same package
// clause are files of one package, those without it are packages of their own.
var imports = []string{
	"context", "errors", "fmt", "log/slog", "net/http", "os", "testing", "time",
	"github.com/jackc/pgx/v5", "github.com/jackc/pgx/v5/pgxpool",
	module + "/jobs", module + "/ledger", module + "/migrations", module + "/queue", module + "/queue/pgqueue",
	module + "/worker", module + "/worker/workertest", module + "/cmd/oncemore/cli", module + "/examples/invitations",
}

func TestTheGoBlocksOfTheDocumentsCompile(t *testing.T) {
	for _, pattern := range documents {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			t.Run(filepath.Base(name), func(t *testing.T) {
				blocks := readBlocks(t, name)
				if len(blocks) == 0 {
					if name == "../README.md" {
						t.Fatal("there is no Go block in it")
					}
					t.Skip("there is no Go block in it")
				}
				if out, err := compile(t, name, blocks); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// A test that cannot fail says nothing.
func TestADocumentWithABrokenGoBlockDoesNotCompile(t *testing.T) {
	for _, test := range []struct{ file, want string }{
		{"sound", ""},
		{"unknown_field", "unknown_field.md:10: unknown field Body"},
		{"unused_import", `unused_import.md:7: "os" imported and not used`},
		{"syntax", "syntax.md:5: missing"},
		{"broken_test", "broken_test.md:16: l.Send undefined"},
		{"wrong_verb", "wrong_verb.md:4: fmt.Printf format %d"},
	} {
		t.Run(test.file, func(t *testing.T) {
			name := filepath.Join("testdata/readme", test.file+".md")
			out, err := compile(t, name, readBlocks(t, name))
			switch {
			case test.want == "" && err != nil:
				t.Errorf("%v\n%s", err, out)
			case test.want != "" && (err == nil || !strings.Contains(out, test.want)):
				t.Errorf("%v\n%s\nwant it to fail with %q", err, out, test.want)
			}
		})
	}
}

// A block is what stands between ```go and ```.
type block struct {
	line int // of its first line
	text string
}

func readBlocks(t *testing.T, name string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for i, line := range strings.Split(string(text), "\n") {
		switch {
		case !inside && strings.TrimSpace(line) == "```go":
			inside = true
			blocks = append(blocks, block{line: i + 2})
		case inside && strings.TrimSpace(line) == "```":
			inside = false
		case inside:
			blocks[len(blocks)-1].text += line + "\n"
		}
	}
	if inside {
		t.Fatalf("%s: the last Go block has no end", name)
	}
	return blocks
}

// compile lets go vet read the blocks, as files that stand outside of this module and are
// named one by one: they may then import what a user may, and nothing is written into the tree.
func compile(t *testing.T, name string, blocks []block) (out string, err error) {
	t.Helper()
	dir := t.TempDir()
	var packages [][]string // their files
	byName := map[string]int{}
	for i, b := range blocks {
		text := fmt.Sprintf("//line %s:%d\n%s", filepath.Base(name), b.line, b.text)
		n := len(packages)
		if f, err := parser.ParseFile(token.NewFileSet(), "", b.text, parser.PackageClauseOnly); err != nil {
			text = header(b.text) + text
		} else if first, ok := byName[f.Name.Name]; ok {
			n = first
		} else {
			byName[f.Name.Name] = n
		}
		if n == len(packages) {
			packages = append(packages, nil)
		}
		file := fmt.Sprintf("block%d.go", i)
		if strings.Contains(b.text, "*testing.T)") {
			file = fmt.Sprintf("block%d_test.go", i)
		}
		// All the files of one command must be in one folder.
		file = filepath.Join(dir, fmt.Sprint(n), file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		packages[n] = append(packages[n], file)
	}
	for _, files := range packages {
		b, e := exec.Command("go", append([]string{"vet"}, files...)...).CombinedOutput()
		if e != nil {
			out, err = out+string(b), e
		}
	}
	return out, err
}

func header(text string) string {
	var h strings.Builder
	h.WriteString("package readme\n\n")
	for _, path := range imports {
		name := strings.TrimSuffix(path, "/v5")
		name = name[strings.LastIndex(name, "/")+1:]
		if regexp.MustCompile(`\b` + name + `\.`).MatchString(text) {
			fmt.Fprintf(&h, "import %q\n", path)
		}
	}
	return h.String()
}
