package schedule_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A tale is what happens in one order, and what must be true of it. Whoever moves owns it.
type tale struct {
	*stage
	scenario *scenario
	kind     *ledger.Type
	entities []string
	workers  []int64
	players  []*player
	first    int64 // of the runs that tell the players' items apart

	items     []*item
	effects   []effect          // outside of the database
	claims    map[int64]int     // won, by epoch
	completed []*ledger.Outcome // that were reported, refused or not
	denied    int               // how often an operator said that there was no effect
	lapsed    [maxActors]bool   // whose lease is over
	forgetful [maxActors]bool   // whose done-check cannot tell

	unfenced, careless, silent bool // what is left out, to see that it is noticed

	last   map[string]place
	fences map[string]int64 // the highest that was seen
	blames []string
}

type effect struct {
	who           string
	epoch, source int64
	want          [2]int64 // epoch and source that were asked for
	reported      bool     // as a success
}

// run is the run that a player's items carry, so that facts, effects and messages say whose they are.
func (ta *tale) run(n int) int64 { return ta.first + int64(n) }

func (ta *tale) runs() (rs []int64) {
	for n := range maxActors {
		rs = append(rs, ta.run(n))
	}
	return rs
}

func (ta *tale) blame(format string, args ...any) {
	ta.blames = append(ta.blames, fmt.Sprintf(format, args...))
}

// A place is what is committed about an entity.
type place struct {
	fact, claim   string  // whole rows; empty: none
	epoch, source int64   // of the fact
	fence, owner  int64   // of the claim
	history       []int64 // epochs of facts that were replaced
}

func (p place) somewhere() bool { return p.fact != "" || p.claim != "" }

func (p place) String() string {
	switch {
	case p.fact != "" && p.claim != "":
		return "done and open"
	case p.fact != "":
		return "done"
	case p.claim != "":
		return "open"
	}
	return "missing"
}

const placesSQL = `
SELECT w.entity, coalesce(l::text, ''), coalesce(c::text, ''), coalesce(l.epoch, 0), coalesce(l.source_version, 0),
       coalesce(c.fence, 0), coalesce(c.owner, 0),
       ARRAY(SELECT coalesce(h.epoch, 0) FROM oncemore.ledger_history h WHERE h.job_type = $1 AND h.entity = w.entity ORDER BY 1)
FROM unnest($2::text[]) AS w(entity)
LEFT JOIN LATERAL (SELECT l.* FROM oncemore.ledger l WHERE l.job_type = $1 AND l.entity = w.entity OFFSET 0) l ON true
LEFT JOIN LATERAL (SELECT c.* FROM oncemore.claim c WHERE c.job_type = $1 AND c.entity = w.entity OFFSET 0) c ON true`

// look reads what is committed now.
func (ta *tale) look() (map[string]place, error) {
	rows, err := ta.ctl.Query(context.Background(), placesSQL, ta.kind.ID, ta.entities)
	if err != nil {
		return nil, err
	}
	return places(rows)
}

func places(rows pgx.Rows) (map[string]place, error) {
	out := map[string]place{}
	var e string
	var p place
	_, err := pgx.ForEachRow(rows, []any{&e, &p.fact, &p.claim, &p.epoch, &p.source, &p.fence, &p.owner, &p.history}, func() error {
		p.history = slices.Clone(p.history)
		out[e] = p
		return nil
	})
	return out, err
}

// after looks at what is committed after a step, and compares with what was before it.
func (ta *tale) after(t schedule.Taken) []string {
	actor := ta.players[t.Actor.N]
	unchanged, accepted := actor.unchanged, actor.accepted
	for _, p := range ta.players { // who went on with it did more than one step shows
		p.unchanged, p.accepted = "", 0
	}
	if t.Waited && actor.takesOver && t.Step.What != "claim: insert" && strings.HasPrefix(t.Step.What, "claim") {
		ta.blame("%s waits to take a claim over: a frozen transaction would make it wait for ever", t.Actor.Name)
	}
	if t.Step.Kind != schedule.Read && t.Step.Kind != schedule.Local {
		actor.moves++
	}
	if t.Step.Kind != schedule.Commit && t.Step.Kind != schedule.Any {
		return ta.take()
	}
	now, err := ta.look()
	if err != nil {
		return append(ta.take(), err.Error())
	}
	for _, e := range ta.entities {
		was, is := ta.last[e], now[e]
		if was.fact != "" && is.fact == "" {
			ta.blame("%s was done, and is %s", e, is)
		}
		if was.somewhere() && !is.somewhere() {
			ta.blame("%s was %s, and is nowhere: lost", e, was)
		}
		if was.fact != "" && is.fact != was.fact && is.epoch <= was.epoch {
			ta.blame("the fact of %s under epoch %d was replaced by one under epoch %d", e, was.epoch, is.epoch)
		}
		if was.fact != "" && is.fact != was.fact && !slices.Contains(is.history, was.epoch) {
			ta.blame("the fact of %s under epoch %d was replaced, and is not in the history %v", e, was.epoch, is.history)
		}
		if is.claim != "" && is.claim != was.claim && is.fence <= ta.fences[e] {
			ta.blame("the claim of %s changed under fence %d, and there had been fence %d", e, is.fence, ta.fences[e])
		}
		ta.fences[e] = max(ta.fences[e], is.fence)
		if accepted != 0 && was.fence != accepted && len(ta.entities) == 1 {
			ta.blame("fences: what %s did under fence %d was accepted, and the claim of %s had fence %d", t.Actor.Name, accepted, e, was.fence)
		}
		if unchanged != "" && len(t.Woke) == 0 && (was.fact != is.fact || was.claim != is.claim) {
			ta.blame("%s changed something, though %s: fact %q, then %q; claim %q, then %q", t.Actor.Name, unchanged, was.fact, is.fact, was.claim, is.claim)
		}
	}
	ta.last = now
	return ta.take()
}

