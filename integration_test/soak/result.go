package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A result is what is counted at the end.
type result struct {
	Seed          uint64         `json:"seed"`
	For           string         `json:"for"`
	Seconds       float64        `json:"seconds"` // with draining and counting
	Torments      map[string]int `json:"torments"`
	Types         []*typeResult  `json:"types"`
	InDoubtListed int64          `json:"in_doubt_listed"` // after the first drain
	InDoubtOwed   int64          `json:"in_doubt_owed"`   // of class Once: begun, not refused, and without a fact
	Resolved      int64          `json:"resolved"`
	Disputed      int64          `json:"disputed"` // entities with a late completion that was refused
	Beside        int64          `json:"beside"`   // claims that a fact outranks, before everything was called once more
	Excused       int64          `json:"excused"`  // effects of class Verifiable whose process was frozen between body and effect
	Checks        []*check       `json:"checks"`   // each must be 0

	offenders map[*check][]Entity
}

// A typeResult is a line of the table.
type typeResult struct {
	Name    string `json:"type"`
	Class   class  `json:"class"`
	Asked   int64  `json:"asked"` // entities
	Done    int64  `json:"done"`  // all that was asked for of them
	Failed  int64  `json:"failed"`
	InDoubt int64  `json:"in_doubt"`
	Lost    int64  `json:"lost"` // neither done, nor open, nor parked
	Effects int64  `json:"effects"`
	Doubled int64  `json:"doubled"` // effects beyond the first of an epoch
	Beyond  int64  `json:"beyond"`  // of those, what the class does not allow
}

// A check is a number that must be 0.
type check struct {
	Name string `json:"name"`
	N    int64  `json:"n"`
}

func (r *result) clean() bool {
	return !slices.ContainsFunc(r.Checks, func(c *check) bool { return c.N != 0 })
}

// must notes a number that must be 0, with the entities that it counts, some of them at
// least.
func (r *result) must(name string, n int64, offenders []Entity) {
	c := &check{name, n}
	r.Checks = append(r.Checks, c)
	if r.offenders == nil {
		r.offenders = map[*check][]Entity{}
	}
	r.offenders[c] = offenders
}

// A tally collects the offenders of one check.
type tally struct {
	n  int64
	es []Entity
}

func (t *tally) add(e Entity) {
	t.n++
	if len(t.es) < 5 {
		t.es = append(t.es, e)
	}
}

// withstood demands each kind of torment, if the soak took long enough for that: what never
// happened nothing was found of.
func (r *result) withstood(o options) {
	if o.gap == 0 || o.duration < enough(o.gap) {
		return
	}
	missing := int64(0)
	for _, d := range torments {
		if r.Torments[d.name] == 0 {
			missing++
		}
	}
	r.must("kinds of torments that never happened", missing, nil)
}

// doubts looks whether what may have happened, and nobody can tell, is listed.
func (r *result) doubts(c *count) {
	var unlisted tally
	for _, t := range jobTypes {
		for id, rec := range c.of[t.name] {
			if rec.open != nil && rec.open.Trouble == "in_doubt" {
				r.InDoubtListed++
			}
			if t.class != once {
				continue
			}
			perhaps := map[int64]int{} // attempts that may have had their effect, by epoch
			for _, i := range rec.effects {
				switch e := &c.effects[i]; e.Kind {
				case "began":
					perhaps[e.Epoch]++
				case "refused":
					perhaps[e.Epoch]--
				}
			}
			for epoch, n := range perhaps {
				if n == 0 || rec.under(epoch) {
					continue
				}
				r.InDoubtOwed++
				if rec.open == nil || rec.open.Trouble != "in_doubt" || rec.open.Epoch != epoch {
					unlisted.add(Entity{t.name, id})
				}
			}
		}
	}
	r.must("in doubt, and not listed", unlisted.n, unlisted.es)
}

