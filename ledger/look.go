package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Standing is what a look found for one want.
type Standing struct {
	Reason Reason
	Fact   *Fact // nil: none
	Open   *Open // nil: none
	Verify bool  // an attempt may only follow a done-check that says "not done"
	Sweep  bool  // the claim is outranked by the fact and may go

	// Settling, if not 0: waiting, but not for an attempt that is due later, whose message comes
	// then. For so long it is too early to ask whether the last attempt had its effect, so who asks
	// now asks again.
	Settling time.Duration

	// Carry: the fact ends the matter for who asks, but the claim asks for more than the fact (it
	// was forced, say, and the app recorded the work meanwhile). What carries that on may be the
	// very message that asks: a claim is taken over by whatever message comes first.
	Carry bool

	Now time.Time // of the server, when it was looked at
}

// Newest is the highest source version among those of w, of its fact and of its claim.
func (st *Standing) Newest(w Want) int64 {
	newest := w.SourceVersion
	if st.Fact != nil {
		newest = max(newest, st.Fact.SourceVersion)
	}
	if st.Open != nil {
		newest = max(newest, st.Open.SourceVersion)
	}
	return newest
}

// Look reads facts and claims of the wanted entities and decides on each. It writes
// nothing, and costs one indexed read shared by all of ws. The answers are those of
// one moment: only a claim makes one binding, except for Done, which is for ever.
func (l *Ledger) Look(ctx context.Context, t *Type, ws []Want) ([]Standing, error) {
	return look(t, ws, func(queue func(*pgx.Batch)) error { return l.RunBatch(ctx, queue) })
}

// LookIn is [Ledger.Look] in the caller's READ COMMITTED transaction, whose plans it leaves bound to
// the primary keys.
func LookIn(ctx context.Context, tx pgx.Tx, t *Type, ws []Want) ([]Standing, error) {
	return look(t, ws, func(queue func(*pgx.Batch)) error {
		b := &pgx.Batch{}
		b.Queue(steadyPlans)
		queue(b)
		return tx.SendBatch(ctx, b).Close()
	})
}

func look(t *Type, ws []Want, run func(queue func(*pgx.Batch)) error) ([]Standing, error) {
	entities := make([]string, len(ws))
	for i := range ws {
		entities[i] = ws[i].Entity
	}
	var (
		facts map[string]*Fact
		opens map[string]*Open
		now   time.Time
	)
	err := run(func(b *pgx.Batch) {
		facts, opens = nil, nil
		// Claims first: a completion moves an entity from claim to ledger at one moment,
		// so whoever reads in this order may see it in both, but never in neither.
		queueOpens(b, t.ID, entities, &opens, &now)
		queueFacts(b, t.ID, entities, &facts)
	})
	if err != nil {
		return nil, fmt.Errorf("look at %d entities of %s: %w", len(ws), t.Name, err)
	}
	out := make([]Standing, len(ws))
	for i, w := range ws {
		f, o := facts[w.Entity], opens[w.Entity]
		st := Standing{
			Reason: Decide(t, w, f, o, now),
			Fact:   f, Open: o,
			Verify: MustVerify(t, o, now),
			Now:    now,
		}
		if f != nil && o != nil {
			outranked := f.Epoch >= o.Epoch && f.SourceVersion >= o.SourceVersion
			st.Sweep = outranked && !o.Held() && !o.listed(f)
			st.Carry = !outranked && (st.Reason == Done || st.Reason == Conflict) && (o.Trouble == NoTrouble || o.Trouble == Retrying)
		}
		if st.Reason == Waiting && !now.Before(o.NotBefore) {
			st.Settling = t.settled(o).Sub(now)
		}
		out[i] = st
	}
	return out, nil
}

// One descent of the primary key for each entity, whatever the statistics say: with entity =
// ANY ($2) the planner compares all facts of a job type that it believes to have few with all
// of $2. OFFSET 0 keeps the array outermost.
const factsSQL = `
SELECT f.entity, f.completed_at, f.fingerprint, coalesce(f.epoch, 0), coalesce(f.run, 0), f.attempts, coalesce(f.version, 0), coalesce(f.source_version, 0), f.evidence
FROM unnest($2::text[]) AS w(entity)
CROSS JOIN LATERAL (SELECT l.* FROM oncemore.ledger l WHERE l.job_type = $1 AND l.entity = w.entity OFFSET 0) f`

func queueFacts(b *pgx.Batch, jobType int32, entities []string, into *map[string]*Fact) {
	b.Queue(factsSQL, jobType, entities).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			f := &Fact{}
			if err := rows.Scan(&f.Entity, &f.CompletedAt, &f.Fingerprint, &f.Epoch, &f.Run, &f.Attempts, &f.Version, &f.SourceVersion, &f.Evidence); err != nil {
				return err
			}
			if *into == nil {
				*into = make(map[string]*Fact, len(entities))
			}
			(*into)[f.Entity] = f
		}
		return rows.Err()
	})
}

// The time is read in the row: it is needed only where there is a claim.
const openColumnsSQL = `
SELECT c.entity, c.fence, coalesce(c.owner, 0), w.dead_at, c.claimed_at, c.first_claimed_at, c.not_before, c.attempts,
       coalesce(c.trouble, ''), c.fingerprint, c.epoch, c.source_version, c.run, c.args, coalesce(c.error, ''), clock_timestamp()
FROM `

const opensSQL = openColumnsSQL + `oncemore.claim c LEFT JOIN oncemore.worker w ON w.id = c.owner`

const opensOfSQL = openColumnsSQL + `unnest($2::text[]) AS u(entity)
CROSS JOIN LATERAL (SELECT c.* FROM oncemore.claim c WHERE c.job_type = $1 AND c.entity = u.entity OFFSET 0) c
LEFT JOIN oncemore.worker w ON w.id = c.owner`

func queueOpens(b *pgx.Batch, jobType int32, entities []string, into *map[string]*Open, now *time.Time) {
	b.Queue(opensOfSQL, jobType, entities).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			o, at, err := scanOpen(rows)
			if err != nil {
				return err
			}
			if *into == nil {
				*into = map[string]*Open{}
			}
			(*into)[o.Entity], *now = o, at
		}
		return rows.Err()
	})
}

func scanOpen(rows pgx.Rows) (*Open, time.Time, error) {
	var (
		o                       Open
		deadAt, firstAt, notBef *time.Time
		now                     time.Time
	)
	err := rows.Scan(&o.Entity, &o.Fence, &o.Owner, &deadAt, &o.ClaimedAt, &firstAt, &notBef, &o.Attempts,
		&o.Trouble, &o.Fingerprint, &o.Epoch, &o.SourceVersion, &o.Run, &o.Args, &o.Error, &now)
	o.OwnerDeadAt, o.FirstClaimedAt, o.NotBefore = nullTime(deadAt), nullTime(firstAt), nullTime(notBef)
	return &o, now, err
}
