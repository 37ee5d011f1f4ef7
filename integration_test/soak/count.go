package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A record is everything that is known of one entity, inside the database and outside.
type record struct {
	facts   []fact // the last is the current one, the others are history
	open    *open
	effects []int // into count.effects: the provider's
	rows    []row // effects in the database
	parked  bool
	late    bool // a completion of it was refused as disputed
}

type fact struct {
	Epoch, Version int64
	Evidence       string
	Attempts       int
	At             time.Time
}

type open struct {
	Trouble string // empty: held
	Owned   bool
	Epoch   int64
}

// A row is an effect inside the database.
type row struct{ Epoch, Version int64 }

// A count is the database and the effect log, read at one time.
type count struct {
	demand  *demand
	effects []Effect
	freezes map[int][]freeze
	of      map[string]map[int64]*record
	newest  map[Entity]int64 // versions of sources

	hopeless func(t *jobType, id int64) bool // whether it is an entity's fate to fail for good
}

func newCount(ctx context.Context, w *world, d *demand) (*count, error) {
	c := &count{demand: d, freezes: map[int][]freeze{}, of: map[string]map[int64]*record{}}
	c.hopeless = func(t *jobType, id int64) bool { return fateOf(w.settings.Seed, t, id).trouble == hopeless }
	var err error
	if c.effects, err = readEffects(w.effectLog()); err != nil {
		return nil, err
	}
	for i, e := range c.effects {
		r := c.record(e.Type, e.ID)
		r.effects = append(r.effects, i)
	}
	w.mu.Lock()
	for _, f := range w.freezes {
		c.freezes[f.Pid] = append(c.freezes[f.Pid], f)
	}
	w.mu.Unlock()
	w.provider.mu.Lock()
	c.newest = w.provider.source
	w.provider.mu.Unlock()
	err = pgx.BeginTxFunc(ctx, w.db, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error { return c.read(ctx, tx) })
	if err != nil {
		return nil, fmt.Errorf("count: %w", err)
	}
	return c, nil
}

func (c *count) record(jobType string, id int64) *record {
	of := c.of[jobType]
	if of == nil {
		of = map[int64]*record{}
		c.of[jobType] = of
	}
	r := of[id]
	if r == nil {
		r = &record{}
		of[id] = r
	}
	return r
}

const (
	// History first, then what replaced it.
	factsSQL = `
SELECT t.name, f.entity, f.epoch, f.source_version, f.evidence::text, f.attempts, f.completed_at FROM (
    SELECT job_type, entity, coalesce(epoch, 0) AS epoch, coalesce(source_version, 0) AS source_version, evidence, attempts, completed_at, false AS current FROM oncemore.ledger_history
    UNION ALL
    SELECT job_type, entity, coalesce(epoch, 0), coalesce(source_version, 0), evidence, attempts, completed_at, true FROM oncemore.ledger) f
JOIN oncemore.job_type t ON t.id = f.job_type ORDER BY f.current, f.epoch`
	opensSQL  = `SELECT t.name, c.entity, coalesce(c.trouble, ''), c.owner IS NOT NULL, c.epoch FROM oncemore.claim c JOIN oncemore.job_type t ON t.id = c.job_type`
	rowsSQL   = `SELECT type, id::text, epoch, version FROM soak.effect ORDER BY at`
	parkedSQL = `SELECT type, entity FROM oncemore.parked`
	lateSQL   = `SELECT DISTINCT t.name, a.entity FROM oncemore.attempt a JOIN oncemore.job_type t ON t.id = a.job_type WHERE a.outcome = 'disputed'`
)

func (c *count) read(ctx context.Context, tx pgx.Tx) error {
	var name, id string
	each := func(sql string, into []any, f func(r *record)) error {
		rows, err := tx.Query(ctx, sql)
		if err != nil {
			return err
		}
		_, err = pgx.ForEachRow(rows, append([]any{&name, &id}, into...), func() error {
			n, err := strconv.ParseInt(id, 10, 64)
			if err != nil {
				return err
			}
			f(c.record(name, n))
			return nil
		})
		return err
	}
	var f fact
	if err := each(factsSQL, []any{&f.Epoch, &f.Version, &f.Evidence, &f.Attempts, &f.At}, func(r *record) { r.facts = append(r.facts, f) }); err != nil {
		return err
	}
	var o open
	if err := each(opensSQL, []any{&o.Trouble, &o.Owned, &o.Epoch}, func(r *record) { it := o; r.open = &it }); err != nil {
		return err
	}
	var w row
	if err := each(rowsSQL, []any{&w.Epoch, &w.Version}, func(r *record) { r.rows = append(r.rows, w) }); err != nil {
		return err
	}
	if err := each(parkedSQL, nil, func(r *record) { r.parked = true }); err != nil {
		return err
	}
	return each(lateSQL, nil, func(r *record) { r.late = true })
}

// fact is the current one.
func (r *record) fact() *fact {
	if len(r.facts) == 0 {
		return nil
	}
	return &r.facts[len(r.facts)-1]
}

// under tells whether there is, or was, a fact of this epoch.
func (r *record) under(epoch int64) bool {
	for _, f := range r.facts {
		if f.Epoch == epoch {
			return true
		}
	}
	return false
}

// happened tells whether the provider has an effect on the entity under this epoch.
func (c *count) happened(jobType, entity string, epoch int64) bool {
	id, err := strconv.ParseInt(entity, 10, 64)
	if err != nil {
		return false
	}
	for _, i := range c.record(jobType, id).effects {
		if e := &c.effects[i]; e.Kind == "" && e.Epoch == epoch {
			return true
		}
	}
	return false
}

// frozen tells whether the process stood still between the beginning of the body and its
// effect. Then the effect may have come at any time after its worker had lost the right to
// it: no class but one whose provider compares keys, or Once, which nobody repeats, is proof
// against that.
func (c *count) frozen(e *Effect) bool {
	for _, f := range c.freezes[e.Pid] {
		if f.From <= e.At && e.Began-int64(frozenMargin) <= f.To {
			return true
		}
	}
	return false
}

// Between the last look at the lease and the beginning of the body.
const frozenMargin = 50_000_000 // nanoseconds

// satisfied tells whether the current fact is all that was asked for.
func (c *count) satisfied(e Entity, r *record) bool {
	f := r.fact()
	return f != nil && f.Epoch >= c.demand.epochs[e] && f.Version >= c.newest[e]
}

// inDoubt is how many entities are.
func (c *count) inDoubt() (n int) {
	for _, of := range c.of {
		for _, r := range of {
			if r.open != nil && r.open.Trouble == "in_doubt" {
				n++
			}
		}
	}
	return n
}

// rightKey tells whether an effect was had under the key of its epoch.
func rightKey(e *Effect) bool {
	return e.Key == keyOf(e)
}

// keyOf is the key that an effect should have been had under.
func keyOf(e *Effect) string {
	return ledger.EffectKey(e.Type, strconv.FormatInt(e.ID, 10), e.Epoch)
}
