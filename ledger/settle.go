package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A State is what a settlement makes of an entity.
type State string

const (
	Completed State = "completed" // a fact
	ToRetry   State = "retrying"  // open: another attempt is due after Delay
	GaveUp    State = "failed"    // open: no attempt is left, or none would help
	Unclear   State = "in_doubt"  // open: an operator or a done-check must say
	Returned  State = "returned"  // open: the attempt did not start, or does not count; due at once
	Ended     State = "ended"     // neither: the claim goes and no fact comes, as at the end of a run
)

// An Outcome is how one attempt ended, and what is to be recorded of it.
type Outcome struct {
	Want
	State    State
	Fence    int64 // of the claim that is held, or that was seen with nobody holding it; 0: there was none
	Attempts int   // to be stored: this one included, if it counts
	Evidence Evidence
	Args     string        // for an open entity without a claim so far
	Delay    time.Duration // ToRetry: until the next attempt may start
	Absent   bool          // the effect of this attempt surely did not happen (jobs.NotApplied, or nothing was tried)
	Result   []byte        // Completed: JSON, at most [MaxResult] bytes, stored with the fact; nil: none
	Class    string        // of the error, for grouping
	Error    string        // capped when stored; empty: nothing to record of the attempt
	Again    bool          // this settlement was tried before, and may have been committed then; it counts for what has a Fence
	Refused  bool          // set by Settle: the fence was lost, or without one the place of a claim was taken, and nothing was changed
}

// Caps of what is stored of an error.
const (
	maxError = 2000 // bytes
	maxClass = 200
)

// Settle queues on b the statements that record outcomes of type t by the worker owner.
// They are of different entities; of those that show the same fence (two deliveries whose
// done-check gave the same answer) one counts for all. They are to run in one transaction, with whatever
// belongs together with them: an acknowledgement, the message that carries a retry.
// When the batch has run, an outcome whose fence was lost is Refused: it changed
// nothing, and is to be handed to [Ledger.RecordDisputes].
//
// A completion deletes the claim by its fence and inserts the fact in one statement. A
// worker that was declared dead, or overruled by an operator, deletes nothing and
// therefore completes nothing. Without a claim (a first delivery of work that may
// repeat) the first insert of the fact is the completion, and later ones change nothing.
//
// Running it twice because the answer to the first commit was lost is harmless: set Again, and
// what is recorded already is recognized by its fact. Without a claim there is no telling whose fact
// it is, so a first completion that finds one fails the settlement whole, each time: see [IsTaken].
//
// An outcome other than a completion is Refused as well where there was no claim and by now
// there is one, be it from the same settlement: then nothing says that the work did not
// complete, unless its message looks again.
func Settle(b *pgx.Batch, t *Type, owner int64, outs []*Outcome) {
	outs = inKeyOrder(outs)
	var first, done, open, opened, ended []*Outcome
	var twins [][2]*Outcome
	for _, o := range outs {
		switch {
		case o.State == Completed && o.Fence == 0:
			first = append(first, o)
		case o.State == Completed:
			if n := len(done); n > 0 && done[n-1].Entity == o.Entity && done[n-1].Fence == o.Fence {
				twins = append(twins, [2]*Outcome{done[n-1], o})
				continue
			}
			done = append(done, o)
		case o.State == Ended:
			ended = append(ended, o)
		case o.Fence != 0:
			open = append(open, o)
		default:
			opened = append(opened, o)
		}
	}
	if len(first) > 0 {
		c := factColumns(first)
		// Without ON CONFLICT, which costs twice as much, and would let a fact of other arguments
		// swallow this one. Where somebody else has recorded it, the whole transaction fails.
		statement, params := c.first(t)
		b.Queue(statement, params...)
	}
	if len(done) > 0 {
		c := factColumns(done)
		statement := completeNewSQL
		if slices.ContainsFunc(done, func(o *Outcome) bool { return o.Epoch != 0 || o.Again }) {
			statement = completeSQL
		}
		b.Queue(statement, t.ID, version(t), c.entity, c.fp, c.attempts, c.run, c.source, c.evidence, c.fence, c.epoch).Query(func(rows pgx.Rows) error {
			err := refuse(done)(rows)
			for _, pair := range twins {
				pair[1].Refused = pair[0].Refused
			}
			return err
		})
	}
	KeepResults(b, t, outs)
	if len(ended) > 0 {
		c := factColumns(ended)
		b.Queue(endSQL, t.ID, c.entity, c.fence).Query(refuse(ended))
	}
	if len(open) > 0 {
		c := openColumns(open)
		b.Queue(keepOpenSQL, t.ID, c.entity, c.fence, c.state, c.delay, c.absent, c.err, c.attempts, owner).Query(refuse(open))
	}
	if len(opened) > 0 {
		c, f := openColumns(opened), factColumns(opened)
		b.Queue(openSQL, t.ID, c.entity, c.state, c.delay, c.err, f.fp, f.epoch, f.source, f.run, c.attempts, c.args).Query(refuseAllBut(opened))
	}
	queueAttempts(b, t, owner, outs)
}

