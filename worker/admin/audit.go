package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// An AuditEntry tells of one act, for good: the database refuses to change or delete it.
type AuditEntry struct {
	ID       int64     `json:"id"`
	At       time.Time `json:"at"` // by the database's clock
	Actor    string    `json:"actor"`
	Action   string    `json:"action"`   // resolve | retry | resend | drop | enqueue | rerun | pause | resume | cancel | rate | stop-all | release | schedule-pause | schedule-resume | schedule-run | schedule-put | schedule-delete
	Type     string    `json:"job_type"` // empty: of several
	Entities int64     `json:"entities"` // how many were changed; a run counts as one
	Sample   []string  `json:"sample"`   // the first ten of them
	Reason   string    `json:"reason"`   // in the actor's words
	Detail   string    `json:"detail"`   // what exactly, and by which selection
}

// Bounds of what an audit row holds, in bytes.
const (
	maxActor  = 200
	maxReason = 2000
)

// record inserts e in tx and sets its ID and At.
func record(ctx context.Context, tx pgx.Tx, e *AuditEntry) error {
	sample := make([]string, len(e.Sample))
	for i, s := range e.Sample {
		sample[i] = ledger.Sanitize(s, queue.MaxEntity)
	}
	err := tx.QueryRow(ctx, recordSQL, ledger.Sanitize(e.Actor, maxActor), e.Action, ledger.Sanitize(e.Type, queue.MaxEntity), e.Entities, sample,
		ledger.Sanitize(e.Reason, maxReason), ledger.Sanitize(e.Detail, maxReason)).Scan(&e.ID, &e.At)
	if err != nil {
		return fmt.Errorf("record what was done in the audit: %w", err)
	}
	return nil
}

const recordSQL = `
/* audit: record */
INSERT INTO oncemore.audit (actor, action, job_type, entities, sample, reason, detail) VALUES ($1, $2, $3, $4, $5, $6, $7)
RETURNING id, at`

// An AuditFilter picks audit rows. Its zero fields pick all.
type AuditFilter struct {
	Type, Action, Actor string
	Window
	Limit int // the newest so many; 0: 100
}

// Audit returns what was done, the newest first.
func Audit(ctx context.Context, pool *pgxpool.Pool, f AuditFilter) ([]AuditEntry, error) {
	if f.Limit == 0 {
		f.Limit = 100
	}
	params := []any{f.Type, f.Action, f.Actor}
	where := ""
	f.Window.where("at", func(condition string, param any) {
		params = append(params, param)
		where += fmt.Sprintf("\nAND "+condition, len(params))
	})
	params = append(params, f.Limit)
	rows, err := pool.Query(ctx, auditSQL+where+fmt.Sprintf("\nORDER BY id DESC LIMIT $%d", len(params)), params...)
	if err == nil {
		var entries []AuditEntry
		if entries, err = pgx.CollectRows(rows, pgx.RowToStructByPos[AuditEntry]); err == nil {
			return entries, nil
		}
	}
	return nil, fmt.Errorf("read the audit: %w", explain(err))
}

const auditSQL = `
SELECT id, at, actor, action, job_type, entities, sample, reason, detail FROM oncemore.audit
WHERE ($1 = '' OR job_type = $1) AND ($2 = '' OR action = $2) AND ($3 = '' OR actor = $3)`
