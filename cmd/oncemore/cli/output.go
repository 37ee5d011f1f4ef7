package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// outputFlag adds -o with the given formats, the first being the default. What it returns
// is set when the command runs.
func outputFlag(cmd *cobra.Command, formats ...string) *string {
	f := &format{value: formats[0], of: formats}
	cmd.Flags().VarP(f, "output", "o", strings.Join(formats, "|"))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return &f.value
}

// A format is one of a few words; another one is an error of usage.
type format struct {
	value string
	of    []string
}

func (f *format) String() string { return f.value }
func (f *format) Type() string   { return "format" }
func (f *format) Set(s string) error {
	if !slices.Contains(f.of, s) {
		return fmt.Errorf("want one of %s", strings.Join(f.of, ", "))
	}
	f.value = s
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// A table is aligned when it is written.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer, columns ...string) table {
	t := table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(columns...)
	return t
}

func (t table) row(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// A count knows how far it can be trusted.
type count struct {
	N  int64  `json:"n"`
	Is string `json:"is"` // exact | at_least | estimate
}

// capped is the count of rows of which at most limit+1 were counted.
func capped(n, limit int64) count {
	if n > limit {
		return count{limit, "at_least"}
	}
	return count{n, "exact"}
}

func (c count) String() string {
	switch c.Is {
	case "at_least":
		return "more than " + thousands(c.N)
	case "estimate":
		return "about " + thousands(c.N)
	}
	return thousands(c.N)
}

// ago says how long ago t was, in one unit.
func ago(now, t time.Time) string {
	d := max(0, now.Sub(t))
	switch {
	case d < time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// isTerminal tells whether a line that was written can be written over.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// colours tells whether w is to be written to in colours.
func colours(w io.Writer) bool { return isTerminal(w) && os.Getenv("NO_COLOR") == "" }
