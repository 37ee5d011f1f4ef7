package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

func (p *program) rerunCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "rerun TYPE", Short: "Call a job type again: for what is missing, or by another selection", Args: cobra.ExactArgs(1),
		Long: `Call a job type again. Without a selection it is what calling everything again would do:
what is missing, what is stale, and what dead workers left (--missing --stale --stranded).
What is done is skipped, so nobody needs to know what is missing. With --class, --since or
--until the source is not asked, unless with --force: only what is open is selected then,
and nothing that is missing or stale.

It shows how many entities it would be and why each of them, and asks. Then the workers
plan it, and work it as fast as its --rate, its --canary and the database's health let them;
this command may go. Asking for the same while it is being planned joins it; while it is
being worked, that is said, and it may be followed.

--force does again what is done, under a new epoch: facts are replaced, and kept in the
history. --in-doubt is a verdict: who picks it says that the effects did not happen. Both
need a --reason.

Exit codes with --watch: 0 when the run is complete, 3 when it has ended with some failed,
in doubt or not ready, or was cancelled.`,
		Example: `  oncemore rerun invitation --dry-run
  oncemore rerun invitation --reason 'the outage of Friday' --watch
  oncemore rerun payment --failed --class timeout --since 2h --canary 100 --canary-failures 5%
  oncemore rerun tags --force --prefix blog/ --rate 50 --reason 'a new tokenizer'`,
		ValidArgsFunction: p.completeTypes}
	m := p.mutates(cmd, false)
	m.sends(cmd)
	r := &rerunning{program: p, mutation: m}
	r.flags(cmd)
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if err := r.read(cmd, args); err != nil {
			return err
		}
		m.must = admin.NeedsReason(&r.order.Selection)
		if err := m.check(cmd); err != nil {
			return err
		}
		pool, err := p.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer pool.Close()
		return r.run(cmd, pool)
	})
	return cmd
}

// A rerunning is the command rerun with its flags.
type rerunning struct {
	program  *program
	mutation *mutation
	order    worker.Order

	missing, failed, stranded, inDoubt, stale bool

	window       windowFlags
	within       time.Duration // of the window
	entitiesFrom string
	share        string
	watch        bool
	interval     time.Duration
	timeout      time.Duration
}

func (r *rerunning) flags(cmd *cobra.Command) {
	flags, o := cmd.Flags(), &r.order
	flags.BoolVar(&r.missing, "missing", false, "what its source names and has no fact")
	flags.BoolVar(&r.stale, "stale", false, "what is done of an older source, or by older code")
	flags.BoolVar(&r.stranded, "stranded", false, "what dead workers left, and retries that are due")
	flags.BoolVar(&r.failed, "failed", false, "what has failed all its attempts: it gets them anew")
	flags.BoolVar(&r.inDoubt, "in-doubt", false, "what is in doubt: it did not happen, you say")
	flags.BoolVar(&o.Force, "force", false, "all that its source names, done or not, under a new epoch")
	r.window.add(cmd, "what got into its state")
	flags.StringVar(&o.Class, "class", "", "what failed with an error of this `class`"+asShown)
	flags.StringVar(&o.Prefix, "prefix", "", "entities that begin with `this`")
	flags.StringArrayVar(&o.Entities, "entity", nil, "only this `entity`; may be said often")
	flags.StringVar(&r.entitiesFrom, "entities-from", "", "only the entities on the lines of a `file`; - is the input")
	flags.Int64Var(&o.Limit, "limit", 0, "the first so many (0: all)")
	flags.Float64Var(&o.Rate, "rate", 0, "so many a second at most (0: as many as the database bears)")
	flags.Int64Var(&o.Canary, "canary", 0, "so many first, and the rest only if few enough of them failed")
	flags.StringVar(&r.share, "canary-failures", "5%", "the share of the canary that may fail")
	flags.BoolVar(&r.watch, "watch", false, "follow it to its end")
	flags.DurationVar(&r.interval, "interval", lineEvery, "with --watch: between two lines, where it is no terminal")
	flags.DurationVar(&r.timeout, "timeout", time.Minute, "of each query of the preview")
}

