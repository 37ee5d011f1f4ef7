package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// demoState is what the database says in the middle of the story.
type demoState struct {
	Done       int64 // facts
	Running    int64 // claims that a worker holds
	Waiting    int64 // for another attempt
	InDoubt    int64
	Failed     int64
	Parents    int64 // claims of the fan-outs
	Perhaps    int64 // of those waiting: perhaps sent
	Unanswered int64 // sendings that ever ended without an answer
	Messages   int64 // in Postgres
	Runs       int64
	Complete   int64 // of the runs
	Workers    int64 // living

	InSQS int `db:"-"` // messages there
}

const demoStateSQL = `
WITH t AS (SELECT (SELECT id FROM oncemore.job_type WHERE name = $1) AS id),
     c AS (SELECT c.job_type IS DISTINCT FROM t.id AS parent, coalesce(c.trouble, '') AS trouble, c.owner IS NOT NULL AS held, c.first_claimed_at IS NOT NULL AS perhaps
           FROM oncemore.claim c, t)
SELECT (SELECT count(*) FROM oncemore.ledger l, t WHERE l.job_type = t.id),
       count(*) FILTER (WHERE NOT parent AND held),
       count(*) FILTER (WHERE NOT parent AND NOT held AND trouble = 'retrying'),
       count(*) FILTER (WHERE NOT parent AND NOT held AND trouble = 'in_doubt'),
       count(*) FILTER (WHERE NOT parent AND NOT held AND trouble = 'failed'),
       count(*) FILTER (WHERE parent),
       count(*) FILTER (WHERE NOT parent AND NOT held AND trouble = 'retrying' AND perhaps),
       (SELECT count(*) FROM oncemore.attempt WHERE outcome = 'retrying' AND error LIKE 'mail perhaps sent%'),
       (SELECT count(*) FROM oncemore.message),
       (SELECT count(*) FROM oncemore.run),
       (SELECT count(*) FROM oncemore.run WHERE complete),
       (SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL)
FROM c`

// open are all claims.
func (s demoState) open() int64 { return s.Running + s.Waiting + s.InDoubt + s.Failed + s.Parents }

// going are all messages.
func (s demoState) going() int64 { return s.Messages + int64(s.InSQS) }

func (s demoState) String() string {
	return fmt.Sprintf("%s of %s recorded as sent, %d being sent, %d waiting, %d in doubt", thousands(s.Done), thousands(demoInvitees), s.Running, s.Waiting, s.InDoubt)
}

