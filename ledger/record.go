package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Record inserts facts in the caller's transaction, and tells which of them are new: the
// app's own way to say "this is done", for work that it did without a job, or to adopt
// what an older system did. Do it together with the effect, and the two commit together.
// t has its number from [Ledger.Register].
//
// It waits for another transaction that is recording the same entity. Where the fact is
// there already, or comes to be while it waits, fresh is false and nothing changes: an
// app that finds its work done by somebody else rolls back. That goes for a fact of an older
// SourceVersion, or of a lower Epoch, as well: newer work is enqueued, or is a [Transition].
func Record(ctx context.Context, tx pgx.Tx, t *Type, ws ...Want) (fresh []bool, err error) {
	outs := make([]*Outcome, len(ws))
	index := make(map[string]int, len(ws))
	for i, w := range ws {
		if err := checkName("entity", w.Entity); err != nil {
			return nil, fmt.Errorf("record facts of %s: %w", t.Name, err)
		}
		outs[i] = &Outcome{Want: w, Attempts: 1, Evidence: Adopted}
		if _, twice := index[w.Entity]; twice {
			return nil, fmt.Errorf("record facts of %s: entity %q is named twice", t.Name, w.Entity)
		}
		index[w.Entity] = i
	}
	fresh = make([]bool, len(ws))
	c := factColumns(inKeyOrder(outs))
	statement, params := c.first(t)
	rows, err := tx.Query(ctx, statement+doNothing+` RETURNING entity`, params...)
	if err == nil {
		var entity string
		_, err = pgx.ForEachRow(rows, []any{&entity}, func() error { fresh[index[entity]] = true; return nil })
	}
	if err != nil {
		return nil, fmt.Errorf("record %d facts of %s: %w", len(ws), t.Name, err)
	}
	return fresh, nil
}

// ErrBusy says that another transaction is about to record the same entity, and did not
// end in the time given.
var ErrBusy = errors.New("another transaction is completing this work")

// Hold records outs as completed, first thing in a transaction whose effect is to
// follow: the fact is the lock. Without a claim (Fence 0) the first insert of the fact
// wins; with one, the claim is deleted by its fence and the fact inserted, in one
// statement. mine tells, in the order of outs, whose effect is ours to make; for the
// others the fence was lost or the fact is there, and the transaction has changed
// nothing that matters.
//
// It waits for a transaction that is recording the same entity, at most patience, and
// then returns [ErrBusy]; the transaction is then of no more use. The settings it makes
// for itself are back at their defaults when it returns.
// The Epoch of an outcome that is ours becomes that of its fact: it was drawn now where the
// fact replaces one of an older source.
func Hold(ctx context.Context, tx pgx.Tx, t *Type, patience time.Duration, outs []*Outcome) (mine []bool, err error) {
	b := &pgx.Batch{}
	mine = QueueHold(b, t, patience, outs)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		if IsBusy(err) {
			err = ErrBusy
		}
		return nil, fmt.Errorf("hold %d facts of %s: %w", len(outs), t.Name, err)
	}
	return mine, nil
}

// QueueHold queues on b what [Hold] does, for who sends it together with the BEGIN before it.
// mine tells when the batch has run; where that fails, [IsBusy] knows an [ErrBusy].
func QueueHold(b *pgx.Batch, t *Type, patience time.Duration, outs []*Outcome) (mine []bool) {
	mine = make([]bool, len(outs))
	index := make(map[string]int, len(outs))
	var first, claimed []*Outcome
	for i, o := range outs {
		index[o.Entity] = i
		if o.Fence == 0 {
			first = append(first, o)
		} else {
			claimed = append(claimed, o)
		}
	}
	won := func(rows pgx.Rows) error {
		var entity string
		var epoch int64
		_, err := pgx.ForEachRow(rows, []any{&entity, &epoch}, func() error {
			i := index[entity]
			mine[i], outs[i].Epoch = true, epoch
			return nil
		})
		return err
	}
	b.Queue(`/* fact: hold */ SELECT set_config('lock_timeout', $1, true)`, milliseconds(patience))
	if len(first) > 0 {
		c := factColumns(inKeyOrder(first))
		statement, params := c.first(t)
		b.Queue(statement+doNothing+` RETURNING entity, coalesce(epoch, 0)`, params...).Query(won)
	}
	if len(claimed) > 0 {
		c := factColumns(inKeyOrder(claimed))
		b.Queue(steadyPlans)
		b.Queue(completeCTE+`SELECT fact.entity, coalesce(fact.epoch, 0) FROM fact`, t.ID, version(t), c.entity, c.fp, c.attempts, c.run, c.source, c.evidence, c.fence, c.epoch).Query(won)
		queueUsualPlans(b)
	}
	b.Queue(`SET LOCAL lock_timeout TO DEFAULT`)
	return mine
}

