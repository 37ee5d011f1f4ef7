package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// What operators want of runs, while they go on. Each of these writes, in the caller's
// transaction, what is wanted, and has the run's next visit come at once; the visit does
// it. A visit that is under way is not waited for, but for its last moment: what is wanted is
// then either seen by it, or sees what it has done. For that tx is to be READ COMMITTED.

// Errors of [PauseRun] and its siblings.
var (
	ErrNoRun    = errors.New("there is no such run")
	ErrRunEnded = errors.New("the run has ended")
	ErrNoRate   = errors.New("is a fan-out, which sends all at once and has no rate: limit its job type, or pause it")
)

// mostRate is far above what any database bears, and small enough to be counted with.
const mostRate = 1e9

// CheckRate returns what is wrong with a number of entities a second that a run is to send,
// in words for its author: it is from 0, as fast as the database bears it, to a billion.
func CheckRate(rate float64) error {
	if rate >= 0 && rate <= mostRate { // what is no number is neither
		return nil
	}
	return fmt.Errorf("a rate is a number of entities a second: it must not be negative, nor above %.0f; 0 is as fast as the database bears it", float64(mostRate))
}

// counted is a rate, or what is left of one, as it was stored: also by a program that did
// not check it. What no bound holds is none at all.
func counted(stored float64) float64 {
	if CheckRate(stored) != nil {
		return 0
	}
	return stored
}

// PauseRun has no more of the run begin: nothing is sent, and what is sent and not yet
// being worked is held back. What is being worked goes on to its end.
func PauseRun(ctx context.Context, tx pgx.Tx, run int64, why string) error {
	return control(ctx, tx, run, func(b *pgx.Batch) {
		b.Queue(wantSQL+`paused = $2`+ofRun, run, why)
		pgqueue.Hold(b, run)
		tell(b, run, "paused", why)
	})
}

// ResumeRun ends a pause, also one that a canary made, whose remaining entities then follow.
func ResumeRun(ctx context.Context, tx pgx.Tx, run int64) error {
	return control(ctx, tx, run, func(b *pgx.Batch) {
		b.Queue(wantSQL+`paused = NULL, canary = CASE WHEN paused LIKE 'canary: %' THEN 0 ELSE canary END`+ofRun, run)
		pgqueue.Unhold(b, run)
		tell(b, run, "resumed", "")
	})
}

// CancelRun ends the run: what has not begun of it is taken back, and is missing again, or
// failed again, as before. What is being worked, and what waits for another attempt, goes on.
//
// It needs neither the run's source nor its turn: a run whose visits were given up is visited
// once more, and one that is to begin later ends now.
func CancelRun(ctx context.Context, tx pgx.Tx, run int64, why string) error {
	err := control(ctx, tx, run, func(b *pgx.Batch) {
		b.Queue(wantSQL+`cancelled = $2`+ofRun, run, why)
		pgqueue.Hold(b, run)
		b.Queue(hastenRunSQL, run)
	})
	if err != nil {
		return err
	}
	if err := reviveCarrier(ctx, tx, run); err != nil {
		return fmt.Errorf("have run %d visited again: %w", run, err)
	}
	return nil
}

// reviveCarrier sends the message of a run whose visits were given up. Without it no visit
// would come, and what is held back of the run would stay so.
func reviveCarrier(ctx context.Context, tx pgx.Tx, run int64) error {
	m := queue.Message{Items: make([]queue.Item, 1), Priority: rerunPriority}
	var args string
	err := tx.QueryRow(ctx, reviveCarrierSQL, run).Scan(&m.Type, &m.Items[0].Entity, &args, &m.Run, &m.Epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // somebody carries it
	} else if err != nil {
		return err
	}
	m.Items[0].Args = json.RawMessage(args)
	b := &pgx.Batch{}
	pgqueue.New(nil, "").SendBatch(b, m) // the queue that every worker reads
	return tx.SendBatch(ctx, b).Close()
}

// SetRate changes how many entities the run sends in a second; 0 is as many as the
// database bears. A fan-out sends all it plans at once and has none: [ErrNoRate].
func SetRate(ctx context.Context, tx pgx.Tx, run int64, rate float64) error {
	if err := CheckRate(rate); err != nil {
		return err
	}
	// What a run is of never changes, so this needs no lock.
	var fanOut bool
	err := tx.QueryRow(ctx, `SELECT selection IS NULL FROM oncemore.run WHERE id = $1`, run).Scan(&fanOut)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // control says so
	case err != nil:
		return fmt.Errorf("look for run %d: %w", run, err)
	case fanOut:
		return fmt.Errorf("run %d %w", run, ErrNoRate)
	}
	return control(ctx, tx, run, func(b *pgx.Batch) {
		b.Queue(wantSQL+`rate = $2`+ofRun, run, rate)
		detail := "as fast as the database bears it"
		if rate > 0 {
			detail = strconv.FormatFloat(rate, 'g', -1, 64) + " a second"
		}
		tell(b, run, "rate", detail)
	})
}

