package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A proof is counted from the tables when all is over.
type proof struct {
	*ordeal
	Accounts int64 // rows of the live table
	Opened   int64 // of those, while the backfill went on
	Once     int64 // accounts with one effect
	Twice    int64 // accounts with more than one
	Missing  int64 // accounts with none
	Strange  int64 // effects on what is no account
	Facts    int64
	Unproven int64 // facts without an effect, and effects without a fact
	Left     int64 // claims and messages of the backfill

	Killed  int           // workers, with -9, in the middle of a transaction
	InPause int64         // rows that were done in pauses
	Lagged  int           // times that the standby fell behind until the run waited
	Held    time.Duration // of the old snapshot

	Runs    []run
	History []event // of the first run
	Slowest time.Duration
}

type run struct {
	ID, Items, Skipped int64
	Complete           bool
	Seconds            float64
}

type event struct {
	Seconds      float64 // since the run was opened
	Kind, Detail string
}

// told counts the events of a kind that begin so.
func (p *proof) told(kind, beginning string) (n int) {
	for _, e := range p.History {
		if e.Kind == kind && len(e.Detail) >= len(beginning) && e.Detail[:len(beginning)] == beginning {
			n++
		}
	}
	return n
}

const (
	// Counted by account, so that nothing hides what is there twice.
	countSQL = `
SELECT count(*), count(*) FILTER (WHERE e.n = 1), count(*) FILTER (WHERE e.n > 1), count(*) FILTER (WHERE e.n IS NULL)
FROM live.account a LEFT JOIN (SELECT account, count(*) AS n FROM live.effect GROUP BY account) e ON e.account = a.id`

	strangeSQL = `SELECT count(*) FROM live.effect e WHERE NOT EXISTS (SELECT FROM live.account a WHERE a.id = e.account)`
	thisType   = `job_type = (SELECT id FROM oncemore.job_type WHERE name = 'backfill_account')`
	factsSQL   = `SELECT count(*) FROM oncemore.ledger WHERE ` + thisType

	unprovenSQL = `
SELECT count(*) FROM (SELECT entity FROM oncemore.ledger WHERE ` + thisType + `) l
FULL JOIN (SELECT DISTINCT account::text COLLATE "C" AS entity FROM live.effect) e USING (entity) WHERE l.entity IS NULL OR e.entity IS NULL`

	leftSQL = `SELECT (SELECT count(*) FROM oncemore.claim WHERE ` + thisType + `) + (SELECT count(*) FROM oncemore.message WHERE type = 'backfill_account')`

	runsSQL = `SELECT id, items, skipped, complete, extract(epoch FROM ended_at - started_at)::float8 FROM oncemore.run WHERE id >= $1 ORDER BY id`

	historySQL = `
SELECT extract(epoch FROM e.at - r.started_at)::float8, e.kind, e.detail
FROM oncemore.run_event e JOIN oncemore.run r ON r.id = e.run WHERE e.run = $1 ORDER BY e.id`
)

func (t *tale) count(ctx context.Context) error {
	p := &t.proof
	p.Opened, p.Slowest = t.writer.opened.Load(), t.writer.slowest()
	err := pgx.BeginTxFunc(ctx, t.DB, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		if err := tx.QueryRow(ctx, countSQL).Scan(&p.Accounts, &p.Once, &p.Twice, &p.Missing); err != nil {
			return err
		}
		for query, into := range map[string]*int64{strangeSQL: &p.Strange, factsSQL: &p.Facts, unprovenSQL: &p.Unproven, leftSQL: &p.Left} {
			if err := tx.QueryRow(ctx, query).Scan(into); err != nil {
				return err
			}
		}
		rows, _ := tx.Query(ctx, runsSQL, t.run)
		if p.Runs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[run]); err != nil {
			return err
		}
		rows, _ = tx.Query(ctx, historySQL, t.run)
		p.History, err = pgx.CollectRows(rows, pgx.RowToStructByPos[event])
		return err
	})
	if err != nil {
		return fmt.Errorf("count what came of it: %w", err)
	}
	return nil
}

