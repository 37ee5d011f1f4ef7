package worker

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// lookAtSealed counts what a fan-out has just sealed when it had its plan: what is late, and the
// plan did not have yet; and of what was sent again, what is stale: done, but not as the source
// names it now. The rest of that is missing. Of both, stuck is what was sent again as often as
// it may be.
func (l *life) lookAtSealed(ctx context.Context, tx pgx.Tx, r *run, child *kind, p planned) (late, stale, stuck int64, err error) {
	if p.packs > 0 {
		err = tx.QueryRow(ctx, sealedSQL, r.id, child.ID, r.epoch, child.Type.Version, r.packs, r.packs+p.sent, r.packs+p.packs, maxResends).
			Scan(&late, &stale, &stuck)
	}
	return late, stale, stuck, err
}

// Of the packs that were just sealed the first are sent, and the others have what is waited for.
const sealedSQL = `
WITH sealed AS MATERIALIZED (
    SELECT e.entity, bool_or(p.pack < $6) AS sent FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities) AS e(entity)
    WHERE p.run = $1 AND p.pack >= $5 AND p.pack < $7 GROUP BY e.entity
), again AS MATERIALIZED (
    SELECT s.entity, s.sent, count(*) AS packs FROM sealed s
    JOIN (SELECT unnest(p.entities) AS entity FROM oncemore.run_pack p WHERE p.run = $1 AND p.pack < $5) q ON q.entity = s.entity
    GROUP BY s.entity, s.sent
)
SELECT (SELECT count(*) FROM sealed) - (SELECT count(*) FROM again), count(l.done), count(*) FILTER (WHERE e.packs > $8)
FROM again e LEFT JOIN LATERAL (SELECT true AS done FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l ON true
WHERE e.sent`

// outdated counts the entities of a sealed plan, as far as it is sent, that are done, and of an
// older source than the plan wants: they were not ready, or the app recorded them meanwhile as
// it knew them. A fan-out asks its source about that at the end. A re-run does what it once
// picked: the versions are in its arguments.
func (l *life) outdated(ctx context.Context, tx pgx.Tx, r *rerun, child *kind) (n int64, err error) {
	// Of work whose arguments have no version nothing can be outdated.
	zero, _ := child.Erased.Parse([]byte("{}"))
	if _, sourced := zero.(jobs.Sourced); !sourced {
		return 0, nil
	}
	for from := 0; from <= r.nextPack; from += verifyPacks {
		rows, err := tx.Query(ctx, doneElsewhereSQL, r.id, child.ID, r.epoch, child.Type.Version, from, from+verifyPacks, r.nextPack, r.nextItem)
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
FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities, p.args, p.reasons) WITH ORDINALITY AS e(entity, args, reason, n)
CROSS JOIN LATERAL (SELECT l.source_version, l.run FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l
WHERE p.run = $1 AND p.pack >= $5 AND p.pack < $6 AND (p.pack < $7 OR p.pack = $7 AND e.n <= $8)
AND (l.run IS DISTINCT FROM $1 OR e.reason = 'failed')`
