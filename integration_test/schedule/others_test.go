package schedule_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// Those who act beside the workers.

// declare says that the worker of another player is dead, as whoever holds a lease does.
// That worker's own clocks have stopped it before.
func (p *player) declare(victim int) error {
	p.local("lease ends", func() string {
		p.lapsed[victim] = true
		return "of " + p.players[victim].name()
	})
	return p.call("declare dead", schedule.Commit, func() (string, error) {
		tag, err := p.seat.pool.Exec(p.Context(), declareSQL, p.workers[victim])
		return tag.String(), err
	})
}

const declareSQL = `/* lease: declare dead */ UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed' WHERE id = $1 AND dead_at IS NULL`

// resolve is an operator who looks at what is open, and says what became of it.
func (p *player) resolve(done bool) error {
	var o *ledger.Open
	err := p.call("list", schedule.Read, func() (string, error) {
		o = nil
		for open, err := range p.seat.ledger.Opens(p.Context(), p.kind, ledger.NoTrouble, keyBefore(p.entities[0]), 1) {
			if err != nil {
				return "", err
			}
			if open.Entity == p.entities[0] {
				o = open
			}
		}
		switch {
		case o == nil:
			return "nothing is open", nil
		case o.Held():
			return "held", nil
		}
		return fmt.Sprintf("open: %s, fence seen", o.Trouble), nil
	})
	if err != nil || o == nil || o.Held() {
		return err
	}
	changed := false
	err = p.call("resolve", schedule.Commit, func() (string, error) {
		err := pgx.BeginFunc(p.Context(), p.seat.pool, func(tx pgx.Tx) error {
			err := ledger.Resolve(p.Context(), tx, p.kind, o, ledger.Verdict{Done: done, Evidence: ledger.ByOperator, By: "ann", Why: "she asked"})
			if err != nil || done {
				return err
			}
			m := p.later(&item{want: ledger.Want{Entity: o.Entity, SourceVersion: o.SourceVersion, Run: p.run(p.n), Epoch: o.Epoch}})
			return p.seat.queue.Tx(tx).Send(p.Context(), *m)
		})
		switch {
		case errors.Is(err, ledger.ErrChanged):
			changed = true
			p.unchanged = "what it was shown had changed"
			return "it has changed", nil
		case done:
			return "done", err
		}
		return "not done", err
	})
	if err != nil || changed {
		return err
	}
	p.accepted = o.Fence
	switch {
	case done:
		p.completed = append(p.completed, &ledger.Outcome{Want: ledger.Want{Entity: o.Entity, Epoch: o.Epoch}, State: ledger.Completed, Fence: o.Fence})
	default:
		p.denied++
	}
	return nil
}

// keyBefore comes right before an entity's key.
func keyBefore(entity string) string { return entity[:len(entity)-1] }

// record is the app that did the work without a job.
func (p *player) record(it *item) error {
	return p.call("record", schedule.Commit, func() (answer string, err error) {
		err = pgx.BeginFunc(p.Context(), p.seat.pool, func(tx pgx.Tx) error {
			fresh, err := ledger.Record(p.Context(), tx, p.kind, it.want)
			if err == nil && !fresh[0] {
				p.unchanged = "somebody else had done it"
				return errTaken
			}
			return err
		})
		if errors.Is(err, errTaken) {
			return "done by somebody else", nil
		}
		return "recorded", err
	})
}

// What was before the actors came. These run unscheduled, one after the other.

// holds has a player's worker claim the item.
func (ta *tale) holds(it *item, worker int64) error {
	sts, err := ta.props.Look(context.Background(), ta.kind, []ledger.Want{it.want})
	if err != nil {
		return err
	}
	cs, err := ta.props.Claim(context.Background(), ta.kind, worker, []ledger.Candidate{{Want: it.want, Standing: sts[0], Args: it.args()}})
	if err != nil {
		return err
	}
	if !cs[0].Won {
		return fmt.Errorf("the claim of %s was not won: %s", it.want.Entity, sts[0].Reason)
	}
	it.standing, it.claim = sts[0], cs[0]
	ta.claims[it.claim.Epoch]++
	return nil
}

// ended has the item, which a worker holds or which needs no claim, end in a state.
func (ta *tale) ended(it *item, worker int64, s ledger.State) error {
	p := ta.players[it.player(ta)]
	o := p.outcome(it, s)
	if s != ledger.Completed {
		o.Error = "the mail server said no"
	}
	return ta.props.RunBatch(context.Background(), func(b *pgx.Batch) { ledger.Settle(b, ta.kind, worker, []*ledger.Outcome{o}) })
}

func (it *item) player(ta *tale) int { return int(it.want.Run - ta.run(0)) }

// dead has a player's worker be declared dead.
func (ta *tale) dead(n int) error {
	ta.lapsed[n] = true
	_, err := ta.ctl.Exec(context.Background(), declareSQL, ta.workers[n])
	return err
}
