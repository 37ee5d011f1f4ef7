package matrix_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A fate is what the tables say of one entity when everything is settled.
type fate struct {
	Job, Entity string
	Fact        string // its evidence; empty: none
	Trouble     string // of its claim; "held" where somebody holds it; empty: no claim, or one that is outranked
	Attempts    int    // that the fact says
	Facts       int    // the replaced ones included
	Inside      int    // effects in the worker's transactions
	Outside     int    // effects outside
	Keys        int    // different keys of those
	Most        int    // of those, under one key
	Runs        int    // bodies that began
	Failures    int    // of them, those that the scenario had fail; in a DoMany, also for another of the pack
	After       int    // of these, those that failed after the effect
	Lost        int    // lives that their workers lost, of the workers that ran it
}

const fatesSQL = `
WITH entity AS (
    SELECT job_type, entity FROM oncemore.ledger UNION SELECT job_type, entity FROM oncemore.ledger_history
    UNION SELECT job_type, entity FROM oncemore.claim
    UNION SELECT t.id, o.entity FROM outside o JOIN oncemore.job_type t ON t.name = o.job
    UNION SELECT t.id, o.entity FROM inside o JOIN oncemore.job_type t ON t.name = o.job)
SELECT t.name, e.entity, coalesce(l.evidence::text, ''), CASE WHEN c.entity IS NULL OR coalesce(c.trouble, '') <> 'in_doubt' AND l.entity IS NOT NULL AND coalesce(l.epoch, 0) >= c.epoch THEN '' ELSE coalesce(c.trouble, 'held') END,
       coalesce(l.attempts, 0),
       (l.entity IS NOT NULL)::int + (SELECT count(*) FROM oncemore.ledger_history h WHERE (h.job_type, h.entity) = (e.job_type, e.entity)),
       (SELECT count(*) FROM inside o WHERE (o.job, o.entity) = (t.name, e.entity)),
       (SELECT count(*) FROM outside o WHERE (o.job, o.entity) = (t.name, e.entity)),
       (SELECT count(DISTINCT key) FROM outside o WHERE (o.job, o.entity) = (t.name, e.entity)),
       coalesce((SELECT max(n) FROM (SELECT count(*) AS n FROM outside o WHERE (o.job, o.entity) = (t.name, e.entity) GROUP BY o.key) k), 0),
       (SELECT count(*) FROM try o WHERE (o.job, o.entity) = (t.name, e.entity)),
       (SELECT count(*) FROM failure o WHERE o.job = t.name AND (o.entity = e.entity OR t.name = 'doMany')),
       (SELECT count(*) FROM failure o WHERE (o.job, o.entity) = (t.name, e.entity) AND o.after),
       (SELECT count(*) FROM oncemore.worker v WHERE v.name IN (SELECT o.by FROM try o WHERE (o.job, o.entity) = (t.name, e.entity))
          AND EXISTS (SELECT FROM oncemore.worker later WHERE later.name = v.name AND later.id > v.id))
FROM entity e JOIN oncemore.job_type t ON t.id = e.job_type
LEFT JOIN oncemore.ledger l ON (l.job_type, l.entity) = (e.job_type, e.entity)
LEFT JOIN oncemore.claim c ON (c.job_type, c.entity) = (e.job_type, e.entity)`

// fates reads them, by job and entity.
func fates(t testing.TB, pool *pgxpool.Pool) map[string]map[string]fate {
	t.Helper()
	rows, err := pool.Query(context.Background(), fatesSQL)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[fate])
	if err != nil {
		t.Fatal(err)
	}
	byJob := map[string]map[string]fate{}
	for _, f := range all {
		if byJob[f.Job] == nil {
			byJob[f.Job] = map[string]fate{}
		}
		byJob[f.Job][f.Entity] = f
	}
	return byJob
}

// A bound says what may have become of an entity.
type bound struct {
	facts    int  // at most, one after the other
	repeats  int  // by how many attempts it may have been done more often than it has facts, beside those that failed or lost their lives
	begun    int  // by how many bodies more it may have begun than these allow
	mayDoubt bool // it may be in doubt, if its class is once
}

