package cli

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// demoWorkerCommand is a worker of the demo, as an application's own would be but for its
// short times: the demo must not take minutes to show what a death costs.
func demoWorkerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "demo-worker", Hidden: true, Args: cobra.NoArgs}
	name := cmd.Flags().String("name", "", "")
	smtp := cmd.Flags().String("smtp", "", "")
	control := cmd.Flags().String("control", "", "")
	sqs := cmd.Flags().String("sqs", "", "")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		signal.Ignore(os.Interrupt) // a Ctrl-C is for the demo, which then ends us
		ctx, stop := context.WithCancel(cmd.Context())
		defer stop()
		go func() {
			_, _ = io.Copy(io.Discard, cmd.InOrStdin()) // ends with the demo
			stop()
		}()
		db, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
		if err != nil {
			return err
		}
		defer db.Close()
		mailer := invitations.NewMailer(*smtp, *control)
		mailer.Settle = 2 * time.Second
		set, err := jobs.NewSet(invitations.Jobs(db, mailer)...)
		if err != nil {
			return err
		}
		queues := map[string]queue.Queue{"": pgqueue.New(db, "").WithVisibility(demoVisibility)}
		if *sqs != "" {
			q, err := sqsqueue.New(ctx, *sqs, sqsqueue.Options{Wait: time.Second})
			if err != nil {
				return err
			}
			defer func() {
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
				defer cancel()
				_ = q.Close(last) // what it does not release comes again
			}()
			queues[""] = q
		}
		w, err := worker.New(ctx, db, set, worker.Config{
			Queues: queues,
			Name:   *name, Slots: 8, Lease: 3 * time.Second, Grace: time.Second, Recheck: time.Second,
			Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
		})
		if err != nil {
			return err
		}
		return w.Run(ctx)
	})
	return cmd
}

// demoSMTPCommand is the mail server of the demo.
func demoSMTPCommand() *cobra.Command {
	return &cobra.Command{Use: "demo-smtp", Hidden: true, DisableFlagParsing: true,
		RunE: run(func(cmd *cobra.Command, args []string) error {
			return smtpd.Main(args, cmd.InOrStdin(), cmd.OutOrStdout())
		})}
}
