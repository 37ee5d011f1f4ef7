package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
	"github.com/oncemore-jobs/oncemore/jobs"
)

const (
	demoEvents   = 3
	demoInvitees = 1000
	demoWorkers  = 3
	demoTwice    = 40 // invitations that are also enqueued singly, twice
	demoCut      = 10 // mails that the server takes without saying so, and as many that it loses

	// demoTime bounds the whole demo.
	demoTime = 3 * time.Minute
	// demoPace is how long the mail server takes for one mail, so that a person can watch,
	// and so that whatever is killed is killed in the middle of something.
	demoPace = 120 * time.Millisecond
	// demoOutage is how long the mail server is away, at least.
	demoOutage = 2 * time.Second
)

func demoCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "demo", Short: "Send 1,000 invitations through an outage and a kill -9, each once", Args: cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		Long: `Send 1,000 invitations, each once, while everything goes wrong that usually does.

It starts a private PostgreSQL, a mail server and workers, each a process of its own. Calls
are made twice, the mail server goes away, and a worker is killed with -9. Then the operator
just calls it again for all events. The table at the end is counted from the database
and the mail server; the exit code is 1 if any line of it is wrong.

With --queue sqs the calls travel through a private SQS, which hands out messages twice,
refuses some, and goes away for a while. It needs Node.js, and npm the first time.`}
	output := outputFlag(cmd, "table", "json")
	through := &format{value: "postgres", of: []string{"postgres", "sqs"}}
	cmd.Flags().Var(through, "queue", "what the calls travel through: postgres|sqs")
	_ = cmd.RegisterFlagCompletionFunc("queue", cobra.FixedCompletions(through.of, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		limit := demoTime
		if through.value == "sqs" {
			limit *= 2 // with the time of npm
		}
		ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, fmt.Errorf("the demo took longer than %s", limit))
		defer cancel()
		began := time.Now()
		d := &demo{narrator: newNarrator(cmd.ErrOrStderr()), self: hiddenCommands(cmd)}
		result, err := d.play(ctx, through.value)
		if err == nil {
			result.Seconds = time.Since(began).Round(time.Millisecond).Seconds()
			if *output == "json" {
				err = writeJSON(cmd.OutOrStdout(), result)
			} else {
				err = result.write(cmd.OutOrStdout())
			}
			err = errors.Join(err, result.check())
		}
		d.clear()
		d.end(err != nil && cmd.Context().Err() == nil)
		return err
	})
	return cmd
}

// play is the story. Each step waits for what it needs to have happened, never for a time.
func (d *demo) play(ctx context.Context, through string) (*demoResult, error) {
	if err := d.begin(ctx, through); err != nil {
		return nil, err
	}
	d.say("%d events, %s invitees, %d workers, a mail server.", demoEvents, thousands(demoInvitees), demoWorkers)

	begin := d.callTwice
	if d.sqs != nil {
		begin = d.callAllTwice
	}
	if err := begin(ctx); err != nil {
		return nil, err
	}
	if err := d.await(ctx, "the first invitations are sent", func(s demoState) bool { return s.Done >= demoInvitees/12 }); err != nil {
		return nil, err
	}

	if err := d.breakMail(ctx); err != nil {
		return nil, err
	}
	if d.sqs != nil {
		if err := d.breakQueue(ctx); err != nil {
			return nil, err
		}
	}
	if err := d.killWorker(ctx); err != nil {
		return nil, err
	}
	if err := d.await(ctx, "all is quiet", func(s demoState) bool { return s.Done >= demoInvitees && s.open()+s.going() == 0 }); err != nil {
		return nil, err
	}

	d.say("All is quiet. For which events must it be called again? The operator just calls it for all.")
	runs := d.last.Runs
	if err := d.call(ctx); err != nil {
		return nil, err
	}
	if err := d.await(ctx, "the new runs are complete", func(s demoState) bool {
		return s.Runs >= runs+demoEvents && s.Complete == s.Runs && s.open()+s.going() == 0
	}); err != nil {
		return nil, err
	}
	result, err := d.count(ctx)
	if err == nil && result.check() == nil {
		d.say("Everybody has one invitation.")
	}
	return result, err
}