// IsTaken tells whether a settlement failed because a fact that it was the first to record
// is there already, or because two of its outcomes are of one entity. Nothing was recorded then:
// look at the facts, take out what they answer, and settle the rest.
func IsTaken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.TableName == "ledger"
}

func inKeyOrder(outs []*Outcome) []*Outcome {
	byEntity := func(a, b *Outcome) int {
		return cmp.Or(cmp.Compare(a.Entity, b.Entity), cmp.Compare(a.Fence, b.Fence))
	}
	if slices.IsSortedFunc(outs, byEntity) {
		return outs
	}
	return slices.SortedFunc(slices.Values(outs), byEntity)
}

// RecordDisputes keeps the completions that Settle refused among the attempts, as
// disputed: a late success is evidence of a possible double effect. Outcomes that an
// earlier try of the same settlement had recorded after all are no longer Refused when
// it returns.
func (l *Ledger) RecordDisputes(ctx context.Context, t *Type, owner int64, outs []*Outcome) error {
	var late []*Outcome
	var again []string
	for _, o := range outs {
		// That a done-check said so is no attempt: somebody else was told the same.
		if o.Refused && o.State == Completed && o.Evidence != DoneCheck {
			late = append(late, o)
			if o.Again {
				again = append(again, o.Entity)
			}
		}
	}
	if len(late) == 0 {
		return nil
	}
	var facts map[string]*Fact
	alive := false
	if len(again) > 0 {
		err := l.RunBatch(ctx, func(b *pgx.Batch) {
			queueFacts(b, t.ID, again, &facts)
			b.Queue(`SELECT dead_at IS NULL FROM oncemore.worker WHERE id = $1`, owner).QueryRow(func(r pgx.Row) error { return r.Scan(&alive) })
		})
		if err != nil {
			return fmt.Errorf("look whether %d outcomes of %s were recorded: %w", len(again), t.Name, err)
		}
	}
	var disputed []*Outcome
	for _, o := range late {
		// Only a dead worker's claim can be taken over: while we live, the fact of our epoch
		// is our own.
		if f := facts[o.Entity]; o.Again && alive && f != nil && f.Epoch >= o.Epoch {
			o.Refused = false
			continue
		}
		d := *o
		d.State, d.Class = "disputed", "late"
		if d.Error == "" {
			d.Error = "reported after its claim was lost: the effect may have happened twice"
		}
		disputed = append(disputed, &d)
	}
	if len(disputed) == 0 {
		return nil
	}
	err := l.RunBatch(ctx, func(b *pgx.Batch) { queueAttempts(b, t, owner, disputed) })
	if err != nil {
		return fmt.Errorf("record %d late outcomes of %s: %w", len(disputed), t.Name, err)
	}
	return nil
}

