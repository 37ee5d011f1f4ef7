package matrix_test

import (
	"context"
	"errors"
	"iter"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

// A class is what may be done about an interrupted effect. The job types have the names
// of their classes.
type class interface{ name() string }

type (
	repeatable struct{}
	keyed      struct{}
	verifiable struct{}
	once       struct{}
	doTx       struct{}
	doMany     struct{}
)

func (repeatable) name() string { return "repeatable" }
func (keyed) name() string      { return "keyed" }
func (verifiable) name() string { return "verifiable" }
func (once) name() string       { return "once" }
func (doTx) name() string       { return "doTx" }
func (doMany) name() string     { return "doMany" }

// A thing is to be done.
type thing[C class] struct {
	N        int    `json:"n"`
	Text     string `json:"text,omitempty"`
	Revision int64  `json:"source_version,omitempty"`
}

func (thing[C]) JobType() string        { var c C; return c.name() }
func (t thing[C]) Entity() string       { return strconv.Itoa(t.N) }
func (t thing[C]) SourceVersion() int64 { return t.Revision }

// A call asks for the things from 1 to N.
type call[C class] struct {
	N    int  `json:"n"`
	InGo bool `json:"in_go"`
}

func (call[C]) JobType() string  { var c C; return "call " + c.name() }
func (c call[C]) Entity() string { return jobs.Key(c.N) }

func (c call[C]) source() jobs.Source {
	if !c.InGo {
		return jobs.SQL[thing[C]](`SELECT n::text AS entity, n FROM generate_series(1, $1::int) n`, c.N)
	}
	return jobs.Seq(func(_ context.Context, after string) iter.Seq2[thing[C], error] {
		return func(yield func(thing[C], error) bool) {
			for n := 1; n <= c.N; n++ { // one digit, so in the order of the entities
				if t := (thing[C]{N: n}); t.Entity() > after && !yield(t, nil) {
					return
				}
			}
		}
	})
}

// A kit is what a scenario needs to know of a class.
type kit struct {
	define func(o *outside) []jobs.Definition
	thing  func(n int) jobs.Args
	call   func(n int, inGo bool) jobs.Args
}

var kits = map[string]kit{
	"repeatable": kitOf[repeatable](), "keyed": kitOf[keyed](), "verifiable": kitOf[verifiable](),
	"once": kitOf[once](), "doTx": kitOf[doTx](), "doMany": kitOf[doMany](),
}

func kitOf[C class]() kit {
	return kit{define[C], func(n int) jobs.Args { return thing[C]{N: n} }, func(n int, inGo bool) jobs.Args { return call[C]{n, inGo} }}
}

// message is one message with many items.
func message(args ...jobs.Args) queue.Message {
	m := queue.Message{Type: args[0].JobType()}
	for _, a := range args {
		it, err := jobs.NewItem(a)
		if err != nil {
			panic(err) // our own arguments
		}
		m.Items = append(m.Items, it)
	}
	return m
}

// outside is the world beyond the worker's database connections: effects happen there,
// and are counted, whatever befalls the worker.
type outside struct {
	pool *pgxpool.Pool
	by   string // the name of the worker
	traits
}

const outsideSchema = `
CREATE TABLE try     (id bigint GENERATED ALWAYS AS IDENTITY, job text, entity text, by text);   -- bodies that began
CREATE TABLE failure (id bigint GENERATED ALWAYS AS IDENTITY, job text, entity text, after bool); -- of them, those that failed; after the effect, or before
CREATE TABLE asked   (id bigint GENERATED ALWAYS AS IDENTITY, job text, entity text);            -- done-checks after a body began
CREATE TABLE outside (id bigint GENERATED ALWAYS AS IDENTITY, job text, entity text, key text);  -- effects
CREATE TABLE inside  (id bigint GENERATED ALWAYS AS IDENTITY, job text, entity text);            -- effects in the worker's transactions
CREATE TABLE outage  (n int);                                                                    -- has a row while there is one`

// traits are how bodies of a scenario behave.
type traits struct {
	takes  func(try int) time.Duration                 // before the effect; nil: a moment
	deaf   bool                                        // to the end of the context
	fails  func(class, entity string, try int) failure // nil: never
	outage bool                                        // they fail before the effect while there is one
	named  int                                         // the source of the job names so many; 0: it has none
	inGo   bool                                        // and is one in Go
	silent bool                                        // the done-check cannot tell, the first time it is asked
	policy jobs.Policy

	returns bool // each body returns the number of its try
}

type failure int

const (
	no     failure = iota
	before         // the effect
	after
)

var errTrouble = errors.New("some trouble")

// begin notes that a body has begun, waits as long as it takes, and notes whether it is to fail.
func (o *outside) begin(ctx context.Context, class, entity string) (failure, error) {
	fail, err := o.run(ctx, class, entity)
	if fail != no {
		if _, lost := o.pool.Exec(context.WithoutCancel(ctx), `INSERT INTO failure (job, entity, after) VALUES ($1, $2, $3)`, class, entity, fail == after); lost != nil {
			return before, lost
		}
	}
	return fail, err
}

func (o *outside) run(ctx context.Context, class, entity string) (failure, error) {
	var try int
	var out bool
	err := o.pool.QueryRow(context.WithoutCancel(ctx), `
WITH t AS (INSERT INTO try (job, entity, by) VALUES ($1, $2, $3))
SELECT 1 + count(*), EXISTS (SELECT FROM outage) FROM try WHERE job = $1 AND entity = $2`, class, entity, o.by).Scan(&try, &out)
	if err != nil {
		return before, err
	}
	if o.returns {
		if err := jobs.Current(ctx).ReturnFor(named(entity), try); err != nil {
			return before, err
		}
	}
	d := 5 * time.Millisecond
	if o.takes != nil {
		d = o.takes(try)
	}
	end := ctx.Done()
	if o.deaf {
		end = nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-end:
		return before, ctx.Err()
	}
	switch {
	case o.outage && out:
		return before, errTrouble
	case o.fails == nil:
		return no, nil
	}
	if f := o.fails(class, entity, try); f != no {
		return f, errTrouble
	}
	return no, nil
}

// do has an effect that no transaction covers.
func (o *outside) do(ctx context.Context, class, entity string) error {
	fail, err := o.begin(ctx, class, entity)
	if fail == before {
		if class == "once" || o.outage {
			return jobs.NotApplied(err)
		}
		return err
	}
	if _, lost := o.pool.Exec(context.WithoutCancel(ctx), `INSERT INTO outside (job, entity, key) VALUES ($1, $2, $3)`,
		class, entity, jobs.Current(ctx).EffectKey()); lost != nil {
		return lost
	}
	return err
}

// done looks for the effect.
func (o *outside) done(ctx context.Context, class, entity string) (done bool, err error) {
	var asked int
	if err := o.pool.QueryRow(ctx, `
WITH a AS (INSERT INTO asked (job, entity) SELECT $1, $2 WHERE EXISTS (SELECT FROM try WHERE job = $1 AND entity = $2) RETURNING 1)
SELECT (SELECT count(*) FROM asked WHERE job = $1 AND entity = $2) + (SELECT count(*) FROM a), EXISTS (SELECT FROM outside WHERE key = $3)`,
		class, entity, jobs.Current(ctx).EffectKey()).Scan(&asked, &done); err != nil {
		return false, err
	}
	if o.silent && asked == 1 {
		return false, errTrouble
	}
	return done, nil
}

const effectInside = `/* effect */ INSERT INTO inside (job, entity) VALUES ($1, $2)`

func define[C class](o *outside) []jobs.Definition {
	var c C
	name := c.name()
	policy := o.policy
	policy.Timeout, policy.PackSize = 10*time.Second, 2
	if policy.Backoff == nil {
		policy.Backoff = always(50 * time.Millisecond)
	}
	j := jobs.Job[thing[C]]{Policy: policy}
	if o.named > 0 {
		j.Source = call[C]{o.named, o.inGo}.source()
	}
	do := func(ctx context.Context, t thing[C]) error { return o.do(ctx, name, t.Entity()) }
	switch any(c).(type) {
	case repeatable:
		j.Effect, j.Do = jobs.Repeatable, do
	case keyed:
		j.Effect, j.Do = jobs.Keyed(time.Hour), do
	case once:
		j.Effect, j.Do = jobs.Once, do
	case verifiable:
		j.Effect, j.Do = jobs.Verifiable(100*time.Millisecond), do
		j.Done = func(ctx context.Context, t thing[C]) (bool, error) { return o.done(ctx, name, t.Entity()) }
	case doTx:
		j.DoTx = func(ctx context.Context, tx pgx.Tx, t thing[C]) error {
			_, trouble := o.begin(ctx, name, t.Entity())
			if _, err := tx.Exec(ctx, effectInside, name, t.Entity()); err != nil {
				return err
			}
			return trouble
		}
	case doMany:
		j.DoMany = func(ctx context.Context, tx pgx.Tx, ts []thing[C]) error {
			var trouble error
			b := &pgx.Batch{}
			for _, t := range ts {
				_, err := o.begin(ctx, name, t.Entity())
				trouble = errors.Join(trouble, err)
				b.Queue(effectInside, name, t.Entity())
			}
			if err := tx.SendBatch(ctx, b).Close(); err != nil {
				return err
			}
			return trouble
		}
	}
	return []jobs.Definition{j, jobs.Job[call[C]]{FanOut: call[C].source, Policy: jobs.Policy{Backoff: policy.Backoff, Attempts: max(10, policy.Attempts)}}}
}