// count looks at every entity that was ever asked for, and at every other that is known.
func (r *result) count(c *count) {
	var lost, beyond, noEffect, noFact, stray, wrongKey, disorder, stale, underway, doubtful, unplanned, unfailed tally
	idle := int64(0)
	for i := range jobTypes {
		t := &jobTypes[i]
		line := &typeResult{Name: t.name, Class: t.class, Asked: c.demand.newest[t.name]}
		r.Types = append(r.Types, line)
		for id := int64(1); id <= line.Asked; id++ {
			c.record(t.name, id) // so that what left no trace is looked at as well
		}
		for id, rec := range c.of[t.name] {
			e := Entity{t.name, id}
			satisfied := c.satisfied(e, rec)
			switch {
			case id < 1 || id > line.Asked:
				stray.add(e)
			case satisfied:
				line.Done++
				if c.hopeless(t, id) {
					unfailed.add(e)
				}
			case rec.open != nil && rec.open.Trouble == "failed":
				line.Failed++
				if !c.hopeless(t, id) {
					unplanned.add(e)
				}
			case rec.open != nil && rec.open.Trouble == "in_doubt":
				line.InDoubt++
				doubtful.add(e)
			case rec.open != nil:
				underway.add(e)
			case !rec.parked:
				line.Lost++
				lost.add(e)
			}
			if rec.open != nil && len(rec.facts) > 0 && rec.open.Epoch <= rec.fact().Epoch {
				r.Beside++
			}
			if rec.late {
				r.Disputed++
			}
			for i := 1; i < len(rec.facts); i++ {
				if rec.facts[i].Epoch <= rec.facts[i-1].Epoch {
					disorder.add(e)
				}
			}

			// Effects, by epoch.
			n := map[int64]int64{}
			excused := map[int64]int64{}
			var last int64 // the version that was written last
			for _, i := range rec.effects {
				f := &c.effects[i]
				if f.Kind != "" {
					continue
				}
				n[f.Epoch]++
				last = f.Version
				if t.class == verifiable && c.frozen(f) {
					excused[f.Epoch]++
				}
				if !rightKey(f) {
					wrongKey.add(e)
				}
			}
			for _, w := range rec.rows {
				n[w.Epoch]++
				last = w.Version
			}
			for epoch, times := range n {
				line.Effects += times
				if times > 1 {
					line.Doubled += times - 1
					over := times - 1
					switch t.class {
					case repeatable, keyed:
						over = 0
					case verifiable:
						pardon := min(over, excused[epoch])
						r.Excused += pardon
						over -= pardon
					}
					if over > 0 {
						line.Beyond += over
						beyond.add(e)
					}
				}
				// What has an effect and no fact is open. In the database that cannot be.
				if !rec.under(epoch) && (t.class == inTx || rec.open == nil && len(rec.facts) == 0) {
					noFact.add(e)
				}
			}
			for _, f := range rec.facts {
				if n[f.Epoch] == 0 {
					noEffect.add(e)
				}
			}
			if t.sourced && satisfied && last != c.newest[e] {
				stale.add(e)
			}
		}
	}
	r.must("lost: neither done as asked, nor open, nor parked", lost.n, lost.es)
	r.must("doubled beyond what the class allows", beyond.n, beyond.es)
	r.must("done without any effect", noEffect.n, noEffect.es)
	r.must("an effect, and neither a fact nor open", noFact.n, noFact.es)
	r.must("effects under another key than their epoch's", wrongKey.n, wrongKey.es)
	r.must("made of an old version last", stale.n, stale.es)
	r.must("facts replaced by one of no higher epoch", disorder.n, disorder.es)
	r.must("known, and never asked for", stray.n, stray.es)
	for _, l := range r.Types {
		if l.Done == 0 && l.Asked > 0 {
			idle++
		}
	}
	r.must(idleTypes, idle, nil)
	r.must("neither done, nor listed as a trouble: still on the way", underway.n, underway.es)
	// Of an entity's twelve attempts two at most are lost to its own trouble; that torments
	// strike ten others in a row does not happen.
	r.must("in doubt after all doubts were resolved", doubtful.n, doubtful.es)
	r.must("failed, and it was not their fate", unplanned.n, unplanned.es)
	r.must("done, and it was their fate to fail", unfailed.n, unfailed.es)
}

