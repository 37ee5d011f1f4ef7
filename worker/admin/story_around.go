package admin

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Here is what stands around an entity: the messages that carry it, input of it that was
// set aside, runs that it began, what operators did, and whether its source names it.

// No index finds an entity in a message: the whole queue is looked through, as far as the
// statement's time goes. What a pause holds back is delayed by a century more than it was:
// see pgqueue.Hold.
const storyMessagesSQL = `
SELECT m.id, m.queue, CASE WHEN m.lock IS NULL THEN 'ready' WHEN p.paused THEN 'paused' WHEN m.lock = 0 THEN 'delayed' ELSE 'held' END,
       CASE WHEN p.paused THEN m.visible_at - interval '100 years' ELSE m.visible_at END,
       m.received, m.deferred, coalesce(m.run, 0), coalesce(m.epoch, 0), cardinality(m.entities), coalesce(m.args[array_position(m.entities, $2)], '')
FROM oncemore.message m CROSS JOIN LATERAL (SELECT m.run > 0 AND m.lock = 0 AND m.visible_at > now() + interval '50 years') AS p (paused)
WHERE m.type = ANY ($1) AND $2 = ANY (m.entities) ORDER BY m.id LIMIT $3`

func (s *Story) readMessages(ctx context.Context, tx pgx.Tx, t *Type) error {
	ms, err := rowsOf[Message](ctx, tx, storyMessagesSQL, t.Names, s.Entity, storyMessages)
	if err != nil {
		return err
	}
	for i := range ms {
		m := &ms[i]
		s.waiting = append(s.waiting, m)
		text := fmt.Sprintf("message %d in queue %q: %s", m.ID, m.Queue, m.State)
		if m.State == "held" || m.State == "delayed" {
			text += " until " + m.VisibleAt.UTC().Format(time.RFC3339)
		}
		if m.Entities > 1 {
			text += fmt.Sprintf(", with %d other entities", m.Entities-1)
		}
		text += numbered(m.Received, m.Epoch, 0, m.Run)
		s.Events = append(s.Events, Event{At: m.VisibleAt, Kind: "message", Message: m, Text: text})
	}
	return nil
}

func (s *Story) readParked(ctx context.Context, tx pgx.Tx, t *Type) error {
	rows, err := rowsOf[SetAside](ctx, tx, asideSQL+`p.body`+asideFrom+` WHERE p.type = ANY ($1) AND p.entity = $2 ORDER BY p.id DESC LIMIT $3`, t.Names, s.Entity, storyMost)
	if err != nil {
		return err
	}
	for i := range rows {
		p := &rows[i]
		text := fmt.Sprintf("parked as %d: %s", p.ID, p.Reason)
		if p.Times > 1 {
			text += fmt.Sprintf(", %d times until %s", p.Times, p.LastAt.UTC().Format(time.RFC3339))
		}
		s.Events = append(s.Events, Event{At: p.FirstAt, Kind: "parked", Parked: p, Text: text + ": " + p.Error})
	}
	return nil
}

const storyRunsSQL = `
SELECT r.id, r.started_at, r.ended_at, r.complete, r.items, r.skipped
FROM oncemore.run r WHERE r.parent_type = $1 AND r.parent_entity = $2 ORDER BY r.id DESC LIMIT $3`

func (s *Story) readRuns(ctx context.Context, tx pgx.Tx, t *Type) error {
	runs, err := rowsOf[RunEvent](ctx, tx, storyRunsSQL, t.ID, s.Entity, storyMost)
	if err != nil {
		return fmt.Errorf("read the runs: %w", err)
	}
	for i := range runs {
		r := &runs[i]
		text := fmt.Sprintf("run %d of %s entities, %s more skipped as done", r.ID, thousands(r.Items), thousands(r.Skipped))
		s.Events = append(s.Events, Event{At: r.StartedAt, Kind: "run", Run: r, Text: text + ": began"})
		if r.EndedAt != nil {
			how := ": ended, not complete"
			if r.Complete {
				how = ": complete"
			}
			s.Events = append(s.Events, Event{At: *r.EndedAt, Kind: "run", Run: r, Text: text + how})
		}
	}
	return nil
}

// An act on many names only the first of them, so the entity may be among those that it
// does not name.
const storyAuditSQL = `
SELECT a.id, a.at, a.actor, a.action, a.job_type, a.entities, a.sample, a.reason, a.detail
FROM oncemore.audit a
WHERE a.job_type = ANY ($1) AND a.action NOT IN ('resend', 'drop') AND ($2 = ANY (a.sample) OR a.entities > cardinality(a.sample))
ORDER BY a.id DESC LIMIT $3`

func (s *Story) readAudit(ctx context.Context, tx pgx.Tx, t *Type) error {
	rows, err := rowsOf[AuditEntry](ctx, tx, storyAuditSQL, t.Names, s.Entity, storyMessages)
	if err != nil {
		return err
	}
	for i := range rows {
		a := &rows[i]
		text := fmt.Sprintf("%s by %s", a.Action, a.Actor)
		named := false
		for _, e := range a.Sample {
			named = named || e == s.Entity
		}
		if !named {
			text = fmt.Sprintf("maybe among them: %s of %s entities by %s", a.Action, thousands(a.Entities), a.Actor)
		}
		for _, more := range []string{a.Reason, a.Detail} {
			if more != "" {
				text += ": " + more
			}
		}
		s.Events = append(s.Events, Event{At: a.At, Kind: "audit", Audit: a, Text: text})
	}
	return nil
}