// Check says which lines are wrong.
func (p *proof) Check() error {
	o := p.ordeal
	var c stage.Check
	c.Is(p.Accounts == o.rows+p.Opened && p.Opened > 0, "there are %d accounts, of %d, and %d that were opened meanwhile", p.Accounts, o.rows, p.Opened)
	c.Is(p.Once == p.Accounts, "of %d accounts %d were done once", p.Accounts, p.Once)
	c.Is(p.Twice == 0, "%d were done more than once", p.Twice)
	c.Is(p.Missing == 0, "%d are missing", p.Missing)
	c.Is(p.Strange == 0, "%d effects are on what is no account", p.Strange)
	c.Is(p.Facts == p.Accounts && p.Unproven == 0, "there are %d facts; %d of them and of the effects have no counterpart", p.Facts, p.Unproven)
	c.Is(p.Left == 0, "%d claims and messages are left over", p.Left)
	c.Is(p.Killed == o.kills, "%d workers were killed, not %d", p.Killed, o.kills)
	c.Is(p.InPause == 0, "%d rows were done in pauses", p.InPause)
	c.Is(p.told("paused", "") == o.pauses && p.told("resumed", "") == o.pauses, "the history tells of %d pauses and %d resumptions, not %d",
		p.told("paused", ""), p.told("resumed", ""), o.pauses)
	c.Is(p.Lagged == o.lags && p.told("waiting", "replica lag: ") >= o.lags, "the standby fell behind %d times, and the history tells of %d, not %d",
		p.Lagged, p.told("waiting", "replica lag: "), o.lags)
	c.Is(p.Held >= o.held, "the snapshot was held for %s, not %s", p.Held, o.held)
	c.Is(o.held == 0 || p.told("waiting", "oldest transaction: ") > 0, "the history does not tell that the run waited for the old snapshot")
	c.Is(len(p.Runs) == 4, "there were %d runs, not 4", len(p.Runs))
	if n := len(p.Runs); n > 0 {
		last := p.Runs[n-1]
		c.Is(last.Items == 0 && last.Skipped == p.Accounts, "the last call took %d, and skipped %d of %d", last.Items, last.Skipped, p.Accounts)
	}
	planned := int64(0)
	for _, r := range p.Runs {
		c.Is(r.Complete, "run %d is not complete", r.ID)
		planned += r.Items
	}
	c.Is(planned == p.Accounts, "the runs planned %d in all, of %d", planned, p.Accounts)
	return c.Err()
}

func (p *proof) Write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprint(t, "\nThe history of the backfill\n")
	for _, e := range p.History {
		fmt.Fprintf(t, "  %.1fs\t%s\t%s\n", e.Seconds, e.Kind, e.Detail)
	}
	fmt.Fprint(t, "\n  run\tplanned\tskipped as done\tcomplete\tseconds\n")
	for _, r := range p.Runs {
		fmt.Fprintf(t, "  %d\t%d\t%d\t%t\t%.1f\n", r.ID, r.Items, r.Skipped, r.Complete, r.Seconds)
	}
	fmt.Fprintf(t, "\n  accounts\t%d\tof which %d were opened meanwhile\n", p.Accounts, p.Opened)
	fmt.Fprintf(t, "  done once\t%d\n  done more than once\t%d\n  missing\t%d\n", p.Once, p.Twice, p.Missing)
	fmt.Fprintf(t, "  effects on no account\t%d\n  facts\t%d\n  facts or effects alone\t%d\n  left over\t%d\tclaims and messages\n", p.Strange, p.Facts, p.Unproven, p.Left)
	fmt.Fprintf(t, "  workers killed\t%d\n  pauses\t%d\t%d rows were done in them\n", p.Killed, p.told("paused", ""), p.InPause)
	fmt.Fprintf(t, "  the standby fell behind\t%d times\n  an old snapshot was held\t%s\n", p.Lagged, p.Held.Round(time.Second))
	fmt.Fprintf(t, "  the application waited\t%s\tat most, in 999 of 1000 transactions\n  seed\t%d\n", p.Slowest.Round(100*time.Microsecond), p.seed)
}
