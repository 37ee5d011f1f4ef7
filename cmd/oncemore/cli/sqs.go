package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
)

func (p *program) sqsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sqs", Short: "Look after queues in Amazon SQS", Args: cobra.NoArgs,
		Long: `Look after queues in Amazon SQS. A queue is named by its URL or its name; credentials and
region are those that the AWS SDK finds, and AWS_ENDPOINT_URL_SQS names another endpoint.
No database is needed, but by 'doctor' without names, which asks the program's jobs.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(p.sqsDoctorCommand(), p.sqsRedriveCommand())
	return cmd
}

func (p *program) sqsDoctorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "doctor [QUEUE]...", Short: "Look whether queues in SQS are fit for their work", Args: cobra.ArbitraryArgs,
		Long: `Look whether queues in SQS are fit for their work: visibility, retention, dead letters,
sizes, permissions; and say what is to be changed. Without names it looks at those that
the program's worker reads. It changes nothing, and receives nothing.

  ok      nothing is to be done
  warn    it works, and will not for ever, or not well
  bad     work stands still or is lost, or can be
  unseen  it could not be looked at

Exit codes: 0 nothing is bad; 3 something is bad, or, with --strict, is a warning.`,
		ValidArgsFunction: cobra.NoFileCompletions}
	output := outputFlag(cmd, "table", "json", "jsonl")
	strict := cmd.Flags().Bool("strict", false, "let a warning count as bad")
	attempts := cmd.Flags().Int("attempts", 0, "the `most` attempts that a job of these queues has (default: where no queue is named, what the program's jobs say; else 10)")
	timeout := cmd.Flags().Duration("timeout", 0, "the longest timeout of a job of these queues (default: where no queue is named, what the program's jobs say; else 1m)")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if *attempts < 0 || *timeout < 0 {
			return usageError("--attempts and --timeout must not be negative")
		}
		looks, err := p.sqsQueues(cmd.Context(), args)
		if err != nil {
			return err
		}
		var found []sqsCheck
		for _, l := range looks {
			l.Attempts, l.Timeout = cmp.Or(*attempts, l.Attempts), cmp.Or(*timeout, l.Timeout)
			checks, err := sqsqueue.Diagnose(cmd.Context(), l.queue, l.Facts)
			if err != nil {
				return err
			}
			for _, c := range checks {
				found = append(found, sqsCheck{l.queue, c})
			}
		}
		if err := writeSQSChecks(cmd, *output, found); err != nil {
			return err
		}
		n := map[string]int{}
		for _, c := range found {
			n[c.State]++
		}
		sum := fmt.Sprintf("%d bad, %d warnings, %d ok, %d unseen", n["bad"], n["warn"], n["ok"], n["unseen"])
		if n["bad"] > 0 || n["warn"] > 0 && *strict {
			return failure{errors.New(sum), exitPartly}
		}
		fmt.Fprintln(cmd.ErrOrStderr(), sum)
		return nil
	})
	return cmd
}

// An sqsLook is a queue to look at, and what its attributes are compared with.
type sqsLook struct {
	queue string
	sqsqueue.Facts
}

type sqsCheck struct {
	Queue string `json:"queue"`
	sqsqueue.Check
}

// sqsQueues are those that are named, else those of the program's worker.
func (p *program) sqsQueues(ctx context.Context, named []string) (looks []sqsLook, err error) {
	for _, name := range named {
		looks = append(looks, sqsLook{queue: name})
	}
	if len(named) > 0 {
		return looks, nil
	}
	byName := map[string]*sqsLook{}
	for name, q := range p.Worker.Queues {
		if q, ok := q.(*sqsqueue.Queue); ok {
			byName[name] = &sqsLook{q.URL(), sqsqueue.Facts{Visibility: q.Visibility()}}
		}
	}
	if len(byName) == 0 {
		return nil, usageError("name a queue: this program's worker reads none in SQS")
	}
	if p.Set != nil {
		if err := p.compareWithJobs(ctx, byName); err != nil {
			return nil, err
		}
	}
	for _, l := range byName {
		looks = append(looks, *l)
	}
	slices.SortFunc(looks, func(a, b sqsLook) int { return strings.Compare(a.queue, b.queue) })
	return looks, nil
}

// compareWithJobs reads attempts and timeouts of the jobs that each queue carries.
func (p *program) compareWithJobs(ctx context.Context, looks map[string]*sqsLook) error {
	pool, err := p.connect(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	set, err := p.set(ctx, pool)
	if err != nil {
		return err
	}
	for _, name := range set.Types() {
		e, _ := set.Lookup(name)
		if l := looks[e.Queue]; l != nil {
			l.Attempts, l.Timeout = max(l.Attempts, e.Attempts), max(l.Timeout, e.Timeout)
		}
	}
	return nil
}

func writeSQSChecks(cmd *cobra.Command, output string, checks []sqsCheck) error {
	out := cmd.OutOrStdout()
	switch output {
	case "json":
		return writeJSON(out, checks)
	case "jsonl":
		return writeRows(cmd, output, checks, nil, nil)
	}
	colours := map[string]colour{"ok": green, "warn": yellow, "bad": red}
	t := newTable(out, painted(out, bold, "STATE"), "CHECK", "FOUND")
	last := ""
	for _, c := range checks {
		if c.Queue != last {
			t.row(painted(out, bold, ""), c.Queue, "")
			last = c.Queue
		}
		paint := colours[c.State]
		if paint == "" {
			paint = bold
		}
		t.row(painted(out, paint, c.State), c.Name, cell(c.Found, wide))
		if c.Do != "" {
			t.row(painted(out, bold, ""), "", "  do: "+cell(c.Do, wide))
		}
	}
	return t.Flush()
}

func (p *program) sqsRedriveCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "redrive DLQ", Short: "Send the messages of a dead-letter queue again", Args: cobra.ExactArgs(1),
		Long: `Send the messages of a dead-letter queue again to where they came from, or --to another