// readSource asks whether the type's source names the entity, where it is SQL.
func (s *Story) readSource(ctx context.Context, tx pgx.Tx, t *Type) error {
	if t.Query == "" {
		return ErrNoSource
	}
	d, err := tx.Conn().PgConn().Prepare(ctx, "", t.Query, nil)
	if err != nil {
		return err
	}
	version := `0`
	for _, f := range d.Fields {
		if f.Name == "source_version" {
			version = `coalesce(max(s.source_version), 0)`
		}
	}
	params := append(append([]any{}, t.Params...), s.Entity)
	var named bool
	err = tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*) > 0, %s::bigint FROM (%s\n) s WHERE s.entity::text = $%d", version, t.Query, len(params)), params...).Scan(&named, &s.source)
	if err == nil {
		s.Named = &named
	}
	return err
}

// conclude says where the entity is, and what comes next.
func (s *Story) conclude(t *Type) {
	w := ledger.Want{Entity: s.Entity, SourceVersion: s.source}
	var f *ledger.Fact
	var o *ledger.Open
	epoch := int64(0)
	s.Place = "missing"
	if s.open != nil {
		s.Place = "open"
		o = s.open.row
		// What is open asks for as much itself.
		w.Epoch, w.SourceVersion = o.Epoch, max(w.SourceVersion, o.SourceVersion)
		epoch = o.Epoch
	}
	for _, m := range s.waiting {
		w.Epoch = max(w.Epoch, m.Epoch) // forced
		w.Run = max(w.Run, m.Run)       // called again
	}
	if s.fact != nil {
		f = &ledger.Fact{Entity: s.Entity, CompletedAt: s.fact.CompletedAt, Fingerprint: s.fact.Fingerprint,
			Epoch: s.fact.Epoch, Version: s.fact.Version, SourceVersion: s.fact.SourceVersion}
		epoch = max(epoch, f.Epoch)
	}
	s.Reason = ledger.Decide(&t.Type, w, f, o, s.Now)
	if s.fact != nil && (s.open == nil || s.Reason == ledger.Done) {
		s.Place = "done"
	}
	s.EffectKey = t.EffectKey(s.Entity, epoch)
	s.Next = s.next(t)
}

// next is what happens next, in a sentence or two.
func (s *Story) next(t *Type) string {
	switch {
	case s.Reason == ledger.Done:
		return "Nothing more: it is done, and another call is skipped."
	case t.Requests && s.open == nil:
		return "It is not done: no request of this key has come, or what it did was undone, or its transaction goes on."
	case t.Requests:
		return sentence(s.open.Next)
	}
	var b strings.Builder
	switch s.Reason {
	case ledger.Ongoing, ledger.Failed, ledger.InDoubt:
		b.WriteString(sentence(s.open.Next))
	default:
		b.WriteString(s.carried())
	}
	if s.workers == 0 {
		b.WriteString(" No worker is alive now.")
	}
	return b.String()
}

// carried tells what brings the next attempt on what is to run, now or later.
func (s *Story) carried() string {
	why := map[ledger.Reason]string{
		ledger.Missing:      "It is not done",
		ledger.Retry:        "Another attempt is due",
		ledger.Waiting:      "It waits for another attempt",
		ledger.StaleSource:  "It was done from an older version of its source, and is to be done again",
		ledger.StaleVersion: "It was done by an older version of the code, and is to be done again",
		ledger.Forced:       "It was done, and is asked for once more",
		ledger.Conflict:     "It was done with other arguments",
	}[s.Reason]
	if s.Reason == ledger.Waiting && s.open.NotBefore == nil {
		why = "Its effect is given time to show before the done-check is asked"
	}
	if len(s.waiting) == 0 {
		return why + s.notCarried()
	}
	m := s.waiting[0]
	for _, other := range s.waiting[1:] { // the first that comes
		switch {
		case other.State == m.State && other.VisibleAt.Before(m.VisibleAt), m.State == "paused" && other.State != "paused",
			other.State == "ready" && m.State != "ready":
			m = other
		}
	}
	switch left := m.VisibleAt.Sub(s.Now); {
	case m.State == "ready":
		return fmt.Sprintf("%s: message %d brings it to the next worker that is free.", why, m.ID)
	case m.State == "paused":
		return fmt.Sprintf("%s: message %d is held back, since its run is paused: 'runs resume %d' lets it go on.", why, m.ID, m.Run)
	case m.State == "delayed" && left > 0:
		return fmt.Sprintf("%s: message %d brings it in %s.", why, m.ID, rough(left))
	case m.State == "delayed":
		return fmt.Sprintf("%s: message %d is due, and brings it when a worker reads its queue.", why, m.ID)
	case left > 0:
		return fmt.Sprintf("%s: a worker has message %d in its hands.", why, m.ID)
	}
	return fmt.Sprintf("%s: message %d was taken by a worker that is silent since, and comes again.", why, m.ID)
}

func (s *Story) notCarried() string {
	for _, u := range s.Unseen {
		if strings.HasPrefix(u, "messages") {
			return ". Whether a message carries it could not be seen."
		}
	}
	switch {
	case s.open != nil:
		return ", and no message in this database carries it: if none comes from another queue, 'retry' sends one."
	case s.Named == nil:
		return ": nobody has called it, or its message is in a queue elsewhere."
	case *s.Named:
		return ": its source names it, and no message in this database carries it. Call it: 'enqueue', or the fan-out that names it."
	}
	return ": its source does not name it, and no message in this database carries it."
}

// sentence makes one of a phrase.
func sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
