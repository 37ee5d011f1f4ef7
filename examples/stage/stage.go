// Package stage is what the examples play on: a database, worker processes that can be
// killed, and a narrator.
//
// A program that plays is also its own worker: it starts itself again with the argument
// "worker" and a name, and hands that to [Work]. All that it starts ends with it, however
// it ends: the server by the kernel's hand, the workers because their stdin does.
package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/migrations"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A Stage is one play's. Its fields are set by [Open].
type Stage struct {
	DSN   string
	DB    *pgxpool.Pool
	Queue *pgqueue.Queue // the default one
	Dir   string         // of this play alone; it goes with the stage

	out     io.Writer
	began   time.Time
	since   time.Time        // the same, by the database's clock
	cluster *pglocal.Cluster // nil: the database is somebody else's
	workers []*Process       // that were ever started
}

// Options say how a stage is built. The zero Options are those of an example.
type Options struct {
	Out    io.Writer // of the narrator; nil: stderr
	DSN    string    // of the database; empty: EXAMPLES_DATABASE_URL, and without that a private server
	Own    bool      // a private server in any case
	Params []string  // of the private server, "name=value"
	NoSync bool      // the private server does not wait for its disk
}

// Open builds a stage, with the newest schema. Close it also when Open failed.
func Open(ctx context.Context, name string, o Options) (s *Stage, err error) {
	s = &Stage{DSN: o.DSN, out: o.Out, began: time.Now()}
	if s.out == nil {
		s.out = os.Stderr
	}
	if s.Dir, err = os.MkdirTemp("", "oncemore-"+name+"-"); err != nil {
		return s, fmt.Errorf("make a folder: %w", err)
	}
	// The database's user, who is another one when we are root, must be able to enter.
	if err := os.Chmod(s.Dir, 0o755); err != nil {
		return s, fmt.Errorf("make a folder: %w", err)
	}
	if s.DSN == "" && !o.Own {
		// Not DATABASE_URL, which is that of the user's own workers: plays empty tables.
		s.DSN = os.Getenv("EXAMPLES_DATABASE_URL")
	}
	if s.DSN == "" {
		s.Say("Starting a private PostgreSQL.")
		s.cluster, err = pglocal.Start(ctx, pglocal.Options{Dir: filepath.Join(s.Dir, "pg"), Bind: true, NoSync: o.NoSync, Params: o.Params})
		if err != nil {
			return s, err
		}
		s.DSN = s.cluster.DSN
	}
	if s.DB, err = pgxpool.New(ctx, s.DSN); err != nil {
		return s, fmt.Errorf("reach the database: %w", err)
	}
	if _, err := migrations.Up(ctx, s.DB); err != nil {
		return s, err
	}
	s.Queue = pgqueue.New(s.DB, "")
	if err := s.DB.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&s.since); err != nil {
		return s, fmt.Errorf("ask the database for the time: %w", err)
	}
	return s, nil
}

// Close ends all that runs. The folder is kept, for the workers' logs, when failed.
func (s *Stage) Close(failed bool) {
	for _, p := range s.workers {
		p.hangUp()
	}
	limit := time.After(5 * time.Second)
	for _, p := range s.workers {
		p.wait(limit)
	}
	if s.DB != nil {
		s.DB.Close()
	}
	if s.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_ = s.cluster.Stop(ctx) // on a timeout it is stopped all the same
		cancel()
	}
	if failed && len(s.workers) > 0 {
		_ = os.RemoveAll(filepath.Join(s.Dir, "pg", "data"))
		s.Say("The logs of the workers are in %s", s.Dir)
	} else if s.Dir != "" {
		_ = os.RemoveAll(s.Dir)
	}
}

// Say tells one line of the story.
func (s *Stage) Say(format string, args ...any) {
	fmt.Fprintf(s.out, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// Await returns when the query, whose one column is a truth or NULL, says true; with an error
// that says what it was waiting for when ctx ends, or when a worker ends unasked.
func (s *Stage) Await(ctx context.Context, what, query string, args ...any) error {
	for {
		var is *bool
		err := s.DB.QueryRow(ctx, query, args...).Scan(&is)
		switch {
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("wait until %s: %w", what, err)
		case err == nil && is != nil && *is:
			return nil
		}
		if err := s.lost(); err != nil {
			return err
		}
		if err := s.pause(ctx); err != nil {
			return fmt.Errorf("%w; it was waiting until %s", err, what)
		}
	}
}

// pause is between two looks.
func (s *Stage) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(50 * time.Millisecond):
		return nil
	}
}

// Int returns the number that a query counts.
func (s *Stage) Int(ctx context.Context, query string, args ...any) (n int64, err error) {
	if err = s.DB.QueryRow(ctx, query, args...).Scan(&n); err != nil {
		err = fmt.Errorf("count: %w", err)
	}
	return n, err
}

// Main runs a play until it ends, or is interrupted, and exits.
func Main(play func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := play(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case interrupted && err != nil:
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, filepath.Base(os.Args[0])+":", err)
		os.Exit(1)
	}
}

// Check collects what is wrong with a proof.
type Check []error

// Is notes a sentence unless ok.
func (c *Check) Is(ok bool, format string, args ...any) {
	if !ok {
		*c = append(*c, fmt.Errorf(format, args...))
	}
}

// Err is nil when all was as it should be.
func (c Check) Err() error { return errors.Join(c...) }
