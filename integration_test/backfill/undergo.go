package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A tale is an ordeal while it goes on.
type tale struct {
	*stage.Stage
	*ordeal
	standby  *standby // nil: there is none
	writer   *writer
	run      int64
	snapshot chan error // answers when the old snapshot has been let go; nil: none is held yet
	proof    proof
}

// A blow is one thing that goes wrong, when a part of the rows has been sent.
type blow struct {
	at float64 // from 0 to 1
	do func(context.Context) error
}

// undergo lets the backfill go through it all, and counts.
func (o *ordeal) undergo(ctx context.Context) (_ *proof, err error) {
	t := &tale{ordeal: o, proof: proof{ordeal: o}}
	t.Stage, err = stage.Open(ctx, "backfill", o.stage)
	defer func() { t.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	t.Say("Seed %d.", o.seed)
	if _, err = t.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the live table: %w", err)
	}
	if o.lags > 0 {
		t.Say("Starting a standby that streams.")
		if t.standby, err = openStandby(ctx, t.Dir, t.DSN); err != nil {
			return nil, err
		}
		defer t.standby.close()
	}
	if _, err = t.DB.Exec(ctx, `INSERT INTO live.account (balance) SELECT 100 FROM generate_series(1, $1::bigint)`, o.rows); err != nil {
		return nil, fmt.Errorf("fill the live table: %w", err)
	}
	if _, err = t.DB.Exec(ctx, `VACUUM (ANALYZE) live.account`); err != nil {
		return nil, fmt.Errorf("fill the live table: %w", err)
	}
	for range o.workers {
		if _, err = t.StartWorker(ctx); err != nil {
			return nil, err
		}
	}
	t.writer = openWriter(ctx, t.DB)
	defer func() { err = errors.Join(err, t.writer.close()) }()
	t.Say("%d accounts, %d worker processes. Accounts are opened and used all the while.", o.rows, o.workers)

	if err = t.backfill(ctx); err != nil {
		return nil, err
	}
	if err = t.catchUp(ctx); err != nil {
		return nil, err
	}
	if err = t.count(ctx); err != nil {
		return nil, err
	}
	return &t.proof, nil
}

// backfill is the first run, and everything that goes wrong over it.
func (t *tale) backfill(ctx context.Context) (err error) {
	if t.run, err = t.Call(ctx, worker.Order{Type: Backfill{}.JobType(), Reason: "the backfill", Rate: t.rate}); err != nil {
		return err
	}
	if t.kills > 1 {
		if err := t.killPlanner(ctx); err != nil {
			return err
		}
	}
	if err := t.Await(ctx, "it is planned", plannedSQL, t.run); err != nil {
		return err
	}
	t.Say("The plan is sealed.")
	for _, b := range t.blows(t.kills - t.proof.Killed) {
		// Of what is sent, not of what is done: that would have to be counted.
		if err := t.Await(ctx, fmt.Sprintf("%.0f %% are sent", 100*b.at), `SELECT sent >= $2::float8 * items OR ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`, t.run, b.at); err != nil {
			return err
		}
		if err := b.do(ctx); err != nil {
			return err
		}
	}
	if t.snapshot != nil {
		if err := <-t.snapshot; err != nil {
			return err
		}
	}
	return t.AwaitRun(ctx, t.run)
}

// blows draws what goes wrong, and when. What takes most of its time comes not too late.
func (t *tale) blows(kills int) (all []blow) {
	random := rand.New(rand.NewPCG(t.seed, 0))
	strike := func(n int, from, to float64, do func(context.Context) error) {
		for range n {
			all = append(all, blow{from + (to-from)*random.Float64(), do})
		}
	}
	strike(kills, 0.02, 0.75, t.kill)
	strike(t.pauses, 0.02, 0.9, t.pause)
	strike(t.lags, 0.02, 0.8, t.lag)
	if t.held > 0 {
		strike(1, 0.02, 0.5, t.hold)
	}
	slices.SortFunc(all, func(a, b blow) int { return cmp.Compare(a.at, b.at) })
	return all
}

// kill kills a worker over its batch.
func (t *tale) kill(ctx context.Context) error {
	return t.killOver(ctx, "live: backfill", stage.Over)
}

// killPlanner kills the worker that plans the run. Of a small plan it may be seen too late.
func (t *tale) killPlanner(ctx context.Context) error {
	return t.killOver(ctx, "run: seal a pack", plannedSQL)
}

