package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker/admin"
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

// writeRows writes rows as a table or as lines of JSON.
func writeRows[T any](cmd *cobra.Command, output string, rows []T, columns []string, cells func(*T) []string) error {
	out := cmd.OutOrStdout()
	if output == "jsonl" {
		e := json.NewEncoder(out)
		for i := range rows {
			if err := e.Encode(&rows[i]); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rows) == 0 {
		return nil
	}
	t := newTable(out, columns...)
	for i := range rows {
		t.row(cells(&rows[i])...)
	}
	return t.Flush()
}

// A listing is what the commands have in common that list something.
type listing struct {
	output *string
	limit  int
	after  string
}

// listFlags adds the flags of a list.
func listFlags(cmd *cobra.Command) *listing {
	l := &listing{output: outputFlag(cmd, "table", "json", "jsonl")}
	cmd.Flags().IntVar(&l.limit, "limit", 50, "how many to list")
	cmd.Flags().StringVar(&l.after, "after", "", "list what comes after `this`, which the page before ended with")
	return l
}

func (l *listing) page() (admin.Page, error) {
	if l.limit < 0 {
		return admin.Page{}, usageError("--limit must not be negative")
	}
	return admin.Page{After: l.after, Limit: l.limit}, nil
}

// writeList writes a page, and says on stderr how much of how many it is. what is said of
// them: "in doubt".
func writeList[T any](cmd *cobra.Command, l *listing, list *admin.List[T], what string, columns []string, cells func(*T) []string) error {
	var err error
	if *l.output == "json" {
		err = writeJSON(cmd.OutOrStdout(), list)
	} else {
		err = writeRows(cmd, *l.output, list.Rows, columns, cells)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s %s listed", thousands(int64(len(list.Rows))), list.Of, what)
	if list.Next != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "; the next page: --after %s", shellQuoted(list.Next))
	}
	fmt.Fprintln(cmd.ErrOrStderr())
	return err
}

// shellQuoted is s as one word for a shell.
func shellQuoted(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:@%+,=", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// How much of a text a cell of a table shows.
const (
	wide   = 600 // all of an entity or an error class
	narrow = 100
)

// cell makes a text fit for a cell of a table: its first line, without what could move a
// terminal's cursor, and not too long. JSON has it whole.
func cell(s string, most int) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(s), "\n")
	line = strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '\uFFFD'
		}
		return r
	}, strings.TrimRight(line, "\r"))
	if runes := []rune(line); len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	if rest != "" {
		return line + " …"
	}
	return line
}

// orDash shows that there is nothing.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// A colour is one of the few that are used, all of the same length in bytes, so that a
// column of coloured cells is aligned.
type colour string

const (
	bold   colour = "01"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// painted is s in a colour, where w is to be written to in colours.
func painted(w io.Writer, c colour, s string) string {
	if !colours(w) {
		return s
	}
	return "\x1b[" + string(c) + "m" + s + "\x1b[0m"
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

// when says how long ago t was, or in how long it is to come.
func when(now, t time.Time) string {
	if t.After(now.Add(time.Second)) {
		return "in " + ago(t, now)
	}
	return ago(now, t)
}

// badPage makes a wrong --after an error of usage.
func badPage(err error) error {
	if errors.Is(err, admin.ErrPage) {
		return usageError("--after " + err.Error())
	}
	return err
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
