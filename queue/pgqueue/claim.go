package pgqueue

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
)

// The statement takes the ready messages from a position on. They are updated by
// ctid, which is safe since they were locked just before, and spares a descent of
// the primary key for each.
const (
	claimSQL = `
/* message: receive */
WITH c AS MATERIALIZED (
    SELECT m.id, m.ctid AS at FROM oncemore.message m
    WHERE m.queue = $1 AND m.lock IS NULL AND (-m.priority, m.id) >= ($2::smallint, $3::bigint)` + "%s" + `
    ORDER BY -m.priority, m.id LIMIT $4 FOR UPDATE SKIP LOCKED
), r AS (
    INSERT INTO oncemore.message_receive (lock, check_at, queue, ids)
    SELECT nextval('oncemore.message_lock'), clock_timestamp() + $5::bigint * interval '1 microsecond', $1, array_agg(c.id)
    FROM c HAVING count(*) > 0
    RETURNING lock, check_at
)
UPDATE oncemore.message m
SET lock = (SELECT r.lock FROM r), visible_at = (SELECT r.check_at FROM r), received = m.received + 1
WHERE m.ctid = ANY (ARRAY(SELECT c.at FROM c))
RETURNING m.id, m.lock, m.priority, m.received, m.deferred, m.run, m.pack, m.epoch, m.type, m.trace, m.entities, m.args`

	ofTypes = ` AND m.type = ANY ($6::text[])`
)

var claimAllSQL, claimTypesSQL = fmt.Sprintf(claimSQL, ""), fmt.Sprintf(claimSQL, ofTypes)

type claimed struct {
	ds []queue.Delivery
	at []position // of the deliveries, in the same order, which is that of the positions
}

func (q *Queue) claim(ctx context.Context, db batcher, from position, max int, types []string) (claimed, error) {
	sql, args := claimAllSQL, []any{q.name, from.rank, from.id, max, microseconds(q.visibility)}
	if len(types) > 0 {
		sql, args = claimTypesSQL, append(args, types)
	}
	var c claimed
	err := run(ctx, db, func(b *pgx.Batch) {
		b.Queue(sql, args...).Query(func(rows pgx.Rows) error {
			c.ds = make([]queue.Delivery, 0, min(max, 64))
			c.at = make([]position, 0, min(max, 64))
			var dec decoder
			for rows.Next() {
				d, at, err := dec.delivery(rows)
				if err != nil {
					return err
				}
				c.ds, c.at = append(c.ds, d), append(c.at, at)
			}
			return rows.Err()
		})
	})
	if err != nil {
		return claimed{}, err
	}
	c.sort()
	return c, nil
}

// sort brings into order what an UPDATE returned in the order of the heap, which is
// nearly always the same.
func (c *claimed) sort() {
	if slices.IsSortedFunc(c.at, position.compare) {
		return
	}
	order := make([]int, len(c.at))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return c.at[i].compare(c.at[j]) })
	s := claimed{ds: make([]queue.Delivery, len(c.ds)), at: make([]position, len(c.at))}
	for i, j := range order {
		s.ds[i], s.at[i] = c.ds[j], c.at[j]
	}
	*c = s
}

// bounds are lower bounds of where a wake looks: what is due and lies before them
// was taken. They leave a margin for who commits late; and every so often a wake
// goes without.
type bounds struct{ delayed, receives time.Time }

const boundsMargin = 5 * time.Second

type woken struct {
	messages int           // that are ready now
	full     bool          // there is more to wake
	next     time.Duration // until something is due, as far as is known
	lower    bounds
}

const wakeLimit, wakeReceives = 1000, 100

// Delayed messages whose time has come become ready, rather than being handed out
// from here: then priorities, types and marks are the claim's business alone.
const wakeDelayedSQL = `
/* message: wake delayed */
WITH w AS (
    UPDATE oncemore.message m SET lock = NULL
    WHERE m.ctid = ANY (ARRAY(
        SELECT d.ctid FROM oncemore.message d
        WHERE d.queue = $1 AND d.lock = 0 AND d.visible_at <= now() AND d.visible_at >= $2
        ORDER BY d.visible_at LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING m.visible_at
)
SELECT now(), count(*), coalesce(min(w.visible_at), now()),
       (SELECT d.visible_at FROM oncemore.message d
        WHERE d.queue = $1 AND d.lock = 0 AND d.visible_at > now() ORDER BY d.visible_at LIMIT 1)
FROM w`

