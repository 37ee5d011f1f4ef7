package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// MaxResult bounds a result: the bytes of its JSON. What is larger belongs where such
// things are kept, and the result says where.
const MaxResult = 64 << 10

// DefaultResultTTL is how long results are kept, unless a [Type] says otherwise.
const DefaultResultTTL = 7 * 24 * time.Hour

// KeepResults queues on b the statement that stores the results of outs, behind those that
// record their facts in the same transaction; [Settle] does so by itself. Where no outcome
// has a result it queues nothing.
//
// A result is stored if its fact was recorded by this very transaction, and else not: a
// completion that is refused stores none, and neither does one that finds the fact there.
// It replaces a result of a lower epoch.
func KeepResults(b *pgx.Batch, t *Type, outs []*Outcome) {
	kept := func(o *Outcome) bool { return o.State == Completed && o.Result != nil }
	if !slices.ContainsFunc(outs, kept) {
		return
	}
	var entities, values []string
	for _, o := range inKeyOrder(outs) {
		if !kept(o) {
			continue
		}
		if n := len(entities); n > 0 && entities[n-1] == o.Entity {
			continue // of two that did the same side by side the first has the fact
		}
		entities, values = append(entities, o.Entity), append(values, string(o.Result))
	}
	ttl := cmp.Or(t.ResultTTL, DefaultResultTTL)
	if ttl < 0 {
		ttl = 100 * 365 * 24 * time.Hour
	}
	b.Queue(keepResultSQL, t.ID, entities, values, ttl)
}

// ownFactSQL tells of a fact whether this transaction wrote it: then it has its number and its
// time. (The number alone would do for the next four billion transactions.)
const ownFactSQL = `l.xmin = pg_current_xact_id_if_assigned()::xid AND l.completed_at = now()`

const keepResultSQL = `
/* result: keep */
INSERT INTO oncemore.result AS r (job_type, entity, epoch, value, expires_at)
SELECT $1, w.entity, f.epoch, w.value, now() + $4::interval
FROM unnest($2::text[], $3::text[]) AS w(entity, value)
CROSS JOIN LATERAL (SELECT coalesce(l.epoch, 0) AS epoch FROM oncemore.ledger l
                    WHERE l.job_type = $1 AND l.entity = w.entity
                      AND ` + ownFactSQL + ` OFFSET 0) f
ON CONFLICT (job_type, entity) DO UPDATE
SET epoch = excluded.epoch, value = excluded.value, stored_at = excluded.stored_at, expires_at = excluded.expires_at
WHERE r.epoch < excluded.epoch`

// ExpireResults deletes results that have expired, at most most of them, and tells how
// many. Nobody is shown them any more in any case; the facts stay.
func (l *Ledger) ExpireResults(ctx context.Context, most int) (n int64, err error) {
	tag, err := l.pool.Exec(ctx, expireResultSQL, most)
	if err != nil {
		return 0, fmt.Errorf("delete expired results: %w", err)
	}
	return tag.RowsAffected(), nil
}

const expireResultSQL = `
/* result: expire */
DELETE FROM oncemore.result
WHERE ctid = ANY (ARRAY(SELECT r.ctid FROM oncemore.result r WHERE r.expires_at < now() ORDER BY r.expires_at LIMIT $1 FOR UPDATE SKIP LOCKED))`
