// Package cli is the commands of the program oncemore, for that program and for an
// application's own:
//
//	func main() { os.Exit(cli.Execute(cli.New(cli.Options{Set: mySet}))) }
//
// What was asked for goes to stdout, everything else to stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Options of the commands. The zero Options are those of the program oncemore, which
// knows no jobs but those that workers have registered in the database.
type Options struct {
	// Name is that of the root command; empty: oncemore.
	Name string
	// Set returns the application's jobs: with it sources in Go and sources with parameters
	// can be looked at too. It is called at most once, by the commands that need it.
	Set func(ctx context.Context, db *pgxpool.Pool) (*jobs.Set, error)
	// Worker is what the command work begins with: other queues, a lease, a logger. The
	// command's flags say Slots, Grace and Name where they are given.
	Worker worker.Config
}

// program is what the commands share.
type program struct {
	Options
	databaseURL string
	interactive func(in io.Reader) bool // whether a person can be asked
}

const long = `Background jobs that may always be called again.

A ledger in PostgreSQL keeps when each (job type, entity) was done. Every entity
that a job type's source names is missing, open or done.

The database is the one that --database-url names, else DATABASE_URL, else the
PG* variables. Results go to stdout, everything else to stderr, without colours
where NO_COLOR is set.

Commands that change something say what, how much and where, and ask first; --yes
is the answer where nobody can be asked, --dry-run only looks. Each change is kept
for good with who made it and why: see 'audit'.

Exit codes:
  0    all is well
  1    an error; what was to be changed is as it was, unless the database did not say
       whether it had committed (say it again: what has changed is left alone), or some
       of it had been done before ('rerun --watch', 'sqs redrive', 'migrate up')
  2    wrong usage; nothing was done
  3    done, but some of it failed or was left alone; of 'status --check' and
       'doctor': somebody must act; of who watches a run: it is not complete
  4    something is still missing or open (status --check)
  130  interrupted`

// Exit codes beside 0, 2 and 130.
const (
	exitError  = 1 // also after an interrupt, where a failure says so
	exitPartly = 3 // done, but some of it failed or was left alone
	exitUndone = 4 // looked at, and not all is done

	exitInterrupted = 130
)

// New returns the root command. Run it with [Execute], or add its commands to another.
func New(o Options) *cobra.Command {
	if o.Name == "" {
		o.Name = "oncemore"
	}
	return (&program{Options: o, interactive: terminalInput}).root()
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use: p.Name, Short: "Background jobs that may always be called again", Long: long,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&p.databaseURL, "database-url", "", "PostgreSQL `URL` (default: DATABASE_URL, then PG* variables)")
	root.AddCommand(p.statusCommand(), p.missingCommand(), p.statsCommand(), p.migrateCommand(), devCommand(),
		demoCommand(), demoWorkerCommand(), demoSMTPCommand())
	root.AddCommand(p.failuresCommand(), p.strandedCommand(), p.parkedCommand(), p.disputedCommand(), p.ledgerCommand(), p.doctorCommand())
	root.AddCommand(p.doubtCommand(), p.retryCommand(), p.enqueueCommand(), p.workCommand(), p.schedulesCommand(), p.auditCommand())
	root.AddCommand(p.rerunCommand(), p.runsCommand(), p.sqsCommand())
	return root
}

// A failure is an error of a command that was called correctly.
type failure struct {
	error
	code int // of the program; 0: exitError, or 130 after an interrupt
}

func (f failure) Unwrap() error { return f.error }

// run makes a command's body: what it returns is no error of usage, unless it says so.
func run(body func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := body(cmd, args)
		var u usageError
		var f failure
		if err == nil || errors.As(err, &u) || errors.As(err, &f) {
			return err
		}
		return failure{error: err}
	}
}

type usageError string

func (u usageError) Error() string { return string(u) }

// Execute runs root with the program's arguments until it ends or the program is
// interrupted, prints its error, and returns the exit code. A second interrupt kills.
func Execute(root *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var f failure
	called := errors.As(err, &f)
	switch {
	case f.code > exitError: // no error, but not all is well
		fmt.Fprintln(root.ErrOrStderr(), strings.TrimRight(err.Error(), "\n"))
		return f.code
	case ctx.Err() != nil && f.code != exitError:
		fmt.Fprintln(root.ErrOrStderr(), "Interrupted.")
		return exitInterrupted
	case called:
		fmt.Fprintln(root.ErrOrStderr(), "Error:", strings.TrimRight(err.Error(), "\n"))
		return 1
	}
	fmt.Fprintf(root.ErrOrStderr(), "Error: %s\nSee '%s --help'.\n", strings.TrimRight(err.Error(), "\n"), cmd.CommandPath())
	return 2
}