func (ta *tale) take() []string {
	b := ta.blames
	ta.blames = nil
	return b
}

// check looks at the whole when all have finished.
func (ta *tale) check() []string {
	var f finding
	ctx := context.Background()
	b := &pgx.Batch{}
	b.Queue(placesSQL, ta.kind.ID, ta.entities).Query(func(rows pgx.Rows) (err error) { f.places, err = places(rows); return err })
	b.Queue(disputedSQL, ta.kind.ID, ta.entities).Query(func(rows pgx.Rows) (err error) {
		f.disputed, err = pgx.CollectRows(rows, pgx.RowTo[int64])
		return err
	})
	b.Queue(sentSQL, ta.runs()).Query(func(rows pgx.Rows) (err error) {
		f.carriers, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c carrier, err error) {
			var args string
			if err = row.Scan(&c.epoch, &args); err == nil {
				err = json.Unmarshal([]byte(args), &c)
			}
			return c, err
		})
		return err
	})
	b.Queue(transactedSQL, ta.kind.ID, ta.entities).QueryRow(func(row pgx.Row) error { return row.Scan(&f.facts, &f.effects) })
	if err := ta.ctl.SendBatch(ctx, b).Close(); err != nil {
		return []string{err.Error()}
	}
	for _, it := range ta.items {
		f.wants = append(f.wants, it.want)
		if !it.acked {
			f.carriers = append(f.carriers, carrier{it.want.Epoch, it.want.SourceVersion})
		}
	}
	var err error
	if f.standings, err = ta.props.Look(ctx, ta.kind, f.wants); err != nil {
		return []string{err.Error()}
	}
	ta.checkCompletions(&f)
	ta.checkDisputes(&f)
	ta.checkEffects()
	ta.checkTransactions(&f)
	ta.checkLoss(&f)
	ta.checkOutput(&f)
	return ta.take()
}

// A finding is what the database holds when all have finished.
type finding struct {
	places         map[string]place
	disputed       []int64   // fences
	carriers       []carrier // messages that somebody will get: those in the table, and those that were not acknowledged
	facts, effects []string  // of transactions
	wants          []ledger.Want
	standings      []ledger.Standing
}

type carrier struct {
	epoch  int64
	Source int64 `json:"source"`
}

const (
	disputedSQL   = `SELECT fence FROM oncemore.attempt WHERE job_type = $1 AND entity = ANY ($2) AND outcome = 'disputed'`
	sentSQL       = `SELECT coalesce(epoch, 0), args[1] FROM oncemore.message WHERE run = ANY ($1)`
	transactedSQL = `
SELECT ARRAY(SELECT format('run %s, epoch %s', run, coalesce(epoch, 0)) FROM (
           SELECT run, epoch, evidence FROM oncemore.ledger WHERE job_type = $1 AND entity = ANY ($2)
           UNION ALL SELECT run, epoch, evidence FROM oncemore.ledger_history WHERE job_type = $1 AND entity = ANY ($2)) f
       WHERE evidence = 't' ORDER BY 1),
       ARRAY(SELECT format('run %s, epoch %s', run, epoch) FROM effect WHERE entity = ANY ($2) ORDER BY 1)`
)