// refuse reads the positions of the outcomes whose fence held; the others are refused.
func refuse(outs []*Outcome) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		held := make([]bool, len(outs))
		n := 0
		for rows.Next() {
			var i int64
			if err := rows.Scan(&i); err != nil {
				return err
			}
			held[i-1] = true
			n++
		}
		if err := rows.Err(); err != nil || n == len(outs) {
			return err
		}
		for i, o := range outs {
			if !held[i] {
				o.Refused = true
			}
		}
		return nil
	}
}

// refuseAllBut reads the entities that an outcome was inserted for: the first of outs that has it. The
// others are refused.
func refuseAllBut(outs []*Outcome) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		inserted := make(map[string]bool, len(outs))
		var entity string
		if _, err := pgx.ForEachRow(rows, []any{&entity}, func() error { inserted[entity] = true; return nil }); err != nil {
			return err
		}
		for _, o := range outs {
			o.Refused = !inserted[o.Entity]
			delete(inserted, o.Entity)
		}
		return nil
	}
}

type factArrays struct {
	entity             []string
	fp, run, source    []int64
	fence, epoch       []int64
	attempts, evidence []int32
}

func factColumns(outs []*Outcome) (c factArrays) {
	n := len(outs)
	numbers := make([]int64, 5*n) // one allocation for the hot path
	c.fp, c.run, c.source, c.fence, c.epoch = numbers[:n], numbers[n:2*n], numbers[2*n:3*n], numbers[3*n:4*n], numbers[4*n:]
	small := make([]int32, 2*n)
	c.attempts, c.evidence = small[:n], small[n:]
	c.entity = make([]string, n)
	for i, o := range outs {
		c.entity[i], c.fp[i], c.run[i], c.source[i] = o.Entity, o.Fingerprint, o.Run, o.SourceVersion
		c.fence[i], c.epoch[i] = o.Fence, o.Epoch
		c.attempts[i], c.evidence[i] = int32(min(o.Attempts, 32767)), int32(o.Evidence)
	}
	return c
}

// alike tells whether the facts differ in entity and fingerprint alone, as those of a pack
// mostly do. Two arrays then do the work of six.
func (c *factArrays) alike() bool {
	if len(c.entity) == 0 {
		return false
	}
	for i := range c.entity {
		if c.run[i] != c.run[0] || c.source[i] != c.source[0] || c.attempts[i] != c.attempts[0] || c.evidence[i] != c.evidence[0] {
			return false
		}
	}
	return true
}

// first returns the statement, and its parameters, that inserts the facts where there are
// none.
func (c *factArrays) first(t *Type) (statement string, params []any) {
	if c.alike() {
		return alikeFactSQL, []any{t.ID, version(t), c.entity, c.fp, c.attempts[0], c.run[0], c.source[0], c.evidence[0]}
	}
	return firstFactSQL, []any{t.ID, version(t), c.entity, c.fp, c.attempts, c.run, c.source, c.evidence}
}

type openArrays struct {
	entity, state, args, err []string
	fence                    []int64
	delay                    []time.Duration
	absent                   []bool
	attempts                 []int32
}

func openColumns(outs []*Outcome) (c openArrays) {
	for _, o := range outs {
		c.entity = append(c.entity, o.Entity)
		c.state = append(c.state, string(o.State))
		c.args = append(c.args, o.Args)
		c.err = append(c.err, Sanitize(o.Error, maxError))
		c.fence = append(c.fence, o.Fence)
		c.delay = append(c.delay, o.Delay)
		c.absent = append(c.absent, o.Absent)
		c.attempts = append(c.attempts, int32(o.Attempts))
	}
	return c
}

