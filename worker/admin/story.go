package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A Story is all that a database knows of one entity of one job type.
type Story struct {
	Type      string        `json:"type"`
	Entity    string        `json:"entity"`
	Now       time.Time     `json:"now"`                  // the database's clock
	Place     string        `json:"place"`                // missing | open | done
	Reason    ledger.Reason `json:"reason"`               // what would be decided now
	Next      string        `json:"next"`                 // what happens next, in a sentence or two
	Effect    string        `json:"effect"`               // the class of the type
	EffectKey string        `json:"effect_key,omitempty"` // what a provider was given last, or would be given; empty: not known
	Named     *bool         `json:"named"`                // the type's source names it; null: not known here
	Events    []Event       `json:"events"`               // by time; what is due stands last
	Unseen    []string      `json:"unseen"`               // what could not be looked at, and why

	workers int64 // that live
	source  int64 // the source version that the source has now
	open    *Open
	fact    *Fact
	waiting []*Message
}

// An Event is one thing in a story. Of its details one is there.
type Event struct {
	At   time.Time `json:"at"`
	Kind string    `json:"kind"` // fact | archived | result | answer | attempt | claim | message | parked | run | audit
	Text string    `json:"text"` // in words

	Fact    *Fact       `json:"fact,omitempty"`
	Kept    *Kept       `json:"kept,omitempty"`
	Attempt *Attempt    `json:"attempt,omitempty"`
	Claim   *Claim      `json:"claim,omitempty"`
	Message *Message    `json:"message,omitempty"`
	Parked  *SetAside   `json:"parked,omitempty"`
	Run     *RunEvent   `json:"run,omitempty"`
	Audit   *AuditEntry `json:"audit,omitempty"`
}

// A Fact is a completion, the current one or one that was replaced.
type Fact struct {
	CompletedAt   time.Time  `json:"completed_at"`
	Evidence      string     `json:"evidence"` // how the ledger knows, in words
	Attempts      int        `json:"attempts"`
	Epoch         int64      `json:"epoch"`
	Version       int        `json:"version"`
	SourceVersion int64      `json:"source_version"`
	Run           int64      `json:"run"`
	Fingerprint   int64      `json:"fingerprint"`
	ArchivedAt    *time.Time `json:"archived_at"` // null: it stands
}

// Kept is what was stored beside a fact of its epoch: the result of a job, or the answer to
// a request with a key. The fact outlives it.
type Kept struct {
	Epoch     int64     `json:"epoch"`
	ExpiresAt time.Time `json:"expires_at"` // from then on nobody is shown it
	Bytes     int       `json:"bytes"`
	Result    string    `json:"result,omitempty"` // its JSON; empty for an answer
	Status    int       `json:"status,omitempty"` // of an answer, whose body is not shown here
}

// An Attempt is one that did not simply succeed, as it was recorded.
type Attempt struct {
	At      time.Time `json:"at"`
	Number  int       `json:"number"`
	Outcome string    `json:"outcome"` // retrying | failed | in_doubt | disputed | resolved | note
	Class   string    `json:"error_class"`
	Error   string    `json:"error"`
	Worker  int64     `json:"worker"` // 0: none
	Name    string    `json:"worker_name"`
	Fence   int64     `json:"fence"`
}

// A Claim is an open entity with its arguments.
type Claim struct {
	Open
	Args string `json:"args"`
}

// A Message is one in a Postgres queue that carries the entity, maybe with others.
type Message struct {
	ID        int64     `json:"id"`
	Queue     string    `json:"queue"`
	State     string    `json:"state"`      // ready | held | delayed | paused: kept back with its run
	VisibleAt time.Time `json:"visible_at"` // held or delayed until then; ready since then; of what is paused, but for that
	Received  int       `json:"received"`
	Deferred  int       `json:"deferred"`
	Run       int64     `json:"run"`
	Epoch     int64     `json:"epoch"`
	Entities  int       `json:"entities"`
	Args      string    `json:"args"` // of the entity
}

// A RunEvent is a run that this entity began, being a fan-out.
type RunEvent struct {
	ID        int64      `json:"id"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at"`
	Complete  bool       `json:"complete"`
	Items     int64      `json:"items"`
	Skipped   int64      `json:"skipped"`
}