// A receive that may have lapsed is looked through. What it holds no longer is
// forgotten; what was extended is looked at again when that ends; what has lapsed
// becomes ready. Somebody may be settling a message right now: it is passed by, and
// looked at again soon.
const wakeLapsedSQL = `
/* message: wake lapsed */
WITH due AS MATERIALIZED (
    SELECT r.lock, r.ids, r.check_at FROM oncemore.message_receive r
    WHERE r.queue = $1 AND r.check_at <= now() AND r.check_at >= $2
    ORDER BY r.check_at LIMIT $3 FOR UPDATE SKIP LOCKED
), held AS MATERIALIZED (
    SELECT d.lock, m.id, m.visible_at
    FROM due d CROSS JOIN unnest(d.ids) AS u (id)
    CROSS JOIN LATERAL (
        SELECT m.id, m.visible_at FROM oncemore.message m WHERE m.id = u.id AND m.lock = d.lock OFFSET 0) m
), lapsed AS MATERIALIZED (
    SELECT m.at FROM held h CROSS JOIN LATERAL (
        SELECT m.ctid AS at FROM oncemore.message m
        WHERE m.id = h.id AND m.lock = h.lock AND m.visible_at <= now() FOR UPDATE SKIP LOCKED) m
    WHERE h.visible_at <= now()
), woken AS (
    UPDATE oncemore.message m SET lock = NULL WHERE m.ctid = ANY (ARRAY(SELECT l.at FROM lapsed l)) RETURNING m.id
), rest AS MATERIALIZED (
    SELECT h.lock, array_agg(h.id) AS ids,
           min(CASE WHEN h.visible_at > now() THEN h.visible_at ELSE now() + interval '1 second' END) AS check_at
    FROM held h WHERE NOT EXISTS (SELECT FROM woken w WHERE w.id = h.id) GROUP BY h.lock
), again AS (
    UPDATE oncemore.message_receive r SET check_at = t.check_at, ids = t.ids
    FROM rest t WHERE r.lock = t.lock
), gone AS (
    DELETE FROM oncemore.message_receive r
    WHERE r.lock = ANY (ARRAY(SELECT d.lock FROM due d WHERE NOT EXISTS (SELECT FROM rest t WHERE t.lock = d.lock)))
)
SELECT (SELECT count(*) FROM woken), count(*), coalesce(min(due.check_at), now()),
       (SELECT r.check_at FROM oncemore.message_receive r
        WHERE r.queue = $1 AND r.check_at > now() ORDER BY r.check_at LIMIT 1)
FROM due`

func (q *Queue) wake(ctx context.Context, db batcher, from bounds) (woken, error) {
	var now, lowDelayed, lowReceive time.Time
	var nextDelayed, nextReceive *time.Time
	var delayed, lapsed, receives int
	err := run(ctx, db, func(b *pgx.Batch) {
		b.Queue(wakeDelayedSQL, q.name, from.delayed, wakeLimit).QueryRow(func(row pgx.Row) error {
			return row.Scan(&now, &delayed, &lowDelayed, &nextDelayed)
		})
		b.Queue(wakeLapsedSQL, q.name, from.receives, wakeReceives).QueryRow(func(row pgx.Row) error {
			return row.Scan(&lapsed, &receives, &lowReceive, &nextReceive)
		})
	})
	if err != nil {
		return woken{}, fmt.Errorf("wake delayed messages: %w", err)
	}
	w := woken{
		messages: delayed + lapsed,
		full:     delayed == wakeLimit || receives == wakeReceives,
		next:     wakeEvery,
		// Where all that is due was seen, the lowest is now.
		lower: bounds{delayed: now.Add(-boundsMargin), receives: now.Add(-boundsMargin)},
	}
	if delayed == wakeLimit {
		w.lower.delayed = lowDelayed.Add(-boundsMargin)
	}
	if receives == wakeReceives {
		w.lower.receives = lowReceive.Add(-boundsMargin)
	}
	for _, t := range []*time.Time{nextDelayed, nextReceive} {
		if t != nil {
			w.next = min(w.next, t.Sub(now))
		}
	}
	return w, nil
}

// A receipt is "id:lock".
func receipt(id, lock int64) string {
	b := make([]byte, 0, 24)
	b = strconv.AppendInt(b, id, 10)
	b = append(b, ':')
	return string(strconv.AppendInt(b, lock, 10))
}

func parseReceipt(s string) (id, lock int64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, false
	}
	id, err1 := strconv.ParseInt(a, 10, 64)
	lock, err2 := strconv.ParseInt(b, 10, 64)
	return id, lock, err1 == nil && err2 == nil && lock > 0
}