func queueAttempts(b *pgx.Batch, t *Type, owner int64, outs []*Outcome) {
	var entity, state, class, text []string
	var fence []int64
	var number []int32
	for _, o := range outs {
		if o.Error == "" {
			continue
		}
		entity, state = append(entity, o.Entity), append(state, string(o.State))
		class, text = append(class, Sanitize(o.Class, maxClass)), append(text, Sanitize(o.Error, maxError))
		fence, number = append(fence, o.Fence), append(number, int32(o.Attempts))
	}
	if len(entity) > 0 {
		b.Queue(attemptSQL, t.ID, owner, entity, fence, number, state, class, text)
	}
}

// Sanitize makes an error's text fit to be stored and shown: valid, at most so many bytes, without
// the NUL that Postgres refuses.
func Sanitize(s string, most int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "�"), "\x00", "�")
	if len(s) <= most {
		return s
	}
	const more = "…"
	s = s[:max(0, most-len(more))]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + more
}

func version(t *Type) *int {
	if t.Version == 0 {
		return nil
	}
	return &t.Version
}

// The first insert is the completion. Work that may repeat may find the fact there.
const firstFactSQL = `
/* fact: insert */
INSERT INTO oncemore.ledger (job_type, version, entity, fingerprint, attempts, run, source_version, evidence)
SELECT $1, $2, w.entity, w.fp, w.attempts, nullif(w.run, 0), nullif(w.source, 0), chr(w.evidence)::"char"
FROM unnest($3::text[], $4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::int[]) AS w(entity, fp, attempts, run, source, evidence)`

const alikeFactSQL = `
/* fact: insert */
INSERT INTO oncemore.ledger (job_type, version, entity, fingerprint, attempts, run, source_version, evidence)
SELECT $1, $2, w.entity, w.fp, $5::int, nullif($6::bigint, 0), nullif($7::bigint, 0), chr($8::int)::"char"
FROM unnest($3::text[], $4::bigint[]) AS w(entity, fp)`

const doNothing = `
ON CONFLICT (job_type, entity) DO NOTHING`

// In the claim by its fence, out of it and into the ledger: one statement, so that no
// crash and no other worker sees anything between.
const completeSQL = completeCTE + `SELECT w.n FROM w`

// The same for work that was never forced: there is next to never a fact that it would
// replace. Where there is one, the whole transaction fails and is tried again with the above.
const completeNewSQL = claimedCTE + `
)
SELECT w.n FROM w`

// A fact is replaced by one of a higher epoch. So is one of an older source, which an app
// has recorded by itself while the newer one was worked: the output is of the newer, and
// the fact must say so. It draws its epoch then.
const completeCTE = claimedCTE + `
    ON CONFLICT (job_type, entity) DO UPDATE
    SET version = excluded.version, fingerprint = excluded.fingerprint, attempts = excluded.attempts, run = excluded.run,
        source_version = excluded.source_version, evidence = excluded.evidence, completed_at = excluded.completed_at,
        epoch = CASE WHEN coalesce(l.epoch, 0) < coalesce(excluded.epoch, 0) THEN excluded.epoch ELSE nextval('oncemore.epoch') END
    WHERE coalesce(l.epoch, 0) < coalesce(excluded.epoch, 0) OR coalesce(l.source_version, 0) < coalesce(excluded.source_version, 0)
    RETURNING l.entity, l.epoch
)
`

const claimedCTE = `
/* fact: complete a claim */
WITH w AS MATERIALIZED (
    SELECT w.*, c.tid
    FROM unnest($3::text[], $4::bigint[], $5::int[], $6::bigint[], $7::bigint[], $8::int[], $9::bigint[], $10::bigint[])
         WITH ORDINALITY AS w(entity, fp, attempts, run, source, evidence, fence, epoch, n)
    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.fence FOR UPDATE) c
), gone AS (
    DELETE FROM oncemore.claim WHERE ctid = ANY (ARRAY(SELECT w.tid FROM w))
), fact AS (
    INSERT INTO oncemore.ledger AS l (job_type, version, entity, fingerprint, attempts, run, source_version, evidence, epoch)
    SELECT $1, $2, w.entity, w.fp, w.attempts, nullif(w.run, 0), nullif(w.source, 0), chr(w.evidence)::"char", nullif(w.epoch, 0)
    FROM w`