// How much of a story is shown of each kind, the newest of it.
const (
	storyMost     = 200
	storyMessages = 20
)

// Tell tells the story of an entity. The type must be registered; the entity need not be
// known. What takes too long to find (a message in a very long queue, a slow source) is
// named in Unseen, and the rest is told without it.
func Tell(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, jobType, entity string) (*Story, error) {
	s := &Story{Entity: entity, Events: []Event{}, Unseen: []string{}}
	var t *Type
	err := Read(ctx, pool, readTime, func(tx pgx.Tx) (err error) {
		if t, err = FindType(ctx, tx, set, jobType); err != nil {
			return err
		}
		s.Type, s.Effect = t.Name, t.Effect.String()
		if s.Now, err = serverTime(ctx, tx); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, livingSQL).Scan(&s.workers); err != nil {
			return fmt.Errorf("count the living workers: %w", err)
		}
		for _, part := range []func(context.Context, pgx.Tx, *Type) error{s.readFacts, s.readKept, s.readAttempts, s.readClaim, s.readRuns} {
			if err := part(ctx, tx, t); err != nil {
				return err
			}
		}
		for what, part := range map[string]func(context.Context, pgx.Tx, *Type) error{
			"messages": s.readMessages, "parked input": s.readParked, "the audit": s.readAudit, "the source": s.readSource,
		} {
			if err := s.try(ctx, tx, t, what, part); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.conclude(t)
	slices.SortStableFunc(s.Events, func(a, b Event) int { return a.At.Compare(b.At) })
	slices.Sort(s.Unseen)
	return s, nil
}

// try reads a part that the story can do without.
func (s *Story) try(ctx context.Context, tx pgx.Tx, t *Type, what string, part func(context.Context, pgx.Tx, *Type) error) error {
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return part(ctx, tx, t) }) // a savepoint
	if err == nil || ctx.Err() != nil || tx.Conn().IsClosed() {
		return err
	}
	why := firstLine(err.Error())
	switch {
	case TimedOut(err):
		why = "it took too long"
	case errors.Is(err, ErrNoSource):
		return nil
	}
	s.Unseen = append(s.Unseen, what+": "+why)
	return nil
}

const livingSQL = `SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL AND expires > clock_timestamp()`

const storyFactsSQL = `
SELECT completed_at, evidence::text, attempts, coalesce(epoch, 0), coalesce(version, 0), coalesce(source_version, 0), coalesce(run, 0), fingerprint, NULL::timestamptz
FROM oncemore.ledger WHERE job_type = $1 AND entity = $2
UNION ALL
(SELECT completed_at, evidence::text, attempts, coalesce(epoch, 0), coalesce(version, 0), coalesce(source_version, 0), coalesce(run, 0), fingerprint, archived_at
FROM oncemore.ledger_history WHERE job_type = $1 AND entity = $2 ORDER BY archived_at DESC LIMIT $3)`

// evidences are the ways in which the ledger knows, in words.
var evidences = map[string]string{
	string(ledger.SameTx):     "committed together with its effect",
	string(ledger.Reported):   "reported by the job",
	string(ledger.DoneCheck):  "found by the done-check",
	string(ledger.Adopted):    "recorded by the app",
	string(ledger.ByOperator): "resolved by an operator",
}

func (s *Story) readFacts(ctx context.Context, tx pgx.Tx, t *Type) error {
	facts, err := rowsOf[Fact](ctx, tx, storyFactsSQL, t.ID, s.Entity, storyMost)
	if err != nil {
		return fmt.Errorf("read the facts: %w", err)
	}
	for i := range facts {
		f := &facts[i]
		f.Evidence = evidences[f.Evidence]
		e := Event{At: f.CompletedAt, Kind: "fact", Fact: f, Text: "done: " + f.Evidence + numbered(f.Attempts, f.Epoch, f.SourceVersion, f.Run)}
		if f.ArchivedAt != nil {
			e.Kind = "archived"
			e.Text += ", replaced " + f.ArchivedAt.UTC().Format(time.RFC3339)
		} else {
			s.fact = f
		}
		s.Events = append(s.Events, e)
	}
	return nil
}

