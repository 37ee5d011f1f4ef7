package admin

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// Retry gives what was shown all its attempts anew, due at once, with messages that carry
// it. What is in doubt it never touches, nor what a living worker has.
//
// It asks for another attempt and decides nothing: the worker that takes it looks and
// decides as always. An effect that may have happened is still repeated only as its class
// allows, and what turns out done is skipped. The worker of what was stranded stays its
// owner until then, since the class may count from that worker's death; should it come
// back with a late success, that is refused and listed as disputed.
//
// Requests have no attempts to be given, and nobody but their clients to make them: the error
// wraps [ErrRequests].
func (op *Operator) Retry(ctx context.Context, s *Shown, reason string) (*Result, error) {
	return op.do(ctx, AuditEntry{Action: "retry", Type: s.Type, Reason: reason, Detail: s.How}, func(a *act) error {
		t, err := FindType(ctx, a.Tx, op.Set, s.Type)
		if err != nil {
			return err
		}
		if err := t.carriable(); err != nil {
			return err
		}
		return s.inChunks(func(entries []Entry) error { return op.retryChunk(ctx, a, &t.Type, entries) })
	})
}

func (op *Operator) retryChunk(ctx context.Context, a *act, t *ledger.Type, entries []Entry) error {
	entities, fences := keysOf(entries)
	b := &pgx.Batch{}
	b.Queue(ledger.PlannerSettings)
	revived := make(map[int64]bool, len(entries)) // by the fence that was shown
	var ms []queue.Message
	b.Queue(reviveSQL, t.ID, entities, fences).Query(func(rows pgx.Rows) error {
		var entity, args string
		var seen, run, epoch int64
		_, err := pgx.ForEachRow(rows, []any{&entity, &seen, &args, &run, &epoch}, func() error {
			revived[seen] = true
			ms = append(ms, op.carry(t, entity, args, run, epoch))
			return nil
		})
		return err
	})
	if err := a.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("give %d entities of %s their attempts anew: %w", len(entries), t.Name, err)
	}
	for _, e := range entries {
		if revived[e.Fence] {
			a.did(e.Entity)
		} else {
			a.leave(e.Entity, changedMeanwhile)
		}
	}
	if err := op.carryOn(ctx, a, ms); err != nil {
		return fmt.Errorf("send %d entities of %s again: %w", len(ms), t.Name, err)
	}
	return nil
}

// The state is asked again beside the fence: a fence of something in doubt must not get
// through, whoever gives it. What somebody has locked is changing in this moment, and is
// theirs. first_claimed_at stays: it is the evidence that the effect class rests on.
const reviveSQL = `
/* claim: revive */
WITH w AS MATERIALIZED (
    SELECT c.tid, w.seen
    FROM unnest($2::text[], $3::bigint[]) AS w(entity, seen)
    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.seen
                        AND CASE WHEN c.owner IS NULL THEN c.trouble = 'failed'
                                 ELSE EXISTS (SELECT FROM oncemore.worker d WHERE d.id = c.owner AND d.dead_at IS NOT NULL) END
                        FOR UPDATE OF c SKIP LOCKED) c
)
UPDATE oncemore.claim c
SET fence = nextval('oncemore.fence'), attempts = 0, not_before = NULL, trouble = CASE WHEN c.owner IS NULL THEN 'retrying' END
FROM w WHERE c.ctid = w.tid
RETURNING c.entity, w.seen, c.args, c.run, c.epoch`
