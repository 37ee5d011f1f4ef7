package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A mutation is what all commands have in common that change something: it selects, says
// what it is about to do, asks, does it, and reports. A dry run goes the same way, and
// ends where it would ask.
type mutation struct {
	program *program
	output  *string
	dryRun  bool
	yes     bool
	reason  string
	actor   string
	queue   string
	must    bool // give a reason
}

// mutates adds the flags of a mutation to cmd.
func (p *program) mutates(cmd *cobra.Command, mustReason bool) *mutation {
	m := &mutation{program: p, output: outputFlag(cmd, "table", "json"), must: mustReason}
	flags := cmd.Flags()
	flags.BoolVar(&m.dryRun, "dry-run", false, "say how many it would be, and the first ten; change nothing")
	flags.BoolVarP(&m.yes, "yes", "y", false, "do not ask")
	usage := "`why`, kept in the audit"
	if mustReason {
		usage += "; required"
	}
	flags.StringVar(&m.reason, "reason", "", usage)
	flags.StringVar(&m.actor, "actor", "", "`who` does it, for the audit (default: the user and host)")
	return m
}

// sends adds the flag of those mutations that put something into a queue.
func (m *mutation) sends(cmd *cobra.Command) {
	cmd.Flags().StringVar(&m.queue, "queue", "", "`name` of the Postgres queue that carries it (default: the one that every worker reads)")
}

// A proposal is what a mutation is about to do.
type proposal struct {
	Action   string       `json:"action"`
	Type     string       `json:"job_type,omitempty"` // empty: of several
	Database string       `json:"database"`
	DryRun   bool         `json:"dry_run"`
	Matched  int          `json:"matched"` // what would be changed
	More     bool         `json:"more"`    // more match than one such command changes
	Sample   any          `json:"sample"`  // the first ten of what matched
	Changed  int          `json:"changed"`
	Left     []admin.Left `json:"left_alone"` // was named or matched, and is as it was
	Audit    int64        `json:"audit"`      // the id of the audit row; 0: none

	what string   // it does, to what: "retry 3 entities of letter"
	rows rows     // the sample as a table
	rest int64    // more stand behind the sample that are no part of what is Matched
	then []string // what follows from it, a line each
	do   func(context.Context) (*admin.Result, error)
}

// rows are a table, its columns first.
type rows [][]string

// sampleOf is the first ten of what is about to be changed.
func sampleOf[T any](all []T) []T { return all[:min(10, len(all))] }

// run makes the command's body of what it proposes. read looks at the flags and the
// arguments first, before anything is connected to.
func (m *mutation) run(propose func(cmd *cobra.Command, args []string, op *admin.Operator) (*proposal, error), read func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return run(func(cmd *cobra.Command, args []string) error {
		if err := read(cmd, args); err != nil {
			return err
		}
		if err := m.check(cmd); err != nil {
			return err
		}
		ctx := cmd.Context()
		pool, err := m.program.connect(ctx)
		if err != nil {
			return err
		}
		defer pool.Close()
		set, err := m.program.set(ctx, pool)
		if err != nil {
			return err
		}
		p, err := propose(cmd, args, &admin.Operator{Pool: pool, Actor: m.who(), Set: set, Queue: m.carrier(cmd)})
		if err != nil {
			return err
		}
		if p.Database, err = databaseName(ctx, pool); err != nil {
			return err
		}
		if p.DryRun = m.dryRun; p.DryRun || p.Matched == 0 {
			return m.report(cmd, p)
		}
		if err := m.confirm(cmd, p); err != nil {
			return err
		}
		result, err := p.do(ctx)
		if err != nil {
			return err
		}
		p.Changed, p.Audit, p.Left = result.Changed, result.Audit, append(p.Left, result.Left...)
		return m.report(cmd, p)
	})
}

// check refuses, before anything is looked at, what could not go on.
func (m *mutation) check(cmd *cobra.Command) error {
	switch {
	case m.dryRun:
		return nil
	case m.must && strings.TrimSpace(m.reason) == "":
		return usageError("a --reason is needed: it is kept for those who ask later")
	case m.yes:
		return nil
	case *m.output == "json":
		return usageError("with -o json nobody is asked: say --yes, or look with --dry-run")
	case !m.program.interactive(cmd.InOrStdin()):
		return usageError("nobody can be asked, since the input is no terminal: say --yes, or look with --dry-run")
	}
	return nil
}