// await returns when the database's state satisfies, or with an error that says what it
// was waiting for.
func (d *demo) await(ctx context.Context, what string, satisfies func(demoState) bool) error {
	for {
		rows, err := d.db.Query(ctx, demoStateSQL, invitations.SendEventEmailToInvitee{}.JobType())
		if err == nil {
			d.last, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[demoState])
		}
		if err == nil && d.sqs != nil {
			d.last.InSQS, err = d.sqs.server.Count(ctx, d.sqs.url)
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("look how far the demo is: %w", err)
		}
		if err == nil {
			d.progress(d.last.String(), float64(d.last.Done)/demoInvitees)
			if satisfies(d.last) {
				return nil
			}
		}
		if err := d.lost(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; it was waiting until %s (%s; %d messages, %d of %d runs complete, %d failed)",
				context.Cause(ctx), what, d.last, d.last.going(), d.last.Complete, d.last.Runs, d.last.Failed)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// demoResult is counted when the story is over.
type demoResult struct {
	Invited         int64      `json:"invited"`           // in the application's tables
	Delivered       int64      `json:"delivered"`         // different mails that the mail server has
	DeliveredTwice  int64      `json:"delivered_twice"`   // mails that it has more than once, by Message-ID or by recipient and subject
	SkippedDone     int64      `json:"skipped_done"`      // counted by the runs when they planned
	InDoubtResolved int64      `json:"in_doubt_resolved"` // were in doubt, and have a fact
	InDoubt         int64      `json:"in_doubt"`          // still
	Missing         int64      `json:"missing"`
	KilledWorkers   int        `json:"killed_workers"`
	SQS             *sqsFaults `json:"sqs,omitempty"`
	Seconds         float64    `json:"seconds"`
}

const (
	invitedSQL  = `SELECT count(*) FROM invitations.invitee i JOIN invitations.event e ON e.id = i.event_id WHERE e.finalized`
	skippedSQL  = `SELECT coalesce(sum(skipped), 0)::bigint FROM oncemore.run`
	resolvedSQL = `
SELECT count(DISTINCT a.entity) FROM oncemore.attempt a
JOIN oncemore.ledger l ON l.job_type = a.job_type AND l.entity = a.entity
WHERE a.outcome = 'in_doubt'`
)

func (d *demo) count(ctx context.Context) (*demoResult, error) {
	r := &demoResult{InDoubt: d.last.InDoubt, KilledWorkers: d.killed}
	err := reading(ctx, d.db, 10*time.Second, func(tx pgx.Tx) error {
		for query, into := range map[string]*int64{invitedSQL: &r.Invited, skippedSQL: &r.SkippedDone, resolvedSQL: &r.InDoubtResolved} {
			if err := tx.QueryRow(ctx, query).Scan(into); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count what came of it: %w", err)
	}
	missing, _, err := admin.CountMissing(ctx, d.db, nil, invitations.SendEventEmailToInvitee{}.JobType(), 10*time.Second)
	if err != nil {
		return nil, fmt.Errorf("count what came of it: %w", err)
	}
	r.Missing = missing.N
	mail, err := smtpd.Control{URL: d.smtp.Control}.Stats(ctx)
	if err != nil {
		return nil, fmt.Errorf("count what came of it: %w", err)
	}
	r.Delivered, r.DeliveredTwice = int64(mail.Distinct), int64(max(mail.DeliveredTwice, mail.SameMailTwice))
	if d.sqs != nil {
		r.SQS = d.sqs.faults()
	}
	return r, nil
}

// check says which lines are wrong.
func (r *demoResult) check() error {
	var wrong []error
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf(format, args...))
		}
	}
	expect(r.Invited == demoInvitees, "%d are invited, not %d", r.Invited, demoInvitees)
	expect(r.Delivered == r.Invited, "%d are invited and %d have an invitation", r.Invited, r.Delivered)
	expect(r.DeliveredTwice == 0, "%d have it twice", r.DeliveredTwice)
	expect(r.SkippedDone >= r.Invited, "called again, only %d were skipped as done", r.SkippedDone)
	expect(r.InDoubt == 0, "%d are still in doubt", r.InDoubt)
	expect(r.Missing == 0, "%d are missing", r.Missing)
	expect(r.KilledWorkers == 1, "%d workers were killed, not one", r.KilledWorkers)
	if q := r.SQS; q != nil {
		expect(q.HandedOut >= 2*demoInvitees && q.Twice > 0 && q.Refused > 0 && q.Unanswered > 0, "SQS was better than it should have been: %+v", *q)
	}
	return errors.Join(wrong...)
}

func (r *demoResult) write(w io.Writer) error {
	t := newTable(w, "")
	type line struct {
		what string
		n    int64
		by   string
	}
	lines := []line{
		{"invited", r.Invited, "the application's tables"},
		{"delivered", r.Delivered, "the mail server"},
		{"delivered twice", r.DeliveredTwice, "the mail server"},
		{"skipped as done", r.SkippedDone, "the runs"},
		{"in doubt, then resolved", r.InDoubtResolved, "the ledger"},
		{"still in doubt", r.InDoubt, "the ledger"},
		{"missing", r.Missing, "the ledger and the source"},
		{"workers killed", int64(r.KilledWorkers), ""},
	}
	if q := r.SQS; q != nil {
		lines = append(lines, line{"messages handed out", q.HandedOut, "SQS"}, line{"of them twice at a time", q.Twice, "SQS"},
			line{"entries of batches refused", q.Refused, "SQS"}, line{"calls without an answer", q.Unanswered, "SQS"})
	}
	for _, line := range lines {
		by := ""
		if line.by != "" {
			by = "says " + line.by
		}
		t.row("  "+line.what, fmt.Sprintf("%6s", thousands(line.n)), by)
	}
	return t.Flush()
}
