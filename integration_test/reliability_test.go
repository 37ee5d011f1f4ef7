package integration_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// sources yields the files of the project with one of these endings.
func sources(t *testing.T, endings ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || d.Name() == "node_modules") {
			return fs.SkipDir
		}
		for _, ending := range endings {
			if strings.HasSuffix(path, ending) {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				out[path] = string(b)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryTestThatTheReliabilityPageNamesExists(t *testing.T) {
	page, err := os.ReadFile("../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, text := range sources(t, "_test.go") {
		tests.WriteString(text)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(string(page), -1)
	if len(named) < 40 {
		t.Errorf("the page names %d tests", len(named))
	}
	for _, m := range named {
		if !strings.Contains(tests.String(), "func "+m[1]+"(") {
			t.Errorf("no file has %s", m[1])
		}
	}
	for n := range 17 {
		if row := regexp.MustCompile(`(?m)^\| ` + strconv.Itoa(n+1) + `\. .*` + "`Test").FindString(string(page)); row == "" {
			t.Errorf("trap %d has no test", n+1)
		}
	}
}

// No system delivers, or acts outside its database, exactly once. Where the words stand,
// they stand in quotation marks, to say that it is not so.
func TestNobodyClaimsExactlyOnceWithoutSayingOfWhat(t *testing.T) {
	claim := regexp.MustCompile(`(?i)exactly[ -]once`)
	for path, text := range sources(t, ".go", ".md", ".sql") {
		for _, at := range claim.FindAllStringIndex(text, -1) {
			quoted := at[0] > 0 && (text[at[0]-1] == '"' || text[at[0]-1] == '`')
			if !quoted && !strings.HasSuffix(path, "reliability_test.go") {
				t.Errorf("%s claims it: …%s…", path, strings.ReplaceAll(text[max(0, at[0]-60):min(len(text), at[1]+60)], "\n", " "))
			}
		}
	}
}
