package stage

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Proof is what a play ends with: numbers that were counted where they are, not while
// the story went on.
type Proof interface {
	Write(w io.Writer)
	Check() error // says which of them are wrong
}

// Play tells a story, for two minutes at most, and writes its proof to stdout. Like [Main]
// it exits with another status than 0 when the story broke off or its proof does not hold.
func Play[P Proof](tell func(context.Context) (P, error)) {
	Main(func(ctx context.Context) error { return play(ctx, 2*time.Minute, tell) })
}

// Ordeal is [Play] for a long story with flags, which are parsed here; it adds -seed. It takes
// half an hour at most.
func Ordeal[P Proof](seed *uint64, tell func(context.Context) (P, error)) {
	flag.Uint64Var(seed, "seed", 0, "of what is random (default ONCEMORE_SEED, else one drawn at random)")
	flag.Parse()
	Main(func(ctx context.Context) (err error) {
		if flag.NArg() > 0 {
			return fmt.Errorf("unexpected argument %q", flag.Arg(0))
		}
		if *seed, err = Seed(*seed); err != nil {
			return err
		}
		return play(ctx, 30*time.Minute, tell)
	})
}

func play[P Proof](ctx context.Context, most time.Duration, tell func(context.Context) (P, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("the story takes longer than %s", most))
	defer cancel()
	p, err := tell(ctx)
	if err != nil {
		return err
	}
	p.Write(os.Stdout)
	return p.Check()
}

// Seed is what random choices are made from: flagged, else ONCEMORE_SEED, else drawn at
// random. A 0 is none.
func Seed(flagged uint64) (seed uint64, err error) {
	if env := os.Getenv("ONCEMORE_SEED"); flagged == 0 && env != "" {
		if flagged, err = strconv.ParseUint(env, 10, 64); err != nil {
			return 0, fmt.Errorf("ONCEMORE_SEED: %w", err)
		}
	}
	return cmp.Or(flagged, rand.Uint64(), 1), nil
}

// A Number is one that a proof wants.
type Number struct {
	into  *int64
	query string
	args  []any
}

// Into is the number that a query counts; it is written to into.
func Into(into *int64, query string, args ...any) Number { return Number{into, query, args} }

// Count counts all of them in one snapshot, in which also is called, where there is one, for
// what is no number.
func (s *Stage) Count(ctx context.Context, numbers []Number, also func(pgx.Tx) error) error {
	err := pgx.BeginTxFunc(ctx, s.DB, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for _, n := range numbers {
			if err := tx.QueryRow(ctx, n.query, n.args...).Scan(n.into); err != nil {
				return err
			}
		}
		if also == nil {
			return nil
		}
		return also(tx)
	})
	if err != nil {
		return fmt.Errorf("count what came of it: %w", err)
	}
	return nil
}

// An Application is what goes on beside the jobs, for which nothing stops.
type Application struct {
	stop  context.CancelFunc
	ended chan struct{}
	err   error
}

// OpenApplication serves again and again, with a pause between, until Close, the end of ctx, or an
// error.
func OpenApplication(ctx context.Context, pause time.Duration, serve func(context.Context) error) *Application {
	ctx, stop := context.WithCancel(ctx)
	a := &Application{stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(a.ended)
		for ctx.Err() == nil {
			if err := serve(ctx); err != nil && ctx.Err() == nil {
				a.err = fmt.Errorf("the application beside the jobs: %w", err)
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return a
}

// Ended is closed when nothing of the application is under way any more.
func (a *Application) Ended() <-chan struct{} { return a.ended }

// Close returns when nothing of the application is under way any more, with what ended it
// unasked. It may be called again.
func (a *Application) Close() error {
	a.stop()
	<-a.ended
	return a.err
}
