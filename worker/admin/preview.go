package admin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A Preview is what a re-run would do if it were planned now: the same survey that plans
// it, with nothing kept. Without the application's set arguments are not compared, and
// what a raised version of the code makes stale is not known: the workers, who plan, may
// then find more, and Unknown says so.
type Preview struct {
	Type      string         `json:"job_type"` // its own name, where it was named by an earlier one
	Selection plan.Selection `json:"selection"`
	How       string         `json:"how"` // it selects, in words
	plan.Tally
	First    []PickedEntity `json:"first"`              // ten of what is picked
	Unknown  string         `json:"unknown,omitempty"`  // what only the workers know, in a sentence: they may do more than is counted here; empty: nothing
	Estimate *Forecast      `json:"estimate,omitempty"` // null: there is nothing that one could rest on
	Going    *GoingRun      `json:"going,omitempty"`    // the run that an order of the same would join; null: none
}

// A PickedEntity is one that a selection picks, and what for.
type PickedEntity struct {
	Entity string        `json:"entity"`
	Reason ledger.Reason `json:"reason"`
}

// A Forecast is how long something may take, and what says so.
type Forecast struct {
	Seconds float64 `json:"seconds"`
	Rests   string  `json:"rests_on"`
}

// A GoingRun is a run that goes on.
type GoingRun struct {
	Run     int64 `json:"run"`
	Planned bool  `json:"planned"` // its plan is sealed, and is being worked
}

// PreviewOptions say how far a preview goes. Its zero fields are fine.
type PreviewOptions struct {
	Most    int64                   // so many are picked at most; 0: all. What it leaves out makes the tally Capped
	Rate    float64                 // of the re-run, for the estimate; 0: as fast as it goes
	Timeout time.Duration           // of each statement; 0: a minute
	Each    func([]plan.Item) error // gets all that is picked, some thousand at a time; nil: nobody wants it
	Picked  func(plan.Tally)        // hears how far it is, as often; nil: nobody wants it
}

// Preview tells what a re-run of a job type by a selection would do, and writes nothing.
// A source in Go is walked, which takes as long as it takes.
func (op *Operator) Preview(ctx context.Context, jobType string, s plan.Selection, o PreviewOptions) (*Preview, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	p := &Preview{Selection: s, How: s.String(), First: []PickedEntity{}}
	sv := &plan.Survey{Selection: s, Most: o.Most}
	if s.Force {
		sv.Epoch = math.MaxInt64 // a run draws one that is higher than all there are
	}
	sv.Each = func(items []plan.Item) error {
		for _, it := range items[:min(len(items), sampleSize-len(p.First))] {
			p.First = append(p.First, PickedEntity{it.Entity, it.Reason})
		}
		if o.Picked != nil {
			o.Picked(sv.Tally)
		}
		if o.Each != nil {
			return o.Each(items)
		}
		return nil
	}
	var t *Type
	look := func(f func(tx pgx.Tx) error) error { return Read(ctx, op.Pool, o.Timeout, f) }
	err := look(func(tx pgx.Tx) (err error) {
		if t, err = FindType(ctx, tx, op.Set, jobType); err != nil {
			return err
		}
		if err := t.carriable(); err != nil {
			return err
		}
		p.Type, sv.Subject = t.Name, t.subject()
		if p.Going, err = goingRun(ctx, tx, t, s.Key()); err != nil || t.source.InGo() {
			return err
		}
		return p.survey(ctx, tx, sv, t)
	})
	if err == nil && t.source.InGo() {
		err = walk(ctx, sv, look)
	}
	p.Tally = sv.Tally
	if err == nil && p.Unknown == "" && newerMayBeMore(t, sv) {
		p.Unknown = workersTell
	}
	if p.Seen == nil {
		p.Seen, p.Picked = map[ledger.Reason]int64{}, map[ledger.Reason]int64{}
	}
	if err == nil && p.Items > 0 {
		p.Estimate, err = op.estimate(ctx, t, p.Items, o.Rate)
	}
	if err != nil {
		return nil, fmt.Errorf("preview a re-run of %s: %w", jobType, err)
	}
	return p, nil
}

// survey goes over a source in SQL, where there is one, and over what is open, as the
// planning of a run does.
func (p *Preview) survey(ctx context.Context, tx pgx.Tx, sv *plan.Survey, t *Type) error {
	if !t.Set || t.Query != "" { // of a type whose job is at hand it is known that it has none
		err := sv.FromSource(ctx, tx)
		if errors.Is(err, plan.ErrNoSource) {
			p.Unknown = workersAsk
		} else if err != nil {
			return err
		}
	} else if p.Selection.Force {
		return fmt.Errorf("%s has no source that could name what is to be forced", t.Name)
	}
	return sv.FromOpen(ctx, tx)
}

// NewerUnknown says why more may be missing than is told without the application's set: a fact has
// the version of the code that made it, and no row has the one that the workers have by now.
const (
	NewerUnknown = notKnownNewer + needsJobs

	notKnownNewer = "what newer code makes stale is not known here"
	needsJobs     = ": that needs a program that has the jobs (cli.Options.Set)"
)

