package integration_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
	for _, lack := range lacks(string(page)) {
		t.Error(lack)
	}
}

// The tables of the page whose rows name tests, by their headlines, and how many rows they have;
// where these are not numbered, there may be more.
var tables = []struct {
	headline string
	rows     int
	numbered bool
}{
	{"## What is promised", 19, false},
	{"## Windows through which others run work twice, or lose it", 6, true},
	{"## Traps of idempotency, and what happens here", 17, true},
}

// rows are those of the table under a headline, without its head.
func rows(page, headline string) []string {
	_, section, _ := strings.Cut(page, "\n"+headline+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	lines := regexp.MustCompile(`(?m)^\|.*`).FindAllString(section, -1)
	return lines[min(2, len(lines)):]
}

// lacks says what the page promises and names no test for.
func lacks(page string) (out []string) {
	for _, table := range tables {
		found := rows(page, table.headline)
		if n := len(found); n < table.rows || table.numbered && n != table.rows {
			out = append(out, fmt.Sprintf("%q has %d rows, %d are to be there", table.headline, n, table.rows))
		}
		for i, row := range found {
			if !strings.Contains(row, "`Test") || table.numbered && !strings.HasPrefix(row, fmt.Sprintf("| %d. ", i+1)) {
				out = append(out, fmt.Sprintf("%q, row %d names no test, or is not number %[2]d: %s", table.headline, i+1, row))
			}
		}
	}
	return out
}

// What a row promises, and the only test for it, must not go unseen.
func TestNoRowOfTheReliabilityPageCanLoseItsTests(t *testing.T) {
	b, err := os.ReadFile("../docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, table := range tables {
		for _, row := range rows(page, table.headline) {
			if got := lacks(strings.Replace(page, row, strings.ReplaceAll(row, "`Test", "`"), 1)); len(got) != 1 {
				t.Errorf("without its tests nobody misses them: %s: %q", row, got)
			}
			if got := lacks(strings.Replace(page, row+"\n", "", 1)); table.numbered && len(got) == 0 {
				t.Errorf("nobody misses the row: %s", row)
			}
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
