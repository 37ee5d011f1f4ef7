package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/examples/stage/stagetest"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { stagetest.Main(m, main) }

// data is that of the machine.
func data(t *testing.T) isoCodes {
	t.Helper()
	d, err := findISOCodes()
	if err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return d
}

func TestAFileIsGeneratedWhenTheVersionOfItsSourceHasRisen(t *testing.T) {
	data(t)
	pr, err := tell(t.Context(), stage.Options{DSN: pgtest.DSN(t), Out: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	stagetest.Holds(t, pr)
}

func TestTheProofFailsOnEachLineThatIsWrong(t *testing.T) {
	sound := func() *proof {
		return &proof{Countries: 250, Asked: 16, Generated: 8, Built: []int{4, 0, 4, 0}, Held: []int{250, 250, 250, 250}, First: []string{"D", "É", "F"}}
	}
	stagetest.Bites(t, sound, map[string]func(*proof){
		"a file not generated":           func(p *proof) { p.Built[0]-- },
		"a file generated again":         func(p *proof) { p.Built[1]++ },
		"a file of the old release":      func(p *proof) { p.Built[2]-- },
		"a file of the old release anew": func(p *proof) { p.Built[3]++ },
		"a completion too many":          func(p *proof) { p.Generated++ },
		"hardly any countries":           func(p *proof) { p.Countries, p.Held = 3, []int{3, 3, 3, 3} },
		"a file that lacks one":          func(p *proof) { p.Held[3]-- },
		"no accents to speak of":         func(p *proof) { p.First = nil },
		"a wrong order":                  func(p *proof) { p.Unsorted = []string{"b < a"} },
		"another country":                func(p *proof) { p.Unlike = []string{"countries.en.html"} },
	})
}

func TestAFileIsReplacedAsAWholeAndNamesAreEscaped(t *testing.T) {
	d, dir := isoCodes(filepath.Join(t.TempDir(), "share")), t.TempDir()
	if err := d.copyFrom(data(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.addCountry(5_000_001); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"countries.en.html": {"<!-- generated from iso-codes 5.0.1 -->", `<option value="XE">Érewhon &amp; Sons</option>`, `<option value="BO">Bolivia</option>`},
		"Countries.fr.cs":   {"> French = new", `["XE"] = "Érewhon & Sons",`, `["CI"] = "Côte d'Ivoire",`, `["EG"] = "Égypte",`},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("an old file that is read"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := generate(d, Generate{path, 5_000_001}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(text), w) {
				t.Errorf("%s lacks %s", name, w)
			}
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// Not all machines get a new release at once.
func TestAWorkerWithOlderDataLeavesTheFileToOthers(t *testing.T) {
	d, path := isoCodes(filepath.Join(t.TempDir(), "share")), filepath.Join(t.TempDir(), "countries.en.html")
	if err := d.copyFrom(data(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.addCountry(5_000_001); err != nil {
		t.Fatal(err)
	}
	if err := generate(d, Generate{path, 5_001_000}); err == nil || !strings.Contains(err.Error(), "5000001 is installed here") {
		t.Errorf("it generates: %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("there is a file")
	}
	if err := generate(d, Generate{path, 5_000_000}); err != nil {
		t.Errorf("from later data: %v", err)
	}
}

func TestWhatIsNoMOFileIsAnError(t *testing.T) {
	mo, err := data(t).read(frenchFile)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string][]byte{"nothing": nil, "text": []byte("Bolivia, Plurinational State of"), "half of one": mo[:len(mo)/2]} {
		if got, err := translations(text); err == nil {
			t.Errorf("%s has %d translations", what, len(got))
		}
	}
	swapped := append([]byte(nil), mo...)
	swapped[0], swapped[3] = swapped[3], swapped[0]
	if _, err := translations(swapped); err == nil {
		t.Error("a spoilt number was taken for a byte order")
	}
}

func TestAReleaseIsANumberThatRises(t *testing.T) {
	last := int64(-1)
	for _, version := range []string{"4", "4.9", "4.15.0", "4.15.1", "5.0"} {
		d := isoCodes(t.TempDir())
		if err := os.MkdirAll(filepath.Join(string(d), "pkgconfig"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(string(d), versionFile), []byte("Name: iso-codes\nVersion: "+version+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, n, err := d.release(); err != nil || n <= last {
			t.Errorf("%s is %d, after %d: %v", version, n, last, err)
		} else {
			last = n
		}
	}
}
