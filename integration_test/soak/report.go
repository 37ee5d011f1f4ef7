package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// write writes the result for a person or for a program.
func (r *result) write(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	head := []string{"asked for", "done", "failed", "in doubt", "lost", "effects", "doubled", "beyond class"}
	fmt.Fprintf(t, "%s\t%s\t\n", "type", strings.Join(head, "\t"))
	var sum typeResult
	for _, l := range append(r.Types, &sum) {
		if l == &sum {
			l.Name = "all"
		} else {
			sum.Asked, sum.Done, sum.Failed, sum.InDoubt = sum.Asked+l.Asked, sum.Done+l.Done, sum.Failed+l.Failed, sum.InDoubt+l.InDoubt
			sum.Lost, sum.Effects, sum.Doubled, sum.Beyond = sum.Lost+l.Lost, sum.Effects+l.Effects, sum.Doubled+l.Doubled, sum.Beyond+l.Beyond
		}
		fmt.Fprintf(t, "%s", l.Name)
		for _, n := range []int64{l.Asked, l.Done, l.Failed, l.InDoubt, l.Lost, l.Effects, l.Doubled, l.Beyond} {
			fmt.Fprintf(t, "\t%s", thousands(n))
		}
		fmt.Fprint(t, "\t\n")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nin doubt listed   %d, among them %d of the %d that an attempt of class Once left\n", r.InDoubtListed, r.InDoubtOwed-r.of("in doubt, and not listed"), r.InDoubtOwed)
	fmt.Fprintf(w, "resolved          %d\n", r.Resolved)
	fmt.Fprintf(w, "disputed          %d entities: completed late, after the claim was lost, and refused\n", r.Disputed)
	fmt.Fprintf(w, "excused           %d effects of class Verifiable by processes that were frozen in the middle of a body\n", r.Excused)
	fmt.Fprintf(w, "swept away        %d claims beside a fact that outranks them, found before everything was called once more\n", r.Beside)
	fmt.Fprint(w, "torments          ")
	for i, name := range slices.Sorted(maps.Keys(r.Torments)) {
		if i > 0 {
			fmt.Fprint(w, ", ")
		}
		fmt.Fprintf(w, "%s %d", name, r.Torments[name])
	}
	fmt.Fprintf(w, "\n\nseed %d, %s, %.0f s in all\n\n", r.Seed, r.For, r.Seconds)
	bad := 0
	for _, c := range r.Checks {
		mark := "ok  "
		if c.N != 0 {
			mark = "BAD "
			bad++
		}
		fmt.Fprintf(w, "%s%8s  %s\n", mark, thousands(c.N), c.Name)
	}
	_, err := fmt.Fprintf(w, "\n%d of %d lines that must be 0 are not\n", bad, len(r.Checks))
	return err
}

func (r *result) of(name string) int64 {
	for _, c := range r.Checks {
		if c.Name == name {
			return c.N
		}
	}
	return 0
}
