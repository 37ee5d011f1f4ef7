package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A Run is a fan-out or a re-run as an operator sees it.
type Run struct {
	ID           int64           `json:"id"`
	Type         string          `json:"job_type"`      // of its entities
	ParentType   string          `json:"parent_type"`   // of a fan-out: the job type that began it; empty: a re-run
	ParentEntity string          `json:"parent_entity"` // and the entity
	Selection    *plan.Selection `json:"selection"`     // of a re-run; null: a fan-out, which takes what its source names
	How          string          `json:"how"`           // it was selected, in words
	By           string          `json:"by"`            // who asked for it
	Reason       string          `json:"reason"`        // and why
	Origin       string          `json:"origin"`        // and from where
	Schedule     string          `json:"schedule,omitempty"`
	Tick         *time.Time      `json:"tick,omitempty"`  // of the schedule
	Epoch        int64           `json:"epoch,omitempty"` // it is forced under; 0: it is not

	State     RunState   `json:"state"`
	Waits     string     `json:"waits"` // why nothing of it is sent now; empty: something is, or all is
	StartedAt time.Time  `json:"started_at"`
	PlannedAt *time.Time `json:"planned_at"` // null: its plan is not sealed yet
	EndedAt   *time.Time `json:"ended_at"`   // null: it goes on

	Seen plan.Tally `json:"seen"` // when it was planned

	Items   int64 `json:"items"` // of the plan. They are the sum of these six:
	Done    int64 `json:"done"`
	Open    int64 `json:"open"` // being worked, or waiting for another attempt
	Failed  int64 `json:"failed"`
	InDoubt int64 `json:"in_doubt"`
	Missing int64 `json:"missing"`  // sent, and neither done nor open: on the way to a worker, or not ready
	NotSent int64 `json:"not_sent"` // the workers do not have them yet

	Skipped int64    `json:"skipped"` // named by the source, and done when it was planned
	Rate    float64  `json:"rate"`    // a second that it may send; 0: as many as the database bears
	Canary  int64    `json:"canary"`  // so many are tried before the rest is sent; 0: none, or it has passed
	Share   float64  `json:"canary_share"`
	Pace    float64  `json:"pace"` // completed in a second, lately; 0: nothing was, or it is not known
	ETA     *float64 `json:"eta"`  // in seconds; null: nobody can tell

	jobType  int32
	verified int // packs below this number were all done
	nextPack int // of the plan, the first that is not all sent
	nextItem int // and how many of that one are
	sent     int64
}

// RunState is where a run is between its beginning and its end.
type RunState string

const (
	Planning   RunState = "planning"
	Going      RunState = "going"
	Held       RunState = "waiting" // something does not let it send; Run.Waits says what
	Paused     RunState = "paused"
	Cancelling RunState = "cancelling" // it will end at its next visit
	Complete   RunState = "complete"   // every entity of its plan is done
	Ended      RunState = "ended"      // it has ended without that: some failed, are in doubt, or were not ready
	Cancelled  RunState = "cancelled"
)

// Over tells whether a run in this state is one that has ended.
func (s RunState) Over() bool { return s == Complete || s == Ended || s == Cancelled }

// A RunFilter picks runs. Its zero fields pick all.
type RunFilter struct {
	Type  string // of their entities, by any of its names
	Going bool   // those that have not ended
	Rerun bool   // re-runs, and no fan-outs
}

