// Command tags keeps an index of the tags in documents. The index is a cache: it can be
// rebuilt from the documents at any time, also while they change.
//
//	go run ./examples/tags
//
// plays the whole story on a private PostgreSQL (or the database that EXAMPLES_DATABASE_URL
// names) and prints its proof, counted from the tables. With arguments it is the program of
// an application that has this job, with all the commands:
//
//	go run ./examples/tags missing index_document
//	go run ./examples/tags work
package main

import (
	"context"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/cli"
	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

func main() {
	switch {
	case len(os.Args) == 1:
		stage.Play(func(ctx context.Context) (*proof, error) { return tell(ctx, stage.Options{}, 3000) })
	case os.Args[1] == "worker": // of the play
		stage.Main(func(context.Context) error { return stage.Work(os.Args[2], worker.Config{}, Jobs) })
	default:
		os.Exit(cli.Execute(cli.New(cli.Options{Name: "tags",
			Set: func(_ context.Context, db *pgxpool.Pool) (*jobs.Set, error) { return jobs.NewSet(Jobs(db)...) }})))
	}
}
