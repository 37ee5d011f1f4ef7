package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A tale is an ordeal while it goes on.
type tale struct {
	*stage.Stage
	*ordeal
	network *network
	crowd   *crowd
	asks    []ask
	proof   proof
}

// undergo sends it all, lets go wrong what is to, and counts.
func (o *ordeal) undergo(ctx context.Context) (_ *proof, err error) {
	t := &tale{ordeal: o, proof: proof{ordeal: o}}
	t.Stage, err = stage.Open(ctx, "httpproof", o.stage)
	defer func() { t.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	t.Say("Seed %d.", o.seed)
	if _, err = t.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	t.network = &network{dir: t.Dir, breaks: o.breaks}
	for range o.servers {
		if err = t.start(ctx); err != nil {
			return nil, err
		}
	}
	t.asks, t.proof.Keys = o.plan()
	marks := o.marks()
	t.crowd = o.crowd(t.network, marks)
	t.Say("%d servers. %d requests, of which %d are not the first of their key; %d at once.", o.servers, len(t.asks), len(t.asks)-t.proof.Keys, o.clients)

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	killed := make(chan error, 1)
	go func() {
		err := t.kill(ctx, marks)
		if err != nil {
			stop(err)
		}
		killed <- err
	}()
	err = t.crowd.send(ctx, t.asks, o.clients)
	if err != nil {
		stop(err)
	}
	if err = errors.Join(err, <-killed); err != nil {
		return nil, err
	}
	t.Say("Everything has an answer.")
	if err = t.Await(ctx, "no claim is left", `SELECT (`+leftSQL+`) = 0`); err != nil {
		return nil, err
	}
	if err = t.count(ctx); err != nil {
		return nil, err
	}
	return &t.proof, nil
}

func (t *tale) start(ctx context.Context) error {
	p, err := t.StartWorker(ctx, t.Dir)
	if err == nil {
		t.network.add(p.Name)
	}
	return err
}

// marks draws at how many replies a server is killed.
func (o *ordeal) marks() []int64 {
	random := rand.New(rand.NewPCG(o.seed, 2))
	at := map[int64]bool{}
	for len(at) < o.kills {
		at[1+random.Int64N(int64(o.requests)*9/10)] = true
	}
	var all []int64
	for m := range at {
		all = append(all, m)
	}
	slices.Sort(all)
	return all
}

// kill kills a server at each mark, and starts another in its place.
func (t *tale) kill(ctx context.Context, marks []int64) error {
	random := rand.New(rand.NewPCG(t.seed, 3))
	for _, m := range marks {
		select {
		case <-t.crowd.marks[m]:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		living := t.Living()
		victim := living[random.IntN(len(living))]
		if err := victim.Kill(); err != nil {
			return err
		}
		t.network.remove(victim.Name)
		t.proof.Killed++
		t.Say("kill -9: %s, after %d replies.", victim.Name, m)
		if err := t.start(ctx); err != nil {
			return err
		}
	}
	return nil
}
