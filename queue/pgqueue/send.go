package pgqueue

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
)

// Send sends the messages in a transaction of its own, in one round trip.
func (q *Queue) Send(ctx context.Context, ms ...queue.Message) error {
	if err := check(ms); err != nil || len(ms) == 0 {
		return err
	}
	b := &pgx.Batch{}
	q.SendBatch(b, ms...)
	// A batch is one transaction by itself.
	if err := q.pool.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("send %d messages: %w", len(ms), err)
	}
	return nil
}

// Tx is a Sender in tx: the messages exist when tx commits, and not before. An error
// of the database aborts tx, as that of any statement does; one that wraps
// [queue.ErrInvalid] does not.
func (q *Queue) Tx(tx pgx.Tx) queue.Sender {
	return queue.SenderFunc(func(ctx context.Context, ms ...queue.Message) error {
		if err := check(ms); err != nil || len(ms) == 0 {
			return err
		}
		b := &pgx.Batch{}
		q.SendBatch(b, ms...)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return fmt.Errorf("send %d messages: %w", len(ms), err)
		}
		return nil
	})
}

func check(ms []queue.Message) error {
	for i := range ms {
		if err := ms[i].Check(); err != nil {
			return err
		}
	}
	return nil
}

// SendBatch puts the statements that send ms on b, for a caller who has more to do
// in the same transaction and round trip. The messages must be such as
// [queue.Message.Check] accepts, or carry on what was worked before: it is not asked again.
func (q *Queue) SendBatch(b *pgx.Batch, ms ...queue.Message) {
	if len(ms) == 0 {
		return
	}
	for len(ms) > 0 {
		n := 0 // messages of one item at the head
		for n < len(ms) && len(ms[n].Items) == 1 {
			n++
		}
		if n > 1 {
			q.sendSingles(b, ms[:n])
			ms = ms[n:]
			continue
		}
		q.sendPack(b, &ms[0])
		ms = ms[1:]
	}
	if q.notify.allow(time.Now()) {
		b.Queue(notifySQL, channel, q.name)
	}
}

// A pack has a statement of its own: its arrays make the statement's cost small,
// and PostgreSQL cannot unnest an array of ragged arrays.
const sendPackSQL = `
/* message: send a pack */
INSERT INTO oncemore.message (queue, type, entities, args, run, pack, epoch, priority, deferred, trace, lock, visible_at)
VALUES ($1, $2, $3, $4, nullif($5::bigint, 0), nullif($6::integer, 0), nullif($7::bigint, 0), $8, $9, nullif($10, ''),
        CASE WHEN $11::bigint > 0 THEN 0 END, clock_timestamp() + $11::bigint * interval '1 microsecond')`

func (q *Queue) sendPack(b *pgx.Batch, m *queue.Message) {
	entities, args := make([]string, len(m.Items)), make([]string, len(m.Items))
	for i, it := range m.Items {
		entities[i], args[i] = it.Entity, string(it.Args)
	}
	q.pace.expect(m.Delay)
	b.Queue(sendPackSQL, q.name, m.Type, entities, args, m.Run, m.Pack, m.Epoch, int16(m.Priority), smallint(m.Deferred), m.Trace, microseconds(m.Delay))
}

const sendSinglesSQL = `
/* message: send */
INSERT INTO oncemore.message (queue, type, entities, args, run, pack, epoch, priority, deferred, trace, lock, visible_at)
SELECT $1, type, ARRAY[entity], ARRAY[arg], nullif(run, 0), nullif(pack, 0), nullif(epoch, 0), priority, deferred, nullif(trace, ''),
       CASE WHEN delay > 0 THEN 0 END, clock_timestamp() + delay * interval '1 microsecond'
FROM unnest($2::text[], $3::text[], $4::text[], $5::bigint[], $6::integer[], $7::bigint[], $8::smallint[], $9::smallint[], $10::text[], $11::bigint[])
     AS u (type, entity, arg, run, pack, epoch, priority, deferred, trace, delay)`

func (q *Queue) sendSingles(b *pgx.Batch, ms []queue.Message) {
	n := len(ms)
	texts, longs, shorts, packs := make([]string, 4*n), make([]int64, 3*n), make([]int16, 2*n), make([]int32, n)
	types, entities, args, traces := texts[:n], texts[n:2*n], texts[2*n:3*n], texts[3*n:]
	runs, epochs, delays := longs[:n], longs[n:2*n], longs[2*n:]
	priorities, deferred := shorts[:n], shorts[n:]
	for i := range ms {
		m := &ms[i]
		types[i], entities[i], args[i], traces[i] = m.Type, m.Items[0].Entity, string(m.Items[0].Args), m.Trace
		runs[i], epochs[i], delays[i], packs[i] = m.Run, m.Epoch, microseconds(m.Delay), int32(m.Pack)
		priorities[i], deferred[i] = int16(m.Priority), smallint(m.Deferred)
		q.pace.expect(m.Delay)
	}
	b.Queue(sendSinglesSQL, q.name, types, entities, args, runs, packs, epochs, priorities, deferred, traces, delays)
}

func smallint(n int) int16 { return int16(min(n, math.MaxInt16)) }

// debounce lets one NOTIFY through in a while. The few senders between are found by
// the quick polls that follow any received message.
type debounce struct{ last atomic.Int64 }

const notifyEvery = 5 * time.Millisecond

func (d *debounce) allow(now time.Time) bool {
	last, t := d.last.Load(), now.UnixNano()
	return (t-last >= int64(notifyEvery) || t < last) && d.last.CompareAndSwap(last, t)
}
