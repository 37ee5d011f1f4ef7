package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A run is one sealed batch: what one call of a fan-out asked for.
//
// The message of the fan-out carries it. Each delivery is a visit: the first plans what
// is missing and sends it in packs; the later ones look how far it is, and come back with
// growing waits until nothing of the plan is missing or open. Then the source is asked
// once more, for what came late. A visit is one transaction, under the fence of the
// parent's claim: what it plans, sends and records is committed with its own return
// message, or not at all. A crash costs one visit.
//
// That a run is complete is never counted up but derived: every entity of its sealed packs
// has a fact. The counters in its row are for the eye.
type run struct {
	id       int64
	epoch    int64
	planned  bool
	cursor   string
	items    int64
	packs    int
	verified int // packs below this number are all facts
	skipped  int64
	resent   int
	visits   int
	walking  bool // this visit asked a part of a source in Go, and found nothing
	age      time.Duration
	open, failed, inDoubt,
	notReady int64
	ended, complete, cancelled bool
}

// maxResends is how often in a row what of a run is missing, or done of an older source, is
// sent again without progress before it ends without that, as not ready.
const maxResends = 3

// fanOut makes one visit.
func (l *life) fanOut(it *item) {
	if it.kind.rerunOf != nil {
		l.rerun(it)
		return
	}
	ctx := l.begin(it)
	defer ctx.end()
	r, err := l.visitFanOut(ctx, it)
	l.conclude(it, err, fmt.Sprintf("the run of %s %q", it.kind.name, it.Entity), func() string { return r.story(it) })
}

func (l *life) visitFanOut(ctx context.Context, it *item) (*run, error) {
	// A run that is cancelled needs no source, and that may be what fails.
	if child, err := l.cancelledChild(ctx, it); child != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return l.visit(ctx, it, child, jobs.Source{})
	}
	var src jobs.Source
	err := l.guard([]*item{it}, func() error { src = it.kind.Erased.FanOut(it.args); return nil })
	if err != nil {
		return nil, err
	}
	child := l.kinds[src.JobType()]
	if src.IsZero() || child == nil {
		return nil, jobs.Permanent(fmt.Errorf("fan-out of %s returned a source of %q, which this worker's set does not have", it.kind.name, src.JobType()))
	}
	return l.visit(ctx, it, child, src)
}

