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
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// Options of the commands. The zero Options are those of the program oncemore, which
// knows no jobs but those that workers have registered in the database.
type Options struct {
	// Name is that of the root command; empty: oncemore.
	Name string
	// Set returns the application's jobs: with it sources in Go and sources with parameters
	// can be looked at too. It is called at most once, by the commands that need it.
	Set func(ctx context.Context, db *pgxpool.Pool) (*jobs.Set, error)
}

// program is what the commands share.
type program struct {
	Options
	databaseURL string
}

const long = `Background jobs that may always be called again.

A ledger in PostgreSQL keeps when each (job type, entity) was done. Every entity
that a job type's source names is missing, open or done.

The database is the one that --database-url names, else DATABASE_URL, else the
PG* variables. Results go to stdout, everything else to stderr.

Exit codes: 0 all is well, 1 an error, 2 wrong usage, 130 interrupted.`

// New returns the root command. Run it with [Execute], or add its commands to another.
func New(o Options) *cobra.Command {
	if o.Name == "" {
		o.Name = "oncemore"
	}
	p := &program{Options: o}
	root := &cobra.Command{
		Use: o.Name, Short: "Background jobs that may always be called again", Long: long,
		SilenceErrors: true, SilenceUsage: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&p.databaseURL, "database-url", "", "PostgreSQL `URL` (default: DATABASE_URL, then PG* variables)")
	root.AddCommand(p.statusCommand(), p.missingCommand(), p.migrateCommand(), devCommand(),
		demoCommand(), demoWorkerCommand(), demoSMTPCommand())
	return root
}

// A failure is an error of a command that was called correctly.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

// run makes a command's body: what it returns is no error of usage, unless it says so.
func run(body func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := body(cmd, args)
		var u usageError
		if err == nil || errors.As(err, &u) {
			return err
		}
		return failure{err}
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
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(root.ErrOrStderr(), "Interrupted.")
		return 130
	case errors.As(err, &f):
		fmt.Fprintln(root.ErrOrStderr(), "Error:", strings.TrimRight(err.Error(), "\n"))
		return 1
	}
	fmt.Fprintf(root.ErrOrStderr(), "Error: %s\nSee '%s --help'.\n", strings.TrimRight(err.Error(), "\n"), cmd.CommandPath())
	return 2
}
