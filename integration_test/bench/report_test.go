package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// rowOf is the only row, or the first, of a target.
func rowOf(t *testing.T, id string) row {
	t.Helper()
	chosen, err := choose(id)
	if err != nil {
		t.Fatal(err)
	}
	return chosen[0]
}

func TestTheMedianOfTheRunsIsComparedNotTheBest(t *testing.T) {
	samples := map[measurement][]sample{
		{ours, burnSingles}: {{rate: 90}, {rate: 10}, {rate: 30}},
		{peer, burnSingles}: {{rate: 20}, {rate: 5}, {rate: 40}},
	}
	got := rowOf(t, "T1").sumUp(samples, options{runs: 3, n: 1000})
	if got.Ours != 30 || got.OursMin != 10 || got.OursMax != 90 || got.Peer != 20 || got.Ratio != 1.5 {
		t.Errorf("summed up as %+v", got)
	}
	if got.Met {
		t.Errorf("a ratio of 1.5 meets the target %q", got.Target)
	}
}

func TestARowWithOneSideHasNoVerdict(t *testing.T) {
	samples := map[measurement][]sample{{ours, burnFanOut}: {{rate: 140}}}
	got := rowOf(t, "T2").sumUp(samples, options{runs: 1, n: 1000})
	if got.Met || got.verdict() != "" || got.Ratio != 0 {
		t.Errorf("summed up as %+v with verdict %q", got, got.verdict())
	}
}

func TestARowThatComparesWithNobodyIsJudgedByItsOwnFigure(t *testing.T) {
	for _, c := range []struct {
		took time.Duration
		met  bool
		word string
	}{{19 * time.Second, true, "yes"}, {21 * time.Second, false, "no"}, {0, false, ""}} {
		got := rowOf(t, "T12").sumUp(map[measurement][]sample{us(takeover): {{took: c.took}}}, options{runs: 1})
		if got.Met != c.met || got.verdict() != c.word || got.Ratio != 0 || got.Peer != 0 {
			t.Errorf("after %s summed up as %+v with verdict %q", c.took, got, got.verdict())
		}
	}
}

func TestARowMayCompareUsWithOurselvesInBetterDays(t *testing.T) {
	samples := map[measurement][]sample{us(loopHeld): {{rate: 69}}, us(loopClean): {{rate: 100}}}
	got := rowOf(t, "T8").sumUp(samples, options{runs: 1})
	if got.Ours != 69 || got.Peer != 100 || got.Ratio != 0.69 || got.Met {
		t.Errorf("summed up as %+v", got)
	}
	if todo := needed([]row{rowOf(t, "T8")}, ours); len(todo) != 2 {
		t.Errorf("with -only ours it needs %v, want both loops", todo)
	}
}

func TestFiguresKeepTheDigitsThatMeanSomething(t *testing.T) {
	for x, want := range map[float64]string{0: "", 2.213: "2.21", 55.41: "55.4", 113.2: "113", 160308: "160,308"} {
		if got := number(x); got != want {
			t.Errorf("number(%v) = %q, want %q", x, got, want)
		}
	}
}

func TestEverySideIsMeasuredOnceARunAndInTurn(t *testing.T) {
	chosen, err := choose("t1, T2,T10")
	if err != nil {
		t.Fatal(err)
	}
	got := needed(chosen, "")
	want := []measurement{{peer, burnSingles}, {ours, burnSingles}, {ours, burnFanOut}}
	if len(got) != len(want) {
		t.Fatalf("needed %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("needed %v, want %v", got, want)
		}
	}
	if _, err := choose("T1,T99"); err == nil || !strings.Contains(err.Error(), "T99") {
		t.Errorf("an unknown row gave the error %v", err)
	}
}

func TestJSONIsAnArrayWithTheDocumentedFields(t *testing.T) {
	var out bytes.Buffer
	r := rowOf(t, "T1").sumUp(map[measurement][]sample{
		{ours, burnSingles}: {{rate: 61234.567}},
		{peer, burnSingles}: {{rate: 20000.123}},
	}, options{runs: 1, n: 1000})
	if err := report(&out, "json", []result{r}); err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"id", "ours", "peer", "ratio", "target", "met", "runs", "note"} {
		if _, ok := got[0][field]; !ok {
			t.Errorf("%s is missing in %s", field, out.String())
		}
	}
	if got[0]["ours"] != 61234.57 || got[0]["met"] != true {
		t.Errorf("printed %s", out.String())
	}
}
