package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

func checkWorkers(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	var living int64
	var work, servers bool
	if err := tx.QueryRow(ctx, workSQL, ledger.InTransaction.String(), ledger.ByRequest).Scan(&living, &work, &servers); err != nil {
		return nil, err
	}
	if living == 0 && work {
		return []Check{{State: Bad, Found: "none is alive, and there is work, or a schedule that makes some", Do: "start one; if one runs, it cannot reach this database"}}, nil
	}
	if servers { // a row of oncemore.worker does not say what it is of
		return ok("%d are alive; servers that guard requests are counted as well, and work no job", living), nil
	}
	return ok("%d are alive", living), nil
}

const workSQL = `
SELECT (SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL AND expires > clock_timestamp()),
       EXISTS (SELECT FROM oncemore.message) OR EXISTS (SELECT FROM oncemore.claim WHERE owner IS NOT NULL)
       OR EXISTS (SELECT FROM oncemore.schedule WHERE paused IS NULL),
       EXISTS (SELECT FROM oncemore.job_type t WHERE t.effect LIKE '%' || $2::text AND t.effect <> $1::text || $2::text)`

// checkLeases looks for workers whose lease is over and who are not declared dead. Any
// worker that has lived for one lease length declares them.
func checkLeases(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	rows, err := tx.Query(ctx, silentSQL)
	if err != nil {
		return nil, err
	}
	var found []Check
	var id, claims int64
	var name string
	var silent time.Duration
	var watched bool
	_, err = pgx.ForEachRow(rows, []any{&id, &name, &silent, &claims, &watched}, func() error {
		if silent <= p.limits.SilentWorker {
			return nil
		}
		c := Check{State: Warn, Found: fmt.Sprintf("the lease of worker %d %s is over for %s, and nobody lives to declare it dead: %s claims wait", id, name, rough(silent), thousands(claims)),
			Do: "start a worker"}
		if watched {
			c.State, c.Do = Bad, "look at the logs of the living workers for 'looking for dead workers failed'"
			c.Found = fmt.Sprintf("the lease of worker %d %s is over for %s, and the living have not declared it dead: %s claims wait", id, name, rough(silent), thousands(claims))
		}
		found = append(found, c)
		return nil
	})
	return orOK(found, "none is over for long"), err
}

const silentSQL = `
SELECT w.id, w.name, clock_timestamp() - w.expires, (SELECT count(*) FROM oncemore.claim c WHERE c.owner = w.id),
       EXISTS (SELECT FROM oncemore.worker l WHERE l.dead_at IS NULL AND l.expires > clock_timestamp() AND l.started_at < clock_timestamp() - interval '1 minute')
FROM oncemore.worker w WHERE w.dead_at IS NULL AND w.expires < clock_timestamp() ORDER BY w.id LIMIT 20`

// checkLives looks for workers that lose their lease again and again.
func checkLives(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	rows, err := tx.Query(ctx, livesSQL)
	if err != nil {
		return nil, err
	}
	var found []Check
	var name string
	var lives, lapsed int64
	_, err = pgx.ForEachRow(rows, []any{&name, &lives, &lapsed}, func() error {
		found = append(found, Check{State: Warn, Found: fmt.Sprintf("%s began %d lives within an hour, and %d ended without a word", name, lives, lapsed),
			Do: "see its logs: it is killed (out of memory?), frozen, or cannot reach the database in time"})
		return nil
	})
	return orOK(found, "none was lost again and again within an hour"), err
}

const livesSQL = `
SELECT w.name, count(*), count(*) FILTER (WHERE w.cause = 'lapsed') FROM oncemore.worker w
WHERE w.started_at > clock_timestamp() - interval '1 hour'
GROUP BY w.name HAVING count(*) FILTER (WHERE w.cause = 'lapsed') >= 3 ORDER BY 3 DESC LIMIT 20`

// checkOwners looks for claims whose owner's row was deleted: nobody can declare such an
// owner dead, so they count as held for ever.
func checkOwners(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	var n int64
	if err := tx.QueryRow(ctx, ownersSQL).Scan(&n); err != nil {
		return nil, err
	}
	if n == 0 {
		return ok("every claim that is held has a worker's row"), nil
	}
	return []Check{{State: Bad, Found: fmt.Sprintf("%s claims are held by workers that have no row: they count as held for ever", thousands(n)), Do: ownersDo}}, nil
}

