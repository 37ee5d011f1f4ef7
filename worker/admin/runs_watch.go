package admin

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A Watch looks at one run again and again. It remembers what is done for good, so that
// only the first look goes over the whole plan.
type Watch struct {
	Pool *pgxpool.Pool
	Run  int64

	done  []int32 // packs of which every entity is done
	looks []look  // of the last half minute
}

type look struct {
	at   time.Time
	done int64
}

// paceOver is how far back a watch looks for the pace of a run.
const paceOver = 30 * time.Second

// Look returns the run as it stands, by the database's clock now. Its pace is that between
// the looks of the last half minute; the first look knows none.
func (w *Watch) Look(ctx context.Context) (r *Run, now time.Time, err error) {
	err = Read(ctx, w.Pool, showTime, func(tx pgx.Tx) (err error) {
		if r, err = findRun(ctx, tx, w.Run); err != nil {
			return err
		}
		if now, err = serverTime(ctx, tx); err != nil {
			return err
		}
		done, err := r.count(ctx, tx, w.done)
		w.done = append(w.done, done...)
		return err
	})
	if err != nil {
		return nil, now, err
	}
	for len(w.looks) > 1 && now.Sub(w.looks[0].at) > paceOver {
		w.looks = w.looks[1:]
	}
	if len(w.looks) > 0 {
		if first := w.looks[0]; now.After(first.at) {
			r.Pace = float64(r.Done-first.done) / now.Sub(first.at).Seconds()
		}
	}
	w.looks = append(w.looks, look{now, r.Done})
	r.forecast()
	return r, now, nil
}

// count derives the counts of r from the facts and claims of its plan, as far as it is
// sent. skip are packs that are known to be done whole; more of those are returned. Of a run
// that has ended nothing is derived: what its last visit counted is the record. It knew what
// the source said then, and the plan may have been deleted since.
func (r *Run) count(ctx context.Context, tx pgx.Tx, skip []int32) (done []int32, err error) {
	if r.State.Over() || r.PlannedAt == nil && r.Selection != nil {
		return nil, nil
	}
	nextPack, nextItem := r.nextPack, r.nextItem
	if r.Selection == nil || r.sent == r.Items {
		nextPack = math.MaxInt32
	}
	if skip == nil {
		skip = []int32{}
	}
	if _, err := tx.Exec(ctx, ledger.PlannerSettings); err != nil {
		return nil, err
	}
	err = tx.QueryRow(ctx, countRunSQL, r.ID, r.jobType, r.Epoch, r.verified, skip, nextPack, nextItem, r.PlannedAt).
		Scan(&r.Open, &r.Failed, &r.InDoubt, &r.Missing, &done)
	if err != nil {
		return nil, fmt.Errorf("count how far run %d is: %w", r.ID, err)
	}
	r.NotSent = r.Items - r.sent
	r.Done = r.sent - r.Open - r.Failed - r.InDoubt - r.Missing
	return done, nil
}

// What is not done of the part of the plan that is sent. A fact of an earlier epoch, one
// that a claim is about to replace, and one that was there when the entity was planned as
// stale: these do not count. Of fan-outs an entity may be in several packs, since what is
// missing is sent again; it is one entity all the same. What had failed, and the run has called
// again, is open until it is tried.
//
// (An element of an array is not picked by its number: that would unpack the whole array
// for each of them.)
const countRunSQL = `
WITH p AS MATERIALIZED (
    SELECT k.pack, k.entities, k.reasons FROM oncemore.run_pack k
    WHERE k.run = $1 AND k.pack >= $4 AND k.pack <= $6 AND k.pack <> ALL ($5::int[])
), e AS MATERIALIZED (
    SELECT p.pack, e.entity, c.trouble
    FROM p CROSS JOIN LATERAL unnest(p.entities, p.reasons) WITH ORDINALITY AS e(entity, reason, n)
    LEFT JOIN LATERAL (SELECT l.completed_at, coalesce(l.epoch, 0) AS epoch, coalesce(l.source_version, 0) AS source_version FROM oncemore.ledger l
                       WHERE l.job_type = $2 AND l.entity = e.entity COLLATE "C" AND coalesce(l.epoch, 0) >= $3 OFFSET 0) l ON true
    LEFT JOIN LATERAL (SELECT CASE WHEN ` + ledger.CalledSQL + ` THEN 'retrying' ELSE coalesce(c.trouble, '') END AS trouble, c.epoch, c.source_version FROM oncemore.claim c
                       WHERE c.job_type = $2 AND c.entity = e.entity COLLATE "C" OFFSET 0) c ON true
    WHERE (p.pack < $6 OR e.n <= $7)
    AND (l.epoch IS NULL OR c.epoch > l.epoch OR c.source_version > l.source_version OR e.reason IN ('stale_source', 'stale_version') AND l.completed_at < $8)
), d AS (
    SELECT DISTINCT entity, trouble FROM e
)
SELECT count(*) FILTER (WHERE d.trouble IN ('', 'retrying')), count(*) FILTER (WHERE d.trouble = 'failed'),
       count(*) FILTER (WHERE d.trouble = 'in_doubt'), count(*) FILTER (WHERE d.trouble IS NULL AND d.entity IS NOT NULL),
       ARRAY(SELECT p.pack FROM p WHERE p.pack < $6 EXCEPT SELECT e.pack FROM e)
FROM d`
