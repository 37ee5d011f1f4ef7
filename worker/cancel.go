package worker

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// cancelRun takes back what has not begun, and ends the run. What is being worked, and
// what waits for another attempt, goes on: it is open, and has its own carrier.
func (l *life) cancelRun(ctx context.Context, tx pgx.Tx, r *run, child *kind, why string) error {
	if _, err := tx.Exec(ctx, withdrawSQL, r.id, child.ID); err != nil {
		return err
	}
	// By primary key, whatever the statistics say of the claims, which come and go.
	if _, err := tx.Exec(ctx, ledger.PlannerSettings); err != nil {
		return err
	}
	var missing, going, unsent int64
	err := tx.QueryRow(ctx, undoneSQL, r.id, child.ID, r.epoch, child.Type.Version).Scan(&missing, &going, &r.failed, &r.inDoubt, &unsent)
	if err != nil {
		return err
	}
	r.notReady = missing + unsent
	r.open = r.notReady + going + r.failed + r.inDoubt
	r.ended, r.cancelled = true, true
	b := &pgx.Batch{}
	tell(b, r.id, "cancelled", why)
	return tx.SendBatch(ctx, b).Close()
}

// endCancelled has the runs visited once more whose visits were given up when somebody was
// cancelling them: while a worker had the claim, CancelRun could not do that, and the worker may not
// have seen what was wanted. All that is held back of such a run would stay so.
func (l *life) endCancelled(ctx context.Context) error {
	rows, _ := l.pool.Query(ctx, givenUpSQL)
	runs, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	for _, run := range runs {
		err = errors.Join(err, inTx(ctx, l.pool, func(tx pgx.Tx) error { return reviveCarrier(ctx, tx, run) }))
	}
	return err
}

const givenUpSQL = `
SELECT r.id FROM oncemore.run r JOIN oncemore.run_control w ON w.run = r.id
CROSS JOIN LATERAL (SELECT c.trouble FROM oncemore.claim c
                    WHERE c.job_type = r.parent_type AND c.entity = r.parent_entity AND c.owner IS NULL AND c.trouble = 'failed' OFFSET 0) c
WHERE r.ended_at IS NULL AND w.cancelled IS NOT NULL LIMIT 100`

// A message with an entity that is open is left: it may be what carries that on. What has failed
// needs no carrier: it is called again, or listed as before.
const withdrawSQL = `
/* message: withdraw */
DELETE FROM oncemore.message m WHERE m.id = ANY (ARRAY(
    SELECT w.id FROM oncemore.message w
    WHERE w.run = $1 AND w.type IN ` + childNamesSQL + ` AND coalesce(w.lock, 0) = 0
    AND NOT EXISTS (SELECT FROM unnest(w.entities) AS e(entity) JOIN oncemore.claim c ON c.job_type = $2 AND c.entity = e.entity COLLATE "C"
                    WHERE c.trouble IS DISTINCT FROM 'failed')
    FOR UPDATE OF w SKIP LOCKED))`

// What is not done of all that was sent: missing, open, failed and in doubt; and how much was
// not sent. It is the record of a run, whose visits may have seen the first stretch of it alone.
// A fact from before the run is none of its work: the entity was picked as stale.
const undoneSQL = `
WITH r AS MATERIALIZED (
    SELECT r.started_at, CASE WHEN r.selection IS NULL THEN 0 ELSE r.items - r.sent END AS unsent,
           CASE WHEN r.selection IS NULL THEN r.packs ELSE r.next_pack END AS pack, r.next_item AS item
    FROM oncemore.run r WHERE r.id = $1
), e AS MATERIALIZED (
    SELECT DISTINCT e.entity, c.entity IS NOT NULL AS open, coalesce(c.trouble, '') AS trouble
    FROM r JOIN oncemore.run_pack p ON p.run = $1 AND p.pack <= r.pack
    CROSS JOIN LATERAL unnest(p.entities) WITH ORDINALITY AS e(entity, n)
    LEFT JOIN LATERAL (SELECT l.entity, l.completed_at FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l ON true
    LEFT JOIN LATERAL (SELECT c.entity, c.trouble FROM oncemore.claim c WHERE c.job_type = $2 AND c.entity = e.entity COLLATE "C" OFFSET 0) c ON true
    WHERE (p.pack < r.pack OR e.n <= r.item) AND (l.entity IS NULL OR l.completed_at < r.started_at)
)
SELECT count(*) FILTER (WHERE NOT open), count(*) FILTER (WHERE open AND trouble NOT IN ('failed', 'in_doubt')),
       count(*) FILTER (WHERE trouble = 'failed'), count(*) FILTER (WHERE trouble = 'in_doubt'), (SELECT unsent FROM r)
FROM e`
