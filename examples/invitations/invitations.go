// Package invitations sends the invitations of events, each exactly as often as its
// invitee should find it in the mailbox: once.
//
// One call of send_event_emails fans out to one send_event_email_to_invitee for each
// invitee. Either may be called again, by anybody, at any time: an invitation that is
// recorded as sent is skipped, and one whose sending was interrupted is looked for on the
// mail server before it is sent again.
package invitations

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// SendEventEmails asks that everybody who is invited to an event has the invitation.
type SendEventEmails struct {
	EventID int64 `json:"event_id"`
}

func (SendEventEmails) JobType() string  { return "send_event_emails" }
func (a SendEventEmails) Entity() string { return jobs.Key(a.EventID) }

// SendEventEmailToInvitee asks that one invitee has the invitation to one event.
type SendEventEmailToInvitee struct {
	EventID   int64 `json:"event_id"`
	InviteeID int64 `json:"invitee_id"`
}

func (SendEventEmailToInvitee) JobType() string  { return "send_event_email_to_invitee" }
func (a SendEventEmailToInvitee) Entity() string { return jobs.Key(a.EventID, a.InviteeID) }

// Jobs are the jobs of this package, on the tables of [Schema].
func Jobs(db *pgxpool.Pool, mailer *Mailer) []jobs.Definition {
	s := sender{db, mailer}
	return []jobs.Definition{
		jobs.Job[SendEventEmails]{
			FanOut: func(a SendEventEmails) jobs.Source {
				return jobs.SQL[SendEventEmailToInvitee](invited+` AND e.id = $1`, a.EventID)
			},
		},
		jobs.Job[SendEventEmailToInvitee]{
			Ready:  s.finalized,
			Done:   s.delivered,
			Do:     s.send,
			Effect: jobs.Verifiable(mailer.settle()),
			Source: jobs.SQL[SendEventEmailToInvitee](invited),
		},
	}
}

// invited names all that should be sent.
const invited = `
SELECT i.event_id || '/' || i.invitee_id AS entity, i.event_id, i.invitee_id
FROM invitations.invitee i JOIN invitations.event e ON e.id = i.event_id
WHERE e.finalized`

type sender struct {
	db     *pgxpool.Pool
	mailer *Mailer
}

const finalizedSQL = `SELECT coalesce((SELECT finalized FROM invitations.event WHERE id = $1), false)`

func (s sender) finalized(ctx context.Context, a SendEventEmailToInvitee) (ready bool, err error) {
	err = s.db.QueryRow(ctx, finalizedSQL, a.EventID).Scan(&ready)
	return ready, err
}

func (s sender) delivered(ctx context.Context, _ SendEventEmailToInvitee) (bool, error) {
	return s.mailer.Delivered(ctx, messageID(ctx))
}

const inviteeSQL = `
SELECT e.name, i.name, i.email FROM invitations.invitee i JOIN invitations.event e ON e.id = i.event_id
WHERE i.event_id = $1 AND i.invitee_id = $2`

func (s sender) send(ctx context.Context, a SendEventEmailToInvitee) error {
	var event, name, email string
	err := s.db.QueryRow(ctx, inviteeSQL, a.EventID, a.InviteeID).Scan(&event, &name, &email)
	if errors.Is(err, pgx.ErrNoRows) {
		return jobs.Permanent(jobs.NotApplied(errors.New("the invitation was withdrawn")))
	} else if err != nil {
		return jobs.NotApplied(fmt.Errorf("read the invitee: %w", err))
	}
	err = s.mailer.Send(ctx, Mail{
		MessageID: messageID(ctx), To: email, Subject: "Invitation: " + event,
		Body: fmt.Sprintf("Dear %s,\n\nyou are invited to %s.\n", name, event),
	})
	switch {
	case err == nil:
		jobs.Current(ctx).Note("invitation of event %d sent to %s", a.EventID, email)
		return nil
	case NoSuchMailbox(err):
		return jobs.Permanent(jobs.NotApplied(err))
	case NotSent(err):
		return jobs.NotApplied(err)
	}
	return err // perhaps it was sent: the done-check will be asked
}

// messageID is the same for every attempt at one invitation, so that the mail server can
// be asked about all of them at once.
func messageID(ctx context.Context) string { return MessageID(jobs.Current(ctx).EffectKey()) }
