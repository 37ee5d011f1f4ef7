package ledger

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Candidate is an item that a look said is to run.
type Candidate struct {
	Want
	Standing
	Args string
}

// A Claim is the durable right to work on one entity, and the evidence that somebody
// set out to. Its fence is what a completion must show.
type Claim struct {
	Won      bool // false: somebody else was faster, or the work turned out done; look again
	Fence    int64
	Epoch    int64 // at least the wanted one; a new one where a stale fact is to be replaced
	Attempts int   // this one included
}

// claimPatience is how long all claims that are made or dropped together wait for a transaction that is
// about to complete or take back one of them, and may be frozen in that.
const claimPatience = 5 * time.Second

// Claim claims what it can of cs, all of different entities, for the worker owner, and
// answers in their order. The
// claims are committed when it returns without error: nobody may act on less.
//
// It compares and sets. A candidate without a claim is inserted unless somebody was
// faster; one with a claim is taken over only if its fence is still the one that was
// decided on, and every change of a claim draws a new fence. So Decide's answer cannot
// be outrun, and SQL decides nothing.
//
// Then it looks again, in the same READ COMMITTED transaction and so with a fresh
// snapshot. A completion moves an entity from claim to ledger at one moment. Once our
// claim is in place nobody else can complete the entity under a fence, so the facts
// read now are the truth; claims of what turned out done are given back. Where a fact
// was to be replaced, and somebody else has replaced it, that is part of the transaction.
//
// A crash before the commit leaves nothing. After it, the claims are found with a dead
// owner, and their effect class says what that means. On an error the claims may still
// be committed, when only the answer was lost. They are then this worker's own, and it is
// this worker that must find them when their messages come again.
func (l *Ledger) Claim(ctx context.Context, t *Type, owner int64, cs []Candidate) ([]Claim, error) {
	order := make([]int, len(cs)) // in key order, so that two claims never lock in opposite orders
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(cs[a].Entity, cs[b].Entity) })

	var fresh, taken claimColumns
	var stale []string // of fresh, those that are to replace a fact
	var seen []int64   // the epochs of those facts
	entities := make([]string, 0, len(cs))
	index := make(map[string]int, len(cs))
	for _, i := range order {
		c := &cs[i]
		entities, index[c.Entity] = append(entities, c.Entity), i
		if c.Open == nil {
			fresh.add(c)
			if c.Fact != nil {
				stale, seen = append(stale, c.Entity), append(seen, c.Fact.Epoch)
			}
		} else {
			taken.add(c)
		}
	}
	out := make([]Claim, len(cs))
	var facts map[string]*Fact
	err := l.RunBatch(ctx, func(b *pgx.Batch) {
		clear(out)
		facts = nil
		BoundLocks(b, claimPatience)
		won := func(rows pgx.Rows) error {
			for rows.Next() {
				var entity string
				c := Claim{Won: true}
				if err := rows.Scan(&entity, &c.Fence, &c.Epoch, &c.Attempts); err != nil {
					return err
				}
				out[index[entity]] = c
			}
			return rows.Err()
		}
		if len(taken.entity) > 0 {
			b.Queue(takeoverSQL, taken.args(t.ID, owner)...).Query(won)
		}
		if len(fresh.entity) > 0 {
			b.Queue(insertClaimSQL, fresh.args(t.ID, owner)...).Query(won)
		}
		if len(stale) > 0 {
			b.Queue(giveBackSQL, t.ID, owner, stale, seen).Query(func(rows pgx.Rows) error {
				var entity string
				_, err := pgx.ForEachRow(rows, []any{&entity}, func() error { out[index[entity]] = Claim{}; return nil })
				return err
			})
		}
		queueFacts(b, t.ID, entities, &facts)
	})
	if err != nil {
		return nil, fmt.Errorf("claim %d entities of %s: %w", len(cs), t.Name, err)
	}
	if len(facts) == 0 {
		return out, nil
	}
	var moot []int
	for i, c := range cs {
		f := facts[c.Entity]
		if f == nil || !out[i].Won {
			continue
		}
		// Either the fact is all that was asked for, or it is not (a source that has moved on),
		// but our epoch cannot replace it: the next look then leads to a claim that can.
		if f.Epoch >= out[i].Epoch || f.Epoch >= c.asked() && !staleness(t, c.Want, f).Run() {
			moot = append(moot, i)
		}
	}
	if len(moot) == 0 {
		return out, nil
	}
	// A crash here leaves a claim beside a fact that satisfies it: the fact outranks it.
	drop := make([]string, len(moot))
	fences := make([]int64, len(moot))
	for n, i := range moot {
		drop[n], fences[n] = cs[i].Entity, out[i].Fence
		out[i] = Claim{}
	}
	if err := l.drop(ctx, t, drop, fences); err != nil {
		return nil, err
	}
	return out, nil
}

