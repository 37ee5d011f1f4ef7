package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// soak is the whole story: torment, drain, look at the doubts, resolve them as an operator
// would, call everything once more, and count.
func soak(ctx context.Context, w *world, o options) (*result, error) {
	began := time.Now()
	p := newProducer(w, o.seed, o.backlog)
	tormented(ctx, w, o, p)
	switch {
	case ctx.Err() != nil:
		return nil, errors.New("interrupted")
	case p.gaveUp != nil:
		return nil, p.gaveUp
	}
	w.log.say("No more torments, and no more work: the workers drain what there is.")
	w.provider.heal()
	r := &result{Seed: o.seed, For: o.duration.String(), Torments: w.log.events}
	r.withstood(o)
	if err := w.drain(ctx, "what is on the way"); err != nil {
		return r, err
	}

	// What is in doubt must be listed, all of it, before anybody resolves it.
	c, err := newCount(ctx, w, &p.demand)
	if err != nil {
		return r, err
	}
	r.doubts(c)
	// An attempt after it may end in doubt again, but no entity makes trouble more than twice:
	// there is an end to it.
	for round := 1; round <= 10 && c.inDoubt() > 0; round++ {
		w.log.say("%d are in doubt: an operator resolves them by what the provider has.", c.inDoubt())
		if err := resolveAll(ctx, w, c); err != nil {
			return r, err
		}
		if err := w.drain(ctx, "what was resolved, and what waited behind it"); err != nil {
			return r, err
		}
		if c, err = newCount(ctx, w, &p.demand); err != nil {
			return r, err
		}
	}
	before := c
	r.count(before)

	// Call it once more: nothing that is done may be done again, or be written anew.
	w.log.say("Everything is called once more.")
	if err := p.callAgain(ctx); err != nil {
		return r, err
	}
	if err := w.drain(ctx, "what was called again"); err != nil {
		return r, err
	}
	if late := w.stopWorkers(20 * time.Second); late > 0 {
		r.must("workers that did not stop within 20 s", int64(late), nil)
	}
	if c, err = newCount(ctx, w, &p.demand); err != nil {
		return r, err
	}
	r.again(before, c)
	if err := r.database(ctx, w); err != nil {
		return r, err
	}
	r.processes(w)
	r.Seconds = time.Since(began).Round(time.Second).Seconds()
	return r, r.tell(ctx, w, c)
}

// tormented is the part in which things go wrong.
func tormented(ctx context.Context, w *world, o options, p *producer) {
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	producing := make(chan struct{})
	go func() { defer close(producing); defer cancel(); p.run(ctx) }()
	tormenting := make(chan struct{})
	t := &tormentor{w: w, rand: rand.New(rand.NewPCG(o.seed, 4)), gap: o.gap}
	go func() {
		defer close(tormenting)
		if o.gap > 0 {
			t.run(ctx)
		}
	}()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			limit, cancel := context.WithTimeout(ctx, 20*time.Second)
			s, err := w.look(limit)
			cancel()
			if err != nil {
				w.log.say("%s asked for; the database does not answer just now", thousands(p.asked.Load()))
				continue
			}
			w.log.say("%s asked for; %s", thousands(p.asked.Load()), s)
		}
	}
	<-tormenting
	<-producing
}

// A state is how far it is.
type state struct {
	Done, Held, Retrying, InDoubt, Failed int64
	Asked                                 int64 // in doubt, and a done-check will be asked
	Messages                              int64
	Behind                                int64 // messages that can only wait for a doubt to be resolved
	Runs                                  int64 // that have not ended
	Living                                int64
}

func (s state) String() string {
	return fmt.Sprintf("%s done, %d held, %d waiting, %d in doubt, %d failed; %s messages (%d behind doubts), %d runs, %d workers",
		thousands(s.Done), s.Held, s.Retrying, s.InDoubt, s.Failed, thousands(s.Messages), s.Behind, s.Runs, s.Living)
}

// quiet: nothing can happen any more that is not somebody's decision.
func (s state) quiet() bool {
	return s.Held+s.Retrying+s.Asked+s.Runs == 0 && s.Messages == s.Behind
}