// broken lists the invariants that the fate of one entity breaks.
func (f fate) broken(b bound) (all []string) {
	must := func(invariant string, is bool, what string, args ...any) {
		if !is {
			all = append(all, fmt.Sprintf("%s: %s %q: %s", invariant, f.Job, f.Entity, fmt.Sprintf(what, args...)))
		}
	}
	doubt := f.Trouble == "in_doubt"
	must("I1", f.Fact != "" || doubt, "neither done nor in doubt, but %q", f.Trouble)
	must("I1", f.Trouble == "" || doubt, "its claim is left as %q", f.Trouble)
	must("I2", f.Facts <= b.facts, "%d facts, at most %d were asked for", f.Facts, b.facts)
	must("I4", !doubt || f.Job == "once" && b.mayDoubt, "in doubt, and it can be known")
	repeats := b.repeats + f.Lost
	reported := f.Facts // what was not merely adopted had its effect
	if f.Fact == "a" {
		reported--
	}
	switch f.Job {
	case "doTx", "doMany":
		must("I3", f.Inside == f.Facts && f.Outside == 0, "%d effects in transactions and %d facts", f.Inside, f.Facts)
	case "once":
		must("I4", f.Most <= 1, "%d effects under one key", f.Most)
		must("I4", f.Outside == reported || doubt && f.Outside == reported+1, "%d effects, %d facts, trouble %q", f.Outside, reported, f.Trouble)
	case "verifiable":
		must("I4", f.Most <= 1, "%d effects under one key", f.Most)
		must("I4", f.Outside == reported, "%d effects and %d facts", f.Outside, reported)
	case "keyed":
		must("I4", f.Keys == reported, "%d keys and %d facts", f.Keys, reported)
		must("I4", f.Most <= 1+repeats+f.After, "%d effects under one key, at most %d are explained", f.Most, 1+repeats+f.After)
	case "repeatable":
		must("I4", f.Outside >= reported && f.Outside <= reported+repeats+f.After, "%d effects and %d facts, %d repeats are explained", f.Outside, reported, repeats+f.After)
	}
	runs := reported + repeats + f.Failures + b.begun
	if doubt {
		runs++ // the one that is in doubt
	}
	must("I4", f.Runs <= runs, "%d runs and %d facts, %d repeats are explained", f.Runs, reported, runs-reported)
	return all
}

// outranked: beside the claim c is a fact that satisfies all it stands for. Where the answer
// to a claim was lost, and the work had just been done, such a one may be left until its
// worker has ended and the entity is named again. The fact counts, not the claim.
const outranked = `EXISTS (SELECT FROM oncemore.ledger l WHERE (l.job_type, l.entity) = (c.job_type, c.entity) AND coalesce(l.epoch, 0) >= c.epoch)`

// ofTheWhole are queries that name what breaks an invariant whatever the work was.
var ofTheWhole = map[string]string{
	"I1: a claim is held when no worker is left":                  `SELECT concat_ws(' ', job_type, entity, owner) FROM oncemore.claim c WHERE owner IS NOT NULL AND NOT ` + outranked,
	"I1: a claim waits for an attempt that no message will bring": `SELECT concat_ws(' ', job_type, entity) FROM oncemore.claim c WHERE trouble = 'retrying' AND NOT ` + outranked,
	"I1: a message is left":                                       `SELECT concat_ws(' ', id, type, entities) FROM oncemore.message`,
	"I2: two completions under one epoch":                         `SELECT concat_ws(' ', job_type, entity, coalesce(epoch, 0)) FROM (SELECT job_type, entity, epoch FROM oncemore.ledger UNION ALL SELECT job_type, entity, epoch FROM oncemore.ledger_history) f GROUP BY job_type, entity, coalesce(epoch, 0) HAVING count(*) > 1`,
	"I4: a doubt is gone, and nobody resolved it":                 `SELECT concat_ws(' ', a.job_type, a.entity, a.at) FROM oncemore.attempt a JOIN oncemore.job_type t ON t.id = a.job_type AND t.name = 'once' WHERE a.outcome = 'in_doubt' AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE (c.job_type, c.entity, c.trouble) = (a.job_type, a.entity, 'in_doubt')) AND NOT EXISTS (SELECT FROM oncemore.attempt r WHERE (r.job_type, r.entity, r.outcome) = (a.job_type, a.entity, 'resolved') AND r.at > a.at)`,
	"I6: a run has not ended":                                     `SELECT concat_ws(' ', id) FROM oncemore.run WHERE ended_at IS NULL`,
	"I6: a run is complete without its item":                      `SELECT concat_ws(' ', r.id, e.entity) FROM oncemore.run r JOIN oncemore.run_pack p ON p.run = r.id, unnest(p.entities) AS e(entity) WHERE r.complete AND NOT EXISTS (SELECT FROM (SELECT job_type, entity, completed_at FROM oncemore.ledger UNION ALL SELECT job_type, entity, completed_at FROM oncemore.ledger_history) l WHERE l.job_type = r.job_type AND l.entity = e.entity AND l.completed_at <= r.ended_at)`,
	"I7: a tick was started, and its work is not done":            `SELECT concat_ws(' ', t.schedule, t.tick) FROM oncemore.schedule_tick t WHERE t.outcome = 'started' AND t.run IS NULL AND NOT EXISTS (SELECT FROM (SELECT epoch FROM oncemore.ledger UNION ALL SELECT epoch FROM oncemore.ledger_history) f WHERE f.epoch = t.epoch)`,
	"I7: a run is of no tick, or a tick of no run":                `SELECT concat_ws(' ', r.schedule, r.tick) FROM oncemore.run r WHERE r.schedule IS NOT NULL AND NOT EXISTS (SELECT FROM oncemore.schedule_tick t WHERE (t.schedule, t.tick, t.run) = (r.schedule, r.tick, r.id) AND t.outcome = 'started')`,
	"I6: a run has ended and does not say that it is complete":    `SELECT concat_ws(' ', r.id) FROM oncemore.run r WHERE r.ended_at IS NOT NULL AND NOT r.complete AND r.failed + r.in_doubt + r.not_ready = 0 AND NOT r.cancelled`,
}

