package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A RunStatus is a run as it stands. Its counts are derived from the facts and claims of
// its plan when it is asked for; only Skipped was counted when it was planned.
type RunStatus struct {
	ID           int64  `json:"id"`
	ParentType   string `json:"parent_type"` // the fan-out that began it
	ParentEntity string `json:"parent_entity"`
	JobType      string `json:"job_type"` // of its items
	Epoch        int64  `json:"epoch"`    // 0: not forced

	StartedAt time.Time  `json:"started_at"`
	PlannedAt *time.Time `json:"planned_at"` // nil: the plan is not whole yet
	EndedAt   *time.Time `json:"ended_at"`   // nil: it goes on
	Complete  bool       `json:"complete"`   // it ended with every item of its plan done

	Items   int64 `json:"items"`    // of the plan
	Done    int64 `json:"done"`     // of those: facts
	Open    int64 `json:"open"`     // of those: claimed, or waiting for a retry
	Failed  int64 `json:"failed"`   // of those: no attempt is left
	InDoubt int64 `json:"in_doubt"` // of those: nobody may guess
	Missing int64 `json:"missing"`  // of those: neither facts nor claims; still in a message, or not ready
	Skipped int64 `json:"skipped"`  // named by the source and done before, therefore not in the plan
}

// Runs returns the newest runs, newest first. For a run that goes on it looks at every
// entity of the packs that are not known to be all facts: up to a second for a million.
func Runs(ctx context.Context, pool *pgxpool.Pool, limit int) ([]RunStatus, error) {
	var out []RunStatus
	// By way of a transaction, so that the statement is not prepared by name, which a pooler may lose.
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, runsSQL, pgx.QueryExecModeExec, limit)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, pgx.RowToStructByPos[RunStatus])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return out, nil
}

// An entity may be in several packs of a run, because its missing are sent again; so what
// is not done is counted by entity, and subtracted from the plan.
const runsSQL = `
SELECT r.id, coalesce(p.name, r.parent_type::text), r.parent_entity, coalesce(t.name, r.job_type::text), r.epoch,
       r.started_at, r.planned_at, r.ended_at, r.complete,
       r.items, r.items - n.open - n.failed - n.in_doubt - n.missing, n.open, n.failed, n.in_doubt, n.missing, r.skipped
FROM (SELECT * FROM oncemore.run ORDER BY id DESC LIMIT $1::int) r
LEFT JOIN LATERAL (SELECT name FROM oncemore.job_type WHERE id = r.parent_type ORDER BY seen_at DESC LIMIT 1) p ON true
LEFT JOIN LATERAL (SELECT name FROM oncemore.job_type WHERE id = r.job_type ORDER BY seen_at DESC LIMIT 1) t ON true
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE e.trouble IN ('', 'retrying')) AS open, count(*) FILTER (WHERE e.trouble = 'failed') AS failed,
           count(*) FILTER (WHERE e.trouble = 'in_doubt') AS in_doubt, count(*) FILTER (WHERE e.trouble IS NULL) AS missing
    FROM (
        SELECT DISTINCT e.entity, c.trouble
        FROM oncemore.run_pack k
        CROSS JOIN LATERAL unnest(k.entities) AS e(entity)
        LEFT JOIN LATERAL (SELECT l.entity FROM oncemore.ledger l
                           WHERE l.job_type = r.job_type AND l.entity = e.entity COLLATE "C" AND coalesce(l.epoch, 0) >= r.epoch OFFSET 0) l ON true
        LEFT JOIN LATERAL (SELECT coalesce(c.trouble, '') AS trouble FROM oncemore.claim c
                           WHERE c.job_type = r.job_type AND c.entity = e.entity COLLATE "C" OFFSET 0) c ON true
        WHERE k.run = r.id AND k.pack >= r.verified AND NOT r.complete AND l.entity IS NULL
    ) e
) n
ORDER BY r.id DESC`
