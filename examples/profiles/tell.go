package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

// A play is the story while it goes on.
type play struct {
	*stage.Stage
	app    *app
	night  string // the spec of the nightly catch-up: nights are short here
	bad    int64  // the user without a name
	first  int64  // run of this play
	killed int
}

// tell plays the story and counts what came of it. Each step waits for what it needs to
// have happened, never for a time.
func tell(ctx context.Context, o stage.Options, users int, night string) (_ *proof, err error) {
	p := &play{night: night}
	p.Stage, err = stage.Open(ctx, "profiles", o)
	defer func() { p.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if p.bad, err = seed(ctx, p.DB, users); err != nil {
		return nil, err
	}
	if p.first, err = p.Int(ctx, `SELECT coalesce(max(id), 0) + 1 FROM oncemore.run`); err != nil {
		return nil, err
	}
	for range 2 {
		if _, err = p.StartWorker(ctx); err != nil {
			return nil, err
		}
	}
	p.app = openApp(ctx, p.DB)
	defer func() { err = errors.Join(err, p.app.Close()) }()
	p.Say("%d users, none of whom has a profile; one has no name. More come, and change their names, all the while.", users)

	if err = p.backfill(ctx, int64(users)); err != nil {
		return nil, err
	}
	if err = p.nights(ctx); err != nil {
		return nil, err
	}
	pr, err := p.count(ctx)
	if err == nil {
		pr.Mended, err = p.mend(ctx)
	}
	return pr, err
}

// backfill is the first run, over which a worker dies, and the second, which takes what
// came meanwhile.
func (p *play) backfill(ctx context.Context, users int64) error {
	run, err := p.Call(ctx, worker.Order{Type: CreateProfile{}.JobType(), Reason: "profiles for everybody", Rate: float64(users) / 5})
	if err != nil {
		return err
	}
	if err := p.Await(ctx, "a third of them have one", `SELECT count(*) > $1 FROM profiles.profile`, users/3); err != nil {
		return err
	}
	if victim, err := p.KillBusy(ctx, "profiles: create", stage.Over, run); err != nil {
		return err
	} else if victim != nil {
		p.killed++
	}
	if _, err := p.StartWorker(ctx); err != nil {
		return err
	}
	if err := p.AwaitRun(ctx, run); err != nil {
		return err
	}
	p.Say("Which users were not done when it died? Nobody asks: just call it again.")
	if run, err = p.Call(ctx, worker.Order{Type: CreateProfile{}.JobType(), Reason: "those who came meanwhile"}); err != nil {
		return err
	}
	return p.AwaitRun(ctx, run)
}

// nights has cron do the same, until the application makes the profiles itself.
func (p *play) nights(ctx context.Context) error {
	p.Say("The application is deployed again, with the call as a nightly schedule. (Nights are short here: %s.)", p.night)
	if err := p.StopWorkers(); err != nil {
		return err
	}
	for range 2 {
		if _, err := p.StartWorker(ctx, p.night); err != nil {
			return err
		}
	}
	const nightsSQL = `SELECT count(*) >= 2 FROM oncemore.run WHERE id >= $1 AND schedule IS NOT NULL AND items > 0 AND complete`
	if err := p.Await(ctx, "two nights have passed", nightsSQL, p.first); err != nil {
		return err
	}
	if err := p.app.cutOver(ctx); err != nil {
		return err
	}
	var at string
	if err := p.DB.QueryRow(ctx, `SELECT clock_timestamp()::text`).Scan(&at); err != nil {
		return err
	}
	p.Say("The cut-over: from now on the application makes the profile of a new user itself.")
	const idleSQL = `SELECT EXISTS (SELECT FROM oncemore.run WHERE id >= $1 AND schedule IS NOT NULL AND started_at > $2::timestamptz AND complete AND items = 0)`
	if err := p.Await(ctx, "a night finds nothing to do", idleSQL, p.first, at); err != nil {
		return err
	}
	p.Say("A night has found nothing to do.")
	return nil
}

// mend gives the user a name, and calls what has failed again.
func (p *play) mend(ctx context.Context) (left int64, err error) {
	p.Say("The user without a name gets one, and what has failed is called again.")
	if _, err := p.DB.Exec(ctx, `UPDATE profiles.users SET name = 'somebody' WHERE id = $1`, p.bad); err != nil {
		return 0, fmt.Errorf("mend user %d: %w", p.bad, err)
	}
	run, err := p.Call(ctx, worker.Order{Type: CreateProfile{}.JobType(), Reason: "the name was mended",
		Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Failed}}})
	if err == nil {
		err = p.AwaitRun(ctx, run)
	}
	if err != nil {
		return 0, err
	}
	return p.Int(ctx, `SELECT count(*) FROM (`+usersWithoutProfile+`) u`)
}