const (
	// The row of a run that goes on, locked.
	lockControlSQL = `
/* run: lock its control */
INSERT INTO oncemore.run_control AS c (run) SELECT r.id FROM oncemore.run r WHERE r.id = $1 AND r.ended_at IS NULL
ON CONFLICT (run) DO UPDATE SET rate = c.rate`

	// What is wanted is put between.
	wantSQL = `/* run: want */ UPDATE oncemore.run_control SET `
	ofRun   = ` WHERE run = $1`

	// The claim that waits with the carrier, and then its message. A visit that is under way
	// has the claim locked, and is passed by.
	wakeRunSQL = `
/* run: wake */
WITH r AS MATERIALIZED (
    SELECT r.parent_type, r.parent_entity FROM oncemore.run r WHERE r.id = $1
), c AS MATERIALIZED (
    SELECT c.ctid AS tid FROM r JOIN oncemore.claim c ON c.job_type = r.parent_type AND c.entity = r.parent_entity
    WHERE c.owner IS NULL AND c.trouble = 'retrying' FOR UPDATE OF c SKIP LOCKED
), due AS (
    UPDATE oncemore.claim SET not_before = NULL, fence = nextval('oncemore.fence') WHERE ctid = ANY (ARRAY(SELECT c.tid FROM c)) RETURNING job_type
)
UPDATE oncemore.message m SET visible_at = now()
FROM r JOIN oncemore.job_type t ON t.id = r.parent_type
WHERE m.type = t.name AND m.entities = ARRAY[r.parent_entity] AND m.lock = 0 AND EXISTS (SELECT FROM due)`

	// A run that is to begin later has a message, and no claim yet.
	hastenRunSQL = `
/* run: hasten */
UPDATE oncemore.message m SET visible_at = now()
FROM oncemore.run r JOIN oncemore.job_type t ON t.id = r.parent_type
WHERE r.id = $1 AND m.type = t.name AND m.entities = ARRAY[r.parent_entity] AND m.lock = 0
AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = r.parent_type AND c.entity = r.parent_entity)`

	// A carrier that was given up, and has no message. Its attempts begin anew; done twice, the
	// second time finds it revived, so that there is one message: a second one would call a
	// fan-out again when its run has ended.
	reviveCarrierSQL = `
/* run: revive its carrier */
WITH c AS MATERIALIZED (
    SELECT c.ctid AS tid FROM oncemore.run r JOIN oncemore.claim c ON c.job_type = r.parent_type AND c.entity = r.parent_entity
    WHERE r.id = $1 AND c.owner IS NULL AND c.trouble = 'failed' FOR UPDATE OF c SKIP LOCKED
)
UPDATE oncemore.claim c SET trouble = 'retrying', not_before = NULL, attempts = 0, fence = nextval('oncemore.fence')
WHERE c.ctid = ANY (ARRAY(SELECT c.tid FROM c))
RETURNING (SELECT t.name FROM oncemore.job_type t WHERE t.id = c.job_type ORDER BY t.seen_at DESC, t.name LIMIT 1), c.entity, c.args, c.run, c.epoch`
)

func control(ctx context.Context, tx pgx.Tx, run int64, want func(*pgx.Batch)) error {
	// First the lock, then the look: a visit that ends the run has its control locked, and what
	// we held back of a run that has ended would stay so.
	if _, err := tx.Exec(ctx, lockControlSQL, run); err != nil {
		return fmt.Errorf("lock the control of run %d: %w", run, err)
	}
	var ended bool
	err := tx.QueryRow(ctx, `SELECT ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`, run).Scan(&ended)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("run %d: %w", run, ErrNoRun)
	case err != nil:
		return fmt.Errorf("look for run %d: %w", run, err)
	case ended:
		return fmt.Errorf("run %d: %w", run, ErrRunEnded)
	}
	b := &pgx.Batch{}
	want(b)
	b.Queue(wakeRunSQL, run)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("control run %d: %w", run, err)
	}
	return nil
}

// SetBrake is the kill switch: re-runs of a job type, or all of them (""), send nothing
// more until [ReleaseBrake]. Any of the names of a job type means it.
func SetBrake(ctx context.Context, tx pgx.Tx, jobType, why, actor string) error {
	_, err := tx.Exec(ctx, setBrakeSQL, jobType, why, actor)
	if err != nil {
		return fmt.Errorf("stop runs: %w", err)
	}
	return nil
}

// ReleaseBrake ends what SetBrake began for the same job type, by whichever of its names. It is
// no error if nothing was.
func ReleaseBrake(ctx context.Context, tx pgx.Tx, jobType string) error {
	if _, err := tx.Exec(ctx, releaseBrakeSQL, jobType); err != nil {
		return fmt.Errorf("let runs go on: %w", err)
	}
	return nil
}

const (
	setBrakeSQL = `
/* run: stop all */
INSERT INTO oncemore.brake AS b (scope, reason, actor) VALUES ($1, $2, $3)
ON CONFLICT (scope) DO UPDATE SET reason = excluded.reason, actor = excluded.actor, at = clock_timestamp()`

	// A type may have been renamed since.
	releaseBrakeSQL = `
/* run: release */
DELETE FROM oncemore.brake b
WHERE b.scope = $1 OR b.scope IN (SELECT o.name FROM oncemore.job_type t JOIN oncemore.job_type o ON o.id = t.id WHERE t.name = $1)`
)
