package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// An Open is an open entity as an operator sees it: a row of the claim table, who had it,
// how its last attempt ended, and what comes next.
type Open struct {
	Type     string        `json:"type"`
	Entity   string        `json:"entity"`
	State    string        `json:"state"`  // running | stranded | retrying | failed | in_doubt
	Since    time.Time     `json:"since"`  // it is in this state
	Effect   string        `json:"effect"` // the class of its type
	Attempts int           `json:"attempts"`
	Owner    *Owner        `json:"owner"`       // who has it, or had it last; null: not known
	Class    string        `json:"error_class"` // of the last recorded attempt; empty: none is recorded
	Error    string        `json:"error"`       // of the last attempt, whole; empty: it left none
	Reason   ledger.Reason `json:"reason"`      // what would be decided if its message came now
	Next     string        `json:"next"`        // what happens by itself, and what is to be done, in words

	ClaimedAt      time.Time  `json:"claimed_at"`
	FirstClaimedAt *time.Time `json:"first_claimed_at"` // of the oldest attempt whose effect is not known to be absent; null: there is none
	NotBefore      *time.Time `json:"not_before"`       // of the next attempt
	Epoch          int64      `json:"epoch"`
	SourceVersion  int64      `json:"source_version"`
	Run            int64      `json:"run"`                  // that asked for it; 0: none
	Fence          int64      `json:"fence"`                // changes with every change of the row
	EffectKey      string     `json:"effect_key,omitempty"` // what a provider was given; empty: not known

	row *ledger.Open
}

// An Owner is a worker that has, or had, something.
type Owner struct {
	ID     int64      `json:"id"`
	Name   string     `json:"name"`    // empty: its row is gone
	DeadAt *time.Time `json:"dead_at"` // null: it lives, or is not declared dead yet
	Late   bool       `json:"late"`    // its lease is over, and nobody has declared it dead
}

// An openRow is what openSQL returns.
type openRow struct {
	Type int32
	ledger.Open
	owner, last Owner // who has it; whose attempt was recorded last
	lastAt      *time.Time
	class       string
	fact        *ledger.Fact
}

// A Filter narrows a list of open entities, or of their attempts, down.
type Filter struct {
	Type   string // by any of its names; "": all types
	Class  string // of the last error; "": any
	Window        // in which it got into its state, or the attempt was made
}

// bounds is the window as two points in time, nil where it has no bound.
func (f *Filter) bounds(now time.Time) (since, until *time.Time) {
	since, until = pointer(f.Since), pointer(f.Until)
	if within := now.Add(-f.Within); f.Within > 0 && within.After(f.Since) {
		since = &within
	}
	return since, until
}

// The attempt that brought a claim into its state, as far as attempts are kept.
const lastAttempt = `FROM oncemore.attempt a WHERE a.job_type = c.job_type AND a.entity = c.entity AND c.owner IS NULL AND a.outcome = c.trouble ORDER BY a.at DESC LIMIT 1`

// A clause is the part of a query behind FROM, with its parameters.
type clause struct {
	sql  string
	args []any
}

func (s *clause) and(format string, args ...any) {
	names := make([]any, len(args))
	for i, a := range args {
		s.args = append(s.args, a)
		names[i] = fmt.Sprintf("$%d", len(s.args))
	}
	s.sql += fmt.Sprintf(format, names...)
}

// openFrom is the claims of the given types on which a condition on c, the claim, and w,
// its owner, holds, as far as the filter lets them through.
func openFrom(types []int32, condition string, f *Filter, now time.Time) *clause {
	s := &clause{}
	s.and(`
FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner
WHERE c.job_type = ANY (%s) AND `+condition, types)
	if f.Class != "" {
		// First whether any attempt was of this class, which one look at all of them can tell.
		s.and(`
AND EXISTS (SELECT FROM oncemore.attempt x WHERE x.job_type = c.job_type AND x.entity = c.entity AND x.error_class = %s)`, f.Class)
		s.and(`
AND (SELECT a.error_class `+lastAttempt+`) = %s`, f.Class)
	}
	const at = `coalesce((SELECT a.at ` + lastAttempt + `), w.dead_at, c.claimed_at)`
	since, until := f.bounds(now)
	if since != nil {
		s.and(`
AND `+at+` >= %s`, *since)
	}
	if until != nil {
		s.and(`
AND `+at+` < %s`, *until)
	}
	return s
}

// openOne is one claim.
func openOne(jobType int32, entity string) *clause {
	s := &clause{}
	s.and(`
FROM oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner WHERE c.job_type = %s AND c.entity = %s`, jobType, entity)
	return s
}

// The page is cut first, by primary key, so that only its rows are looked up elsewhere.
func openSQL(from string) string {
	return `
SELECT c.job_type, c.entity, c.fence, c.claimed_at, c.first_claimed_at, c.not_before, c.attempts, coalesce(c.trouble, ''),
       c.fingerprint, c.epoch, c.source_version, c.run, coalesce(c.error, ''),
       coalesce(c.owner, 0), coalesce(c.name, ''), c.dead_at, coalesce(c.late, false),
       a.at, coalesce(a.error_class, ''), coalesce(a.worker, 0), coalesce(v.name, ''), v.dead_at,
       l.completed_at, coalesce(l.fingerprint, 0), coalesce(l.epoch, 0), coalesce(l.version, 0), coalesce(l.source_version, 0)
FROM (SELECT c.*, w.name, w.dead_at, w.dead_at IS NULL AND w.expires < clock_timestamp() AS late` + from + `) c
LEFT JOIN LATERAL (SELECT a.at, a.error_class, a.worker ` + lastAttempt + `) a ON true
LEFT JOIN oncemore.worker v ON v.id = a.worker
LEFT JOIN oncemore.ledger l ON l.job_type = c.job_type AND l.entity = c.entity
ORDER BY c.job_type, c.entity`
}