// cancelledChild is the job type that the run of it is of, where the run is to end; nil: it is
// not. A type that this worker's set does not have will do for that.
func (l *life) cancelledChild(ctx context.Context, it *item) (*kind, error) {
	child := &kind{}
	err := l.pool.QueryRow(ctx, cancelledChildSQL, it.kind.ID, it.Entity).Scan(&child.ID, &child.name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, known := range l.kinds {
		if known.ID == child.ID {
			return known, nil
		}
	}
	return child, nil
}

// Of several names the one that was used last.
const cancelledChildSQL = `
SELECT r.job_type, t.name
FROM oncemore.run r JOIN oncemore.run_control c ON c.run = r.id JOIN oncemore.job_type t ON t.id = r.job_type
WHERE r.parent_type = $1 AND r.parent_entity = $2 AND r.ended_at IS NULL AND c.cancelled IS NOT NULL
ORDER BY t.seen_at DESC, t.name LIMIT 1`

// carrier is the Postgres queue that work of kind k travels through.
func (w *Worker) carrier(k *kind) *pgqueue.Queue {
	if pg, ok := w.queues[k.Queue].(*pgqueue.Queue); ok {
		return pg
	}
	return w.pg
}

// visit looks after the run of it once.
func (l *life) visit(ctx context.Context, it *item, child *kind, src jobs.Source) (*run, error) {
	var read chunk
	if src.InGo() {
		after, waiting, err := l.cursor(ctx, it, child)
		if err == nil && waiting {
			read = chunk{inGo: true, unread: true}
		} else if err == nil {
			// The app's code, like FanOut that returned it.
			err = l.guard([]*item{it}, func() (err error) { read, err = readChunk(ctx, src, child, after); return err })
		}
		if err != nil {
			return nil, err
		}
	}
	var r *run
	err := l.inVisit(ctx, it, func(tx pgx.Tx, b *pgx.Batch) (end visited, err error) {
		if r, err = l.openRun(ctx, tx, it, child); err != nil {
			return end, err
		}
		plan := func() (planned, error) {
			if read.inGo {
				return l.planChunk(ctx, tx, r, child, read)
			}
			return l.planSQL(ctx, tx, r, child, src)
		}
		cancelled, err := cancelledFor(ctx, tx, r.id)
		if err != nil {
			return end, err
		}
		switch {
		case cancelled != nil:
			err = l.cancelRun(ctx, tx, r, child, *cancelled)
		case !r.planned:
			err = l.planFirst(r, read, plan)
		default:
			err = l.follow(ctx, tx, r, child, read, plan)
		}
		if err != nil {
			return end, err
		}
		r.save(b)
		return visited{r.id, r.ended, r.pause()}, nil
	})
	return r, err
}

// cancelledFor is why operators want the run to end; nil: they do not. The reason may be empty.
func cancelledFor(ctx context.Context, tx pgx.Tx, run int64) (why *string, err error) {
	err = tx.QueryRow(ctx, `SELECT cancelled FROM oncemore.run_control WHERE run = $1`, run).Scan(&why)
	if errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return why, err
}

// openRun finds the run that goes on for this parent, or begins one: calling it again
// while it goes on joins it.
func (l *life) openRun(ctx context.Context, tx pgx.Tx, it *item, child *kind) (*run, error) {
	r := &run{}
	err := tx.QueryRow(ctx, openRunSQL, it.kind.ID, it.Entity, child.ID, it.claim.Epoch).
		Scan(&r.id, &r.epoch, &r.planned, &r.cursor, &r.items, &r.packs, &r.verified, &r.skipped, &r.resent, &r.notReady, &r.visits, &r.age)
	if err != nil {
		return nil, err
	}
	return r, nil
}

const openRunSQL = `
/* run: open */
INSERT INTO oncemore.run AS r (parent_type, parent_entity, job_type, epoch, visits) VALUES ($1, $2, $3, $4, 1)
ON CONFLICT (parent_type, parent_entity) WHERE ended_at IS NULL DO UPDATE SET visits = r.visits + 1
RETURNING r.id, r.epoch, r.planned_at IS NOT NULL, r.cursor, r.items, r.packs, r.verified, r.skipped, r.resent, r.not_ready, r.visits, clock_timestamp() - r.started_at`

// cursor is where the planning of a source in Go goes on, and whether that must wait for
// messages of the run, so that the source need not be asked now.
func (l *life) cursor(ctx context.Context, it *item, child *kind) (after string, waiting bool, err error) {
	err = l.pool.QueryRow(ctx, cursorSQL, it.kind.ID, child.ID, it.Entity).Scan(&after, &waiting)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	return after, waiting, err
}

const cursorSQL = `
SELECT r.cursor, r.planned_at IS NOT NULL AND EXISTS (SELECT FROM oncemore.message m WHERE m.run = r.id AND m.type IN ` + childNamesSQL + `)
FROM oncemore.run r WHERE r.parent_type = $1 AND r.parent_entity = $3 AND r.ended_at IS NULL`

// childNamesSQL are all names of the job type $2, which a run's messages have: it may be renamed
// while the run goes on.
const childNamesSQL = `(SELECT t.name FROM oncemore.job_type t WHERE t.id = $2)`

// planFirst seals the plan: whole for a query, a chunk at a time for a source in Go.
func (l *life) planFirst(r *run, read chunk, plan func() (planned, error)) error {
	p, err := plan()
	if err != nil {
		return err
	}
	r.items += p.items
	r.packs += p.packs
	r.skipped += p.skipped
	r.open = p.items + p.going + p.failed + p.inDoubt
	if read.inGo {
		r.items += p.going + p.failed + p.inDoubt // those are sealed into the plan as well
	}
	r.planned, r.cursor = true, ""
	if read.more {
		r.planned, r.cursor = false, read.after
	}
	return nil
}

// follow looks how far the plan is, and ends the run when nothing is left to wait for.
func (l *life) follow(ctx context.Context, tx pgx.Tx, r *run, child *kind, read chunk, plan func() (planned, error)) error {
	// Messages first, facts later: what was acknowledged before we asked for messages is
	// then visible as facts and claims, because both were committed together.
	var waiting bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM oncemore.message m WHERE m.run = $1 AND m.type IN `+childNamesSQL+`)`, r.id, child.ID).Scan(&waiting); err != nil {
		return err
	}
	if waiting || read.unread {
		return nil // the end cannot be here yet, so nothing is gained by looking further
	}
	missing, going, err := l.verify(ctx, tx, r, child)
	if err != nil || going > 0 {
		return err
	}
	// In a savepoint: it may turn out that nothing is to be sent any more.
	asked, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	p, err := plan()
	if err != nil {
		return err
	}
	late, stale, stuck, err := l.lookAtSealed(ctx, tx, r, child, p)
	if err != nil {
		return err
	}
	notReady := missing + stale
	// A source in Go is asked in pieces, and one that names nothing more tells of itself alone.
	walking := read.more && p.items == 0 && p.going == 0
	switch {
	case walking:
	case r.resent == 0:
		r.notReady = notReady
	case notReady < r.notReady: // the least since the last progress: that a row is not stale for once is none
		r.notReady, r.resent = notReady, 0
	}
	r.open += stale
	// What is stale by now, or late, may be other entities than before. They do not end the run:
	// those do that were sent in vain as often themselves. Nor do they keep it going, beside
	// those: else a source that changes all the time would have it send them for ever.
	if stuck > 0 && r.resent >= maxResends || p.items == 0 && p.going == 0 && !walking {
		r.end(p, notReady)
		return asked.Rollback(ctx)
	}
	if err := asked.Commit(ctx); err != nil {
		return err
	}
	r.packs += p.packs
	r.items += late
	r.open += late
	// Only a whole walk over it that finds nothing is the end; what is found begins the walk
	// anew when it is done.
	r.cursor = ""
	if walking {
		r.cursor, r.walking = read.after, true
		return nil
	}
	switch {
	case p.items == 0: // what the source names, and others are at, is waited for as well
	case notReady > 0:
		r.resent++
	default:
		r.resent = 0
	}
	return nil
}

// end ends the run. What its counters say then is the record of it: they have each entity
// once, also what the source names and an earlier call has left in trouble, which need not be
// in the plan.
func (r *run) end(p planned, notReady int64) {
	outside := max(0, p.failed-r.failed) + max(0, p.inDoubt-r.inDoubt)
	r.items, r.open = r.items+outside, r.open+outside
	r.failed, r.inDoubt, r.notReady = max(r.failed, p.failed), max(r.inDoubt, p.inDoubt), notReady
	r.ended = true
	r.complete = r.notReady == 0 && r.failed == 0 && r.inDoubt == 0
}

// verify walks over the sealed packs from the first that is not all facts, and counts. It
// stops at the first stretch where work still goes on.
func (l *life) verify(ctx context.Context, tx pgx.Tx, r *run, child *kind) (missing, going int64, err error) {
	r.open, r.failed, r.inDoubt = 0, 0, 0
	gapless := true
	for from := r.verified; from < r.packs && going == 0; from += verifyPacks {
		rows, err := tx.Query(ctx, verifySQL, r.id, child.ID, r.epoch, child.Type.Version, from, from+verifyPacks)
		if err != nil {
			return 0, 0, err
		}
		var pack int
		var m, g, f, d int64
		_, err = pgx.ForEachRow(rows, []any{&pack, &m, &g, &f, &d}, func() error {
			if gapless = gapless && m+g+f+d == 0; gapless {
				r.verified = pack + 1
			}
			missing, going = missing+m, going+g
			r.failed, r.inDoubt = r.failed+f, r.inDoubt+d
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
	}
	if going == 0 && missing+r.failed+r.inDoubt > 0 {
		// What was sent again is in several packs, and is one entity all the same.
		err = tx.QueryRow(ctx, distinctSQL, r.id, child.ID, r.epoch, child.Type.Version, r.verified).Scan(&missing, &r.failed, &r.inDoubt)
		if err != nil {
			return 0, 0, err
		}
	}
	r.open = missing + going + r.failed + r.inDoubt
	return missing, going, nil
}

// A fact satisfies the plan when nothing is open that will replace it: while done work is
// done again it has both. Where the job type has no claims at all, none is looked for.
const (
	satisfiesSQL = `l.job_type = $2 AND l.entity = e.entity COLLATE "C" AND coalesce(l.epoch, 0) >= $3 AND coalesce(l.version, 0) >= $4
          AND CASE WHEN (SELECT EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = $2)) THEN NOT EXISTS (
                  SELECT FROM oncemore.claim c WHERE c.job_type = $2 AND c.entity = l.entity
                  AND (c.epoch > coalesce(l.epoch, 0) OR c.source_version > coalesce(l.source_version, 0)))
              ELSE true END`

	// An entity of the plan that is not satisfied, and its claim.
	leftSQL = `
    LEFT JOIN LATERAL (SELECT l.entity FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l ON true
    LEFT JOIN LATERAL (SELECT c.entity, c.trouble FROM oncemore.claim c WHERE c.job_type = $2 AND c.entity = e.entity COLLATE "C" OFFSET 0) c ON true`
)

const distinctSQL = `
SELECT count(*) FILTER (WHERE NOT e.open), count(*) FILTER (WHERE e.trouble = 'failed'), count(*) FILTER (WHERE e.trouble = 'in_doubt')
FROM (
    SELECT DISTINCT e.entity, c.entity IS NOT NULL AS open, c.trouble
    FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities) AS e(entity)` + leftSQL + `
    WHERE p.run = $1 AND p.pack >= $5 AND l.entity IS NULL
) e`

const verifyPacks = 200

// Most packs are all facts: those are counted by one probe of the index with the whole
// array. Only the entities of the others are looked at one by one.
const verifySQL = `
WITH p AS MATERIALIZED (
    SELECT p.pack, p.entities,
           cardinality(p.entities) <= (SELECT count(*) FROM unnest(p.entities) AS e(entity)
                                       CROSS JOIN LATERAL (SELECT FROM oncemore.ledger l WHERE ` + satisfiesSQL + ` OFFSET 0) l) AS done
    FROM oncemore.run_pack p
    WHERE p.run = $1 AND p.pack >= $5 AND p.pack < $6
), e AS (
    SELECT p.pack, l.entity IS NULL AS missing, c.entity IS NOT NULL AS open, c.trouble
    FROM p CROSS JOIN LATERAL unnest(p.entities) AS e(entity)` + leftSQL + `
    WHERE NOT p.done
)
SELECT p.pack,
       count(*) FILTER (WHERE e.missing AND NOT e.open),
       count(*) FILTER (WHERE e.missing AND e.open AND coalesce(e.trouble, '') NOT IN ('failed', 'in_doubt')),
       count(*) FILTER (WHERE e.missing AND e.trouble = 'failed'),
       count(*) FILTER (WHERE e.missing AND e.trouble = 'in_doubt')
