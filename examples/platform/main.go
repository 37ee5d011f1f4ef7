// Command platform is a worker that takes its configuration from the environment alone:
// DATABASE_URL, or PG*, or the document VCAP_SERVICES of Cloud Foundry, with PostgreSQL and SQS.
//
//	go run ./examples/platform
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/migrations"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Greet asks for a greeting.
type Greet struct {
	Play string `json:"play"`
	From string `json:"from"` // a place
	N    int    `json:"n"`
}

func (Greet) JobType() string  { return "greet" }
func (g Greet) Entity() string { return jobs.Key(g.Play, g.From, g.N) }

// Jobs are those of this program.
func Jobs(*pgxpool.Pool) []jobs.Definition {
	known := strings.Join(environment, " ")
	return []jobs.Definition{
		jobs.Job[Greet]{DoTx: func(ctx context.Context, tx pgx.Tx, g Greet) error {
			_, err := tx.Exec(ctx, greetSQL, g.Play, g.From, g.N, known)
			return err
		}},
	}
}

const greetSQL = `/* platform: greet */ INSERT INTO platform.greeting (play, place, n, known) VALUES ($1, $2, $3, $4)`

// environment are the names of the variables that this process was started with.
var environment = func() (names []string) {
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}()

// work is the worker. Nothing is said to it but by the environment. A platform stops it with
// SIGTERM, and kills it some seconds later (ten, on Cloud Foundry).
func work() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	is, err := fromEnvironment()
	if err != nil {
		return err
	}
	db, err := pgxpool.NewWithConfig(ctx, is.Database)
	if err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	defer db.Close()
	if _, err = migrations.Up(ctx, db); err != nil { // all instances may do this at once
		return err
	}
	c := worker.Config{Grace: 8 * time.Second, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if is.Queue != "" {
		q, err := sqsqueue.New(ctx, is.Queue, sqsqueue.Options{Wait: time.Second})
		if err != nil {
			return err
		}
		defer func() {
			limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			_ = q.Close(limit) // what its polls still bring comes again
		}()
		c.Queues = map[string]queue.Queue{"": q} // beside the one in Postgres, which carries retries
	}
	set, err := jobs.NewSet(Jobs(db)...)
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, db, set, c)
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

// enqueue sends greetings to a queue.
func enqueue(ctx context.Context, to queue.Sender, play, place string, n int) error {
	all := make([]Greet, n)
	for i := range all {
		all[i] = Greet{play, place, i + 1}
	}
	return jobs.Enqueue(ctx, to, all...)
}

func main() {
	if len(os.Args) > 1 { // "worker"
		stage.Main(func(context.Context) error { return work() })
		return
	}
	stage.Play(func(ctx context.Context) (*proof, error) {
		return tell(ctx, stage.Options{Out: os.Stdout, NoSync: true})
	})
}
