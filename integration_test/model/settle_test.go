package model_test

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// judge says how an attempt ends that returned an error.
func (p *process) judge(t *rapid.T, it *item, absent, permanent bool) {
	o := it.outcome("")
	if !it.claim.Won && it.standing.Open != nil {
		o.Attempts++
	}
	o.Error, o.Class, o.Absent = "it failed", "error", absent
	safe := absent || it.e.Effect.MayRepeat()
	it.end = ending{outcome: o}
	switch {
	case !safe && it.e.Effect == ledger.Once:
		o.State = ledger.Unclear
	case permanent, o.Attempts >= it.e.attempts:
		o.State = ledger.GaveUp
	default:
		o.State, o.Delay = ledger.ToRetry, time.Minute
		if !safe {
			o.Delay = max(o.Delay, it.e.Effect.Settle())
		}
		m := it.later()
		m.Delay, m.Deferred = o.Delay, 0
		it.end.send = m
	}
	p.finish(t, it)
}

// finish records how items ended, in one transaction with the messages that carry them on
// and the acknowledgement of those that are done with.
func (p *process) finish(t *rapid.T, items ...*item) {
	if len(items) == 0 {
		return
	}
	items = slices.Clone(items) // perhaps of all that it has
	kind := items[0].e.kind
	var outs []*ledger.Outcome
	var sends []queue.Message
	var acks, releases []queue.Delivery
	var unsure []*item
	for _, it := range items {
		if o := it.end.outcome; o != nil {
			outs = append(outs, o)
			// The claim that was seen may stand for less than this: a message carries the rest.
			if seen := it.standing.Open; o.State != ledger.Completed && it.end.send == nil && seen != nil && !it.claim.Won && !seen.Covers(it.want) {
				it.end.send = it.later()
			}
		}
		if it.end.send != nil {
			sends = append(sends, *it.end.send)
		}
		it.keep = it.keep || it.end.keep
		if o := it.end.outcome; o != nil && o.State != ledger.Completed && o.Fence == 0 && it.end.send == nil {
			// There may be a claim by now that stands for less: not before that is known.
			unsure = append(unsure, it)
			continue
		}
		if it.left--; it.left == 0 && it.keep {
			releases = append(releases, it.Delivery)
		} else if it.left == 0 {
			acks = append(acks, it.Delivery)
		}
		p.items = slices.DeleteFunc(p.items, func(x *item) bool { return x == it })
	}
	p.items = slices.DeleteFunc(p.items, func(x *item) bool { return slices.Contains(unsure, x) })
	left := outs
	settle := func() error {
		return p.ledger.RunBatch(p.ctx, func(b *pgx.Batch) {
			ledger.Settle(b, &kind.Type, p.lease.ID, left)
			p.pg.SendBatch(b, sends...)
			p.pg.AckBatch(b, acks...)
		})
	}
	err := settle()
	if ledger.IsTaken(err) {
		left = p.untaken(t, kind, outs)
		err = settle()
	}
	p.ok(t, err)
	for _, o := range outs {
		p.settled(t, o)
	}
	p.ok(t, p.ledger.RecordDisputes(p.ctx, &kind.Type, p.lease.ID, outs))
	p.redo(t, outs, items)
	acks = nil
	for _, it := range unsure {
		it.keep = it.keep || it.end.outcome.Refused
		if it.left--; it.left == 0 && it.keep {
			releases = append(releases, it.Delivery)
		} else if it.left == 0 {
			acks = append(acks, it.Delivery)
		}
	}
	if len(acks) > 0 {
		p.ok(t, p.pg.Ack(p.ctx, acks...))
	}
	if len(releases) > 0 {
		p.ok(t, p.pg.Release(p.ctx, 0, releases...))
	}
}

// untaken leaves out the first completions that somebody else has recorded, or that are in the
// settlement twice. Their arguments are the same, so there is nothing to tell of them.
func (p *process) untaken(t *rapid.T, kind *kind, outs []*ledger.Outcome) (left []*ledger.Outcome) {
	done := map[string]bool{}
	for _, o := range outs {
		o.Again = true
		if o.State == ledger.Completed && o.Fence == 0 {
			sts, err := p.ledger.Look(p.ctx, &kind.Type, []ledger.Want{o.Want})
			p.ok(t, err)
			if done[o.Entity] || sts[0].Fact != nil {
				continue
			}
			done[o.Entity] = true
		}
		left = append(left, o)
	}
	return left
}

// redo has repeatable work done once more that was reported after its claim was lost.
func (p *process) redo(t *rapid.T, outs []*ledger.Outcome, items []*item) {
	for _, it := range items {
		o := it.end.outcome
		if o == nil || !o.Refused || o.State != ledger.Completed || it.e.Effect != ledger.Repeatable || it.want.SourceVersion == 0 {
			continue
		}
		m := it.later()
		m.Delay, m.Deferred = 0, 0
		m.Epoch = value[int64](p.machine, t, `SELECT nextval('oncemore.epoch')`)
		p.epochs[m.Epoch] = true
		p.send(t, *m)
	}
}