// call enqueues the fan-out of every event.
func (d *demo) call(ctx context.Context) error {
	for id := int64(1); id <= demoEvents; id++ {
		if err := jobs.Enqueue(ctx, d.queue, invitations.SendEventEmails{EventID: id}); err != nil {
			return fmt.Errorf("call send_event_emails: %w", err)
		}
	}
	return nil
}

func (d *demo) callTwice(ctx context.Context) error {
	d.say("The operator calls send_event_emails for all events. Twice, to be sure. And %d single invitations, twice as well.", demoTwice)
	for range 2 {
		for n := int64(1); n <= demoTwice; n++ {
			one := invitations.SendEventEmailToInvitee{EventID: n%demoEvents + 1, InviteeID: n}
			if err := jobs.Enqueue(ctx, d.queue, one); err != nil {
				return fmt.Errorf("call send_event_email_to_invitee: %w", err)
			}
		}
		if err := d.call(ctx); err != nil {
			return err
		}
	}
	return nil
}

// breakMail lets the mail server take mails without saying so, lose some, and go away so
// that nobody can tell which. What was being sent is in doubt then, and must be resolved
// when the server can be asked again.
func (d *demo) breakMail(ctx context.Context) error {
	d.say("The mail server gets ill: it takes %d mails and cuts the connection instead of saying so, and loses %d others.", demoCut, demoCut)
	cut := d.last.Unanswered
	for i, mode := range []smtpd.Mode{smtpd.Drop, smtpd.Lose} {
		if err := d.mail(ctx, smtpd.Behaviour{Mode: mode, N: demoCut, Delay: demoPace}); err != nil {
			return err
		}
		want := cut + int64(i+1)*demoCut
		if err := d.await(ctx, "sendings have ended without an answer", func(s demoState) bool { return s.Unanswered >= want }); err != nil {
			return err
		}
	}
	if err := d.mail(ctx, smtpd.Behaviour{Mode: smtpd.Down, Blind: true, Delay: demoPace}); err != nil {
		return err
	}
	d.say("Then it is down.")
	down := time.Now()
	if err := d.await(ctx, "what was being sent is in doubt", func(s demoState) bool {
		return s.InDoubt > 0 && s.Perhaps == 0 && time.Since(down) >= demoOutage
	}); err != nil {
		return err
	}
	d.say("It is back. %d invitations are in doubt, sent or not: the workers ask the server before they send one again.", d.last.InDoubt)
	return d.mail(ctx, smtpd.Behaviour{Mode: smtpd.OK, Delay: demoPace})
}

// killWorker kills a worker that holds claims, with no chance to say goodbye.
func (d *demo) killWorker(ctx context.Context) error {
	if err := d.await(ctx, "a third of the invitations are sent", func(s demoState) bool { return s.Done >= demoInvitees/3 }); err != nil {
		return err
	}
	var victim *demoProcess
	err := d.await(ctx, "a worker can be killed in the middle of its work", func(demoState) bool {
		victim = d.freezeBusy(ctx)
		return victim != nil
	})
	if err != nil {
		return err
	}
	if err := victim.kill(); err != nil {
		return err
	}
	d.killed++
	held, err := d.claimsOf(ctx, victim.name)
	if err != nil {
		return err
	}
	d.say("kill -9: %s dies over %d invitations. %s is started in its place.", victim.name, held, d.nextName())
	if err := d.startWorker(ctx); err != nil {
		return err
	}
	err = d.await(ctx, "its invitations are in other hands", func(demoState) bool {
		held, err := d.claimsOf(ctx, victim.name)
		return err == nil && held == 0
	})
	if err == nil {
		d.say("Its lease is over: the others looked which of them had been sent, and took over the rest.")
	}
	return err
}