FROM p LEFT JOIN e ON e.pack = p.pack
GROUP BY p.pack ORDER BY p.pack`

// save queues what the visit made of the run.
func (r *run) save(b *pgx.Batch) {
	b.Queue(saveRunSQL, r.id, r.planned, r.cursor, r.items, r.packs, r.verified, r.skipped, r.resent, r.open, r.failed, r.inDoubt, r.notReady, r.ended, r.complete, r.cancelled)
}

const saveRunSQL = `
/* run: save */
UPDATE oncemore.run
SET planned_at = CASE WHEN $2 THEN coalesce(planned_at, clock_timestamp()) END, cursor = $3, items = $4, packs = $5, verified = $6,
    skipped = $7, resent = $8, open = $9, failed = $10, in_doubt = $11, not_ready = $12, cancelled = $15,
    ended_at = CASE WHEN $13 THEN clock_timestamp() END, complete = $14
WHERE id = $1`

// pause is how long until the next visit: a quarter of the run's age, within bounds. While
// the plan is not whole, or a walk over its source is not, there is no pause.
func (r *run) pause() time.Duration {
	if !r.planned || r.walking {
		return 0
	}
	return min(max(r.age/4, 500*time.Millisecond), 30*time.Second)
}

func (r *run) story(it *item) string {
	switch {
	case r.complete:
		return fmt.Sprintf("run %d of %s %s is complete: %d done, %d skipped as done before", r.id, it.kind.name, it.Entity, r.items, r.skipped)
	case r.ended:
		return fmt.Sprintf("run %d of %s %s has ended: of %d %d failed, %d in doubt, %d not ready", r.id, it.kind.name, it.Entity, r.items, r.failed, r.inDoubt, r.notReady)
	case r.visits == 1:
		return fmt.Sprintf("run %d of %s %s is planned: %d to do, %d skipped as done", r.id, it.kind.name, it.Entity, r.items, r.skipped)
	}
	return fmt.Sprintf("run %d of %s %s goes on: at least %d of %d open", r.id, it.kind.name, it.Entity, r.open, r.items)
}
