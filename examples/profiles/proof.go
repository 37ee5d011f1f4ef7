package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A proof is counted from the tables when the application has come to rest; Mended after
// the bad row was mended.
type proof struct {
	Users    int64
	Profiles int64
	Twice    int64 // users that have more than one
	Differ   int64 // profiles whose name is not the user's
	Missing  []missing
	InPlans  int64 // users that were in the plan of more than one run, the bad one excepted
	Made     int64 // profiles that the application made itself, after the cut-over
	Runs     []run
	Killed   int

	Bad    int64
	Mended int64 // users without a profile in the end
}

// missing is a user without a profile, and why.
type missing struct {
	UserID int64
	State  string
	Error  string
}

type run struct {
	ID      int64
	By      string
	Items   int64
	Failed  int64
	Seconds float64
}

const (
	twiceSQL  = `SELECT count(*) FROM (SELECT FROM profiles.profile GROUP BY user_id HAVING count(*) > 1) p`
	differSQL = `SELECT count(*) FROM profiles.profile p JOIN profiles.users u ON u.id = p.user_id WHERE u.name IS DISTINCT FROM p.name`

	// The natural check, and what the ledger says of each.
	missingSQL = `
SELECT u.user_id, coalesce(c.trouble, 'missing'), coalesce(c.error, '')
FROM (` + usersWithoutProfile + `) u
LEFT JOIN oncemore.claim c ON c.entity = u.entity AND c.job_type = (SELECT id FROM oncemore.job_type WHERE name = 'create_profile')
ORDER BY u.user_id`

	plansSQL = `
SELECT count(*) FROM (
    SELECT FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities) AS e(entity)
    WHERE p.run >= $1 AND e.entity <> $2 GROUP BY e.entity HAVING count(*) > 1) e`

	runsSQL = `
SELECT id, coalesce(schedule, asked_by), items, failed, extract(epoch FROM ended_at - started_at)::float8
FROM oncemore.run WHERE id >= $1 AND ended_at IS NOT NULL ORDER BY id`
)

// count brings the application to rest, and counts.
func (p *play) count(ctx context.Context) (*proof, error) {
	if err := p.app.Close(); err != nil {
		return nil, err
	}
	if err := p.Await(ctx, "nothing goes on", `SELECT NOT EXISTS (SELECT FROM oncemore.run WHERE id >= $1 AND ended_at IS NULL)`, p.first); err != nil {
		return nil, err
	}
	pr := &proof{Bad: p.bad, Killed: p.killed, Made: p.app.with.Load()}
	return pr, p.Count(ctx, []stage.Number{
		stage.Into(&pr.Users, `SELECT count(*) FROM profiles.users`),
		stage.Into(&pr.Profiles, `SELECT count(*) FROM profiles.profile`),
		stage.Into(&pr.Twice, twiceSQL),
		stage.Into(&pr.Differ, differSQL),
		stage.Into(&pr.InPlans, plansSQL, p.first, fmt.Sprint(p.bad)),
	}, func(tx pgx.Tx) (err error) {
		rows, _ := tx.Query(ctx, missingSQL)
		if pr.Missing, err = pgx.CollectRows(rows, pgx.RowToStructByPos[missing]); err != nil {
			return err
		}
		rows, _ = tx.Query(ctx, runsSQL, p.first)
		pr.Runs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[run])
		return err
	})
}

// Check says which lines are wrong.
func (pr *proof) Check() error {
	var c stage.Check
	c.Is(pr.Profiles == pr.Users-1, "%d users, of whom one cannot have a profile, have %d", pr.Users, pr.Profiles)
	c.Is(pr.Twice == 0, "%d users have two profiles", pr.Twice)
	c.Is(pr.Differ == 0, "%d profiles have another name than their user", pr.Differ)
	c.Is(len(pr.Missing) == 1 && pr.Missing[0].UserID == pr.Bad && pr.Missing[0].State == "failed",
		"user %d alone should be missing, and listed as failed: %v", pr.Bad, pr.Missing)
	c.Is(pr.InPlans == 0, "%d users were planned by more than one run", pr.InPlans)
	c.Is(len(pr.Runs) >= 5, "there were only %d runs", len(pr.Runs))
	c.Is(pr.Killed == 1, "%d workers were killed", pr.Killed)
	c.Is(pr.Made > 0, "the application made no profile after the cut-over")
	c.Is(pr.Mended == 0, "%d users have no profile in the end", pr.Mended)
	return c.Err()
}

func (pr *proof) Write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer func() {
		_ = t.Flush()
		fmt.Fprintf(w, "\nproof: %d of %d users have a profile, %d of them two; %d cannot have one, and is listed\n", pr.Profiles, pr.Users, pr.Twice, len(pr.Missing))
	}()
	fmt.Fprint(t, "\n  run\tof\tusers planned\tfailed\tseconds\n")
	for _, r := range pr.Runs {
		fmt.Fprintf(t, "  %d\t%s\t%d\t%d\t%.1f\n", r.ID, r.By, r.Items, r.Failed, r.Seconds)
	}
	fmt.Fprintf(t, "\n  users\t%d\n  profiles\t%d\tof which the application made %d after the cut-over\n", pr.Users, pr.Profiles, pr.Made)
	fmt.Fprintf(t, "  twice\t%d\n  of another name than their user\t%d\n  planned by two runs\t%d\n", pr.Twice, pr.Differ, pr.InPlans)
	fmt.Fprintf(t, "  missing\t%d\n", len(pr.Missing))
	for _, m := range pr.Missing {
		fmt.Fprintf(t, "    user %d\t%s\t%s\n", m.UserID, m.State, m.Error)
	}
	fmt.Fprintf(t, "  workers killed\t%d\n  missing after it was mended\t%d\n", pr.Killed, pr.Mended)
}
