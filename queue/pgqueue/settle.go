package pgqueue

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
)

// All statements here change rows by id and lock. Where somebody changes a row in
// the same moment, PostgreSQL looks at the lock again: who lost changes nothing.

const ackSQL = `/* message: acknowledge */ DELETE FROM oncemore.message m WHERE m.id = ANY ($1::bigint[]) AND m.lock = $2`

// Ack removes the messages for good, in a transaction of its own.
func (q *Queue) Ack(ctx context.Context, ds ...queue.Delivery) error {
	if err := known(ds); err != nil || len(ds) == 0 {
		return err
	}
	if err := run(ctx, q.pool, func(b *pgx.Batch) { q.AckBatch(b, ds...) }); err != nil {
		return fmt.Errorf("acknowledge %d messages: %w", len(ds), err)
	}
	return nil
}

// AckTx removes the messages when tx commits. For the rest of tx the planner prefers
// indexes to sequential scans, bitmaps, sorts, and hash and merge joins.
func (q *Queue) AckTx(ctx context.Context, tx pgx.Tx, ds ...queue.Delivery) error {
	if err := known(ds); err != nil || len(ds) == 0 {
		return err
	}
	b := &pgx.Batch{}
	b.Queue(plansSQL)
	q.AckBatch(b, ds...)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("acknowledge %d messages: %w", len(ds), err)
	}
	return nil
}

// AckBatch puts the statements of Ack on b, for a caller who has more to do in the
// same transaction and round trip. That transaction should have set enable_seqscan
// to off, else a plan that was made for a small table may scan a large one. Receipts
// that are not of this kind of queue are left out: their messages stay.
func (q *Queue) AckBatch(b *pgx.Batch, ds ...queue.Delivery) {
	for _, g := range groups(ds) {
		b.Queue(ackSQL, g.ids, g.lock)
	}
}

const extendSQL = `
/* message: extend */
UPDATE oncemore.message m SET visible_at = clock_timestamp() + $3::bigint * interval '1 microsecond'
WHERE m.id = ANY ($1::bigint[]) AND m.lock = $2
RETURNING m.id`

// Extend begins the visibility timeout anew for each delivery, and returns the
// receipts that are no longer held. A message whose time is over but that nobody
// else took is still held.
func (q *Queue) Extend(ctx context.Context, ds ...queue.Delivery) (lost []string, err error) {
	if err := known(ds); err != nil || len(ds) == 0 {
		return nil, err
	}
	held := make(map[string]bool, len(ds))
	err = run(ctx, q.pool, func(b *pgx.Batch) {
		for _, g := range groups(ds) {
			b.Queue(extendSQL, g.ids, g.lock, microseconds(q.visibility)).Query(func(rows pgx.Rows) error {
				var id int64
				_, err := pgx.ForEachRow(rows, []any{&id}, func() error {
					held[receipt(id, g.lock)] = true
					return nil
				})
				return err
			})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("extend %d messages: %w", len(ds), err)
	}
	for _, d := range ds {
		if !held[d.Receipt] {
			lost = append(lost, d.Receipt)
		}
	}
	return lost, nil
}

const releaseSQL = `
/* message: release */
UPDATE oncemore.message m
SET lock = CASE WHEN $3::bigint > 0 THEN 0 END, visible_at = clock_timestamp() + $3::bigint * interval '1 microsecond'
WHERE m.id = ANY ($1::bigint[]) AND m.lock = $2`

// Release makes the messages visible again after a delay.
func (q *Queue) Release(ctx context.Context, after time.Duration, ds ...queue.Delivery) error {
	if err := known(ds); err != nil || len(ds) == 0 {
		return err
	}
	err := run(ctx, q.pool, func(b *pgx.Batch) {
		for _, g := range groups(ds) {
			b.Queue(releaseSQL, g.ids, g.lock, microseconds(after))
		}
		if after <= 0 && q.notify.allow(time.Now()) {
			b.Queue(notifySQL, channel, q.name)
		}
	})
	if err != nil {
		return fmt.Errorf("release %d messages: %w", len(ds), err)
	}
	q.pace.expect(after)
	if after <= 0 {
		q.Hint()
	}
	return nil
}

// known refuses receipts that no queue of this kind gave out.
func known(ds []queue.Delivery) error {
	for i := range ds {
		if _, _, ok := parseReceipt(ds[i].Receipt); !ok {
			return fmt.Errorf("%.40q is no receipt of a Postgres queue", ds[i].Receipt)
		}
	}
	return nil
}

// A group is what is left to settle of one receive.
type group struct {
	lock int64
	ids  []int64
}

// groups returns the receipts by lock, and everything in order, so that two that
// change the same rows do not deadlock.
func groups(ds []queue.Delivery) []group {
	type key struct{ lock, id int64 }
	keys := make([]key, 0, len(ds))
	for i := range ds {
		if id, lock, ok := parseReceipt(ds[i].Receipt); ok {
			keys = append(keys, key{lock, id})
		}
	}
	slices.SortFunc(keys, func(a, b key) int { return cmp.Or(cmp.Compare(a.lock, b.lock), cmp.Compare(a.id, b.id)) })
	ids := make([]int64, len(keys))
	var out []group
	for i, k := range keys {
		ids[i] = k.id
		if len(out) == 0 || out[len(out)-1].lock != k.lock {
			out = append(out, group{lock: k.lock, ids: ids[i:i:len(ids)]})
		}
		g := &out[len(out)-1]
		g.ids = g.ids[:len(g.ids)+1]
	}
	return out
}