const endSQL = `
/* claim: end */
WITH w AS MATERIALIZED (
    SELECT w.n, c.tid FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS w(entity, fence, n)
    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.fence FOR UPDATE) c
), gone AS (
    DELETE FROM oncemore.claim WHERE ctid = ANY (ARRAY(SELECT w.tid FROM w))
)
SELECT w.n FROM w`

// An attempt whose effect is surely absent takes back its own evidence, and not that of
// the attempts before it. Those were over, and could be seen, when it began: claimed_at goes
// back to where they began. After any other attempt it is when that one ended.
const keepOpenSQL = `
/* claim: keep open */
WITH w AS MATERIALIZED (
    SELECT w.n, w.state, w.delay, w.absent, w.error, w.attempts, c.tid
    FROM unnest($2::text[], $3::bigint[], $4::text[], $5::interval[], $6::boolean[], $7::text[], $8::int[])
         WITH ORDINALITY AS w(entity, fence, state, delay, absent, error, attempts, n)
    CROSS JOIN LATERAL (SELECT c.ctid AS tid FROM oncemore.claim c
                        WHERE c.job_type = $1 AND c.entity = w.entity AND c.fence = w.fence FOR UPDATE) c
)
UPDATE oncemore.claim c
SET fence = nextval('oncemore.fence'), owner = NULL,
    trouble = CASE w.state WHEN 'returned' THEN 'retrying' ELSE w.state END,
    not_before = CASE w.state WHEN 'retrying' THEN clock_timestamp() + w.delay END,
    attempts = w.attempts,
    claimed_at = CASE WHEN c.owner IS DISTINCT FROM $9 THEN c.claimed_at
                      WHEN w.absent THEN coalesce(c.first_claimed_at, c.claimed_at)
                      ELSE clock_timestamp() END,
    first_claimed_at = CASE WHEN w.absent AND c.owner = $9 AND c.first_claimed_at = c.claimed_at THEN NULL ELSE c.first_claimed_at END,
    error = coalesce(nullif(w.error, ''), c.error)
FROM w WHERE c.ctid = w.tid
RETURNING w.n`

// A first delivery without a claim did not complete. Where a claim has appeared, it may stand
// for less, or for other arguments: that is refused, and looks again. Where a fact has, the retry
// will find it; a failure stays listed beside it if that has other arguments.
const openSQL = `
/* claim: open */
INSERT INTO oncemore.claim (fence, job_type, entity, trouble, not_before, error, fingerprint, epoch, source_version, run, attempts, args)
SELECT nextval('oncemore.fence'), $1, w.entity, CASE w.state WHEN 'returned' THEN 'retrying' ELSE w.state END,
       CASE w.state WHEN 'retrying' THEN clock_timestamp() + w.delay END, nullif(w.error, ''), w.fp, w.epoch, w.source, w.run, w.attempts, w.args
FROM unnest($2::text[], $3::text[], $4::interval[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::int[], $11::text[])
     AS w(entity, state, delay, error, fp, epoch, source, run, attempts, args)
ON CONFLICT (job_type, entity) DO NOTHING
RETURNING entity`

const attemptSQL = `
/* attempt: record */
INSERT INTO oncemore.attempt (job_type, worker, entity, fence, number, outcome, error_class, error)
SELECT $1, nullif($2::bigint, 0), w.entity, w.fence, w.number, w.outcome, nullif(w.class, ''), w.error
FROM unnest($3::text[], $4::bigint[], $5::int[], $6::text[], $7::text[], $8::text[]) AS w(entity, fence, number, outcome, class, error)`
