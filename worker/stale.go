package worker

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// lookAtSent counts what a fan-out has just sent when it had its plan: what is late, and the
// plan did not have yet; and what is stale, which the plan has, and which is done, but not as
// the source names it now. Of that, stuck is what was sent again as often as it may be.
func (l *life) lookAtSent(ctx context.Context, tx pgx.Tx, r *run, child *kind, p planned) (late, stale, stuck int64, err error) {
	if p.items > 0 {
		err = tx.QueryRow(ctx, lateSQL, r.id, child.ID, r.epoch, child.Type.Version, r.packs, r.packs+p.sent, maxResends).Scan(&late, &stale, &stuck)
	}
	return late, stale, stuck, err
}

// Of the entities in the packs that were just sent: those that no pack before them has, and
// those of the others that were satisfied all the same.
const lateSQL = `
WITH sent AS MATERIALIZED (
    SELECT DISTINCT e.entity FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities) AS e(entity) WHERE p.run = $1 AND p.pack >= $5 AND p.pack < $6
), again AS MATERIALIZED (
    SELECT s.entity, count(*) AS packs FROM sent s
    JOIN (SELECT unnest(p.entities) AS entity FROM oncemore.run_pack p WHERE p.run = $1 AND p.pack < $5) q ON q.entity = s.entity
    GROUP BY s.entity
), stale AS MATERIALIZED (
    SELECT e.packs FROM again e CROSS JOIN LATERAL (SELECT FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l
)
SELECT (SELECT count(*) FROM sent) - (SELECT count(*) FROM again), count(*), count(*) FILTER (WHERE packs > $7) FROM stale`

// outdated counts the entities of a sealed plan that are done, and of an older source than
// the plan wants: they were not ready, or the app recorded them meanwhile as it knew them. A
// fan-out asks its source about that at the end. A re-run does what it once picked: the
// versions are in its arguments.
func (l *life) outdated(ctx context.Context, tx pgx.Tx, r *rerun, child *kind) (n int64, err error) {
	// Of work whose arguments have no version nothing can be outdated.
	zero, _ := child.Erased.Parse([]byte("{}"))
	if _, sourced := zero.(jobs.Sourced); !sourced {
		return 0, nil
	}
	for from := 0; from < r.packs; from += verifyPacks {
		rows, err := tx.Query(ctx, doneElsewhereSQL, r.id, child.ID, r.epoch, child.Type.Version, from, from+verifyPacks)
		if err != nil {
			return 0, err
		}
		var entity, args string
		var of int64
		_, err = pgx.ForEachRow(rows, []any{&entity, &args, &of}, func() error {
			// What does not decode was parked, and not done.
			if in, err := child.Erased.Decode(entity, []byte(args)); err != nil || in.SourceVersion > of {
				n++
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("look for what is done of an older source: %w", err)
		}
	}
	return n, nil
}

// What the run's own messages did is of the versions that it wants, or newer: that is most of a
// plan, and stays in the server. Only what had failed may also have been done as it was wanted
// at first, since its claim is given to the run with those arguments.
const doneElsewhereSQL = `
SELECT e.entity, e.args, coalesce(l.source_version, 0)
FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities, p.args, p.reasons) AS e(entity, args, reason)
CROSS JOIN LATERAL (SELECT l.source_version, l.run FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l
WHERE p.run = $1 AND p.pack >= $5 AND p.pack < $6 AND (l.run IS DISTINCT FROM $1 OR e.reason = 'failed')`