// Sweep removes claims that a fact outranks; the fences are those that were seen.
func (l *Ledger) Sweep(ctx context.Context, t *Type, os []*Open) error {
	slices.SortFunc(os, func(a, b *Open) int { return cmp.Compare(a.Entity, b.Entity) })
	entities, fences := make([]string, len(os)), make([]int64, len(os))
	for i, o := range os {
		entities[i], fences[i] = o.Entity, o.Fence
	}
	return l.drop(ctx, t, entities, fences)
}

// SweepMoot removes claims that a fact outranks and nobody living holds, of the given types:
// what is left when a worker, or its connection, breaks between the two looks of a claim. What is
// listed as failed, or in doubt, with other arguments than the fact's stays (as listed in
// decide.go says). So does what is open beside a fact of an older version of the code: that work
// is wanted again, and what failed before it had a claim has no epoch of its own that says so.
// Nobody else looks at them until the work is asked for again. It reads all claims, so it is
// for now and then.
func (l *Ledger) SweepMoot(ctx context.Context, types []*Type) error {
	ids, versions := make([]int32, len(types)), make([]int, len(types))
	for i, t := range types {
		ids[i], versions[i] = t.ID, t.wanted()
	}
	err := l.RunBatch(ctx, func(b *pgx.Batch) { b.Queue(sweepMootSQL, ids, versions) })
	if err != nil {
		return fmt.Errorf("sweep claims of what is done: %w", err)
	}
	return nil
}

const sweepMootSQL = `
/* claim: sweep what is moot */
DELETE FROM oncemore.claim WHERE ctid = ANY (ARRAY(
    SELECT c.ctid FROM oncemore.claim c
    WHERE c.job_type = ANY ($1::int[]) AND (c.owner IS NULL OR EXISTS (SELECT FROM oncemore.worker w WHERE w.id = c.owner AND w.dead_at IS NOT NULL))
      AND EXISTS (SELECT FROM oncemore.ledger l WHERE l.job_type = c.job_type AND l.entity = c.entity
                  AND coalesce(l.epoch, 0) >= c.epoch AND coalesce(l.source_version, 0) >= c.source_version
                  AND coalesce(l.version, 0) >= ($2::int[])[array_position($1::int[], c.job_type)]
                  AND NOT (coalesce(c.trouble, '') IN ('failed', 'in_doubt') AND c.fingerprint <> l.fingerprint
                           AND c.fingerprint <> 0 AND l.fingerprint <> 0 AND c.fingerprint >> 56 = l.fingerprint >> 56))
    ORDER BY c.job_type, c.entity LIMIT 1000 FOR UPDATE OF c SKIP LOCKED))`

func (l *Ledger) drop(ctx context.Context, t *Type, entities []string, fences []int64) error {
	err := l.RunBatch(ctx, func(b *pgx.Batch) {
		BoundLocks(b, claimPatience) // they are in nobody's way, and much else may wait for us
		b.Queue(dropSQL, t.ID, entities, fences)
	})
	if err != nil {
		return fmt.Errorf("drop %d claims of %s that are done: %w", len(entities), t.Name, err)
	}
	return nil
}

// claimColumns are the arrays of one statement, in key order.
type claimColumns struct {
	entity, text                    []string
	seen, fp, epoch, source, runIDs []int64
}

// asked is the epoch that the claim is to stand for, before any that is drawn for it.
func (c *Candidate) asked() int64 {
	if c.Open == nil {
		return c.Epoch
	}
	return max(c.Epoch, c.Open.Epoch)
}

