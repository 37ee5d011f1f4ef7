// Command counter shows why counter = counter + 1 may not be tried again, and what makes it
// safe. Two jobs have the same body. One runs it on its own and the other, [jobs.Job.DoTx],
// in the transaction that records the fact. Then a worker is killed in the middle.
//
//	go run ./examples/counter
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

const schema = `
CREATE SCHEMA IF NOT EXISTS counter;
CREATE TABLE IF NOT EXISTS counter.visit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    campaign text NOT NULL                 -- one is a play
);
CREATE TABLE IF NOT EXISTS counter.total (
    campaign text,
    way      text,
    n        bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (campaign, way)
);
CREATE TABLE IF NOT EXISTS counter.seen (
    way   text,
    visit bigint REFERENCES counter.visit,
    PRIMARY KEY (way, visit)
)`

const (
	addSQL = `/* counter: add */ INSERT INTO counter.total AS t (campaign, way, n) VALUES ($1, $2, 1)
ON CONFLICT (campaign, way) DO UPDATE SET n = t.n + 1`
	seenSQL = `/* counter: seen */ INSERT INTO counter.seen (way, visit) VALUES ($1, $2) ON CONFLICT DO NOTHING`
)

type visit struct {
	ID       int64  `json:"id"`
	Campaign string `json:"campaign"`
}

func (v visit) Entity() string { return jobs.Key(v.ID) }

// CountCarelessly and CountOnce ask that a visit is counted.
type (
	CountCarelessly struct{ visit }
	CountOnce       struct{ visit }
)

func (CountCarelessly) JobType() string { return "count_carelessly" }
func (CountOnce) JobType() string       { return "count_once" }

// count is the body of both: the visit is added to the total, then noted as seen.
func (v visit) count(ctx context.Context, on execer, way string) error {
	if _, err := on.Exec(ctx, addSQL, v.Campaign, way); err != nil {
		return fmt.Errorf("add to the total: %w", err)
	}
	// A worker that is killed here has added one, if the statement was a transaction of its
	// own. Nothing says so, and the next worker adds another.
	if _, err := on.Exec(ctx, seenSQL, way, v.ID); err != nil {
		return fmt.Errorf("note the visit as seen: %w", err)
	}
	return nil
}

// An execer is a pool, where each statement is a transaction, or one transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Jobs are those of this program.
func Jobs(db *pgxpool.Pool) []jobs.Definition {
	return []jobs.Definition{
		jobs.Job[CountCarelessly]{
			Do:     func(ctx context.Context, a CountCarelessly) error { return a.count(ctx, db, "carelessly") },
			Effect: jobs.Repeatable, // which is a lie: once more is one more
			Policy: half,
		},
		jobs.Job[CountOnce]{
			DoTx:   func(ctx context.Context, tx pgx.Tx, a CountOnce) error { return a.count(ctx, tx, "once") },
			Policy: half,
		},
	}
}

// A proof is counted from the tables.
type proof struct {
	Visits     int64
	Carelessly int64 // the totals
	Once       int64
	Seen       int64 // visits noted by the careless way: a set, to which adding twice adds once
	Facts      int64
	Halfway    int64 // added to the careless total, and not seen, when the worker died
	Rolled     int64 // what the other total said then
}

const (
	totalSQL = `SELECT coalesce((SELECT n FROM counter.total WHERE campaign = $1 AND way = $2), 0)`
	countSQL = `SELECT count(*) FROM counter.visit WHERE campaign = $1`
	seesSQL  = `SELECT count(*) FROM counter.seen s JOIN counter.visit v ON v.id = s.visit WHERE v.campaign = $1 AND way = $2`
	factsSQL = `SELECT count(*) FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type
JOIN counter.visit v ON v.id::text = l.entity WHERE v.campaign = $1 AND t.name IN ('count_carelessly', 'count_once')`

	visitsSQL = `/* counter: visits */ INSERT INTO counter.visit (campaign) SELECT $1 FROM generate_series(1, $2::int) RETURNING id, campaign`
	waitsSQL  = `SELECT count(*) = $2 FROM pg_stat_activity
WHERE datname = current_database() AND application_name = $1 AND wait_event_type = 'Lock' AND query LIKE '/* counter: %'`
)

const slots = 8

// half lets both ways be under way when the worker dies.
var half = jobs.Policy{Limit: jobs.Limit{Running: slots / 2}}