// What the workers find who carry out what was previewed without the application's set.
var (
	workersAsk  = "what is missing is not known here, and the workers will ask: " + plan.ErrNoSource.Error()
	workersTell = notKnownNewer + ", and the workers will tell" + needsJobs
)

// staleUnknown tells whether a version of the code that is not known here may make facts of t stale.
func (t *Type) staleUnknown() bool { return !t.Set && t.Effect.MayRepeat() }

// newerMayBeMore tells whether a version of the code that is not known here may have the
// workers pick some of what seems done.
func newerMayBeMore(t *Type, sv *plan.Survey) bool {
	return t.staleUnknown() && sv.Asked && !sv.Force && sv.Picks(ledger.StaleVersion)
}

// walkChunk is how many entities of a source in Go are looked at together.
const walkChunk = 10_000

// walk goes over a source in Go, and over what is open. No transaction is held while
// the source takes its time.
func walk(ctx context.Context, sv *plan.Survey, look func(func(pgx.Tx) error) error) error {
	for after := ""; ; {
		c, err := sv.Read(ctx, after, walkChunk)
		if err != nil {
			return err
		}
		if err := look(func(tx pgx.Tx) error { return sv.FromChunk(ctx, tx, c) }); err != nil {
			return err
		}
		if !c.More || sv.Capped {
			return nil
		}
		after = c.After
	}
}

// subject is t for a survey: with the application's job where it is at hand, else with the
// source that a worker has registered.
func (t *Type) subject() plan.Subject {
	s := plan.Subject{Type: t.Type, Source: t.source, Decode: t.decode}
	if s.Source.IsZero() && t.Query != "" {
		s.Source = jobs.SQL[registered](t.Query, t.Params...)
	}
	return s
}

// registered stands for the arguments of a job that is not at hand.
type registered struct{}

func (registered) JobType() string { return "" }
func (registered) Entity() string  { return "" }

func goingRun(ctx context.Context, tx pgx.Tx, t *Type, key string) (*GoingRun, error) {
	g := &GoingRun{}
	err := tx.QueryRow(ctx, goingRunSQL, t.ID, key).Scan(&g.Run, &g.Planned)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("look for a run of the same: %w", err)
	}
	return g, nil
}

// One that is being cancelled is not joined: see [worker.ErrCancelling].
const goingRunSQL = `
SELECT r.id, r.planned_at IS NOT NULL FROM oncemore.run r
WHERE r.job_type = $1 AND r.parent_entity = $2 AND r.selection IS NOT NULL AND r.ended_at IS NULL
AND NOT EXISTS (SELECT FROM oncemore.run_control c WHERE c.run = r.id AND c.cancelled IS NOT NULL)`

// estimate says how long so many entities may take.
func (op *Operator) estimate(ctx context.Context, t *Type, items int64, rate float64) (*Forecast, error) {
	pace, rests := 0.0, ""
	err := Read(ctx, op.Pool, readTime, func(tx pgx.Tx) (err error) {
		pace, rests, err = lately(ctx, tx, t)
		return err
	})
	if TimedOut(err) {
		err = nil // an estimate is worth no more than that
	}
	if rate > 0 && (pace == 0 || rate < pace) {
		pace, rests = rate, fmt.Sprintf("the rate is %g a second", rate)
	}
	if err != nil || pace == 0 {
		return nil, err
	}
	return &Forecast{Seconds: float64(items) / pace, Rests: rests}, nil
}

// lately is how many entities of a type are completed in a second while there is work, as
// far as the last ten minutes tell, or else the last day; 0: nothing was completed.
func lately(ctx context.Context, tx pgx.Tx, t *Type) (pace float64, rests string, err error) {
	for _, w := range []struct {
		of   time.Duration
		name string
	}{{10 * time.Minute, "the last 10 minutes"}, {24 * time.Hour, "the last 24 hours"}} {
		var n, busy int64
		var span float64
		if err := tx.QueryRow(ctx, latelySQL, t.ID, w.of).Scan(&n, &busy, &span); err != nil {
			return 0, "", fmt.Errorf("count what was completed lately: %w", err)
		}
		if n < leastLately {
			continue
		}
		seconds := float64(60 * busy)
		if span < seconds {
			seconds = max(span, 1)
		}
		return float64(n) / seconds, fmt.Sprintf("%s were completed in the busy minutes of %s", thousands(n), w.name), nil
	}
	return 0, "", nil
}

// leastLately completions are needed to tell anything.
const leastLately = 10

// By the BRIN index on completed_at: the sum keeps the planner from the primary key, which
// would read all facts of the type.
const latelySQL = `
SELECT count(*), count(DISTINCT date_trunc('minute', l.completed_at)),
       coalesce(extract(epoch FROM max(l.completed_at) - min(l.completed_at)), 0)::float8
FROM oncemore.ledger l WHERE l.completed_at >= clock_timestamp() - $2::interval AND l.job_type + 0 = $1`