// What is in which state, as conditions on c and w.
const (
	areFailed   = `c.owner IS NULL AND c.trouble = 'failed'`
	areInDoubt  = `c.owner IS NULL AND c.trouble = 'in_doubt'`
	areStranded = `w.dead_at IS NOT NULL`
)

// opens lists the claims on which a condition holds, by type and entity.
func opens(ctx context.Context, tx pgx.Tx, set *jobs.Set, condition string, f Filter, p Page) (*List[Open], error) {
	after, err := parseKey(p.After)
	if err != nil {
		return nil, err
	}
	types, err := wanted(ctx, tx, set, f.Type)
	if err != nil {
		return nil, err
	}
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, err
	}
	from := openFrom(idsOf(types), condition, &f, now)
	var n int64
	if err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT count(*) FROM (SELECT%s LIMIT %d) c`, from.sql, CountMost+1), from.args...).Scan(&n); err != nil {
		return nil, fmt.Errorf("count what is open: %w", err)
	}
	list := &List[Open]{Now: now, Of: Capped(n, CountMost), Rows: []Open{}}
	if p.Limit <= 0 || n == 0 {
		return list, nil
	}
	from.and(`
AND (c.job_type, c.entity) > (%s, %s) ORDER BY c.job_type, c.entity LIMIT %s`, after.jobType, after.entity, p.Limit+1)
	rows, err := readOpenRows(ctx, tx, from)
	if err != nil {
		return nil, err
	}
	if len(rows) > p.Limit {
		rows = rows[:p.Limit]
		last := rows[p.Limit-1]
		list.Next = key{last.Type, last.Entity}.String()
	}
	for _, r := range rows {
		list.Rows = append(list.Rows, r.shown(types[r.Type], now))
	}
	return list, nil
}

func readOpenRows(ctx context.Context, tx pgx.Tx, from *clause) ([]*openRow, error) {
	rows, err := tx.Query(ctx, openSQL(from.sql), from.args...)
	if err != nil {
		return nil, fmt.Errorf("list what is open: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*openRow, error) {
		var r openRow
		var f ledger.Fact
		var firstAt, notBefore, factAt *time.Time
		o := &r.Open
		err := row.Scan(&r.Type, &o.Entity, &o.Fence, &o.ClaimedAt, &firstAt, &notBefore, &o.Attempts, &o.Trouble,
			&o.Fingerprint, &o.Epoch, &o.SourceVersion, &o.Run, &o.Error,
			&r.owner.ID, &r.owner.Name, &r.owner.DeadAt, &r.owner.Late,
			&r.lastAt, &r.class, &r.last.ID, &r.last.Name, &r.last.DeadAt,
			&factAt, &f.Fingerprint, &f.Epoch, &f.Version, &f.SourceVersion)
		o.Owner, o.OwnerDeadAt = r.owner.ID, timeOf(r.owner.DeadAt)
		o.FirstClaimedAt, o.NotBefore = timeOf(firstAt), timeOf(notBefore)
		if factAt != nil {
			f.Entity, f.CompletedAt = o.Entity, *factAt
			r.fact = &f
		}
		return &r, err
	})
	if err != nil {
		return nil, fmt.Errorf("list what is open: %w", err)
	}
	return out, nil
}

// want is what the next attempt on o asks for.
func want(o *ledger.Open) ledger.Want {
	return ledger.Want{Entity: o.Entity, Fingerprint: o.Fingerprint, SourceVersion: o.SourceVersion, Epoch: o.Epoch}
}

func (r *openRow) shown(t *Type, now time.Time) Open {
	o := &r.Open
	out := Open{
		Type: t.Name, Entity: o.Entity, Effect: t.Effect.String(), Attempts: o.Attempts, Class: r.class, Error: o.Error,
		State: state(o), Since: o.ClaimedAt, Reason: ledger.Decide(&t.Type, want(o), r.fact, o, now),
		ClaimedAt: o.ClaimedAt, FirstClaimedAt: pointer(o.FirstClaimedAt), NotBefore: pointer(o.NotBefore),
		Epoch: o.Epoch, SourceVersion: o.SourceVersion, Run: o.Run, Fence: o.Fence, EffectKey: t.EffectKey(o.Entity, o.Epoch), row: o,
	}
	switch {
	case o.Owner != 0:
		out.Owner = &r.owner
		if o.Abandoned() {
			out.Since = o.OwnerDeadAt
		}
	case r.last.ID != 0:
		out.Owner = &r.last
	}
	if o.Owner == 0 && r.lastAt != nil && r.lastAt.After(o.ClaimedAt) {
		out.Since = *r.lastAt
	}
	out.Next = next(t, &out, now)
	return out
}

// state is one word for where an open entity stands.
func state(o *ledger.Open) string {
	switch {
	case o.Abandoned():
		return "stranded"
	case o.Held():
		return "running"
	}
	return string(o.Trouble)
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

func pointer(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