func tell(ctx context.Context, o stage.Options, visits int) (_ *proof, err error) {
	s, err := stage.Open(ctx, "counter", o)
	defer func() { s.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if _, err = s.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	campaign, pr := fmt.Sprintf("campaign of %s", s.Dir), &proof{}
	rows, _ := s.DB.Query(ctx, visitsSQL, campaign, visits)
	came, err := pgx.CollectRows(rows, pgx.RowToStructByPos[visit])
	if err != nil {
		return nil, fmt.Errorf("make visits: %w", err)
	}
	for _, v := range came {
		if err = jobs.Enqueue(ctx, s.Queue, CountCarelessly{v}); err == nil {
			err = jobs.Enqueue(ctx, s.Queue, CountOnce{v})
		}
		if err != nil {
			return nil, err
		}
	}
	s.Say("%d visits are to be counted, in two ways that have the same body: add one to the total, note the visit.", visits)

	// Nobody can note a visit while we hold this lock, so the worker gets as far as that.
	gate, err := s.DB.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer gate.Rollback(context.WithoutCancel(ctx))
	if _, err = gate.Exec(ctx, `LOCK TABLE counter.seen IN SHARE MODE`); err != nil {
		return nil, err
	}
	w, err := s.StartWorker(ctx)
	if err == nil {
		err = s.Await(ctx, "the worker is between the two steps", waitsSQL, w.Name, slots)
	}
	if err == nil {
		err = w.Kill()
	}
	if err == nil {
		err = s.Count(ctx, []stage.Number{
			stage.Into(&pr.Halfway, totalSQL, campaign, "carelessly"),
			stage.Into(&pr.Rolled, totalSQL, campaign, "once"),
		}, nil)
	}
	if err != nil {
		return nil, err
	}
	s.Say("kill -9: the worker dies over %d visits, of each way half. Counted carelessly: %d, counted once: %d.", slots, pr.Halfway, pr.Rolled)

	if err = gate.Rollback(ctx); err != nil {
		return nil, err
	}
	if _, err = s.StartWorker(ctx); err != nil {
		return nil, err
	}
	s.Say("Another worker gets the same messages again, and all others.")
	if err = s.Await(ctx, "all is counted", `SELECT count(*) = 0 FROM oncemore.message WHERE type IN ('count_carelessly', 'count_once')`); err != nil {
		return nil, err
	}
	return pr, s.Count(ctx, []stage.Number{
		stage.Into(&pr.Visits, countSQL, campaign),
		stage.Into(&pr.Carelessly, totalSQL, campaign, "carelessly"),
		stage.Into(&pr.Once, totalSQL, campaign, "once"),
		stage.Into(&pr.Seen, seesSQL, campaign, "carelessly"),
		stage.Into(&pr.Facts, factsSQL, campaign),
	}, nil)
}

func (p *proof) Write(w io.Writer) {
	fmt.Fprintf(w, "\n  visits              %4d\n  counted carelessly  %4d  (%d of them before the kill, and again after it)\n  counted once        %4d\n  seen, as a set      %4d\n\n",
		p.Visits, p.Carelessly, p.Halfway, p.Once, p.Seen)
	fmt.Fprintf(w, "proof: %d visits; counter + 1 on its own says %d, in the transaction of the fact %d\n", p.Visits, p.Carelessly, p.Once)
}

func (p *proof) Check() error {
	var c stage.Check
	c.Is(p.Visits > 0 && p.Facts == 2*p.Visits, "%d visits have %d facts", p.Visits, p.Facts)
	c.Is(p.Halfway == slots/2, "the worker died when it had counted %d visits carelessly", p.Halfway)
	c.Is(p.Carelessly == p.Visits+p.Halfway, "counted carelessly are %d, not %d and the %d that were counted before the kill", p.Carelessly, p.Visits, p.Halfway)
	c.Is(p.Rolled == 0, "%d were counted once when the worker died over the first", p.Rolled)
	c.Is(p.Once == p.Visits, "counted once are %d of %d", p.Once, p.Visits)
	c.Is(p.Seen == p.Visits, "%d of %d are in the set", p.Seen, p.Visits)
	return c.Err()
}

func main() {
	if len(os.Args) > 1 { // "worker" and its name: one of the play's
		stage.Main(func(context.Context) error { return stage.Work(os.Args[2], worker.Config{Slots: slots}, Jobs) })
		return
	}
	stage.Play(func(ctx context.Context) (*proof, error) {
		return tell(ctx, stage.Options{Out: os.Stdout, NoSync: true}, 100)
	})
}
