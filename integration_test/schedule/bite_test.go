package schedule_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// TestBrokenCodeIsCaught plays scenarios whose actors leave out one thing that makes the
// real code right. Each breaks in some orders and not in others: so the scheduler is needed,
// and it bites.
func TestBrokenCodeIsCaught(t *testing.T) {
	w := newWorld(t)
	stages := map[size][]*stage{coarse: stagesFor(t, w, false, 2), fine: stagesFor(t, w, true, 2)}
	for _, c := range []struct {
		size size
		scenario
		blames string // what one of the broken orders is blamed for
	}{
		{coarse, scenario{name: "settle without the fence", effect: "repeatable",
			set: func(ta *tale) ([]program, error) {
				ta.unfenced = true
				return held(false, nil, takeover())(ta)
			}}, "was replaced by one under epoch 0"},
		{coarse, scenario{name: "claim without the second look", effect: "once",
			set: simply(deliver(), blindClaim)}, "I4: 2 effects under epoch 0, and it is Once"},
		{coarse, scenario{name: "the effect before the claim", effect: "once",
			set: simply(deliver(), effectFirst)}, "I4: 2 effects under epoch 0, and it is Once"},
		{coarse, scenario{name: "the effect before the fact, in a transaction", effect: "tx",
			set: simply(deliver(), holdLast)}, "I3: facts of transactions"},
		{coarse, scenario{name: "a retry without a message", effect: "repeatable",
			set: simply(deliver(again), failSilently)}, "no message carries it on"},
		{coarse, scenario{name: "a sweep without the fence", effect: "repeatable",
			set: swept(sweepBlindly, deliver(epoch(lowEpoch)))}, "I1: lost: epoch"},
		{coarse, scenario{name: "an older source is not done again", effect: "repeatable",
			set: func(ta *tale) ([]program, error) {
				ta.careless = true
				return held(false, with(source(5)), takeover(source(9)))(ta)
			}}, "the output is of source 5, the fact of source 9"},
		{coarse, scenario{name: "a late success is not kept", effect: "repeatable",
			set: func(ta *tale) ([]program, error) {
				ta.silent = true
				return held(false, nil, takeover())(ta)
			}}, "refused were completions"},
		{fine, scenario{name: "facts before claims", effect: "repeatable",
			set: held(false, nil, lookBackwards)}, "sees it nowhere"},
		{fine, scenario{name: "locks in the order of arrival", effect: "verifiable", entities: 2,
			set: lockUnsorted}, "40P01"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := schedule.Explore(c.size.String()+": "+c.name, on(stages[c.size], &c.scenario), schedule.Options{Reduce: true, Broken: 1000, Each: func(o *schedule.Order) {
				if strayed(o) {
					t.Errorf("choice %d of this order was to be another one:\n%s", o.Diverged, o)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(r)
			at := slices.IndexFunc(r.Broken, func(o *schedule.Order) bool { return strings.Contains(strings.Join(o.Problems, "\n"), c.blames) })
			if at < 0 {
				t.Errorf("no order was blamed for %q: %v", c.blames, r.Broken)
				return
			}
			if len(r.Broken) == r.Orders {
				t.Errorf("every order broke: that takes no scheduler")
			}
			t.Logf("for example:\n%s", r.Broken[at])
		})
	}
}

// settleUnfenced is a completion that does not compare fences.
func (p *player) settleUnfenced(it *item, o *ledger.Outcome) error {
	it.acked = true
	return p.call("settle", schedule.Commit, func() (string, error) {
		_, err := p.seat.pool.Exec(p.Context(), `
			WITH gone AS (DELETE FROM oncemore.claim WHERE job_type = $1 AND entity = $2)
			INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, run, evidence) VALUES ($1, $2, 1, $3, $4, 'r')
			ON CONFLICT (job_type, entity) DO UPDATE SET run = excluded.run`, p.kind.ID, it.want.Entity, o.Attempts, o.Run)
		return "completed", err
	})
}

// blindClaim claims without looking at the facts again.
func blindClaim(p *player) error {
	it := p.item()
	if err := p.look(it); err != nil || !it.standing.Reason.Run() {
		it.acked = it.standing.Reason == ledger.Done
		return err
	}
	err := p.call("claim", schedule.Commit, func() (string, error) {
		err := p.seat.pool.QueryRow(p.Context(), `
			INSERT INTO oncemore.claim (fence, owner, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
			VALUES (nextval('oncemore.fence'), $1, $2, 0, 0, $3, $4, 1, $5, '{}') ON CONFLICT DO NOTHING RETURNING fence`,
			p.worker, someArgs, it.want.Run, p.kind.ID, it.want.Entity).Scan(&it.claim.Fence)
		it.claim.Won, it.claim.Attempts = err == nil, 1
		if errors.Is(err, pgx.ErrNoRows) {
			return "outrun", nil
		}
		return "won", err
	})
	if err != nil || !it.claim.Won {
		return err
	}
	return p.work(it)
}

// effectFirst has the effect, and then claims.
func effectFirst(p *player) error {
	it := p.item()
	if err := p.look(it); err != nil || !it.standing.Reason.Run() {
		return err
	}
	p.effect(it)
	if err := p.claim(it); err != nil || !it.claim.Won {
		return err
	}
	return p.settle(it, p.outcome(it, ledger.Completed), nil)
}

// holdLast writes its effect, and then the fact, whoever else did.
func holdLast(p *player) error {
	it := p.item()
	if err := p.look(it); err != nil || !it.standing.Reason.Run() {
		it.acked = it.standing.Reason == ledger.Done
		return err
	}
	return p.call("effect, fact, commit", schedule.Commit, func() (string, error) {
		it.acked = true
		return "", pgx.BeginFunc(p.Context(), p.seat.pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(p.Context(), `INSERT INTO effect (entity, run, epoch) VALUES ($1, $2, 0)`, it.want.Entity, it.want.Run)
			if err == nil {
				_, err = ledger.Record(p.Context(), tx, p.kind, it.want)
			}
			return err
		})
	})
}

// failSilently leaves a claim to be tried again, and nothing that brings it back.
func failSilently(p *player) error {
	it := p.item(again)
	if err := p.look(it); err != nil || !it.standing.Reason.Run() {
		it.acked = true
		return err
	}
	if err := p.claim(it); err != nil || !it.claim.Won {
		it.acked = true
		return err
	}
	o := p.outcome(it, ledger.ToRetry)
	o.Delay = time.Hour
	return p.settle(it, o, nil)
}

// sweepBlindly removes whatever claim there is.
func sweepBlindly(p *player) error {
	it := p.item()
	if err := p.look(it); err != nil || !it.standing.Sweep {
		it.acked = true
		return err
	}
	it.acked = true
	return p.call("sweep", schedule.Commit, func() (string, error) {
		_, err := p.seat.pool.Exec(p.Context(), `DELETE FROM oncemore.claim WHERE job_type = $1 AND entity = $2`, p.kind.ID, it.want.Entity)
		return "", err
	})
}

// lookBackwards reads facts first and claims second.
func lookBackwards(p *player) error {
	it := &item{want: ledger.Want{Entity: p.entities[0]}}
	p.known = nil
	return p.call("look", schedule.Read, func() (string, error) {
		b := &pgx.Batch{}
		b.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
		b.Queue(`SELECT entity FROM oncemore.ledger WHERE job_type = $1 AND entity = $2`, p.kind.ID, it.want.Entity).Query(func(rows pgx.Rows) error {
			if rows.Next() {
				it.standing.Fact = &ledger.Fact{}
			}
			return nil
		})
		b.Queue(`SELECT entity FROM oncemore.claim WHERE job_type = $1 AND entity = $2`, p.kind.ID, it.want.Entity).Query(func(rows pgx.Rows) error {
			if rows.Next() {
				it.standing.Open = &ledger.Open{}
			}
			return nil
		})
		b.Queue(`COMMIT`)
		err := p.seat.pool.SendBatch(p.Context(), b).Close()
		p.saw(it)
		return "", err
	})
}

// lockUnsorted settles two claims in a transaction that is not tried again, each worker
// beginning with the other one's last.
func lockUnsorted(ta *tale) ([]program, error) {
	var its []*item
	for i := range ta.entities {
		it := ta.players[0].item(again, func(it *item) { it.want.Entity = ta.entities[i] })
		if err := ta.holds(it, ta.workers[0]); err != nil {
			return nil, err
		}
		its = append(its, it)
	}
	lock := func(order ...int) program {
		return func(p *player) error {
			return p.call("lock", schedule.Commit, func() (string, error) {
				return "", pgx.BeginFunc(p.Context(), p.seat.pool, func(tx pgx.Tx) error {
					for _, i := range order {
						if _, err := tx.Exec(context.WithoutCancel(p.Context()), `UPDATE oncemore.claim SET fence = nextval('oncemore.fence') WHERE job_type = $1 AND entity = $2`,
							p.kind.ID, its[i].want.Entity); err != nil {
							return fmt.Errorf("lock %d: %w", i, err)
						}
					}
					return nil
				})
			})
		}
	}
	return []program{lock(0, 1), lock(1, 0)}, ta.dead(0)
}
