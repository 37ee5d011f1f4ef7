package schedule_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// How a worker's attempt ends.

// fail judges an attempt that ended in an error. absent: surely without an effect.
func (p *player) fail(it *item, absent bool) error {
	o := p.outcome(it, ledger.ToRetry)
	o.Absent, o.Error = absent, "the mail server said no"
	switch {
	case !absent && p.kind.Effect == ledger.Once:
		o.State = ledger.Unclear
	case it.ends == given:
		o.State = ledger.GaveUp
	}
	if o.State == ledger.ToRetry {
		m := p.later(it)
		m.Delay, m.Deferred = 0, 0
		return p.settle(it, o, m)
	}
	return p.settle(it, o, nil)
}

// giveBack ends an attempt that did not begin: it is not charged, and the message comes again.
func (p *player) giveBack(it *item) error {
	o := p.outcome(it, ledger.Returned)
	o.Attempts--
	o.Absent = true
	err := p.settle(it, o, nil)
	it.acked = false
	return err
}

func (p *player) outcome(it *item, s ledger.State) *ledger.Outcome {
	o := &ledger.Outcome{Want: it.want, State: s, Evidence: ledger.Reported, Attempts: 1, Args: it.args()}
	switch {
	case it.claim.Won:
		o.Fence, o.Epoch, o.Attempts = it.claim.Fence, it.claim.Epoch, it.claim.Attempts
	case it.standing.Open != nil:
		o.Fence, o.Epoch, o.Attempts = it.standing.Open.Fence, max(o.Epoch, it.standing.Open.Epoch), it.standing.Open.Attempts
	}
	return o
}

func (it *item) outcomeEpoch() int64 { return max(it.want.Epoch, it.claim.Epoch) }

// later is the message that carries an item on.
func (p *player) later(it *item) *queue.Message {
	return &queue.Message{Type: p.kind.Name, Items: []queue.Item{{Entity: it.want.Entity, Args: json.RawMessage(it.args())}},
		Run: it.want.Run, Epoch: it.want.Epoch, Delay: time.Hour, Deferred: 1}
}

// settle records how an item ended, and acknowledges its message. Where o is nil only m
// is to be sent.
func (p *player) settle(it *item, o *ledger.Outcome, m *queue.Message) error {
	if p.unfenced && o != nil && o.State == ledger.Completed {
		return p.settleUnfenced(it, o)
	}
	for o != nil || m != nil {
		kind := schedule.Commit
		if o == nil {
			kind = schedule.Read // nobody can notice a message being sent
		}
		err := p.call("settle", kind, func() (string, error) {
			var outs []*ledger.Outcome
			answer := "sent on"
			if o != nil {
				o.Refused = false
				outs, answer = append(outs, o), string(o.State)
			}
			err := p.seat.ledger.RunBatch(p.Context(), func(b *pgx.Batch) {
				ledger.Settle(b, p.kind, p.worker, outs)
				if m != nil {
					p.seat.queue.SendBatch(b, *m)
				}
			})
			if ledger.IsTaken(err) {
				p.unchanged = "its settlement failed"
				return "taken", errTaken
			}
			switch {
			case err != nil || o == nil:
			case o.Refused:
				p.unchanged = "its settlement was refused"
				answer += ": refused"
			default:
				p.accepted = o.Fence
			}
			return answer, err
		})
		switch {
		case errors.Is(err, errTaken):
			if o, m, err = p.taken(it, o, m); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		break
	}
	it.acked = true
	if o == nil || o.State != ledger.Completed {
		return nil
	}
	p.completed = append(p.completed, o)
	if !o.Refused || p.silent {
		return nil
	}
	if err := p.call("dispute", schedule.Read, func() (string, error) {
		err := p.seat.ledger.RecordDisputes(p.Context(), p.kind, p.worker, []*ledger.Outcome{o})
		if !o.Refused {
			return "recognized as its own", err
		}
		return "disputed", err
	}); err != nil || !o.Refused {
		return err
	}
	return p.redo(it)
}

var errTaken = errors.New("a fact is there already")

// taken looks at a first completion that somebody else recorded. Under a claim it is settled
// once more as it is: the claim must go.
func (p *player) taken(it *item, o *ledger.Outcome, m *queue.Message) (*ledger.Outcome, *queue.Message, error) {
	if o.Fence != 0 {
		o.Again = true
		return o, m, nil
	}
	if err := p.look(it); err != nil {
		return nil, nil, err
	}
	switch fact := it.standing.Fact; {
	case fact == nil: // gone again: cannot be, but the worker would try once more
		o.Again = true
		return o, m, nil
	case it.standing.Reason.Run():
		return nil, p.later(it), nil
	}
	it.parked = it.standing.Reason == ledger.Conflict
	return nil, nil, nil
}

// redo has work done once more that was reported after its claim was lost, and may have
// overwritten the output of a newer source.
func (p *player) redo(it *item) error {
	if p.kind.Effect != ledger.Repeatable || it.want.SourceVersion == 0 || p.careless {
		return nil
	}
	return p.call("redo", schedule.Read, func() (string, error) {
		m := p.later(it)
		m.Delay, m.Deferred = 0, 0
		err := p.seat.pool.QueryRow(p.Context(), `SELECT nextval('oncemore.epoch')`).Scan(&m.Epoch)
		if err == nil {
			err = p.seat.queue.Send(p.Context(), *m)
		}
		return fmt.Sprintf("sent under epoch %d", m.Epoch), err
	})
}

// transact is a body in the transaction of its fact.
func (p *player) transact(it *item) (err error) {
	var tx pgx.Tx
	mine, busy := false, false
	defer func() {
		p.seat.holds.Store(false)
		if tx != nil {
			_ = tx.Rollback(p.Context()) // after an error; else it is over
		}
	}()
	err = p.call("hold", schedule.Write, func() (answer string, err error) {
		p.seat.holds.Store(true)
		if tx, err = p.seat.pool.BeginTx(p.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted}); err != nil {
			return "", err
		}
		patience := time.Minute // nobody's patience ends while others are scheduled
		if p.impatient {
			patience = time.Millisecond
		}
		o := p.outcome(it, ledger.Completed)
		o.Evidence = ledger.SameTx
		held, err := ledger.Hold(p.Context(), tx, p.kind, patience, []*ledger.Outcome{o})
		if errors.Is(err, ledger.ErrBusy) {
			busy = true
			return "busy", nil
		}
		mine = err == nil && held[0]
		return map[bool]string{true: "mine", false: "not mine"}[mine], err
	})
	if err != nil {
		return err
	}
	if mine {
		err = p.call("effect", schedule.Write, func() (string, error) {
			_, err := tx.Exec(p.Context(), `INSERT INTO effect (entity, run, epoch) VALUES ($1, $2, $3)`, it.want.Entity, it.want.Run, it.outcomeEpoch())
			return "", err
		})
		if err != nil {
			return err
		}
	}
	if !mine || it.ends != well {
		if err = p.call("roll back", schedule.Commit, func() (string, error) {
			p.unchanged = "it rolled back"
			err := tx.Rollback(p.Context())
			p.seat.holds.Store(false)
			return "", err
		}); err != nil {
			return err
		}
		if !mine || busy {
			return p.outrun(it)
		}
		return p.fail(it, false)
	}
	err = p.call("commit", schedule.Commit, func() (string, error) {
		err := tx.Commit(p.Context())
		p.seat.holds.Store(false)
		p.accepted = it.claim.Fence
		return "", err
	})
	it.acked = err == nil
	return err
}
