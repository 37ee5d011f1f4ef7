package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"
)

// A result is a row as it is printed. Ours and Peer are medians; Ratio is theirs.
type result struct {
	ID      string  `json:"id"`
	Work    string  `json:"work"`
	Unit    string  `json:"unit"`
	Ours    float64 `json:"ours"`
	OursMin float64 `json:"ours_min"`
	OursMax float64 `json:"ours_max"`
	Peer    float64 `json:"peer"`
	PeerMin float64 `json:"peer_min"`
	PeerMax float64 `json:"peer_max"`
	Ratio   float64 `json:"ratio"`
	Target  string  `json:"target"`
	Met     bool    `json:"met"`
	Runs    int     `json:"runs"`
	Note    string  `json:"note"`

	judged bool // all was measured that the target needs
}

type spread struct{ median, min, max float64 }

// spreadOf is all zero for no values.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	mid := len(v) / 2
	median := v[mid]
	if len(v)%2 == 0 {
		median = (v[mid-1] + v[mid]) / 2
	}
	return spread{median, v[0], v[len(v)-1]}
}

func report(w io.Writer, format string, results []result) error {
	if format == "json" {
		for i := range results {
			results[i].round()
		}
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(results)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "id\twork\tours\t(min – max)\tpeer\t(min – max)\tratio\ttarget\tmet")
	for _, r := range results {
		ratio := ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		fmt.Fprintf(t, "%s\t%s, %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.ID, r.Work, r.Unit,
			number(r.Ours), between(r.OursMin, r.OursMax), number(r.Peer), between(r.PeerMin, r.PeerMax), ratio, r.Target, r.verdict())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, r := range results {
		if _, err := fmt.Fprintf(w, "%s, %s, %d runs: %s.\n", r.ID, r.Work, r.Runs, r.Note); err != nil {
			return err
		}
	}
	return nil
}

// verdict is the word for Met, none when a side was left out.
func (r result) verdict() string {
	switch {
	case !r.judged:
		return ""
	case r.Met:
		return "yes"
	}
	return "no"
}

// round drops digits that mean nothing.
func (r *result) round() {
	for _, f := range []*float64{&r.Ours, &r.OursMin, &r.OursMax, &r.Peer, &r.PeerMin, &r.PeerMax} {
		*f = math.Round(*f*100) / 100
	}
	r.Ratio = math.Round(r.Ratio*1000) / 1000
}

func between(low, high float64) string {
	if high == 0 {
		return ""
	}
	return "(" + number(low) + " – " + number(high) + ")"
}

// number writes a figure with the digits that may mean something and thousands apart, and
// nothing for what was not measured.
func number(x float64) string {
	switch {
	case x == 0:
		return ""
	case x < 10:
		return strconv.FormatFloat(x, 'f', 2, 64)
	case x < 100:
		return strconv.FormatFloat(x, 'f', 1, 64)
	}
	return count(int(math.Round(x)))
}

// count writes a number with thousands apart.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
