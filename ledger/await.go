package ledger

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrNoResult says that work is done, and that there is no result to show: it returned none,
// or was adopted, or the result has expired and was deleted.
var ErrNoResult = errors.New("the work is done, and there is no result of it")

// ErrResultExpired is the [ErrNoResult] of work whose result is known to have been there. (It
// is known until somebody deletes it.) That is no permission to do the work again.
var ErrResultExpired = fmt.Errorf("%w: it has expired", ErrNoResult)

// An UndoneError is how waiting for work ends that is not done.
type UndoneError struct {
	JobType, Entity string
	Reason          Reason // where the work stood; empty: the database has not said
	Open            *Open  // its claim; nil: none
	Err             error  // what ended the waiting; nil: the Reason, after which nothing would come by itself
}

func (e *UndoneError) Error() string {
	s := fmt.Sprintf("await %s %q: it is %s", e.JobType, e.Entity, e.Reason)
	if e.Reason == "" {
		s = fmt.Sprintf("await %s %q: the ledger was not read", e.JobType, e.Entity)
	}
	if e.Open != nil && e.Open.Error != "" {
		s += fmt.Sprintf(" after %d attempts: %s", e.Open.Attempts, Sanitize(e.Open.Error, 300))
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns what ended the waiting.
func (e *UndoneError) Unwrap() error { return e.Err }

// Await waits until there is a fact that satisfies w, and returns the result that is stored
// with it. The fact may be of any epoch, unless w names one: who waits for forced work says
// its Epoch. It may be there already. Nothing has to be enqueued: Await asks for nothing.
//
// These end it at once:
//
//	done                             the result, or [ErrNoResult]; [ErrResultExpired] is one
//	conflict, failed, in_doubt       an [*UndoneError] with that Reason; an operator, or a done-check
//	                                 that learns the answer, may still change it: call Await again
//
// It goes on through missing, retry, ongoing, waiting, forced, stale_version and
// stale_source; through the death of the worker, whose work another takes over; and while
// the database is away, for a minute. When ctx ends it returns an UndoneError whose Reason is
// where the work stood when it was last seen, and which wraps ctx's cause.
//
// It holds no connection while it waits. All who wait in a process, on the same pool, share
// one read by primary key: after 20 ms, and then ever more rarely, at last once in a second. A
// worker in the same process wakes them at once; others send nothing, for that would be a cost
// of every job.
//
// What no work can be called, such as an entity with a NUL, it refuses at once.
func (l *Ledger) Await(ctx context.Context, jobType string, w Want) (json.RawMessage, error) {
	// Before the room: the database would refuse a read with such a name in it, for all who share it.
	if err := cmp.Or(checkName("job type", jobType), checkName("entity", w.Entity)); err != nil {
		return nil, fmt.Errorf("await work of %.40q: %w", jobType, err)
	}
	f, err := l.wait(ctx, waitKey{jobType, w.Entity}, w)
	switch {
	case err != nil:
		undone := &UndoneError{JobType: jobType, Entity: w.Entity, Err: err}
		if f != nil {
			undone.Reason, undone.Open = f.reason(w), f.open
		}
		return nil, undone
	case f.reason(w) != Done:
		return nil, &UndoneError{JobType: jobType, Entity: w.Entity, Reason: f.reason(w), Open: f.open}
	case f.value == nil && f.expired:
		return nil, fmt.Errorf("await %s %q: %w", jobType, w.Entity, ErrResultExpired)
	case f.value == nil:
		return nil, fmt.Errorf("await %s %q: %w", jobType, w.Entity, ErrNoResult)
	}
	return json.RawMessage(f.value), nil
}

// A finding is what the ledger has of an entity at one moment.
type finding struct {
	fact    *Fact
	open    *Open
	now     time.Time
	value   []byte // the result of the fact; nil: none
	expired bool   // there is one
}

// reason decides as everybody does. Whoever waits does not know the code, so what class the
// effect has, and which version is the newest, is left to the workers: they say in the claim
// that it is in doubt.
func (f *finding) reason(w Want) Reason {
	return Decide(&Type{Effect: InTransaction}, w, f.fact, f.open, f.now)
}

// final tells whether nothing would come by itself any more.
func (f *finding) final(w Want) bool {
	switch f.reason(w) {
	case Done, Conflict, Failed, InDoubt:
		return true
	}
	return false
}

// A waitKey is what is waited for.
type waitKey struct{ jobType, entity string }

// findAll reads what the ledger has of all keys, in their order.
func (l *Ledger) findAll(ctx context.Context, keys []waitKey) ([]finding, error) {
	types, entities := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		types[i], entities[i] = k.jobType, k.entity
	}
	found := make([]finding, len(keys))
	err := l.RunBatch(ctx, func(b *pgx.Batch) {
		b.Queue(awaitedSQL, types, entities).Query(func(rows pgx.Rows) error {
			for rows.Next() {
				if err := scanFinding(rows, found); err != nil {
					return err
				}
			}
			return rows.Err()
		})
	})
	if err != nil {
		return nil, fmt.Errorf("look at %d entities that are waited for: %w", len(keys), explain(err))
	}
	return found, nil
}

// One statement, so that what moves from claim to ledger is seen in one of them. A name that
// is not registered yet has neither.
const awaitedSQL = `
SELECT w.n, clock_timestamp(),
       l.completed_at, l.fingerprint, coalesce(l.epoch, 0), coalesce(l.source_version, 0),
       c.fence, coalesce(c.owner, 0), o.dead_at, c.not_before, c.attempts, coalesce(c.trouble, ''), c.fingerprint, c.epoch, c.source_version, coalesce(c.error, ''),
       CASE WHEN r.expires_at > now() THEN r.value END, coalesce(r.expires_at <= now(), false)
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(name, entity, n)
CROSS JOIN LATERAL (SELECT t.id FROM oncemore.job_type t WHERE t.name = w.name OFFSET 0) t
LEFT JOIN LATERAL (SELECT l.* FROM oncemore.ledger l WHERE l.job_type = t.id AND l.entity = w.entity OFFSET 0) l ON true
LEFT JOIN LATERAL (SELECT c.* FROM oncemore.claim c WHERE c.job_type = t.id AND c.entity = w.entity OFFSET 0) c ON true
LEFT JOIN LATERAL (SELECT o.dead_at FROM oncemore.worker o WHERE o.id = c.owner OFFSET 0) o ON true
LEFT JOIN LATERAL (SELECT r.value, r.expires_at FROM oncemore.result r
                   WHERE r.job_type = t.id AND r.entity = w.entity AND r.epoch = coalesce(l.epoch, 0) OFFSET 0) r ON l.entity IS NOT NULL`

func scanFinding(rows pgx.Rows, found []finding) error {
	var (
		n                            int64
		now                          time.Time
		completedAt, deadAt, notBef  *time.Time
		factPrint, fence, openPrint  *int64
		openEpoch, openSource        *int64
		factEpoch, factSource, owner int64
		attempts                     *int
		trouble                      Trouble
		failure                      string
		value                        *string
		expired                      bool
	)
	if err := rows.Scan(&n, &now, &completedAt, &factPrint, &factEpoch, &factSource,
		&fence, &owner, &deadAt, &notBef, &attempts, &trouble, &openPrint, &openEpoch, &openSource, &failure, &value, &expired); err != nil {
		return err
	}
	f := &found[n-1]
	f.now, f.expired = now, expired
	if completedAt != nil {
		f.fact = &Fact{CompletedAt: *completedAt, Fingerprint: *factPrint, Epoch: factEpoch, SourceVersion: factSource}
	}
	if fence != nil {
		f.open = &Open{Fence: *fence, Owner: owner, OwnerDeadAt: nullTime(deadAt), NotBefore: nullTime(notBef), Attempts: *attempts,
			Trouble: trouble, Fingerprint: *openPrint, Epoch: *openEpoch, SourceVersion: *openSource, Error: failure}
	}
	if value != nil {
		f.value = []byte(*value)
	}
	return nil
}