const idleTypes = "job types of which nothing is done"

// again compares what was before everything was called once more with what is after it.
func (r *result) again(before, after *count) {
	var twice, written, beside tally
	for _, t := range jobTypes {
		for id, b := range before.of[t.name] {
			e := Entity{t.name, id}
			if !before.satisfied(e, b) {
				continue
			}
			a := after.record(t.name, id)
			if len(a.effects) != len(b.effects) || len(a.rows) != len(b.rows) {
				twice.add(e)
			}
			if !slices.Equal(a.facts, b.facts) {
				written.add(e)
			}
			if a.open != nil && a.open.Epoch <= a.fact().Epoch {
				beside.add(e)
			}
		}
	}
	r.must("done, and done again when called once more", twice.n, twice.es)
	r.must("done, and recorded anew when called once more", written.n, written.es)
	r.must("a fact, and a claim that it outranks and that nobody swept away", beside.n, beside.es)
}

// inDatabase are what there must be none of: each query returns the type and the entity
// of what is wrong, where it has them.
var inDatabase = []struct{ name, sql string }{
	{"messages left", `SELECT m.type, m.entities[1] FROM oncemore.message m`},
	{"messages held that no receive names", `
SELECT m.type, m.entities[1] FROM oncemore.message m
WHERE m.lock > 0 AND NOT EXISTS (SELECT FROM oncemore.message_receive r WHERE r.lock = m.lock AND m.id = ANY (r.ids))`},
	{"claims that are held, although all workers have stopped", `
SELECT t.name, c.entity FROM oncemore.claim c JOIN oncemore.job_type t ON t.id = c.job_type WHERE c.owner IS NOT NULL`},
	{"workers that have stopped and are not dead", `SELECT '', w.id::text FROM oncemore.worker w WHERE w.dead_at IS NULL`},
	{"parked input", `SELECT p.type, p.entity FROM oncemore.parked p`},
	{"runs that have not ended", `SELECT t.name, r.parent_entity FROM oncemore.run r JOIN oncemore.job_type t ON t.id = r.parent_type WHERE r.ended_at IS NULL`},
	{"items of complete runs that are not done", `
SELECT t.name, e.entity FROM oncemore.run r JOIN oncemore.job_type t ON t.id = r.job_type
JOIN oncemore.run_pack p ON p.run = r.id CROSS JOIN unnest(p.entities) AS e(entity)
WHERE r.complete AND NOT EXISTS (SELECT FROM oncemore.ledger l WHERE l.job_type = r.job_type AND l.entity = e.entity COLLATE "C" AND coalesce(l.epoch, 0) >= r.epoch)`},
	{"runs that ended incomplete and do not say why", `
SELECT t.name, r.parent_entity FROM oncemore.run r JOIN oncemore.job_type t ON t.id = r.parent_type
WHERE r.ended_at IS NOT NULL AND NOT r.complete AND r.failed + r.in_doubt + r.not_ready = 0`},
	{"runs that are complete and count failures", `
SELECT t.name, r.parent_entity FROM oncemore.run r JOIN oncemore.job_type t ON t.id = r.parent_type
WHERE r.complete AND (r.ended_at IS NULL OR r.failed + r.in_doubt + r.not_ready > 0)`},
}

// database asks what can be asked in SQL.
func (r *result) database(ctx context.Context, w *world) error {
	for _, q := range inDatabase {
		var found tally
		var e Entity
		var id string
		rows, err := w.db.Query(ctx, q.sql)
		if err == nil {
			_, err = pgx.ForEachRow(rows, []any{&e.Type, &id}, func() error {
				e.ID, _ = strconv.ParseInt(id, 10, 64)
				found.add(e)
				return nil
			})
		}
		if err != nil {
			return fmt.Errorf("count %s: %w", q.name, err)
		}
		r.must(q.name, found.n, found.es)
	}
	return w.db.QueryRow(ctx, `SELECT count(*) FROM oncemore.attempt WHERE outcome = 'resolved'`).Scan(&r.Resolved)
}

