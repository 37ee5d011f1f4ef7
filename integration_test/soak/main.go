// Command soak runs jobs of every class through several worker processes for as long as it
// is told to, while it kills, freezes, restarts and cuts off whatever can be, Postgres
// included. Then it counts, from the database and from an effect log outside of it, what
// came of everything that was ever asked for.
//
//	go run ./integration_test/soak [-for 10m] [-seed N] [-workers 4] [-o table|json]
//
// A soak of the usual gaps that lasts three minutes or longer must have seen each kind of
// torment. What fails at its end must be what was fated to, and nothing may be in doubt once an
// operator has resolved what was.
//
// The result goes to stdout, everything else to stderr. The exit status is 1 when a line of
// the result that must be 0 is not, and 2 when there is no result. After a failure the
// database, the effect log and the logs of the workers are kept, and the whole story of
// some of the entities concerned is told.
//
// The seed decides what is asked for and what goes wrong. It does not decide how the
// processes' steps interleave, so the same seed makes the same kind of run, not the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

type options struct {
	duration       time.Duration
	seed           uint64
	workers, slots int
	backlog        int64
	gap            time.Duration
	quiet, keep    bool
	format         string
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "worker" {
		if err := workerMain(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "soak worker:", err)
			os.Exit(2)
		}
		return
	}
	o, err := parse()
	if err == nil {
		var clean bool
		if clean, err = run(o); err == nil && !clean {
			os.Exit(1)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
}

func parse() (o options, err error) {
	flag.DurationVar(&o.duration, "for", 10*time.Minute, "how long work is asked for and torments go on; counting comes after it")
	flag.Uint64Var(&o.seed, "seed", 0, "of what is random (default ONCEMORE_SEED, else one drawn at random)")
	flag.IntVar(&o.workers, "workers", 4, "worker processes")
	flag.IntVar(&o.slots, "slots", 16, "bodies that run at once in each of them")
	flag.Int64Var(&o.backlog, "backlog", 3000, "entities that wait in the queue, at most")
	flag.DurationVar(&o.gap, "gap", 1500*time.Millisecond, "between two torments, on average; 0: none at all")
	flag.BoolVar(&o.quiet, "quiet", false, "do not tell of each torment")
	flag.BoolVar(&o.keep, "keep", false, "keep the data even if all is well")
	flag.StringVar(&o.format, "o", "table", "output: table or json")
	flag.Parse()
	if o.seed == 0 {
		o.seed = rand.Uint64()
		if env := os.Getenv("ONCEMORE_SEED"); env != "" {
			if o.seed, err = strconv.ParseUint(env, 10, 64); err != nil {
				return o, fmt.Errorf("ONCEMORE_SEED: %w", err)
			}
		}
	}
	switch {
	case flag.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case o.format != "table" && o.format != "json":
		return o, fmt.Errorf("-o %q: it can be table or json", o.format)
	case o.duration <= 0 || o.workers < 1 || o.slots < 1 || o.backlog < 1 || o.gap < 0:
		return o, errors.New("-for, -workers, -slots and -backlog must be positive, and -gap not negative")
	}
	return o, nil
}

// run makes the world, lets it be tormented, and counts.
func run(o options) (clean bool, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := &narrator{w: os.Stderr, began: time.Now(), quiet: o.quiet, events: map[string]int{}}
	log.say("seed %d, %s, %d workers", o.seed, o.duration, o.workers)
	w := &world{log: log}
	defer func() { w.end(o.keep || err != nil && ctx.Err() == nil || err == nil && !clean) }()
	if err := build(ctx, w, o.workers, o.slots, o.seed); err != nil {
		return false, err
	}
	r, err := soak(ctx, w, o)
	if err != nil {
		return false, err
	}
	return r.clean(), r.write(os.Stdout, o.format)
}
