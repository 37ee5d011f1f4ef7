package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A proof is counted when all is at rest.
type proof struct {
	Died  int // messages that the producer had sent when it was killed
	Asked int // messages of the whole runs

	Invitees int64
	Facts    int64
	Missing  int64 // invitees without a fact
	Strange  int64 // facts about nobody
	Open     int64 // claims
	Waiting  int64 // messages in Postgres

	Delivered int // different mails
	Twice     int // mails that are in a mailbox more than once
	SentAgain int // mails of the call after all was done

	Parked []parked
	Left   int // messages in SQS
	Dead   int // messages in its dead-letter queue
	Killed int // workers
}

type parked struct{ Reason, Type, Error string }

const (
	typeName = "send_event_email_to_invitee"
	factsSQL = ` FROM oncemore.ledger WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = '` + typeName + `')`

	invitedSQL = `SELECT event_id || '/' || invitee_id FROM invitations.invitee`
	missingSQL = `SELECT count(*) FROM (` + invitedSQL + ` EXCEPT ALL SELECT entity` + factsSQL + `) i`
	strangeSQL = `SELECT count(*) FROM (SELECT entity` + factsSQL + ` EXCEPT ALL (` + invitedSQL + `)) f`
	parkedSQL  = `SELECT reason, coalesce(type, ''), coalesce(error, '') FROM oncemore.parked ORDER BY reason, type`
)

// count counts what came of it.
func (p *play) count(ctx context.Context) (err error) {
	if err := p.StopWorkers(); err != nil {
		return err
	}
	pr := &p.proof
	if pr.Left, err = p.sqs.Count(ctx, p.url); err != nil {
		return err
	}
	if pr.Dead, err = p.sqs.Count(ctx, p.grave); err != nil {
		return err
	}
	mail := p.mail.Stats()
	pr.Delivered, pr.Twice = mail.Distinct, max(mail.DeliveredTwice, mail.SameMailTwice)
	return p.Count(ctx, []stage.Number{
		stage.Into(&pr.Invitees, `SELECT count(*) FROM invitations.invitee`),
		stage.Into(&pr.Facts, `SELECT count(*)`+factsSQL),
		stage.Into(&pr.Missing, missingSQL),
		stage.Into(&pr.Strange, strangeSQL),
		stage.Into(&pr.Open, `SELECT count(*) FROM oncemore.claim`),
		stage.Into(&pr.Waiting, `SELECT count(*) FROM oncemore.message`),
	}, func(tx pgx.Tx) (err error) {
		rows, _ := tx.Query(ctx, parkedSQL)
		pr.Parked, err = pgx.CollectRows(rows, pgx.RowToStructByPos[parked])
		return err
	})
}

// Check says which lines are wrong.
func (pr *proof) Check() error {
	var c stage.Check
	all := int(pr.Invitees)
	c.Is(pr.Died > 0 && pr.Died < all, "the producer died when it had asked for %d of %d", pr.Died, all)
	c.Is(pr.Asked == 2*all, "the whole runs asked for %d, not twice for %d", pr.Asked, all)
	c.Is(pr.Facts == pr.Invitees, "%d invitees have %d facts", all, pr.Facts)
	c.Is(pr.Missing == 0, "%d are missing", pr.Missing)
	c.Is(pr.Strange == 0, "%d facts are about nobody", pr.Strange)
	c.Is(pr.Open == 0, "%d are still open", pr.Open)
	c.Is(pr.Waiting == 0, "%d messages are left in Postgres", pr.Waiting)
	c.Is(pr.Delivered == all, "%d are invited, and %d have an invitation", all, pr.Delivered)
	c.Is(pr.Twice == 0, "%d have it twice", pr.Twice)
	c.Is(pr.SentAgain == 0, "%d mails were sent when all was done", pr.SentAgain)
	c.Is(slices.Equal(reasons(pr.Parked), []string{"undecodable", "undecodable", "unknown_type"}), "the rubbish is listed as %v", pr.Parked)
	c.Is(pr.Left == 0, "%d messages are left in SQS", pr.Left)
	c.Is(pr.Dead == 0, "%d messages are in the dead-letter queue", pr.Dead)
	c.Is(pr.Killed == 1, "%d workers were killed", pr.Killed)
	return c.Err()
}

func reasons(ps []parked) (all []string) {
	for _, p := range ps {
		all = append(all, p.Reason)
	}
	return all
}

func (pr *proof) Write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\n  invited\t%d\n  asked for\t%d\tand %d by the producer that died\n", pr.Invitees, pr.Asked, pr.Died)
	fmt.Fprintf(t, "  delivered\t%d\tsays the mail server\n  delivered twice\t%d\n  sent when all was done\t%d\n", pr.Delivered, pr.Twice, pr.SentAgain)
	fmt.Fprintf(t, "  facts\t%d\n  missing\t%d\n  facts about nobody\t%d\n  open\t%d\n", pr.Facts, pr.Missing, pr.Strange, pr.Open)
	fmt.Fprintf(t, "  left in SQS\t%d\tand %d dead letters\n  left in Postgres\t%d\n  workers killed\t%d\n", pr.Left, pr.Dead, pr.Waiting, pr.Killed)
	fmt.Fprintf(t, "  set aside\t%d\n", len(pr.Parked))
	for _, p := range pr.Parked {
		fmt.Fprintf(t, "    %s\t%s\t%s\n", p.Reason, p.Type, p.Error)
	}
	_ = t.Flush()
	fmt.Fprintf(w, "\nproof: %d messages asked for %d invitations; %d people have theirs, %d of them twice; %d messages are left in SQS\n",
		pr.Died+pr.Asked, pr.Invitees, pr.Delivered, pr.Twice, pr.Left)
}