// check looks whether the invariants hold in a world that is settled and without workers.
func (w *world) check(hit strike) {
	w.Helper()
	var broken []string
	for what, sql := range ofTheWhole {
		for _, found := range list(w, w.pool, sql) {
			broken = append(broken, what+": "+found)
		}
	}
	// A worker that lost its lease because the machine was busy is one more fault.
	lives := ask[int](w, `SELECT count(*) FROM oncemore.worker`) - 1
	if w.second != nil {
		lives--
	}
	extra := max(0, lives)
	b := bound{facts: max(1, w.facts)}
	if len(w.struck) > 0 {
		b.repeats++
		if hit.fault == reportedLost && hit.target.name == "sqs: send" {
			b.repeats += 2 // the SDK sent it three times, and the producer then once more
		}
	}
	if w.shape == "late" {
		b.repeats++ // the late success
	}
	all := fates(w, w.pool)
	for n := range w.things {
		entity := fmt.Sprint(n + 1)
		f, is := all[w.class][entity]
		if !is {
			broken = append(broken, fmt.Sprintf("I1: %s %q: lost", w.class, entity))
			continue
		}
		b.mayDoubt = extra > 0 || w.shape == "long" && hit.fault == slow || hit.fault == cutOff || w.held[entity]
		broken = append(broken, f.broken(b)...)
	}
	if n := len(all[w.class]); n != w.things {
		broken = append(broken, fmt.Sprintf("%d entities, want %d", n, w.things))
	}
	if n := ask[int](w, `SELECT count(*) FROM oncemore.parked`); n != w.parked {
		broken = append(broken, fmt.Sprintf("%d inputs are parked, want %d", n, w.parked))
	}
	// Who took over from a worker that lived has no cause for it.
	if w.shape != "late" { // where the scenario declares it
		for _, found := range list(w, w.pool, `SELECT concat_ws(' ', name, id, 'until', expires, 'dead at', dead_at) FROM oncemore.worker WHERE cause = 'lapsed' AND dead_at < expires`) {
			broken = append(broken, "I9: a worker was declared dead while its lease went on: "+found)
		}
	}
	// A dispute says that something may have happened twice. A false one sends an operator
	// after nothing.
	if n := ask[int](w, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'disputed'`); n > 0 && w.shape != "late" && extra == 0 && hit.fault != cutOff {
		broken = append(broken, fmt.Sprintf("%d attempts are disputed, and nobody took over", n))
	}
	if len(broken) > 0 {
		w.Errorf("%s\n%s", strings.Join(broken, "\n"), w.story())
	}
}

func list(t testing.TB, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	rows, err := pool.Query(context.Background(), sql)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return all
}