// processes looks at how workers ended.
func (r *result) processes(w *world) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, how := range w.unasked {
		w.log.say("ended unasked: %s", how)
	}
	r.must("workers that ended by themselves, or not when asked", int64(len(w.unasked)), nil)
}

// tell tells the story of some entities of each check that failed.
func (r *result) tell(ctx context.Context, w *world, c *count) error {
	for _, check := range r.Checks {
		if check.N == 0 {
			continue
		}
		w.log.say("%d %s", check.N, check.Name)
		for _, e := range r.offenders[check] {
			if err := story(ctx, w, c, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// In each table, what it says of one entity.
var storySQL = []string{
	`SELECT 'fact' AS is, l.* FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = $1 AND l.entity = $2`,
	`SELECT 'history' AS is, l.* FROM oncemore.ledger_history l JOIN oncemore.job_type t ON t.id = l.job_type WHERE t.name = $1 AND l.entity = $2 ORDER BY archived_at`,
	`SELECT 'claim' AS is, c.* FROM oncemore.claim c JOIN oncemore.job_type t ON t.id = c.job_type WHERE t.name = $1 AND c.entity = $2`,
	`SELECT 'attempt' AS is, a.at, a.worker, a.fence, a.number, a.outcome, a.error_class, left(a.error, 200), w.name FROM oncemore.attempt a JOIN oncemore.job_type t ON t.id = a.job_type LEFT JOIN oncemore.worker w ON w.id = a.worker WHERE t.name = $1 AND a.entity = $2 ORDER BY a.at`,
	`SELECT 'parked' AS is, p.* FROM oncemore.parked p WHERE p.type = $1 AND p.entity = $2`,
	`SELECT 'message' AS is, m.visible_at, m.id, m.lock, m.received, m.deferred, m.epoch, m.run, m.args FROM oncemore.message m WHERE m.type = $1 AND $2 = ANY (m.entities)`,
	`SELECT 'row' AS is, e.* FROM soak.effect e WHERE e.type = $1 AND e.id = $2::text::bigint ORDER BY e.at`,
}

// story tells all that is known of an entity.
func story(ctx context.Context, w *world, c *count, e Entity) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d: asked for under epoch %d, version %d", e.Type, e.ID, c.demand.epochs[e], c.newest[e])
	if t := typeNamed(e.Type); t != nil {
		fmt.Fprintf(&b, "; its fate is %+v", fateOf(w.settings.Seed, t, e.ID))
	}
	for _, sql := range storySQL {
		rows, err := w.db.Query(ctx, sql, e.Type, fmt.Sprint(e.ID))
		if err != nil {
			return fmt.Errorf("tell of %s %d: %w", e.Type, e.ID, err)
		}
		lines, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
			values, err := row.Values()
			var cells []string
			for i, f := range row.FieldDescriptions() {
				switch v := values[i].(type) {
				case nil:
				case time.Time:
					cells = append(cells, f.Name+"="+v.UTC().Format("15:04:05.000"))
				default:
					cells = append(cells, fmt.Sprintf("%s=%v", f.Name, v))
				}
			}
			return strings.Join(cells, " "), err
		})
		if err != nil {
			return fmt.Errorf("tell of %s %d: %w", e.Type, e.ID, err)
		}
		for _, line := range lines {
			b.WriteString("\n              " + line)
		}
	}
	for _, i := range c.record(e.Type, e.ID).effects {
		f := &c.effects[i]
		fmt.Fprintf(&b, "\n              effect %+v frozen=%t", *f, c.frozen(f))
	}
	w.log.say("%s", b.String())
	return nil
}