queue. It receives, sends, then deletes, so that nothing is lost whenever it is stopped;
a message may be sent twice then, and what it asks for is still done once. SQS's own move
task is not needed.`,
		Example: `  oncemore sqs redrive invitations-dead --dry-run
  oncemore sqs redrive invitations-dead --max 100 --rate 50`,
		ValidArgsFunction: cobra.NoFileCompletions}
	output := outputFlag(cmd, "table", "json")
	var r sqsqueue.Redrive
	flags := cmd.Flags()
	flags.StringVar(&r.To, "to", "", "the `queue` to send to (default: the one that has this as its dead-letter queue)")
	flags.IntVar(&r.Max, "max", 0, "so many messages at most (default: all that are there)")
	flags.Float64Var(&r.Rate, "rate", 0, "so many messages in a second at most (default: as fast as it goes)")
	flags.BoolVar(&r.DryRun, "dry-run", false, "say how many it would be, and show the first ten; change nothing")
	yes := flags.BoolP("yes", "y", false, "do not ask")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if r.Max < 0 || r.Rate < 0 {
			return usageError("--max and --rate must not be negative")
		}
		r.From = args[0]
		if !r.DryRun && !*yes {
			if *output == "json" || !p.interactive(cmd.InOrStdin()) {
				return usageError("nobody can be asked: say --yes, or look with --dry-run")
			}
			look := r
			look.DryRun = true
			state, err := look.Run(cmd.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "About to move %s messages of %s to %s.\n\nGo on? [y/N] ", moves(r, state), state.From, state.To)
			if answer, _ := readLine(cmd.Context(), cmd.InOrStdin()); !slices.Contains([]string{"y", "yes"}, strings.ToLower(strings.TrimSpace(answer))) {
				return errNotConfirmed
			}
		}
		said := time.Now()
		r.Progress = func(s sqsqueue.RedriveState) {
			if time.Since(said) > 2*time.Second {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s of %s moved\n", thousands(int64(s.Moved)), moves(r, s))
				said = time.Now()
			}
		}
		state, err := r.Run(cmd.Context())
		if state.From != "" {
			if e := writeRedrive(cmd, *output, r, state); err == nil {
				err = e
			}
		}
		return err
	})
	return cmd
}

// moves is how many messages of those that s tells of r moves.
func moves(r sqsqueue.Redrive, s sqsqueue.RedriveState) string {
	if r.Max > 0 && r.Max < s.Waiting {
		return thousands(int64(r.Max))
	}
	return "some " + thousands(int64(s.Waiting))
}

func writeRedrive(cmd *cobra.Command, output string, r sqsqueue.Redrive, s sqsqueue.RedriveState) error {
	out := cmd.OutOrStdout()
	if output == "json" {
		return writeJSON(out, s)
	}
	if r.DryRun {
		for _, body := range s.Sample {
			fmt.Fprintln(out, cell(body, wide))
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "dry run: it would move %s messages from %s to %s\n", moves(r, s), s.From, s.To)
		return nil
	}
	t := newTable(out, "MOVED", "LEFT", "FROM", "TO")
	t.row(thousands(int64(s.Moved)), thousands(int64(s.Left)), s.From, s.To)
	return t.Flush()
}
