package pgqueue

import "github.com/jackc/pgx/v5"

// Hold queues on b that the messages of a run which nobody holds are not delivered before
// [Unhold]: those that are ready, and those that are delayed. What is being delivered in
// this moment is not waited for.
func Hold(b *pgx.Batch, run int64) { b.Queue(holdSQL, run) }

// HoldPaused queues on b a [Hold] that counts where the run is paused when its turn comes: for
// who sends messages of a run that somebody may have paused meanwhile. Who resumes the run then
// either did before, or waits for the commit, and finds what was held; else it would be held for
// a century. Where the run is not paused nothing is locked; one that has ended is not.
func HoldPaused(b *pgx.Batch, run int64) { b.Queue(holdPausedSQL, run) }

// Unhold queues on b the end of a [Hold]: what was ready is ready again, what was delayed
// is due when it would have been.
func Unhold(b *pgx.Batch, run int64) { b.Queue(unholdSQL, run, channel) }

// A held message is one that is delayed for a century more than it was, so that no other
// statement needs to know of it.
const (
	holdSQL = `
/* message: hold */
UPDATE oncemore.message m SET lock = 0, visible_at = m.visible_at + interval '100 years'
WHERE m.ctid = ANY (ARRAY(
    SELECT h.ctid FROM oncemore.message h
    WHERE h.run = $1 AND coalesce(h.lock, 0) = 0 AND h.visible_at < now() + interval '50 years' FOR UPDATE SKIP LOCKED))`

	holdPausedSQL = `
/* message: hold what is paused */
WITH p AS MATERIALIZED (
    SELECT c.run FROM oncemore.run_control c
    WHERE c.run = $1 AND c.paused IS NOT NULL AND EXISTS (SELECT FROM oncemore.run r WHERE r.id = c.run AND r.ended_at IS NULL) FOR SHARE
)
UPDATE oncemore.message m SET lock = 0, visible_at = m.visible_at + interval '100 years'
WHERE m.ctid = ANY (ARRAY(
    SELECT h.ctid FROM oncemore.message h
    WHERE h.run = (SELECT p.run FROM p) AND coalesce(h.lock, 0) = 0 AND h.visible_at < now() + interval '50 years' FOR UPDATE SKIP LOCKED))`

	unholdSQL = `
/* message: unhold */
WITH u AS (
    UPDATE oncemore.message m SET lock = CASE WHEN m.visible_at > now() + interval '100 years' THEN 0 END, visible_at = m.visible_at - interval '100 years'
    WHERE m.ctid = ANY (ARRAY(
        SELECT h.ctid FROM oncemore.message h
        WHERE h.run = $1 AND h.lock = 0 AND h.visible_at > now() + interval '50 years' FOR UPDATE SKIP LOCKED))
    RETURNING m.queue
)
SELECT pg_notify($2, q.queue) FROM (SELECT DISTINCT u.queue FROM u) q`
)