const (
	ownersSQL = `SELECT count(*) FROM oncemore.claim c WHERE c.owner IS NOT NULL AND NOT EXISTS (SELECT FROM oncemore.worker w WHERE w.id = c.owner)`
	ownersDo  = `give them dead ones: INSERT INTO oncemore.worker (id, name, expires, dead_at, cause) OVERRIDING SYSTEM VALUE SELECT DISTINCT c.owner, 'lost', now(), now(), 'lapsed' ` +
		`FROM oncemore.claim c WHERE c.owner IS NOT NULL AND NOT EXISTS (SELECT FROM oncemore.worker w WHERE w.id = c.owner)`
)

// checkWaiting looks for messages that are due and that nobody takes.
func checkWaiting(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	rows, err := tx.Query(ctx, waitingSQL, queueMost, ledger.ByRequest)
	if err != nil {
		return nil, err
	}
	var found []Check
	var oldest time.Duration
	var queue, name string
	var n int64
	var age time.Duration
	var known, requests, delayed bool
	_, err = pgx.ForEachRow(rows, []any{&queue, &name, &delayed, &n, &age, &known, &requests}, func() error {
		oldest = max(oldest, age)
		s := aged(age, p.limits.OldMessage)
		if s == OK {
			return nil
		}
		c := Check{State: s, Found: fmt.Sprintf("%s messages of %s have been due in queue %q for up to %s", thousands(n), name, queue, rough(age)),
			Do: "start more workers, or give them more slots; see 'workers', and the limits of the type"}
		switch {
		case requests:
			c.Do = "it comes as requests, which no worker takes: delete these messages of it, each client sends its request again"
		case !known:
			c.Do = "no worker has ever known this type: deploy one that does, or mend the producer"
		case delayed:
			c.Do = "start a worker that reads this queue: nobody does"
		}
		found = append(found, c)
		return nil
	})
	return orOK(found, "nothing has been due for more than %s", rough(oldest)), err
}

// What only an application has named (ledger.Register), no worker has seen.
const waitingSQL = `
SELECT m.queue, m.type, m.lock IS NOT NULL, count(*), clock_timestamp() - min(m.visible_at),
       EXISTS (SELECT FROM oncemore.job_type t JOIN oncemore.job_type o ON o.id = t.id WHERE t.name = m.type AND o.seen_at > '-infinity'),
       EXISTS (SELECT FROM oncemore.job_type t WHERE t.name = m.type AND t.effect LIKE '%' || $2::text)
FROM (SELECT m.queue, m.type, m.lock, m.visible_at FROM oncemore.message m
      WHERE m.lock IS NULL OR m.lock = 0 AND m.visible_at < clock_timestamp() ORDER BY m.id LIMIT $1) m
GROUP BY m.queue, m.type, m.lock IS NOT NULL ORDER BY 5 DESC LIMIT 20`

// checkHeld looks at what receives hold: each message that is held is named by the row of
// its receive, and that row is looked at when the message's time may be over.
func checkHeld(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	var held, lost int64
	if err := tx.QueryRow(ctx, heldSQL, queueMost).Scan(&held, &lost); err != nil {
		return nil, err
	}
	var found []Check
	if lost > 0 {
		found = append(found, Check{State: Bad, Found: fmt.Sprintf("%s held messages are named by no receive: they would never come again", thousands(lost)), Do: heldDo})
	}
	rows, err := tx.Query(ctx, staleSQL, p.limits.OldMessage)
	if err != nil {
		return nil, err
	}
	var queue string
	var n int64
	var age time.Duration
	_, err = pgx.ForEachRow(rows, []any{&queue, &n, &age}, func() error {
		found = append(found, Check{State: Warn, Found: fmt.Sprintf("%s receives of queue %q should have been looked at %s ago", thousands(n), queue, rough(age)),
			Do: "start a worker that reads this queue: nobody does"})
		return nil
	})
	return orOK(found, "%s messages are held, each by a receive that is looked after", thousands(held)), err
}

const (
	heldSQL = `
SELECT count(*), count(*) FILTER (WHERE r.lock IS NULL)
FROM (SELECT m.lock FROM oncemore.message m WHERE m.lock > 0 ORDER BY m.id LIMIT $1) m
LEFT JOIN oncemore.message_receive r ON r.lock = m.lock`

	heldDo = `make them ready: UPDATE oncemore.message m SET lock = NULL WHERE m.lock > 0 AND NOT EXISTS (SELECT FROM oncemore.message_receive r WHERE r.lock = m.lock)`

	staleSQL = `
SELECT r.queue, count(*), clock_timestamp() - min(r.check_at) FROM oncemore.message_receive r
WHERE r.check_at < clock_timestamp() - $1::interval GROUP BY r.queue ORDER BY 1 LIMIT 20`
)
