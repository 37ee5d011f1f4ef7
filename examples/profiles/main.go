// Command profiles gives every user a profile, on a table that lives: users come and
// change their names while it works.
//
//	go run ./examples/profiles
//
// plays the whole story on a private PostgreSQL (or the database that DATABASE_URL names)
// and prints its proof, counted from the tables. With arguments it is the program of an
// application that has this job, with all the commands:
//
//	go run ./examples/profiles missing create_profile
//	go run ./examples/profiles work
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/cli"
	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

func main() {
	switch {
	case len(os.Args) == 1:
		stage.Main(func(ctx context.Context) error {
			ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("the story takes longer than two minutes"))
			defer cancel()
			p, err := tell(ctx, stage.Options{}, 20_000, "@every 2s")
			if err != nil {
				return err
			}
			p.write(os.Stdout)
			return p.check()
		})
	case os.Args[1] == "worker": // of the play
		stage.Main(func(context.Context) error { return workPlay(os.Args[2:]) })
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