// newEpoch asks the statement to draw one.
const newEpoch = -1

func (cc *claimColumns) add(c *Candidate) {
	cc.entity = append(cc.entity, c.Entity)
	cc.text = append(cc.text, c.Args)
	cc.fp = append(cc.fp, c.Fingerprint)
	cc.source = append(cc.source, c.SourceVersion)
	cc.runIDs = append(cc.runIDs, c.Run)
	seen, epoch := int64(0), c.asked()
	if c.Open != nil {
		seen = c.Open.Fence
		if c.SourceVersion > c.Open.SourceVersion && !c.Open.FirstClaimedAt.IsZero() && c.Epoch <= c.Open.Epoch {
			epoch = newEpoch // other work than the attempt before: its effect key must not pass for a repeat
		}
	}
	if c.Fact != nil && epoch <= c.Fact.Epoch {
		epoch = newEpoch // stale work replaces its fact, and only a higher epoch can
	}
	cc.seen, cc.epoch = append(cc.seen, seen), append(cc.epoch, epoch)
}

func (cc *claimColumns) args(jobType int32, owner int64) []any {
	return []any{jobType, owner, cc.entity, cc.seen, cc.fp, cc.epoch, cc.source, cc.runIDs, cc.text}
}

const insertClaimSQL = `
/* claim: insert */
INSERT INTO oncemore.claim (fence, owner, claimed_at, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), $2, now(), now(), w.fp, CASE w.epoch WHEN -1 THEN nextval('oncemore.epoch') ELSE w.epoch END,
       w.source, w.run, $1, 1, w.entity, w.args
FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[])
     AS w(entity, seen, fp, epoch, source, run, args)
ON CONFLICT (job_type, entity) DO NOTHING
RETURNING entity, fence, epoch, attempts`

// The lateral sub-select keeps the array outermost and locks in its order, which is key
// order. A row that is locked is being changed by somebody: it is theirs, and a frozen
// process inside a transaction must not make us wait. now() is the transaction's, so that claimed_at = first_claimed_at says that this
// attempt is the first evidence.
const takeoverSQL = `
/* claim: take over */
WITH w AS MATERIALIZED (
    SELECT w.fp, w.epoch, w.source, w.run, w.args, c.tid
    FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[])
         AS w(entity, seen, fp, epoch, source, run, args)
    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.seen FOR UPDATE SKIP LOCKED) c
)
UPDATE oncemore.claim c
SET fence = nextval('oncemore.fence'), owner = $2, claimed_at = now(), first_claimed_at = coalesce(c.first_claimed_at, now()),
    not_before = NULL, trouble = NULL, attempts = c.attempts + 1,
    epoch = CASE w.epoch WHEN -1 THEN nextval('oncemore.epoch') ELSE w.epoch END,
    source_version = w.source, fingerprint = w.fp, run = w.run, args = w.args
FROM w WHERE c.ctid = w.tid
RETURNING c.entity, c.fence, c.epoch, c.attempts`

// Somebody else has replaced the fact that was seen, so a claim that was to replace it, and
// was inserted just now, is given back before anybody sees it. The epoch drawn for it may be
// higher than the new fact's: left behind by a crash, it would look like work that is
// wanted.
const giveBackSQL = `
/* claim: give back */
DELETE FROM oncemore.claim c USING unnest($3::text[], $4::bigint[]) AS w(entity, seen)
WHERE c.job_type = $1 AND c.entity = w.entity AND c.owner = $2 AND c.claimed_at = now()
  AND EXISTS (SELECT FROM oncemore.ledger l WHERE l.job_type = $1 AND l.entity = w.entity AND coalesce(l.epoch, 0) > w.seen)
RETURNING c.entity`

const dropSQL = `
/* claim: sweep */
WITH w AS MATERIALIZED (
    SELECT c.tid FROM unnest($2::text[], $3::bigint[]) AS w(entity, seen)
    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.seen FOR UPDATE) c
)
DELETE FROM oncemore.claim WHERE ctid = ANY (ARRAY(SELECT w.tid FROM w))`
