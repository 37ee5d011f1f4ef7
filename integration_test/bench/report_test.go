package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestTheMedianOfTheRunsIsComparedNotTheBest(t *testing.T) {
	samples := map[measurement][]sample{
		{ours, burnSingles}: {{rate: 90}, {rate: 10}, {rate: 30}},
		{peer, burnSingles}: {{rate: 20}, {rate: 5}, {rate: 40}},
	}
	got := rows[0].sumUp(samples, options{runs: 3, n: 1000})
	if got.Ours != 30 || got.OursMin != 10 || got.OursMax != 90 || got.Peer != 20 || got.Ratio != 1.5 {
		t.Errorf("summed up as %+v", got)
	}
	if got.Met {
		t.Errorf("a ratio of 1.5 meets the target %q", got.Target)
	}
}

func TestARowWithOneSideHasNoVerdict(t *testing.T) {
	samples := map[measurement][]sample{{ours, burnFanOut}: {{disk: 140}}}
	got := rows[5].sumUp(samples, options{runs: 1, n: 1000})
	if got.Met || got.verdict() != "" || got.Ratio != 0 {
		t.Errorf("summed up as %+v with verdict %q", got, got.verdict())
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
	r := rows[0].sumUp(map[measurement][]sample{
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
	if got[0]["ours"] != 61234.6 || got[0]["met"] != true {
		t.Errorf("printed %s", out.String())
	}
}
