package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Transition is the work of taking an entity from one state to another, by a conditional
// update of the caller's own row:
//
//	t := ledger.Transition{Type: &orderMoved, Entity: id, From: "cart", To: "ordered", Version: 3}
//	moved, err := t.Apply(ctx, tx,
//		func() (pgconn.CommandTag, error) {
//			return tx.Exec(ctx, `UPDATE orders SET state = $3, version = version + 1
//				WHERE id = $1 AND state = $2 AND version = $4`, id, t.From, t.To, t.Version)
//		},
//		func() pgx.Row { return tx.QueryRow(ctx, `SELECT state, version FROM orders WHERE id = $1`, id) })
//
// Its identity is (entity, from, to): A→B and D→B are different work. That it was done is a
// fact, committed together with the update.
//
// # Versions
//
// Version is that of the row as the caller saw it: it begins at 1 or above, and every update
// of the row raises it. With a Version, a machine may have loops: A→B at version 3 and, after
// B→A, A→B at version 5 are each done once. (The fact has the version as its
// SourceVersion. A higher one makes it stale, and replaces it under a new epoch; the replaced
// one is kept, so that a late repeat at version 3 is known as one.)
//
// Without a Version (0) there is nothing to tell a repeat from a new wish: a transition is
// then done once in the entity's life, and when the entity has come back to From, asking
// again changes nothing. That is right for a machine without loops, and for no other.
type Transition struct {
	Type     *Type // its Effect is InTransaction; it has its number from Ledger.Register
	Entity   string
	From, To string
	Version  int64 // of the row, which the update must find; 0: not checked
}

// Key is the entity of the fact: Entity, From and To, joined as jobs.Key does.
func (t Transition) Key() string {
	return KeyPart(t.Entity) + "/" + KeyPart(t.From) + "/" + KeyPart(t.To)
}

// KeyPart is s as a part of an entity that is made of several, with slashes between them:
// what could be taken for such a slash is escaped.
func KeyPart(s string) string { return keyPart.Replace(s) }

var keyPart = strings.NewReplacer("%", "%25", "/", "%2F")

// A ConflictError says that a transition was not applied, and why no retry would help: the
// row is not, or no longer, as the caller saw it. Nothing was changed. A job that returns
// it has failed for good; an HTTP handler answers 409; who still wants it looks at the row
// again, and decides anew.
type ConflictError struct {
	Entity                        string
	From, To                      string
	ExpectedVersion, FoundVersion int64
	FoundState                    string // empty: there is no such row
}

func (e *ConflictError) Error() string {
	at := func(state string, version int64) string {
		if version == 0 {
			return fmt.Sprintf("%q", state)
		}
		return fmt.Sprintf("%q at version %d", state, version)
	}
	found := "there is no such row"
	if e.FoundState != "" {
		found = "found it " + at(e.FoundState, e.FoundVersion)
	}
	return fmt.Sprintf("take %q to %q: expected it %s, %s", e.Entity, e.To, at(e.From, e.ExpectedVersion), found)
}