// checkCompletions is I2: per epoch one completion, and under fences one that is accepted.
func (ta *tale) checkCompletions(f *finding) {
	for e, p := range f.places {
		epochs := slices.Clone(p.history)
		if p.fact != "" {
			epochs = append(epochs, p.epoch)
		}
		for i := 1; i < len(epochs); i++ {
			if epochs[i] <= epochs[i-1] {
				ta.blame("I2: %s was completed under the epochs %v", e, epochs)
			}
		}
	}
	accepted := map[string]int{}
	for _, o := range ta.completed {
		if o.Fence != 0 && !o.Refused {
			accepted[fmt.Sprintf("%s under epoch %d", o.Entity, o.Epoch)]++
		}
	}
	for what, n := range accepted {
		if n > 1 {
			ta.blame("I2: %d completions of %s were accepted", n, what)
		}
	}
}

// checkDisputes: a late success is listed, and nothing else is. That a done-check said
// "done" is no success of an attempt.
func (ta *tale) checkDisputes(f *finding) {
	var want []int64
	for _, o := range ta.completed {
		if o.Refused && o.Evidence != ledger.DoneCheck {
			want = append(want, o.Fence)
		}
	}
	slices.Sort(want)
	slices.Sort(f.disputed)
	if !slices.Equal(f.disputed, want) {
		ta.blame("disputed are the fences %v, refused were completions under %v", f.disputed, want)
	}
}

// checkEffects: outside effects, as the class allows. A stale source draws an epoch for
// each claim, so what counts as one thing asked for is its epoch, and its source as well.
func (ta *tale) checkEffects() {
	perEpoch, perWant := map[int64]int{}, map[[2]int64]int{}
	for _, e := range ta.effects {
		perEpoch[e.epoch]++
		perWant[e.want]++
	}
	switch ta.kind.Effect {
	case ledger.Once, classes["verifiable"]:
		// Only who was told that nothing had happened may have it again.
		for epoch, n := range perEpoch {
			if n > 1+ta.denied {
				ta.blame("I4: %d effects under epoch %d, and it is %s", n, epoch, ta.kind.Effect)
			}
		}
		for want, n := range perWant {
			if n > 1+ta.denied {
				ta.blame("I4: %d effects for epoch %d and source %d, and it is %s", n, want[0], want[1], ta.kind.Effect)
			}
		}
	case classes["keyed"]:
		for epoch, n := range perEpoch {
			if n > ta.claims[epoch] {
				ta.blame("I4: %d effects under epoch %d, with %d claims", n, epoch, ta.claims[epoch])
			}
		}
	}
}

// checkTransactions is I3: effects in a transaction are those of the facts, one by one.
func (ta *tale) checkTransactions(f *finding) {
	if ta.kind.Effect == ledger.InTransaction && !slices.Equal(f.facts, f.effects) {
		ta.blame("I3: facts of transactions %q, effects in transactions %q", f.facts, f.effects)
	}
}

// checkLoss is I1: all that was asked for is done, or open and listed, or will be
// delivered once more; and what is open and not listed will be.
func (ta *tale) checkLoss(f *finding) {
	for e, p := range f.places {
		if n := slices.Index(ta.workers, p.owner); n >= 0 && !ta.lapsed[n] {
			ta.blame("I1: %s is held by %s, who has ended and lives: nobody else can have it", e, ta.players[n].name())
		}
	}
	for i, it := range ta.items {
		st := f.standings[i]
		open := st.Open
		listed := open != nil && open.Owner == 0 && (open.Trouble == ledger.FailedFor || open.Trouble == ledger.Doubtful)
		if open != nil && !listed && len(f.carriers) == 0 && st.Reason != ledger.Done {
			ta.blame("I1: the claim of %s is %s, and no message carries it on", it.want.Entity, strings.TrimSpace("open "+string(open.Trouble)))
		}
		carried := slices.ContainsFunc(f.carriers, func(c carrier) bool { return c.epoch >= it.want.Epoch && c.Source >= it.want.SourceVersion })
		if st.Reason != ledger.Done && !it.parked && !carried && !(listed && open.Covers(it.want)) {
			ta.blame("I1: lost: epoch %d and source %d of %s were asked for; it is %s, and no message asks again", it.want.Epoch, it.want.SourceVersion, it.want.Entity, st.Reason)
		}
	}
}

// checkOutput: the last write of a repeatable job is of the newest source that is done, or
// it is written once more.
func (ta *tale) checkOutput(f *finding) {
	now := f.places[ta.entities[0]]
	if n := len(ta.effects); ta.kind.Effect == ledger.Repeatable && n > 0 && now.fact != "" {
		last := ta.effects[n-1]
		again := slices.ContainsFunc(f.carriers, func(c carrier) bool { return c.epoch > now.epoch })
		if last.source < now.source && last.reported && !again {
			ta.blame("the output is of source %d, the fact of source %d, and nothing writes it again", last.source, now.source)
		}
	}
}