// numbered tells the numbers that are not usual.
func numbered(attempts int, epoch, source, run int64) string {
	var b strings.Builder
	for _, n := range []struct {
		what string
		n    int64
		from int64
	}{{"attempt", int64(attempts), 2}, {"epoch", epoch, 1}, {"source version", source, 1}, {"run", run, 1}} {
		if n.n >= n.from {
			fmt.Fprintf(&b, ", %s %d", n.what, n.n)
		}
	}
	return b.String()
}

// An answer is stored in the transaction of its fact.
const storyKeptSQL = `
SELECT stored_at, epoch, expires_at, octet_length(value), value, 0 FROM oncemore.result WHERE job_type = $1 AND entity = $2
UNION ALL
SELECT coalesce(f.completed_at, r.expires_at), r.epoch, r.expires_at, octet_length(r.body), '', r.status
FROM oncemore.response r
LEFT JOIN oncemore.ledger f ON f.job_type = r.job_type AND f.entity = r.entity
WHERE r.job_type = $1 AND r.entity = $2`

func (s *Story) readKept(ctx context.Context, tx pgx.Tx, t *Type) error {
	type row struct {
		At time.Time
		Kept
	}
	rows, err := rowsOf[row](ctx, tx, storyKeptSQL, t.ID, s.Entity)
	if err != nil {
		return fmt.Errorf("read what is kept: %w", err)
	}
	for i := range rows {
		k := &rows[i].Kept
		e := Event{At: rows[i].At, Kind: "result", Kept: k, Text: "result: " + k.Result}
		if k.Status != 0 {
			e.Kind = "answer"
			e.Text = fmt.Sprintf("answered with status %d and %d bytes", k.Status, k.Bytes)
		}
		until := "kept until"
		if !k.ExpiresAt.After(s.Now) {
			until = "expired at"
		}
		e.Text += fmt.Sprintf(", %s %s", until, k.ExpiresAt.UTC().Format(time.RFC3339))
		s.Events = append(s.Events, e)
	}
	return nil
}

const storyAttemptsSQL = `
SELECT a.at, a.number, a.outcome, coalesce(a.error_class, ''), coalesce(a.error, ''), coalesce(a.worker, 0), coalesce(w.name, ''), coalesce(a.fence, 0)
FROM oncemore.attempt a LEFT JOIN oncemore.worker w ON w.id = a.worker
WHERE a.job_type = $1 AND a.entity = $2 ORDER BY a.at DESC LIMIT $3`

func (s *Story) readAttempts(ctx context.Context, tx pgx.Tx, t *Type) error {
	attempts, err := rowsOf[Attempt](ctx, tx, storyAttemptsSQL, t.ID, s.Entity, storyMost)
	if err != nil {
		return fmt.Errorf("read the attempts: %w", err)
	}
	for i := range attempts {
		a := &attempts[i]
		text := fmt.Sprintf("attempt %d: %s", a.Number, strings.ReplaceAll(a.Outcome, "_", " "))
		if a.Outcome == "resolved" { // its error is who said what
			text = "resolved"
		}
		if a.Worker != 0 {
			text += fmt.Sprintf(", worker %d %s", a.Worker, a.Name)
		}
		if a.Error != "" {
			text += ": " + a.Error
		}
		s.Events = append(s.Events, Event{At: a.At, Kind: "attempt", Attempt: a, Text: text})
	}
	return nil
}

func (s *Story) readClaim(ctx context.Context, tx pgx.Tx, t *Type) error {
	rows, err := readOpenRows(ctx, tx, openOne(t.ID, s.Entity))
	if err != nil || len(rows) == 0 {
		return err
	}
	o := rows[0].shown(t, s.Now)
	c := &Claim{Open: o}
	if err := tx.QueryRow(ctx, `SELECT args FROM oncemore.claim WHERE job_type = $1 AND entity = $2`, t.ID, s.Entity).Scan(&c.Args); err != nil {
		return fmt.Errorf("read the arguments: %w", err)
	}
	s.open = &c.Open
	text := "open: " + strings.ReplaceAll(o.State, "_", " ") + numbered(o.Attempts, o.Epoch, o.SourceVersion, o.Run)
	if o.Owner != nil {
		text += fmt.Sprintf(", worker %d %s", o.Owner.ID, o.Owner.Name)
	}
	s.Events = append(s.Events, Event{At: o.Since, Kind: "claim", Claim: c, Text: text})
	return nil
}
