package cli

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/worker"
)

// errNoJobs tells how to get a program that has some.
const errNoJobs = usageError(`this program has no jobs to work. They are Go functions, so make a program of your own that has them:

	package main

	import (
		"os"

		"github.com/oncemore-jobs/oncemore/cmd/oncemore/cli"
	)

	func main() { os.Exit(cli.Execute(cli.New(cli.Options{Set: mySet}))) }

where mySet returns your jobs.Set. It has all these commands, and its 'work' works.`)

func (p *program) workCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "work", Short: "Run a worker with the program's jobs, until it is told to stop", Args: cobra.NoArgs,
		Long: `Run a worker with the program's jobs in the foreground, until SIGTERM or Ctrl-C.

It then receives nothing more, gives running bodies --grace, ends their contexts, records
what came of them, and returns what did not start. Give it that and 20 seconds before it is
killed; 30 where it reads a queue in SQS. A second signal ends it at once, which costs what
a crash costs.`}
	slots := cmd.Flags().Int("slots", 0, "bodies that run at once (default: what the program says, else 16)")
	grace := cmd.Flags().Duration("grace", 0, "for running bodies when it stops (default: what the program says, else 10s)")
	name := cmd.Flags().String("name", "", "in lists of workers (default: what the program says, else host/pid)")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		if *slots < 0 || *grace < 0 {
			return usageError("--slots and --grace must not be negative")
		}
		if p.Set == nil {
			return errNoJobs
		}
		c := p.Worker
		if *slots > 0 {
			c.Slots = *slots
		}
		if *grace > 0 {
			c.Grace = *grace
		}
		if *name != "" {
			c.Name = *name
		}
		return p.work(cmd, c)
	})
	return cmd
}

func (p *program) work(cmd *cobra.Command, c worker.Config) error {
	ctx := cmd.Context()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	}
	// One for each body that queries, and those of the worker's own.
	slots := c.Slots
	if slots == 0 {
		slots = 16
	}
	pool, err := p.connectMany(ctx, int32(slots)+6)
	if err != nil {
		return err
	}
	defer pool.Close()
	set, err := p.set(ctx, pool)
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, pool, set, c)
	if err != nil {
		return err
	}
	if err := w.Run(ctx); err != nil {
		return failure{fmt.Errorf("the worker did not stop cleanly: %w", err), exitError}
	}
	return nil
}
