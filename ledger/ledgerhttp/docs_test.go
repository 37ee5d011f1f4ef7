package ledgerhttp_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

const page = "../../docs/idempotency-key.md"

// A line of the conformance table is worth what its test is.
func TestEveryLineOfTheConformanceTableNamesATestThatExists(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(text), "## Conformance")
	if !found {
		t.Fatal("there is no table")
	}
	var code strings.Builder
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(src)
	}
	lines := 0
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Section") {
			continue
		}
		lines++
		names := regexp.MustCompile("`((Test|Fuzz)[A-Z]\\w+)`").FindAllStringSubmatch(line, -1)
		if len(names) == 0 {
			t.Errorf("no test: %s", line)
		}
		for _, name := range names {
			if !strings.Contains(code.String(), "func "+name[1]+"(") {
				t.Errorf("there is no %s", name[1])
			}
		}
	}
	if lines < 15 {
		t.Errorf("only %d lines were found", lines)
	}
}

// A problem's type is an address: there must be something there.
func TestEveryProblemIsDescribed(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for slug, status := range ledgerhttp.Problems() {
		_, rest, found := strings.Cut(string(text), "\n### "+slug+"\n\n")
		if !found || !strings.HasPrefix(rest, status) {
			t.Errorf("%s, %s, is not described", slug, status)
		}
	}
}
