package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A planned is what one planning did.
type planned struct {
	packs   int   // sealed
	sent    int   // the first so many of them; the others have what is only waited for
	items   int64 // sent
	skipped int64 // named, and done already
	going   int64 // named, and open: somebody is at it, or it waits for its next attempt
	failed  int64 // named, and listed as failed
	inDoubt int64 // named, and in doubt
}

// planSQL plans a source that is a query, inside the server: it names, subtracts what is
// done or open, packs, seals the packs into the run, and sends them, in one statement, so
// that no row travels and a million entities take a second or two.
//
// It is a sieve, not a decision: what it lets through is decided on by the worker that
// receives it. It may let through too much, never too little: it holds back only what has
// a fact that is not stale, or a claim.
func (l *life) planSQL(ctx context.Context, tx pgx.Tx, r *run, child *kind, src jobs.Source) (planned, error) {
	query, params := src.Query()
	columns, err := plan.Describe(ctx, tx, query)
	if err != nil {
		return planned{}, err
	}
	var facts, claims bool
	if err := tx.QueryRow(ctx, anythingSQL, child.ID).Scan(&facts, &claims); err != nil {
		return planned{}, err
	}
	params = slices.Clone(params)
	n := len(params)
	arg := func(v any) string {
		params = append(params, v)
		n++
		return fmt.Sprintf("$%d", n)
	}
	runID := arg(r.id)
	stale := ""
	if columns.Has("source_version") {
		stale = ` AND coalesce(l.source_version, 0) >= coalesce(s.source_version, 0)` // NULL is 0, as in the arguments
	}
	// The query's entity is computed once: OFFSET 0 keeps the expression from being pulled
	// up to every place that compares it. What has neither facts nor claims is not joined, and
	// then nothing needs to be told apart. In the joins it keeps the source outermost: each
	// named entity is looked for by primary key. The planner would rather read all the facts
	// there are into a hash, which for a few entities of millions takes many times as long.
	order := `OFFSET 0`
	if facts {
		order = plan.Order(query)
	}
	done, open, trouble, joins, barrier, todo := `false`, `false`, `NULL::text`, ``, ``, ``
	if facts {
		done = `l.entity IS NOT NULL`
		joins += `
    LEFT JOIN LATERAL (SELECT l.entity FROM oncemore.ledger l WHERE l.job_type = ` + arg(child.ID) + `::int AND l.entity = s.entity
         AND coalesce(l.epoch, 0) >= ` + arg(r.epoch) + `::bigint AND coalesce(l.version, 0) >= ` + arg(child.Type.Version) + `::int` + stale + `
         OFFSET 0) l ON true`
	}
	if claims {
		open, trouble = `c.entity IS NOT NULL`, `c.trouble`
		if !r.planned { // a call asks for what has failed as well
			open += ` AND c.trouble IS DISTINCT FROM 'failed'`
		}
		joins += `
    LEFT JOIN LATERAL (SELECT c.entity, c.trouble FROM oncemore.claim c WHERE c.job_type = ` + arg(child.ID) + `::int AND c.entity = s.entity
         OFFSET 0) c ON true`
	}
	if joins != "" {
		barrier, todo = `
    OFFSET 0`, ` FILTER (WHERE pack >= 0)`
	}
	statement := `
/* run: plan */
WITH named AS (
    SELECT s.*, ` + done + ` AS oncemore_done, ` + open + ` AS oncemore_open, ` + trouble + ` AS oncemore_trouble
    FROM (SELECT coalesce(q.entity::text, '') COLLATE "C" AS entity` + columns.Others() + ` FROM (` + query + `
    ) q ` + order + `) s` + joins + barrier + `
), numbered AS (
    SELECT s.entity, s.oncemore_done AS done, CASE WHEN s.oncemore_open AND NOT s.oncemore_done THEN coalesce(s.oncemore_trouble, '') END AS open,
           CASE WHEN s.oncemore_done OR s.oncemore_open THEN -1 ELSE nextval('oncemore.plan_item') / ` + arg(child.PackSize) + `::int END AS pack,
           CASE WHEN NOT (s.oncemore_done OR s.oncemore_open) THEN ` + columns.JSON() + ` END AS args
    FROM named s
), packs AS MATERIALIZED (
    SELECT pack >= 0 AS todo, count(*) AS n, count(*) FILTER (WHERE done) AS done,
           count(*) FILTER (WHERE open = 'failed') AS failed, count(*) FILTER (WHERE open = 'in_doubt') AS in_doubt,
           ` + arg(r.packs) + `::int - 1 + row_number() OVER (PARTITION BY pack >= 0 ORDER BY pack) AS number,
           array_agg(entity)` + todo + ` AS entities, array_agg(args)` + todo + ` AS args
    FROM numbered GROUP BY pack
), sealed AS (
    INSERT INTO oncemore.run_pack (run, pack, entities) SELECT ` + runID + `::bigint, number, entities FROM packs WHERE todo
), sent AS (
    INSERT INTO oncemore.message (queue, type, priority, run, epoch, pack, entities, args)
    SELECT ` + arg(l.carrier(child).Name()) + `::text, ` + arg(child.name) + `::text, ` + arg(child.Priority) + `::int, ` + runID + `::bigint, nullif(` + arg(r.epoch) + `::bigint, 0), number, entities, args
    FROM packs WHERE todo ORDER BY number
)
SELECT count(*) FILTER (WHERE todo), coalesce(sum(n) FILTER (WHERE todo), 0)::bigint,
       coalesce(sum(done), 0)::bigint, coalesce(sum(n - done - failed - in_doubt) FILTER (WHERE NOT todo), 0)::bigint,
       coalesce(sum(failed), 0)::bigint, coalesce(sum(in_doubt), 0)::bigint
FROM packs`
	if _, err := tx.Exec(ctx, `SELECT set_config('work_mem', '128MB', true), set_config('jit', 'off', true), set_config('plan_cache_mode', 'force_custom_plan', true)`); err != nil {
		return planned{}, err
	}
	var p planned
	if err := tx.QueryRow(ctx, statement, params...).Scan(&p.packs, &p.items, &p.skipped, &p.going, &p.failed, &p.inDoubt); err != nil {
		return planned{}, err
	}
	p.sent = p.packs
	if claims && !r.planned {
		_, err = tx.Exec(ctx, reviveSQL+` AND c.entity IN (SELECT unnest(p.entities) FROM oncemore.run_pack p WHERE p.run = $2)`, child.ID, r.id)
	}
	return p, err
}

