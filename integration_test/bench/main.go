// Command bench measures Oncemore beside River on one private Postgres: the same
// machine, the same run, each side in turn. docs/benchmarks.md says how.
//
//	go run . [-bench T1,T2,T7] [-runs 5] [-n 200000] [-o table|json]
//
// The table or JSON goes to stdout, progress to stderr. The exit status is 1 when
// a row misses its target, 2 when nothing could be measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := workerMain(ctx, os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench worker:", err)
			os.Exit(2)
		}
		return
	}

	var o options
	which := flag.String("bench", "", "rows to measure, separated by commas (default all)")
	flag.IntVar(&o.runs, "runs", 5, "how often each side is measured; medians are compared")
	flag.IntVar(&o.n, "n", 200_000, "jobs of a burn-down")
	flag.IntVar(&o.facts, "facts", 10_000_000, "facts that are in the ledger before T9")
	flag.DurationVar(&o.hold, "hold", 2*time.Minute, "how long the loop of T8 runs, and its snapshot is held")
	flag.StringVar(&o.only, "only", "", "measure only `side` ours or river, without a verdict")
	flag.StringVar(&o.dir, "dir", "", "`folder` for the private Postgres, on the disk to measure (default a temporary one)")
	flag.StringVar(&o.profiles, "profiles", "", "write CPU profiles of our workers into `folder`")
	format := flag.String("o", "table", "output: table or json")
	flag.Parse()

	chosen, err := choose(*which)
	switch {
	case err == nil && flag.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case err == nil && *format != "table" && *format != "json":
		err = fmt.Errorf("-o %q: it can be table or json", *format)
	case err == nil && (o.runs < 1 || o.n < 100 || o.facts < 1 || o.hold < time.Second):
		err = errors.New("-runs and -facts must be at least 1, -n at least 100, and -hold at least a second")
	case err == nil && o.only != "" && o.only != ours && o.only != peer:
		err = fmt.Errorf("-only %q: it can be %s or %s", o.only, ours, peer)
	}
	var results []result
	if err == nil {
		results, err = run(ctx, o, chosen)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if err := report(os.Stdout, *format, results); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if o.only == "" && slices.ContainsFunc(results, func(r result) bool { return !r.Met }) {
		os.Exit(1)
	}
}

type options struct {
	runs, n   int
	facts     int
	hold      time.Duration
	only      string
	dir       string
	profiles  string
	baseDSN   string          // of the private Postgres, once it runs
	databases int             // made so far
	templates map[kind]string // databases to be copied
}

// run starts the Postgres, measures what the chosen rows need, and sums it up.
func run(ctx context.Context, o options, chosen []row) (_ []result, err error) {
	dir, err := os.MkdirTemp(o.dir, "oncemore-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for Postgres: %w", err)
	}
	defer os.RemoveAll(dir)
	// Under root the server runs as another user, who must be able to enter.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open the folder for Postgres: %w", err)
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o755); err != nil {
			return nil, fmt.Errorf("make the folder for profiles: %w", err)
		}
	}
	progress("starting a private Postgres")
	pg, err := pglocal.Start(ctx, pglocal.Options{Dir: filepath.Join(dir, "pg"), Params: serverParams})
	if err != nil {
		return nil, fmt.Errorf("start Postgres: %w", err)
	}
	defer func() {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if e := pg.Stop(stopCtx); e != nil && err == nil {
			err = fmt.Errorf("stop Postgres: %w", e)
		}
	}()
	o.baseDSN = pg.DSN
	if err := checkServer(ctx, o.baseDSN); err != nil {
		return nil, err
	}

	todo := needed(chosen, o.only)
	samples := map[measurement][]sample{}
	for i := range o.runs {
		for _, m := range todo {
			progress("run %d of %d: %s, %s", i+1, o.runs, m.side, m.kind)
			s, err := measure(ctx, &o, m)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", m.side, m.kind, err)
			}
			progress("    %s", s)
			samples[m] = append(samples[m], s)
		}
		slices.Reverse(todo) // whoever went first goes last
	}
	var results []result
	for _, r := range chosen {
		results = append(results, r.sumUp(samples, o))
	}
	return results, nil
}

// choose returns the rows named in a comma-separated list; all for none.
func choose(list string) ([]row, error) {
	if list == "" {
		return rows, nil
	}
	var out []row
	for _, id := range strings.Split(list, ",") {
		n := len(out)
		for _, r := range rows {
			if strings.EqualFold(r.id, strings.TrimSpace(id)) {
				out = append(out, r)
			}
		}
		if len(out) == n {
			return nil, fmt.Errorf("there is no row %q", id)
		}
	}
	return out, nil
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}
