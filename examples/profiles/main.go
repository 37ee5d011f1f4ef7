// Command profiles gives every user a profile, on a table that lives: users come and
// change their names while it works.
//
//	go run ./examples/profiles
//
// plays the whole story on a private PostgreSQL (or the database that EXAMPLES_DATABASE_URL
// names) and prints its proof, counted from the tables. With arguments it is the program of
// an application that has this job, with all the commands, as docs/backfills.md uses it:
//
//	go run ./examples/profiles seed 100000
//	go run ./examples/profiles work
//	go run ./examples/profiles rerun create_profile --dry-run
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/cli"
	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

func main() {
	switch {
	case len(os.Args) == 1:
		stage.Play(func(ctx context.Context) (*proof, error) { return tell(ctx, stage.Options{}, 20_000, "@every 2s") })
	case os.Args[1] == "worker": // of the play
		stage.Main(func(context.Context) error { return workPlay(os.Args[2:]) })
	case os.Args[1] == "seed" && len(os.Args) == 3: // users, as many, one of whom has no name
		stage.Main(func(ctx context.Context) error {
			users, err := strconv.Atoi(os.Args[2])
			if err != nil {
				return fmt.Errorf("how many users: %w", err)
			}
			db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
			if err != nil {
				return fmt.Errorf("reach the database: %w", err)
			}
			defer db.Close()
			_, err = seed(ctx, db, users)
			return err
		})
	default:
		os.Exit(cli.Execute(cli.New(cli.Options{Name: "profiles", Worker: worker.Config{Schedules: []worker.Schedule{Nightly("30 2 * * *")}},
			Set: func(context.Context, *pgxpool.Pool) (*jobs.Set, error) { return jobs.NewSet(Jobs()...) }})))
	}
}

// workPlay is a worker process of the play: its name, and the spec of the nightly catch-up
// when it has one.
func workPlay(args []string) error {
	var c worker.Config
	if len(args) > 1 {
		c.Schedules = []worker.Schedule{Nightly(args[1])}
	}
	return stage.Work(args[0], c, func(*pgxpool.Pool) []jobs.Definition { return Jobs() })
}