// A claim beside a fact that no message names is left over: the next look at it may sweep it
// away, but nothing is on the way.
const stateSQL = `
SELECT (SELECT count(*) FROM oncemore.ledger),
       count(*) FILTER (WHERE c.owner IS NOT NULL AND NOT c.over), count(*) FILTER (WHERE c.trouble = 'retrying' AND NOT c.over),
       count(*) FILTER (WHERE c.trouble = 'in_doubt'), count(*) FILTER (WHERE c.trouble = 'failed'),
       count(*) FILTER (WHERE c.trouble = 'in_doubt' AND c.job_type = (SELECT id FROM oncemore.job_type WHERE name = 'verifiable')),
       (SELECT count(*) FROM oncemore.message),
       (SELECT count(*) FROM oncemore.message m WHERE m.deferred > 0 AND EXISTS (
            SELECT FROM oncemore.job_type t JOIN oncemore.claim c ON c.job_type = t.id AND c.entity = ANY (m.entities)
            WHERE t.name = m.type AND c.trouble = 'in_doubt')),
       (SELECT count(*) FROM oncemore.run WHERE ended_at IS NULL),
       (SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL)
FROM (SELECT c.*, EXISTS (SELECT FROM oncemore.ledger l WHERE l.job_type = c.job_type AND l.entity = c.entity)
             AND NOT EXISTS (SELECT FROM oncemore.message m JOIN oncemore.job_type t ON t.name = m.type WHERE t.id = c.job_type AND c.entity = ANY (m.entities)) AS over
      FROM oncemore.claim c) c`

func (w *world) look(ctx context.Context) (s state, err error) {
	rows, err := w.db.Query(ctx, stateSQL)
	if err == nil {
		s, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[state])
	}
	return s, err
}

// Work that was postponed again and again waits longer each time, at last for more than an
// hour. Here the time is brought forward, but not for what waits behind a doubt: it could only be
// postponed once more, and there is an end to that.
const forwardSQL = `
UPDATE oncemore.message m SET visible_at = clock_timestamp()
WHERE m.lock = 0 AND m.visible_at > clock_timestamp() + interval '3 seconds' AND m.deferred > 0 AND NOT EXISTS (
    SELECT FROM oncemore.job_type t JOIN oncemore.claim c ON c.job_type = t.id AND c.entity = ANY (m.entities)
    WHERE t.name = m.type AND c.trouble = 'in_doubt')`

// Draining is over after this time without any change, however that looks. Visits of a
// run are at most half a minute apart.
const drainPatience = 45 * time.Second

// drain waits until nothing is on the way. When nothing changes any more although
// something is, that is found by the count.
func (w *world) drain(ctx context.Context, what string) error {
	var last state
	changed, told := time.Now(), time.Now()
	for quiet := 0; quiet < 2; { // seen twice, a moment apart
		s, err := w.look(ctx)
		if err == nil {
			_, err = w.db.Exec(ctx, forwardSQL)
		}
		switch {
		case ctx.Err() != nil:
			return errors.New("interrupted")
		case err != nil:
			return fmt.Errorf("drain: %w", err)
		}
		if s.quiet() {
			quiet++
		} else {
			quiet = 0
		}
		if s != last {
			last, changed = s, time.Now()
		}
		if time.Since(changed) > drainPatience {
			w.log.say("After %s without a change: %s", drainPatience, s)
			return nil
		}
		if time.Since(told) > 10*time.Second {
			told = time.Now()
			w.log.say("draining %s: %s", what, s)
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted")
		case <-time.After(time.Second):
		}
	}
	w.log.say("drained: %s", last)
	return nil
}

// resolveAll says of everything in doubt what the provider knows of it. What did not
// happen is to be had: its message is sent in the same transaction.
func resolveAll(ctx context.Context, w *world, c *count) error {
	l, q := ledger.New(w.db), pgqueue.New(w.db, "")
	for i := range jobTypes {
		t := &ledger.Type{Name: jobTypes[i].name, Effect: ledger.Once}
		if err := w.db.QueryRow(ctx, `SELECT id FROM oncemore.job_type WHERE name = $1`, t.Name).Scan(&t.ID); err != nil {
			return fmt.Errorf("resolve: %w", err)
		}
		after := ""
		for {
			var doubts []*ledger.Open
			for o, err := range l.Opens(ctx, t, ledger.Doubtful, after, 1000) {
				if err != nil {
					return err
				}
				doubts = append(doubts, o)
			}
			if len(doubts) == 0 {
				break
			}
			after = doubts[len(doubts)-1].Entity
			for _, o := range doubts {
				verdict := ledger.Verdict{Done: c.happened(t.Name, o.Entity, o.Epoch), Evidence: ledger.ByOperator, By: "soak", Why: "the effect log"}
				err := pgx.BeginFunc(ctx, w.db, func(tx pgx.Tx) error {
					if err := ledger.Resolve(ctx, tx, t, o, verdict); err != nil || verdict.Done {
						return err
					}
					return q.Tx(tx).Send(ctx, queue.Message{Type: t.Name, Run: o.Run, Epoch: o.Epoch, Items: []queue.Item{{Entity: o.Entity, Args: []byte(o.Args)}}})
				})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}