// who is the actor: the one that is given, else the user of this machine.
func (m *mutation) who() string {
	if m.actor != "" {
		return m.actor
	}
	name := fmt.Sprintf("uid %d", os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return name + "@" + host
}

// carrier is the Postgres queue that workers send retries through: the one that is named,
// else that of the application.
func (m *mutation) carrier(cmd *cobra.Command) string {
	if pg, ok := m.program.Worker.Queues[""].(*pgqueue.Queue); ok && !cmd.Flags().Changed("queue") {
		return pg.Name()
	}
	return m.queue
}

// databaseName tells a person where they are.
func databaseName(ctx context.Context, pool *pgxpool.Pool) (string, error) {
	var name string
	if err := pool.QueryRow(ctx, `SELECT current_database()`).Scan(&name); err != nil {
		return "", fmt.Errorf("ask for the database's name: %w", err)
	}
	return name + " on " + pool.Config().ConnConfig.Host, nil
}

// errNotConfirmed is no error of usage: a person was asked, and said no.
var errNotConfirmed = errors.New("nothing was changed: it was not confirmed")

// confirm asks a person.
func (m *mutation) confirm(cmd *cobra.Command, p *proposal) error {
	if m.yes {
		return nil
	}
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "About to %s, in the database %s.\n", p.what, p.Database)
	for _, line := range p.then {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintln(w)
	if err := p.rows.write(w); err != nil {
		return err
	}
	if n := max(p.rest, int64(p.Matched-(len(p.rows)-1))); n > 0 {
		fmt.Fprintf(w, "and %s more\n", thousands(n))
	}
	fmt.Fprint(w, "\nGo on? [y/N] ")
	answer, err := readLine(cmd.Context(), cmd.InOrStdin())
	switch answer = strings.ToLower(strings.TrimSpace(answer)); {
	case cmd.Context().Err() != nil:
		return cmd.Context().Err()
	case answer == "y" || answer == "yes":
		return nil
	case answer == "" && err != nil:
		return usageError("nobody answered: say --yes, or look with --dry-run")
	}
	return errNotConfirmed
}

// readLine reads a line, or gives up when ctx ends.
func readLine(ctx context.Context, in io.Reader) (string, error) {
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(in).ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		return a.line, a.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// report writes what came of p. What was left alone is no error, and not all is well.
func (m *mutation) report(cmd *cobra.Command, p *proposal) error {
	if p.Left == nil {
		p.Left = []admin.Left{}
	}
	out, told := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if *m.output == "json" {
		if err := writeJSON(out, p); err != nil {
			return err
		}
	} else if p.DryRun {
		if err := p.rows.write(out); err != nil {
			return err
		}
		if p.rest > 0 {
			fmt.Fprintf(told, "and %s more\n", thousands(p.rest))
		}
	} else {
		t := newTable(out, "ACTION", "TYPE", "CHANGED", "LEFT ALONE", "AUDIT")
		audit := ""
		if p.Audit != 0 {
			audit = fmt.Sprint(p.Audit)
		}
		t.row(p.Action, orDash(p.Type), thousands(int64(p.Changed)), thousands(int64(len(p.Left))), orDash(audit))
		if err := t.Flush(); err != nil {
			return err
		}
	}
	switch {
	case p.Matched == 0:
		fmt.Fprintln(told, "nothing matches; nothing was changed")
	case p.DryRun:
		fmt.Fprintf(told, "dry run: it would %s, in the database %s\n", p.what, p.Database)
	}
	if p.More {
		fmt.Fprintln(told, "more of them match: the same command again selects the next ones")
	}
	for _, left := range sampleOf(p.Left) {
		fmt.Fprintf(told, "left alone: %s %s\n", quoted(left.What), left.Why)
	}
	if n := len(p.Left); n > 0 && !p.DryRun {
		return failure{fmt.Errorf("%s changed, %s left alone", thousands(int64(p.Changed)), thousands(int64(n))), exitPartly}
	}
	return nil
}

func (r rows) write(w io.Writer) error {
	if len(r) < 2 {
		return nil
	}
	t := newTable(w, r[0]...)
	for _, row := range r[1:] {
		t.row(row...)
	}
	return t.Flush()
}

// several names a number of things: "1 entity", "2,000 entities".
func several(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(int64(n)) + " " + many
}

// terminalInput tells whether a person may answer there. /dev/null, which cron gives its
// jobs, is a character device as terminals are.
func terminalInput(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}