// Apply makes the transition in the caller's transaction, which is READ COMMITTED, and tells
// whether it was applied now. False without an error is a repeat: it was applied before,
// and nothing was changed. A [*ConflictError] says that the row is elsewhere; then too
// nothing was changed, and the transaction can go on. After any other error roll back.
//
// update changes the row if it is in From, and at Version where there is one, and must change
// at most one. found reads the row's state and version (0 where it has none), for a
// conflict.
//
// Of any number of transactions that race for the same transition exactly one applies it;
// the others wait at the row, as long as their ctx allows, and then find a repeat. Of
// those that race for different ones out of the same state one applies, the others find a
// conflict. After a crash, or an answer to COMMIT that was lost, call it again.
//
// In the body of a DoTx job of that Type whose entity is t's Key, the worker has recorded the
// fact, in this very transaction. Apply sees that, and what is left to it is the update.
func (t Transition) Apply(ctx context.Context, tx pgx.Tx, update func() (pgconn.CommandTag, error), found func() pgx.Row) (applied bool, err error) {
	fail := func(doing string, err error) (bool, error) {
		return false, fmt.Errorf("take %q from %q to %q: %s%w", t.Entity, t.From, t.To, doing, err)
	}
	if err := t.check(); err != nil {
		return fail("", err)
	}
	was, err := t.happened(ctx, tx)
	if err != nil || was == before {
		return false, err
	}
	tag, err := update()
	switch n := tag.RowsAffected(); {
	case err != nil:
		return fail("update: ", err)
	case n > 1:
		return fail("", fmt.Errorf("the update changed %d rows, and must name one", n))
	case n == 0 && was == never:
		// We may have waited at the row for who did the same. Its fact is committed by now.
		if was, err = t.happened(ctx, tx); err != nil || was == before {
			return false, err
		}
		fallthrough
	case n == 0:
		c := &ConflictError{Entity: t.Entity, From: t.From, To: t.To, ExpectedVersion: t.Version}
		if err := found().Scan(&c.FoundState, &c.FoundVersion); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fail("read its state: ", err)
		}
		return false, c
	case was == here:
		return true, nil
	}
	var recorded int
	err = tx.QueryRow(ctx, transitionSQL, t.Type.ID, t.Key(), t.Version, version(t.Type)).Scan(&recorded)
	if errors.Is(err, pgx.ErrNoRows) {
		// The fact has come to be without the row. What we did to that goes with the transaction,
		// and the next try finds the fact.
		err = ErrChanged
	}
	if err != nil {
		return fail("record it: ", err)
	}
	return true, nil
}

func (t Transition) check() error {
	switch {
	case t.Type == nil || t.Type.ID == 0:
		return errors.New("its Type is not registered: see Ledger.Register")
	case t.Entity == "" || t.From == "" || t.To == "":
		return errors.New("an entity, a state and another state are needed: Entity, From and To must not be empty")
	case t.Version < 0:
		return fmt.Errorf("the version %d is negative", t.Version)
	}
	return checkName("key", t.Key())
}

// When a transition was recorded.
type when byte

const (
	never  when = iota
	before      // this transaction
	here        // in this transaction: by the worker whose job this is
)

// happened tells whether, and when, t was recorded at this very version.
func (t Transition) happened(ctx context.Context, tx pgx.Tx) (w when, err error) {
	var is, own bool
	b := &pgx.Batch{}
	b.Queue(`SET LOCAL enable_seqscan = off`) // as steadyPlans, for one table
	b.Queue(happenedSQL, t.Type.ID, t.Key(), t.Version).QueryRow(func(r pgx.Row) error {
		if err := r.Scan(&is, &own); !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		return nil
	})
	b.Queue(`SET LOCAL enable_seqscan TO DEFAULT`)
	switch err := tx.SendBatch(ctx, b).Close(); {
	case err != nil:
		return never, fmt.Errorf("look whether %q went from %q to %q: %w", t.Entity, t.From, t.To, explain(err))
	case own:
		return here, nil
	case is:
		return before, nil
	}
	return never, nil
}

// That the fact has a higher version does not say that this one was applied: the row may
// have gone round without it. Only then the facts of before are read.
const happenedSQL = `
SELECT CASE WHEN $3 = 0 OR coalesce(l.source_version, 0) = $3 THEN true
            WHEN l.source_version > $3 THEN EXISTS (SELECT FROM oncemore.ledger_history h
                                                    WHERE h.job_type = $1 AND h.entity = $2 AND h.source_version = $3)
            ELSE false END,
       coalesce(` + ownFactSQL + `, false)
FROM oncemore.ledger l WHERE l.job_type = $1 AND l.entity = $2`

const transitionSQL = `
/* transition: record */
INSERT INTO oncemore.ledger AS l (job_type, entity, source_version, version, fingerprint, attempts, evidence)
VALUES ($1, $2, nullif($3::bigint, 0), $4, 0, 1, 't')
ON CONFLICT (job_type, entity) DO UPDATE
SET version = excluded.version, fingerprint = excluded.fingerprint, attempts = excluded.attempts, run = NULL,
    source_version = excluded.source_version, evidence = excluded.evidence, completed_at = excluded.completed_at, epoch = nextval('oncemore.epoch')
WHERE coalesce(l.source_version, 0) < excluded.source_version
RETURNING 1`