// Calling a fan-out again asks for what is not done, so what has failed gets all its
// attempts anew. What is in doubt stays so.
//
// It stays listed as failed until a worker takes it over for this run (see Decide), and is never
// "retrying": that is what has a message with its own arguments. The message of the run has those
// that the source names now, which may be others, or none that decode; it is parked then, and the
// failure is what it was.
const reviveSQL = `
/* claim: revive */
UPDATE oncemore.claim c SET attempts = 0, run = $2, fence = nextval('oncemore.fence')
WHERE c.job_type = $1 AND c.trouble = 'failed' AND c.owner IS NULL`

// Somebody may write the first fact of a type just after this: the sieve lets through a
// little more then, and the worker decides.
const anythingSQL = `
SELECT EXISTS (SELECT FROM oncemore.ledger WHERE job_type = $1), EXISTS (SELECT FROM oncemore.claim WHERE job_type = $1)`

// checkSources refuses sources whose columns do not decode as their arguments.
func (w *Worker) checkSources(ctx context.Context, k *kind) error {
	src := k.Erased.Source
	if query, _ := src.Query(); query == "" {
		return nil
	}
	return pgx.BeginTxFunc(ctx, w.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		query, params := src.Query()
		columns, err := plan.Describe(ctx, tx, query)
		if err != nil {
			return fmt.Errorf("the source of job %s cannot be used: %w", k.name, err)
		}
		var entity, args string
		err = tx.QueryRow(ctx, `SELECT coalesce(s.entity::text, ''), `+columns.JSON()+` FROM (`+query+`
) s LIMIT 1`, params...).Scan(&entity, &args)
		if errors.Is(err, pgx.ErrNoRows) {
			// No row to try: the names at least must be known.
			fields := map[string]any{}
			for _, name := range columns.Arguments() {
				fields[name] = nil
			}
			raw, _ := json.Marshal(fields)
			if err := k.Erased.Knows(raw); err != nil {
				return fmt.Errorf("the source of job %s has a column that its arguments do not know: %w", k.name, err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("the source of job %s cannot be used: %w", k.name, err)
		}
		if err := k.Erased.Knows([]byte(args)); err != nil {
			return fmt.Errorf("the source of job %s has columns that its arguments do not know: %w", k.name, err)
		}
		if _, err := k.Erased.Decode(entity, []byte(args)); err != nil {
			return fmt.Errorf("the source of job %s names %q with %s, which does not decode: %w", k.name, entity, args, err)
		}
		return nil
	})
}

// seqChunk is how many entities of a source in Go are planned in one transaction.
const seqChunk = 10_000

// A chunk is a part of what a source in Go names, read before the transaction that plans
// it begins: the source may itself need a connection.
type chunk struct {
	items []queue.Item
	wants []ledger.Want
	after string // the last entity read
	more  bool   // the source may have more behind it
	inGo  bool   // false for the zero chunk: the source is not in Go

	unread bool // the source was not asked, because messages of the run were waiting
}

func readChunk(ctx context.Context, src jobs.Source, child *kind, after string) (chunk, error) {
	c := chunk{after: after, inGo: true}
	for a, err := range src.Each(ctx, after) {
		if err != nil {
			return c, fmt.Errorf("source: %w", err)
		}
		it, err := jobs.NewItem(a)
		if err != nil {
			return c, err
		}
		in, err := child.Erased.Decode(it.Entity, it.Args)
		if err != nil {
			return c, fmt.Errorf("source: %w", err)
		}
		c.items = append(c.items, it)
		c.wants = append(c.wants, ledger.Want{Entity: it.Entity, Fingerprint: in.Fingerprint, SourceVersion: in.SourceVersion})
		c.after = it.Entity
		if len(c.items) == seqChunk {
			c.more = true
			break
		}
	}
	return c, nil
}

// planChunk plans one chunk in the transaction of the visit.
func (l *life) planChunk(ctx context.Context, tx pgx.Tx, r *run, child *kind, c chunk) (planned, error) {
	var p planned
	for i := range c.wants {
		c.wants[i].Epoch = r.epoch
	}
	standings, err := ledger.LookIn(ctx, tx, &child.Type, c.wants)
	if err != nil {
		return p, err
	}
	var todo []queue.Item
	var failed, open []string
	for i, st := range standings {
		switch {
		case st.Fact != nil && !ledger.Decide(&child.Type, c.wants[i], st.Fact, nil, st.Now).Run():
			p.skipped++ // its fact ends the matter, whatever is open beside it
			continue
		case st.Open == nil:
			todo = append(todo, c.items[i])
			continue
		case st.Open.Trouble == ledger.FailedFor && !r.planned: // a call asks for what has failed as well
			todo, failed = append(todo, c.items[i]), append(failed, st.Open.Entity)
			continue
		case st.Open.Trouble == ledger.FailedFor:
			p.failed++
		case st.Open.Trouble == ledger.Doubtful:
			p.inDoubt++
		default:
			p.going++
		}
		open = append(open, st.Open.Entity)
	}
	var packs [][]string
	var ms []queue.Message
	for items := range slices.Chunk(todo, child.PackSize) {
		entities := make([]string, len(items))
		for i, it := range items {
			entities[i] = it.Entity
		}
		ms = append(ms, queue.Message{Type: child.name, Items: items, Run: r.id, Pack: r.packs + len(packs), Epoch: r.epoch, Priority: child.Priority})
		packs = append(packs, entities)
	}
	p.sent = len(packs)
	// What an earlier call left open is in the plan too, and not sent: somebody carries it.
	// Later pieces of the source must not forget it.
	if !r.planned || p.failed+p.inDoubt > r.failed+r.inDoubt {
		packs = slices.AppendSeq(packs, slices.Chunk(open, queue.MaxItems))
	}
	if len(packs) == 0 {
		return p, nil
	}
	b := &pgx.Batch{}
	for i, entities := range packs {
		b.Queue(`/* run: seal a pack */ INSERT INTO oncemore.run_pack (run, pack, entities) VALUES ($1, $2, $3)`, r.id, r.packs+i, entities)
	}
	if len(failed) > 0 {
		b.Queue(reviveSQL+` AND c.entity = ANY ($3)`, child.ID, r.id, failed)
	}
	l.carrier(child).SendBatch(b, ms...)
	p.packs, p.items = len(packs), int64(len(todo))
	return p, tx.SendBatch(ctx, b).Close()
}