// ListRuns returns a page of runs, the newest first. The counts of those that go on are
// of now, those of the others are of their end.
func ListRuns(ctx context.Context, tx pgx.Tx, f RunFilter, p Page) (*List[Run], error) {
	before := int64(0)
	if p.After != "" {
		var err error
		if before, err = strconv.ParseInt(p.After, 10, 64); err != nil || before <= 0 {
			return nil, fmt.Errorf("%q: %w", p.After, ErrPage)
		}
	}
	var jobType *int32
	if f.Type != "" {
		t, err := FindType(ctx, tx, nil, f.Type)
		if err != nil {
			return nil, err
		}
		jobType = &t.ID
	}
	l := &List[Run]{Rows: []Run{}}
	var n int64
	var err error
	if l.Now, err = serverTime(ctx, tx); err == nil {
		err = tx.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM oncemore.run r WHERE `+runsWhere+` LIMIT $4) r`, jobType, f.Going, f.Rerun, CountMost+1).Scan(&n)
	}
	if err != nil {
		return nil, fmt.Errorf("count the runs: %w", err)
	}
	l.Of = Capped(n, CountMost)
	rows, err := tx.Query(ctx, runSQL+`
WHERE `+runsWhere+` AND ($4::bigint = 0 OR r.id < $4) ORDER BY r.id DESC LIMIT $5`, jobType, f.Going, f.Rerun, before, p.Limit+1)
	if err == nil {
		l.Rows, err = pgx.AppendRows(l.Rows, rows, scanRun)
	}
	if err != nil {
		return nil, fmt.Errorf("list the runs: %w", err)
	}
	if len(l.Rows) > p.Limit {
		l.Rows = l.Rows[:p.Limit]
		if p.Limit > 0 {
			l.Next = strconv.FormatInt(l.Rows[p.Limit-1].ID, 10)
		}
	}
	for i := range l.Rows {
		if _, err := l.Rows[i].count(ctx, tx, nil); err != nil {
			return nil, err
		}
	}
	return l, nil
}

const (
	runsWhere = `($1::int IS NULL OR r.job_type = $1) AND (NOT $2::boolean OR r.ended_at IS NULL) AND (NOT $3::boolean OR r.selection IS NOT NULL)`

	runSQL = `
SELECT r.id, r.job_type, coalesce(t.name, r.job_type::text), coalesce(p.name, r.parent_type::text), r.parent_entity,
       r.selection, r.asked_by, r.reason, r.origin, coalesce(r.schedule, ''), r.tick, r.epoch,
       r.waits, r.started_at, r.planned_at, r.ended_at, r.complete, r.cancelled, c.paused IS NOT NULL, c.cancelled IS NOT NULL, r.seen,
       r.items, r.open, r.failed, r.in_doubt, r.not_ready, r.skipped,
       coalesce(c.rate, 0), coalesce(c.canary, 0), coalesce(c.canary_share, 0), r.verified, r.next_pack, r.next_item, r.sent
FROM oncemore.run r LEFT JOIN oncemore.run_control c ON c.run = r.id
LEFT JOIN LATERAL (SELECT name FROM oncemore.job_type WHERE id = r.parent_type ORDER BY seen_at DESC LIMIT 1) p ON true
LEFT JOIN LATERAL (SELECT name FROM oncemore.job_type WHERE id = r.job_type ORDER BY seen_at DESC LIMIT 1) t ON true`
)

func scanRun(row pgx.CollectableRow) (r Run, err error) {
	var selection *string
	var seen string
	var complete, cancelled, paused, cancel bool
	var open, notReady int64
	err = row.Scan(&r.ID, &r.jobType, &r.Type, &r.ParentType, &r.ParentEntity,
		&selection, &r.By, &r.Reason, &r.Origin, &r.Schedule, &r.Tick, &r.Epoch,
		&r.Waits, &r.StartedAt, &r.PlannedAt, &r.EndedAt, &complete, &cancelled, &paused, &cancel, &seen,
		&r.Items, &open, &r.Failed, &r.InDoubt, &notReady, &r.Skipped,
		&r.Rate, &r.Canary, &r.Share, &r.verified, &r.nextPack, &r.nextItem, &r.sent)
	if err != nil {
		return r, err
	}
	if worker.CheckRate(r.Rate) != nil {
		r.Rate = 0 // as the run takes it, and as JSON can have it
	}
	r.How = "what its source names"
	if selection != nil {
		r.Selection = &plan.Selection{}
		if err := json.Unmarshal([]byte(*selection), r.Selection); err != nil {
			return r, fmt.Errorf("decode the selection of run %d: %w", r.ID, err)
		}
		r.How, r.ParentType, r.ParentEntity = r.Selection.String(), "", ""
	} else {
		r.sent = r.Items
	}
	if seen != "" {
		if err := json.Unmarshal([]byte(seen), &r.Seen); err != nil {
			return r, fmt.Errorf("decode what the planning of run %d saw: %w", r.ID, err)
		}
	}
	switch {
	case complete:
		r.State = Complete
	case cancelled:
		r.State = Cancelled
	case r.EndedAt != nil:
		r.State = Ended
	case cancel:
		r.State = Cancelling
	case paused:
		r.State = Paused
	case r.PlannedAt == nil:
		r.State = Planning
	case r.Waits != "":
		r.State = Held
	default:
		r.State = Going
	}
	if r.State.Over() {
		r.Waits = "" // it waited, when it was cancelled
	}
	// As of its end; of one that goes on they are counted.
	r.NotSent = r.Items - r.sent
	r.Missing = max(0, notReady-r.NotSent)
	r.Open = max(0, open-r.Failed-r.InDoubt-notReady)
	r.Done = r.sent - r.Open - r.Failed - r.InDoubt - r.Missing
	return r, nil
}

// Words tells in one line how far r is.
func (r *Run) Words() string {
	words := []string{fmt.Sprintf("%s of %s done", thousands(r.Done), thousands(r.Items))}
	add := func(n int64, what string) {
		if n > 0 {
			words = append(words, thousands(n)+" "+what)
		}
	}
	add(r.Open, "open")
	add(r.Failed, "failed")
	add(r.InDoubt, "in doubt")
	if r.State.Over() {
		add(r.Missing, "not ready")
		add(r.NotSent, "not begun")
	}
	return strings.Join(words, ", ")
}

// findRun loads one run, without counting.
func findRun(ctx context.Context, tx pgx.Tx, id int64) (*Run, error) {
	rows, err := tx.Query(ctx, runSQL+` WHERE r.id = $1`, id)
	if err != nil {
		return nil, fmt.Errorf("look for run %d: %w", id, err)
	}
	r, err := pgx.CollectExactlyOneRow(rows, scanRun)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("run %d: %w", id, worker.ErrNoRun)
	} else if err != nil {
		return nil, fmt.Errorf("look for run %d: %w", id, err)
	}
	return &r, nil
}

// A RunNote is something that happened to a run.
type RunNote struct {
	At     time.Time `json:"at"`
	Kind   string    `json:"kind"` // opened | planned | waiting | going | paused | resumed | rate | batch | canary | cancelled | ended
	Detail string    `json:"detail"`
}

// A RunFailure is an entity of a run that has failed, or is in doubt.
type RunFailure struct {
	Entity string `json:"entity"`
	State  string `json:"state"` // failed | in_doubt
	Class  string `json:"error_class"`
	Error  string `json:"error"` // the beginning of it
}

// A RunStory is all that is known of a run.
type RunStory struct {
	Now time.Time `json:"now"`
	Run
	History  []RunNote    `json:"history"`  // the newest hundred, the oldest of them first
	Failures []RunFailure `json:"failures"` // ten of them
}

// ShowRun tells of one run, with counts as those of [ListRuns]. The error wraps [worker.ErrNoRun] where
// there is none of this id.
func ShowRun(ctx context.Context, tx pgx.Tx, id int64) (*RunStory, error) {
	r, err := findRun(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	s := &RunStory{Run: *r}
	if s.Now, err = serverTime(ctx, tx); err != nil {
		return nil, err
	}
	if _, err := s.count(ctx, tx, nil); err != nil {
		return nil, err
	}
	if !s.State.Over() {
		if err := tx.QueryRow(ctx, runPaceSQL, id, s.StartedAt).Scan(&s.Pace); err != nil {
			return nil, fmt.Errorf("read the pace of run %d: %w", id, err)
		}
		s.forecast()
	}
	if s.History, err = rowsOf[RunNote](ctx, tx, historySQL, id); err != nil {
		return nil, fmt.Errorf("read the history of run %d: %w", id, err)
	}
	if s.Failures, err = rowsOf[RunFailure](ctx, tx, runFailuresSQL, id, s.jobType); err != nil {
		return nil, fmt.Errorf("read the failures of run %d: %w", id, err)
	}
	return s, nil
}

const (
	runPaceSQL = `
SELECT count(*) / greatest(1, least(60, extract(epoch FROM clock_timestamp() - $2::timestamptz)))::float8
FROM oncemore.ledger l WHERE l.completed_at >= clock_timestamp() - interval '60 seconds' AND l.run = $1`

	historySQL = `
SELECT e.at, e.kind, e.detail FROM (SELECT * FROM oncemore.run_event WHERE run = $1 ORDER BY id DESC LIMIT 100) e ORDER BY e.id`

	// What the run has called again is none of its failures before it is tried, or the run has ended.
	runFailuresSQL = `
SELECT c.entity, c.trouble, coalesce(a.error_class, ''), coalesce(left(c.error, 200), '')
FROM (SELECT * FROM oncemore.claim c WHERE c.job_type = $2 AND c.run = $1 AND c.owner IS NULL AND c.trouble IN ('failed', 'in_doubt')
      AND (NOT ` + ledger.CalledSQL + ` OR EXISTS (SELECT FROM oncemore.run r WHERE r.id = $1 AND r.ended_at IS NOT NULL)) ORDER BY c.entity LIMIT 10) c
LEFT JOIN LATERAL (SELECT a.error_class ` + lastAttempt + `) a ON true
ORDER BY c.entity`
)

// A Brake stops the re-runs of a job type, or all of them.
type Brake struct {
	Type   string    `json:"job_type"` // empty: all
	Reason string    `json:"reason"`
	Actor  string    `json:"actor"`
	At     time.Time `json:"at"`
}

// Brakes lists those that are set.
func Brakes(ctx context.Context, tx pgx.Tx) ([]Brake, error) {
	bs, err := rowsOf[Brake](ctx, tx, `SELECT scope, reason, actor, at FROM oncemore.brake ORDER BY scope`)
	if err != nil {
		return nil, fmt.Errorf("list what stops runs: %w", err)
	}
	return bs, nil
}

// forecast says how long the rest takes, at the pace of lately.
func (r *Run) forecast() {
	r.ETA = nil
	if rest := r.Items - r.Done - r.Failed - r.InDoubt; r.Pace > 0 && r.State == Going {
		eta := float64(rest) / r.Pace
		r.ETA = &eta
	}
}
