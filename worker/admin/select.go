package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Selection picks open entities of one job type: those named, or all that match.
type Selection struct {
	Type     string   // by any of its names; required
	Entities []string // empty: all that match
	Prefix   string   // of the entities; "": any
	Class    string   // of the last error, as it is listed; "": any
	Window            // in which it got into its state
	Limit    int      // the first so many by entity; 0, and at most: MaxAct
}

// A Window is a part of time, by the database's clock. The zero Window is all of it.
type Window struct {
	Since  time.Time     // from then on; zero: from ever
	Until  time.Time     // and before then; zero: for ever
	Within time.Duration // and at most so long ago; 0: any time
}

// where appends a condition on the SQL expression at, for what w bounds.
func (w *Window) where(at string, and func(condition string, param any)) {
	if !w.Since.IsZero() {
		and(at+` >= $%d`, w.Since)
	}
	if !w.Until.IsZero() {
		and(at+` < $%d`, w.Until)
	}
	if w.Within > 0 {
		and(at+` >= clock_timestamp() - $%d::interval`, w.Within)
	}
}

// words tells what w bounds, for people.
func (w *Window) words() (words []string) {
	if !w.Since.IsZero() {
		words = append(words, "since "+w.Since.UTC().Format(time.RFC3339))
	}
	if !w.Until.IsZero() {
		words = append(words, "until "+w.Until.UTC().Format(time.RFC3339))
	}
	if w.Within > 0 {
		words = append(words, "of the last "+w.Within.String())
	}
	return words
}

// A Shown is what an operator saw before they acted.
type Shown struct {
	Type    string  `json:"type"`    // its own name, where it was selected by an earlier one
	Entries []Entry `json:"entries"` // by entity
	More    bool    `json:"more"`    // more of them match than the limit lets through
	Absent  []Left  `json:"absent"`  // were named, and are in another state
	How     string  `json:"how"`     // they were selected, for the audit

	Requests bool `json:"requests,omitempty"` // they came as requests, which only their clients send again
}

// An Entry is an open entity as it was shown. An act needs its Entity and Fence alone.
type Entry struct {
	Entity   string    `json:"entity"`
	Fence    int64     `json:"fence"` // changes with every change of the entity
	State    string    `json:"state"` // failed | in_doubt | stranded
	Attempts int       `json:"attempts"`
	At       time.Time `json:"at"`          // when it got into this state
	Class    string    `json:"error_class"` // of its last error; "": not known
	Error    string    `json:"error"`       // the beginning of it
}

// InDoubt shows what is in doubt and selected, for [Operator.Resolve]. Requests that are named may be
// stranded as well: one is put in doubt when its client sends it again, and that may be never.
func (op *Operator) InDoubt(ctx context.Context, s Selection) (*Shown, error) {
	return op.show(ctx, s, "in_doubt")
}

// Retryable shows what [Operator.Retry] may be asked for: what has failed, and what is
// stranded, since the worker that had it is dead. Of requests the error wraps [ErrRequests].
func (op *Operator) Retryable(ctx context.Context, s Selection) (*Shown, error) {
	shown, err := op.show(ctx, s, "failed", "stranded")
	if err == nil && shown.Requests {
		return nil, fmt.Errorf("%s: %w", shown.Type, ErrRequests)
	}
	return shown, err
}

// showTime bounds the statement that selects: a hundred thousand take a second or two.
const showTime = time.Minute