// read is what the flags and the argument say.
func (r *rerunning) read(cmd *cobra.Command, args []string) (err error) {
	o := &r.order
	o.Type, o.Reason, o.Reasons = args[0], r.mutation.reason, nil
	for _, of := range []struct {
		said    bool
		reasons []ledger.Reason
	}{
		{r.missing, []ledger.Reason{ledger.Missing}}, {r.stale, []ledger.Reason{ledger.StaleVersion, ledger.StaleSource}},
		{r.stranded, []ledger.Reason{ledger.Retry}}, {r.failed, []ledger.Reason{ledger.Failed}}, {r.inDoubt, []ledger.Reason{ledger.InDoubt}},
	} {
		if of.said {
			o.Reasons = append(o.Reasons, of.reasons...)
		}
	}
	switch {
	case r.interval <= 0 || r.timeout < time.Millisecond:
		return usageError("--interval must be positive, and --timeout at least 1ms")
	case cmd.Flags().Changed("canary-failures") && o.Canary == 0:
		return usageError("--canary-failures is for --canary")
	case r.entitiesFrom == "-" && !r.mutation.yes && !r.mutation.dryRun:
		return usageError("the input is the entities, so nobody can be asked: say --yes, or look with --dry-run")
	case r.watch && r.mutation.dryRun:
		return usageError("there is nothing to --watch of a --dry-run")
	}
	w, err := r.window.window()
	if err != nil {
		return err
	}
	o.Since, o.Until, r.within = w.Since, w.Until, w.Within
	if o.CanaryShare, err = parseShare(r.share); err != nil {
		return err
	}
	if o.Canary == 0 {
		o.CanaryShare = 0
	}
	if r.entitiesFrom != "" {
		if err := r.readEntities(cmd.InOrStdin()); err != nil {
			return err
		}
	}
	if err := o.Selection.Check(); err != nil {
		return usageError(err.Error())
	}
	if err := worker.CheckRate(o.Rate); err != nil {
		return usageError("--rate: " + err.Error())
	}
	if o.Canary < 0 {
		return usageError("--canary must not be negative")
	}
	return nil
}

// parseShare reads 5% or 0.05.
func parseShare(s string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	f, err := strconv.ParseFloat(number, 64)
	if percent {
		f /= 100
	}
	if err != nil || !(f >= 0 && f <= 1) {
		return 0, usageError(fmt.Sprintf("--canary-failures: %q is no share: want 5%%, or 0.05", s))
	}
	return f, nil
}

// readEntities reads one from each line.
func (r *rerunning) readEntities(in io.Reader) error {
	if r.entitiesFrom != "-" {
		f, err := os.Open(r.entitiesFrom)
		if err != nil {
			return fmt.Errorf("read the entities: %w", err)
		}
		defer f.Close()
		in = f
	}
	n := len(r.order.Entities)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if line := strings.TrimRight(lines.Text(), "\r"); line != "" {
			r.order.Entities = append(r.order.Entities, line)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the entities: %w", err)
	}
	if len(r.order.Entities) == n {
		return usageError("--entities-from: there is none in it")
	}
	return nil
}

func (r *rerunning) run(cmd *cobra.Command, pool *pgxpool.Pool) error {
	ctx := cmd.Context()
	set, err := r.program.set(ctx, pool)
	if err != nil {
		return err
	}
	op := &admin.Operator{Pool: pool, Actor: r.mutation.who(), Set: set, Queue: r.mutation.carrier(cmd)}
	if err := r.fixWindow(ctx, pool); err != nil {
		return err
	}
	host, _ := os.Hostname()
	r.order.Origin = cmd.CommandPath() + " on " + host
	out := &reran{Action: "rerun", DryRun: r.mutation.dryRun}
	if out.Database, err = databaseName(ctx, pool); err != nil {
		return err
	}
	if out.Preview, err = r.preview(cmd, op); err != nil {
		return err
	}
	out.Type = out.Preview.Type
	going := out.Preview.Going
	switch {
	case out.DryRun:
		return r.tell(cmd, out)
	case going != nil && going.Planned:
		out.Run, out.Joined, out.Planned = going.Run, true, true
		return r.follow(cmd, pool, out)
	case out.Preview.Items == 0 && out.Preview.Unknown == "" && going == nil:
		return r.tell(cmd, out)
	}
	if err := r.mutation.confirm(cmd, r.proposal(out)); err != nil {
		return err
	}
	opened, err := op.Rerun(ctx, r.order)
	if err != nil {
		return err
	}
	out.Run, out.Joined, out.Planned, out.Audit = opened.Run, opened.Joined, opened.Planned, opened.Audit
	return r.follow(cmd, pool, out)
}

// fixWindow turns "so long ago" into a point in time, by the database's clock. It is a
// whole minute, so that two who ask for the same ask for one run.
func (r *rerunning) fixWindow(ctx context.Context, pool *pgxpool.Pool) error {
	if r.within == 0 {
		return nil
	}
	return reading(ctx, pool, lookTime, func(tx pgx.Tx) error {
		var now time.Time
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
			return fmt.Errorf("ask for the time: %w", err)
		}
		r.order.Since = now.Add(-r.within).Truncate(time.Minute)
		return nil
	})
}

// previewMost bounds a preview, which a person waits for.
const previewMost = 1_000_000

func (r *rerunning) preview(cmd *cobra.Command, op *admin.Operator) (*admin.Preview, error) {
	line := newStatusLine(cmd.ErrOrStderr())
	defer line.clear()
	shown := time.Now()
	p, err := op.Preview(cmd.Context(), r.order.Type, r.order.Selection, admin.PreviewOptions{Most: previewMost, Rate: r.order.Rate, Timeout: r.timeout,
		Picked: func(t plan.Tally) {
			if time.Since(shown) > barEvery {
				line.show("looking: " + thousands(t.Items) + " so far")
				shown = time.Now()
			}
		}})
	if admin.TimedOut(err) {
		return nil, fmt.Errorf("%w: the source takes longer than %s; try a longer --timeout", err, r.timeout)
	}
	return p, err
}