// QueueHoldFirst queues on b, in one statement, what [Hold] does for a w without a claim, for
// requests that count their statements. After it the server ends the transaction when nothing
// comes of it for so long as idle. Where mine is false when the batch has run, the transaction is
// to be rolled back: it would go on waiting for locks with patience.
func QueueHoldFirst(b *pgx.Batch, t *Type, patience, idle time.Duration, w Want) (mine *bool) {
	mine = new(bool)
	b.Queue(holdFirstSQL, t.ID, version(t), w.Entity, w.Fingerprint, w.Run, w.SourceVersion, milliseconds(patience), milliseconds(idle)).Query(func(rows pgx.Rows) error {
		*mine = rows.Next()
		return nil // the batch has the error
	})
	return mine
}

// The settings are made when the row to be inserted is read, and so before its insertion can
// wait. A row that was inserted takes the first of them back (set_config to NULL is SET LOCAL
// ... TO DEFAULT).
const holdFirstSQL = `
/* fact: hold */
INSERT INTO oncemore.ledger (job_type, version, entity, fingerprint, run, source_version, attempts, evidence)
SELECT $1, $2, $3, $4, nullif($5::bigint, 0), nullif($6::bigint, 0), 1, 't'
FROM (SELECT set_config('lock_timeout', $7, true), set_config('idle_in_transaction_session_timeout', $8, true) OFFSET 0) AS limits
ON CONFLICT (job_type, entity) DO NOTHING
RETURNING set_config('lock_timeout', NULL, true)`

// BoundLocks bounds how long each statement behind it in the transaction waits for the lock of somebody
// else, who may be frozen, while others wait for us. Then the batch fails, and [IsBusy] says so.
func BoundLocks(b *pgx.Batch, patience time.Duration) {
	b.Queue(`SELECT set_config('lock_timeout', $1, true)`, milliseconds(patience))
}

// milliseconds is d as a setting of Postgres; there 0 is no bound.
func milliseconds(d time.Duration) string { return strconv.FormatInt(max(1, d.Milliseconds()), 10) }

