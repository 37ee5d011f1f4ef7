package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func (p *program) parkedCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "parked [TYPE]", Short: "List input that could not be worked, and send it again or drop it", Args: cobra.MaximumNArgs(1),
		Long: `List input that could not be worked and was set aside, the newest first: arguments that do
not decode, types that no worker has, other arguments for the same entity, and what waited
too long. The same content is listed once, however often it came.

'parked show ID' prints the body, 'parked resend' sends it again as it came.`,
		ValidArgsFunction: p.completeTypes}
	l := listFlags(cmd)
	var f admin.ParkedFilter
	cmd.Flags().StringVar(&f.Reason, "reason-was", "", "those that were set aside for this `reason` (undecodable, unknown_type, conflict, …)")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		page, err := l.page()
		if err != nil {
			return err
		}
		if len(args) > 0 {
			f.Type = args[0] // maybe one that nobody has registered: that is why it is parked
		}
		var list *admin.List[admin.SetAside]
		err = p.look(cmd.Context(), lookTime, func(tx pgx.Tx, _ *jobs.Set) (err error) {
			list, err = admin.ListParked(cmd.Context(), tx, f, page)
			return err
		})
		if err != nil {
			return badPage(err)
		}
		columns := []string{"ID", "REASON", "TYPE", "ENTITY", "FIRST", "LAST", "TIMES", "BYTES", "ERROR"}
		return writeList(cmd, l, list, "parked", columns, func(in *admin.SetAside) []string {
			return []string{fmt.Sprint(in.ID), in.Reason, cell(quoted(in.Type), wide), cell(quoted(in.Entity), wide), when(list.Now, in.FirstAt),
				when(list.Now, in.LastAt), thousands(int64(in.Times)), thousands(int64(in.Bytes)), cell(in.Error, narrow)}
		})
	})
	cmd.AddCommand(p.parkedShowCommand())
	cmd.AddCommand(p.parkedActCommands()...)
	return cmd
}

func (p *program) parkedShowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "show ID", Short: "Print the body of parked input", Args: cobra.ExactArgs(1),
		Long: `Print the body of parked input to stdout, as it was kept, and all else to stderr. On a
terminal, control characters are replaced.`,
		ValidArgsFunction: cobra.NoFileCompletions}
	output := outputFlag(cmd, "body", "json")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		id, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return usageError(fmt.Sprintf("%q is no id of parked input: they are numbers, see 'parked'", args[0]))
		}
		var in *admin.SetAside
		err = p.look(cmd.Context(), lookTime, func(tx pgx.Tx, _ *jobs.Set) (err error) {
			in, err = admin.FindParked(cmd.Context(), tx, id)
			return err
		})
		if err != nil {
			return err
		}
		if *output == "json" {
			return writeJSON(cmd.OutOrStdout(), in)
		}
		told := cmd.ErrOrStderr()
		fmt.Fprintf(told, "%s: %s %s, came %s from %s to %s\n", in.Reason, quoted(in.Type), quoted(in.Entity), several(in.Times, "time", "times"), stamp(in.FirstAt), stamp(in.LastAt))
		fmt.Fprintln(told, "error:", cell(in.Error, wide))
		return writeBody(cmd.OutOrStdout(), in.Body)
	})
	return cmd
}

// writeBody writes what somebody sent, in such a way that a terminal stays as it is.
func writeBody(w io.Writer, body string) error {
	if isTerminal(w) {
		body = strings.Map(func(r rune) rune {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				return unicode.ReplacementChar
			}
			return r
		}, body)
	}
	_, err := fmt.Fprintln(w, body)
	return err
}