func (op *Operator) show(ctx context.Context, s Selection, states ...string) (*Shown, error) {
	limit := s.Limit
	if limit <= 0 || limit > MaxAct {
		limit = MaxAct
	}
	shown := &Shown{Entries: []Entry{}, Absent: []Left{}, How: s.String()}
	err := Read(ctx, op.Pool, showTime, func(tx pgx.Tx) error {
		t, err := FindType(ctx, tx, op.Set, s.Type)
		if err != nil {
			return err
		}
		shown.Type, shown.Requests = t.Name, t.Requests
		if t.Requests && len(s.Entities) > 0 && slices.Contains(states, "in_doubt") {
			states = append(states, "stranded")
		}
		query, params := s.query(t.ID, states, limit+1)
		rows, err := tx.Query(ctx, query, params...)
		if err == nil {
			shown.Entries, err = pgx.AppendRows(shown.Entries, rows, pgx.RowToStructByPos[Entry])
		}
		if err != nil {
			return fmt.Errorf("list what is %s of %s: %w", strings.Join(states, " or "), t.Name, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(shown.Entries) > limit {
		shown.Entries, shown.More = shown.Entries[:limit], true
	}
	found := make(map[string]bool, len(shown.Entries))
	for _, e := range shown.Entries {
		found[e.Entity] = true
	}
	why := "is not " + strings.ReplaceAll(strings.Join(states, " or "), "_", " ")
	if s.Prefix+s.Class != "" || s.Window != (Window{}) {
		why += ", or not by this selection"
	}
	for _, name := range s.Entities {
		if !found[name] && !shown.More {
			found[name] = true // named twice, it is told once
			shown.Absent = append(shown.Absent, Left{name, why})
		}
	}
	return shown, nil
}

// query lists the entries by the primary key of the claims, with the attempt that brought
// each into its state.
func (s *Selection) query(jobType int32, states []string, limit int) (string, []any) {
	params := []any{jobType, states}
	where := ""
	and := func(condition string, param any) {
		params = append(params, param)
		where += fmt.Sprintf("\nAND "+condition, len(params))
	}
	if len(s.Entities) > 0 {
		and(`c.entity = ANY ($%d::text[])`, s.Entities)
	}
	if s.Prefix != "" {
		and(`c.entity >= $%[1]d AND starts_with(c.entity, $%[1]d)`, s.Prefix)
	}
	if s.Class != "" {
		and(`a.error_class = $%d`, s.Class)
	}
	s.Window.where(sinceSQL, and)
	params = append(params, limit)
	return shownSQL + where + fmt.Sprintf("\nORDER BY c.entity LIMIT $%d", len(params)), params
}

// By the states, and the attempt, that the lists show.
const (
	stateSQL = `CASE WHEN ` + areStranded + ` THEN 'stranded' WHEN c.owner IS NULL THEN c.trouble END`
	sinceSQL = `coalesce(a.at, w.dead_at, c.claimed_at)`

	shownSQL = `
SELECT c.entity, c.fence, ` + stateSQL + `, c.attempts, ` + sinceSQL + `, coalesce(a.error_class, ''), coalesce(left(c.error, 200), '')
FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner
LEFT JOIN LATERAL (SELECT a.at, a.error_class ` + lastAttempt + `) a ON true
WHERE c.job_type = $1 AND ` + stateSQL + ` = ANY ($2::text[])`
)

// String tells how s selects, for people.
func (s Selection) String() string {
	how := []string{"all"}
	if n := len(s.Entities); n > 0 {
		how[0] = fmt.Sprintf("%d named", n)
	}
	if s.Prefix != "" {
		how = append(how, "prefix "+s.Prefix)
	}
	if s.Class != "" {
		how = append(how, "class "+s.Class)
	}
	how = append(how, s.Window.words()...)
	if s.Limit > 0 {
		how = append(how, fmt.Sprintf("at most %d", s.Limit))
	}
	return strings.Join(how, ", ")
}

// inChunks calls f with the entries by entity, some hundred at a time: in key order, so
// that two acts never lock in opposite orders.
func (s *Shown) inChunks(f func([]Entry) error) error {
	entries := slices.SortedFunc(slices.Values(s.Entries), func(a, b Entry) int { return strings.Compare(a.Entity, b.Entity) })
	entries = slices.CompactFunc(entries, func(a, b Entry) bool { return a.Entity == b.Entity && a.Fence == b.Fence })
	for chunk := range slices.Chunk(entries, 500) {
		if err := f(chunk); err != nil {
			return err
		}
	}
	return nil
}

// keysOf are the arrays that statements take.
func keysOf(entries []Entry) (entities []string, fences []int64) {
	for _, e := range entries {
		entities, fences = append(entities, e.Entity), append(fences, e.Fence)
	}
	return entities, fences
}