func (t *tale) killOver(ctx context.Context, statement, over string) error {
	victim, err := t.KillBusy(ctx, statement, over, t.run)
	if err != nil || victim == nil {
		return err
	}
	t.proof.Killed++
	_, err = t.StartWorker(ctx)
	return err
}

const plannedSQL = `SELECT planned_at IS NOT NULL FROM oncemore.run WHERE id = $1`

const (
	// What is held back is not to be seen for a century.
	restsSQL   = `SELECT NOT EXISTS (SELECT FROM oncemore.message WHERE run = $1 AND type = 'backfill_account' AND visible_at < now() + interval '50 years')`
	seenSQL    = `SELECT starts_with(waits, 'paused: ') OR ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`
	effectsSQL = `SELECT count(*) FROM live.effect`
)

// pause pauses the run, sees that nothing is done of it while others would do much, and
// resumes it.
func (t *tale) pause(ctx context.Context) error {
	if _, err := t.Operator().Pause(ctx, t.run, "a release goes out"); err != nil {
		return err
	}
	// A visit that was under way may still send.
	if err := t.Await(ctx, "a visit has seen the pause", seenSQL, t.run); err != nil {
		return err
	}
	if err := t.Await(ctx, "what was on its way is done", restsSQL, t.run); err != nil {
		return err
	}
	before, err := t.Int(ctx, effectsSQL)
	if err != nil {
		return err
	}
	select { // no wait for something to happen: nothing shall
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := t.Int(ctx, effectsSQL)
	if err != nil {
		return err
	}
	t.proof.InPause += after - before
	t.Say("Paused at %d rows, of which %d were done in two seconds of the pause. Resumed.", before, after-before)
	_, err = t.Operator().Resume(ctx, t.run, "it is out")
	return err
}

const (
	waitsSQL = `SELECT starts_with(waits, 'replica lag: ') OR ended_at IS NOT NULL FROM oncemore.run WHERE id = $1`

	// For longer than any worker keeps a reading: what is told next is of the next time.
	goesSQL = `
SELECT EXISTS (SELECT FROM oncemore.run_event WHERE run = $1 AND at < clock_timestamp() - interval '3 s'
               AND id > (SELECT max(id) FROM oncemore.run_event WHERE run = $1 AND kind = 'waiting' AND detail LIKE 'replica lag: %'))`
)

// lag has the standby fall behind until the run waits for it.
func (t *tale) lag(ctx context.Context) error {
	if err := t.standby.lag(ctx); err != nil {
		return err
	}
	if err := t.Await(ctx, "the run waits for the standby", waitsSQL, t.run); err != nil {
		return err
	}
	over, err := t.Int(ctx, `SELECT count(*) FROM oncemore.run WHERE id = $1 AND ended_at IS NOT NULL`, t.run)
	if err != nil {
		return err
	} else if over > 0 {
		return errors.New("the run has ended before it noticed that the standby fell behind: give it more rows, or a lower rate")
	}
	t.proof.Lagged++
	t.Say("The standby replays nothing: the run waits for it.")
	if err := t.standby.catchUp(ctx); err != nil {
		return err
	}
	return t.Await(ctx, "it waits no longer", goesSQL, t.run)
}

// hold holds an old snapshot, as a long report does, while everything else goes on.
func (t *tale) hold(ctx context.Context) error {
	tx, err := t.DB.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err == nil {
		_, err = tx.Exec(ctx, `SELECT count(*) FROM live.account WHERE id < 100`)
	}
	if err != nil {
		return fmt.Errorf("hold a snapshot: %w", err)
	}
	t.Say("Somebody begins a report, and holds its snapshot for %s.", t.held)
	t.snapshot = make(chan error, 1)
	go func() {
		select {
		case <-time.After(t.held):
		case <-ctx.Done():
		}
		var age time.Duration
		err := tx.QueryRow(ctx, `SELECT clock_timestamp() - now()`).Scan(&age)
		t.proof.Held = age
		if err == nil {
			err = tx.Commit(ctx)
		}
		t.snapshot <- err
	}()
	return nil
}

// catchUp calls it again until there is nothing left: first for what came meanwhile, then,
// when nobody writes any more, for the last of it, and once more for nothing.
func (t *tale) catchUp(ctx context.Context) error {
	for n := range 3 {
		if n == 1 {
			if err := t.writer.close(); err != nil {
				return err
			}
			t.Say("The application rests.")
		}
		run, err := t.Call(ctx, worker.Order{Type: Backfill{}.JobType(), Reason: "what came meanwhile"})
		if err == nil {
			err = t.AwaitRun(ctx, run)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
