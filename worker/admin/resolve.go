package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// changedMeanwhile is why most of what is left alone is.
const changedMeanwhile = "has changed since it was shown"

var errNoReason = errors.New("a reason is needed: it is kept for those who ask later")

// Resolve ends the doubt about what [Operator.InDoubt] has shown, on the actor's word. With
// done the effect happened, and a fact says so. Else it surely did not: the entity is due
// again at once, with a message that carries it and as many attempts left as it had. What came
// as a request is done when its client sends it again: no message is sent of it.
//
// It compares the fence that was shown: of two operators, or an operator and a done-check
// that learned the answer, one wins, and the other finds the entity among what is left.
// The reason is required.
func (op *Operator) Resolve(ctx context.Context, s *Shown, done bool, reason string) (*Result, error) {
	if reason == "" {
		return nil, errNoReason
	}
	as := "as not applied"
	if done {
		as = "as done"
	}
	verdict := ledger.Verdict{Done: done, Evidence: ledger.ByOperator, By: op.Actor, Why: reason}
	return op.do(ctx, AuditEntry{Action: "resolve", Type: s.Type, Reason: reason, Detail: as + ": " + s.How}, func(a *act) error {
		t, err := FindType(ctx, a.Tx, op.Set, s.Type)
		if err != nil {
			return err
		}
		return s.inChunks(func(entries []Entry) error { return op.resolveChunk(ctx, a, &t.Type, entries, verdict) })
	})
}

func (op *Operator) resolveChunk(ctx context.Context, a *act, t *ledger.Type, entries []Entry, v ledger.Verdict) error {
	doubts, err := readDoubts(ctx, a.Tx, t, entries)
	if err != nil {
		return err
	}
	changed, err := ledger.ResolveAll(ctx, a.Tx, t, doubts, v)
	if err != nil {
		return err
	}
	resolved := make(map[int64]bool, len(doubts)) // by fence
	var again []queue.Message
	for _, o := range doubts {
		if slices.Contains(changed, o) {
			continue
		}
		resolved[o.Fence] = true
		if !v.Done && !t.Requests {
			again = append(again, op.carry(t, o.Entity, o.Args, o.Run, o.Epoch))
		}
	}
	for _, e := range entries {
		if resolved[e.Fence] {
			a.did(e.Entity)
		} else {
			a.leave(e.Entity, changedMeanwhile)
		}
	}
	if err := op.carryOn(ctx, a, again); err != nil {
		return fmt.Errorf("send %d entities of %s again: %w", len(again), t.Name, err)
	}
	return nil
}

// readDoubts reads what is still in doubt, or a stranded request, and as it was shown. Nothing
// is locked by that: ResolveAll compares the fence once more.
func readDoubts(ctx context.Context, tx pgx.Tx, t *ledger.Type, entries []Entry) ([]*ledger.Open, error) {
	entities, fences := keysOf(entries)
	var doubts []*ledger.Open
	b := &pgx.Batch{}
	b.Queue(ledger.PlannerSettings)
	b.Queue(doubtsSQL, t.ID, entities, fences, t.Requests).Query(func(rows pgx.Rows) (err error) {
		doubts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*ledger.Open, error) {
			o := &ledger.Open{}
			return o, row.Scan(&o.Trouble, &o.Entity, &o.Fence, &o.Fingerprint, &o.SourceVersion, &o.Run, &o.Epoch, &o.Attempts, &o.Args)
		})
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("look at %d doubts of %s: %w", len(entries), t.Name, err)
	}
	return doubts, nil
}

// One by one by primary key: for an array of entities the planner may read all of the type,
// where it takes the table for small.
const doubtsSQL = `
SELECT coalesce(c.trouble, ''), c.entity, c.fence, c.fingerprint, c.source_version, c.run, c.epoch, c.attempts, c.args
FROM unnest($2::text[], $3::bigint[]) AS w(entity, seen)
CROSS JOIN LATERAL (SELECT * FROM oncemore.claim c
                    WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.seen
                    AND (c.owner IS NULL AND c.trouble = 'in_doubt'
                         OR $4 AND EXISTS (SELECT FROM oncemore.worker w WHERE w.id = c.owner AND ` + areStranded + `)) OFFSET 0) c`

// carry is the message of another attempt on an open entity. Each has one of its own: one
// that kills its worker takes no other with it.
func (op *Operator) carry(t *ledger.Type, entity, args string, run, epoch int64) queue.Message {
	return queue.Message{Type: t.Name, Items: []queue.Item{{Entity: entity, Args: []byte(args)}}, Run: run, Epoch: epoch, Priority: op.priority(t.Name)}
}