// IsBusy tells whether a batch failed because somebody else had a lock, mostly that of the fact,
// for longer than the patience of [QueueHold], [QueueHoldFirst] or [BoundLocks].
func IsBusy(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

// queueUsualPlans ends what steadyPlans began, in a transaction that goes on to the app.
func queueUsualPlans(b *pgx.Batch) {
	for _, setting := range []string{"enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"} {
		b.Queue(`SET LOCAL ` + setting + ` TO DEFAULT`)
	}
}

// ErrChanged says that an entity is no longer as it was shown: look again, then decide.
var ErrChanged = errors.New("the claim has changed since it was shown")

// A Verdict is what an operator, or a done-check that learned the answer, says of an
// entity in doubt.
type Verdict struct {
	Done     bool     // the effect happened; else it surely did not, and may be had
	Evidence Evidence // ByOperator or DoneCheck
	By, Why  string   // who says so, and on what grounds; kept among the attempts
	Result   []byte   // Done: what the work returned, as an [Outcome] has it; nil: none
}

// Resolve ends the doubt about o, or settles any other open entity that nobody holds,
// in the caller's transaction. It compares the fence that was shown: when the row has
// changed since, it returns [ErrChanged] and does nothing. After a verdict of "not
// done" the entity waits for another attempt, due at once; the caller sends its message
// (o has the arguments) in the same transaction.
func Resolve(ctx context.Context, tx pgx.Tx, t *Type, o *Open, v Verdict) error {
	changed, err := ResolveAll(ctx, tx, t, []*Open{o}, v)
	if err == nil && len(changed) > 0 {
		err = fmt.Errorf("resolve %s %q: %w", t.Name, o.Entity, ErrChanged)
	}
	return err
}

// ResolveAll is [Resolve] for many different entities at once. It returns those that have
// changed since they were shown; to them it did nothing.
func ResolveAll(ctx context.Context, tx pgx.Tx, t *Type, os []*Open, v Verdict) (changed []*Open, err error) {
	said, state := "not done", ToRetry
	if v.Done {
		said, state = "done", Completed
	}
	shown := map[*Outcome]*Open{}
	var outs []*Outcome
	var entities []string
	var fences []int64
	for _, o := range slices.SortedFunc(slices.Values(os), func(a, b *Open) int { return cmp.Compare(a.Entity, b.Entity) }) {
		if o.Held() {
			changed = append(changed, o)
			continue
		}
		out := &Outcome{Want: Want{Entity: o.Entity, Fingerprint: o.Fingerprint, SourceVersion: o.SourceVersion, Run: o.Run, Epoch: o.Epoch},
			State: state, Fence: o.Fence, Attempts: o.Attempts, Evidence: v.Evidence, Result: v.Result,
			Again: true} // a fact that is there must not fail the caller's transaction
		shown[out] = o
		outs, entities, fences = append(outs, out), append(entities, o.Entity), append(fences, o.Fence)
	}
	b := &pgx.Batch{}
	b.Queue(steadyPlans)
	if !v.Done {
		b.Queue(absentSQL, t.ID, entities, fences)
	}
	Settle(b, t, 0, outs)
	queueUsualPlans(b)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("resolve %d entities of %s: %w", len(os), t.Name, err)
	}
	var notes []*Outcome
	for _, out := range outs {
		if out.Refused {
			changed = append(changed, shown[out])
			continue
		}
		note := *out
		note.State, note.Class, note.Error = "resolved", cmp.Or(string(shown[out].Trouble), "stranded"), fmt.Sprintf("%s, says %s: %s", said, v.By, v.Why)
		notes = append(notes, &note)
	}
	b = &pgx.Batch{}
	queueAttempts(b, t, 0, notes)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("resolve %d entities of %s: %w", len(os), t.Name, err)
	}
	return changed, nil
}

// The verdict that nothing happened ends what earlier attempts were evidence of.
const absentSQL = `
/* claim: deny the effect */
UPDATE oncemore.claim c SET first_claimed_at = NULL
FROM unnest($2::text[], $3::bigint[]) AS w(entity, fence)
WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.fence`

// Opens yields the open entities of t with the given trouble, or all of them when it is
// [NoTrouble], in key order after the entity given, up to limit.
func (l *Ledger) Opens(ctx context.Context, t *Type, trouble Trouble, after string, limit int) iter.Seq2[*Open, error] {
	return func(yield func(*Open, error) bool) {
		rows, err := l.pool.Query(ctx, opensSQL+`
WHERE c.job_type = $1 AND c.entity > $2 AND ($3 = '' OR c.trouble = $3) ORDER BY c.job_type, c.entity LIMIT $4`, t.ID, after, string(trouble), limit)
		if err != nil {
			yield(nil, fmt.Errorf("list what is open of %s: %w", t.Name, explain(err)))
			return
		}
		defer rows.Close()
		for rows.Next() {
			o, _, err := scanOpen(rows)
			if err != nil {
				yield(nil, fmt.Errorf("list what is open of %s: %w", t.Name, err))
				return
			}
			if !yield(o, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, fmt.Errorf("list what is open of %s: %w", t.Name, err))
		}
	}
}

// HeldBy lists the claims of the given types that a worker holds, by type: entity, fence,
// attempts. It reads all claims, so it is for now and then.
func (l *Ledger) HeldBy(ctx context.Context, owner int64, types []int32) (map[int32][]*Open, error) {
	rows, err := l.pool.Query(ctx, heldSQL, types, owner)
	held := map[int32][]*Open{}
	if err == nil {
		var jobType int32
		var o Open
		_, err = pgx.ForEachRow(rows, []any{&jobType, &o.Entity, &o.Fence, &o.Attempts}, func() error {
			held[jobType] = append(held[jobType], &Open{Entity: o.Entity, Fence: o.Fence, Attempts: o.Attempts, Owner: owner})
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("list what worker %d holds: %w", owner, explain(err))
	}
	return held, nil
}

const heldSQL = `SELECT c.job_type, c.entity, c.fence, c.attempts FROM oncemore.claim c WHERE c.job_type = ANY ($1::int[]) AND c.owner = $2`
