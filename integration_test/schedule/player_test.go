package schedule_test

import (
	"fmt"

	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// A player does what a worker does with one delivery, call by call: the same calls of the
// ledger and the queue in the same transactions, and the same choices between them. (What
// is called as what: deliver and decideIdle are in worker/deliver.go, claim and outrun in
// worker/claim.go, settle, taken and redo in worker/settle.go, transact in
// worker/transact.go.)
type player struct {
	*schedule.Actor
	*tale
	seat      *seat
	worker    int64 // its id in the database
	n         int
	label     string           // of the call that it makes
	impatient bool             // waits for a lock for no time at all
	known     map[string]place // what was committed when its latest look began
	before    int              // and how often others had moved
	moves     int              // steps that changed or locked something
	takesOver bool             // its latest claim
	accepted  int64            // the fence under which its latest step was accepted
	unchanged string           // why its latest step must have changed nothing
}

// An item is one delivery of the work on one entity.
type item struct {
	want     ledger.Want
	received int    // 2: it was delivered before, so it needs a claim
	ends     ending // of its body

	standing ledger.Standing
	claim    ledger.Claim
	acked    bool // else the message comes again
	parked   bool
}

// An ending is what the body of a job does.
type ending int

const (
	well    ending = iota // the effect, and success
	badly                 // no effect, and an error
	halfway               // the effect, and an error
	given                 // no effect, and an error after which no attempt is left
	before                // it did not begin: the worker stops
)

// call is one step, or, where steps are fine, what the next ones belong to.
func (p *player) call(what string, kind schedule.Kind, f func() (answer string, err error)) error {
	p.label = what
	if !p.fine {
		p.Park(schedule.Step{What: what, Kind: kind})
	}
	answer, err := f()
	if err != nil {
		p.Answer("error: %v", err)
		return fmt.Errorf("%s: %w", what, err)
	}
	if answer != "" {
		p.Answer("%s", answer)
	}
	return nil
}

func (p *player) name() string { return string(rune('a' + p.n)) }

// local is a step outside of the database.
func (p *player) local(what string, f func() (answer string)) {
	p.Park(schedule.Step{What: what, Kind: schedule.Local})
	p.Answer("%s", f())
}

// task is the work of the scene, as p is to do it.
func (p *player) task(change ...func(*item)) *item {
	it := &item{want: ledger.Want{Entity: p.entities[0], Fingerprint: someArgs, Run: p.run(p.n)}, received: 1}
	for _, c := range change {
		c(it)
	}
	return it
}

// item is a task that a message brings, so that it must not be lost.
func (p *player) item(change ...func(*item)) *item {
	it := p.task(change...)
	p.items = append(p.items, it)
	return it
}

const someArgs = 1<<56 | 42 // a fingerprint

func again(it *item) { it.received = 2 }
func epoch(n int64) func(*item) {
	return func(it *item) { it.want.Epoch = n; it.received = 2 }
}
func source(n int64) func(*item) { return func(it *item) { it.want.SourceVersion = n } }
func ends(e ending) func(*item)  { return func(it *item) { it.ends = e } }

func (it *item) args() string { return fmt.Sprintf(`{"source": %d}`, it.want.SourceVersion) }

func (p *player) look(it *item) error {
	p.known = nil
	return p.call("look", schedule.Read, func() (string, error) {
		if !p.fine {
			p.begin()
		}
		sts, err := p.seat.ledger.Look(p.Context(), p.kind, []ledger.Want{it.want})
		if err != nil {
			return "", err
		}
		it.standing = sts[0]
		p.saw(it)
		return string(it.standing.Reason), nil
	})
}

// begin remembers what is committed when a look begins.
func (p *player) begin() {
	p.known, p.before = p.last, p.others()
	if p.before < 0 {
		p.before = -2 // no count is equal to it
	}
}

// saw compares what a look found with what was committed when it began.
func (p *player) saw(it *item) {
	if known := p.known[it.want.Entity]; known.somewhere() && it.standing.Open == nil && it.standing.Fact == nil {
		p.blame("%s looks at %s and sees it nowhere, though it was %s before the look", p.Name, it.want.Entity, known)
	}
}

// deliver brings one delivery to its end.
func (p *player) deliver(it *item) error {
	if err := p.look(it); err != nil {
		return err
	}
	if !it.standing.Reason.Run() {
		return p.idle(it)
	}
	if p.kind.Checked {
		done, tell := false, true
		p.local("done-check", func() string {
			done, tell = len(p.effects) > 0, !p.forgetful[p.n]
			if !tell {
				return "cannot tell"
			}
			return fmt.Sprint(done)
		})
		switch {
		case !tell && it.standing.Verify:
			var m *queue.Message
			if !it.standing.Open.Covers(it.want) {
				m = p.later(it)
			}
			return p.settle(it, p.outcome(it, ledger.Unclear), m)
		case !tell:
			return p.fail(it, true)
		case done:
			o := p.outcome(it, ledger.Completed)
			o.Evidence = ledger.DoneCheck
			return p.settle(it, o, nil)
		}
	}
	if it.needsClaim(p.kind) {
		if err := p.claim(it); err != nil {
			return err
		}
		if !it.claim.Won {
			return p.outrun(it)
		}
	}
	return p.work(it)
}

// work is what a worker does that may act: the body, and its settlement.
func (p *player) work(it *item) error {
	if p.kind.Effect == ledger.InTransaction {
		return p.transact(it)
	}
	if it.ends == before {
		return p.giveBack(it)
	}
	if it.ends == well || it.ends == halfway {
		p.effect(it)
	}
	if it.ends == well {
		return p.settle(it, p.outcome(it, ledger.Completed), nil)
	}
	return p.fail(it, it.ends == badly)
}

func (it *item) needsClaim(k *ledger.Type) bool {
	st := &it.standing
	return !k.Effect.MayRepeat() || it.received > 1 || it.want.Epoch != 0 || it.want.SourceVersion != 0 && k.Effect != ledger.InTransaction ||
		st.Reason != ledger.Missing || st.Open != nil
}

func (p *player) claim(it *item) error {
	p.takesOver = it.standing.Open != nil
	return p.call("claim", schedule.Commit, func() (string, error) {
		cs, err := p.seat.ledger.Claim(p.Context(), p.kind, p.worker, []ledger.Candidate{{Want: it.want, Standing: it.standing, Args: it.args()}})
		if err != nil {
			return "", err
		}
		it.claim = cs[0]
		if !it.claim.Won {
			if p.others() == p.before {
				p.blame("%s was outrun, and nobody else had moved since it looked", p.Name)
			}
			return "outrun", nil
		}
		p.won(it)
		how := "won"
		if p.takesOver {
			how = "took over"
		}
		return fmt.Sprintf("%s: epoch %d, attempt %d", how, it.claim.Epoch, it.claim.Attempts), nil
	})
}

// won checks what a claim stands for.
func (p *player) won(it *item) {
	p.claims[it.claim.Epoch]++
	o := it.standing.Open
	if o == nil {
		return
	}
	p.accepted = o.Fence
	if !o.FirstClaimedAt.IsZero() && it.want.SourceVersion > o.SourceVersion && it.claim.Epoch <= o.Epoch {
		p.blame("%s took over for source %d what was tried for source %d, under the same epoch %d: a provider would take it for a repeat",
			p.Name, it.want.SourceVersion, o.SourceVersion, it.claim.Epoch)
	}
}

// others is how often somebody else changed or locked something; -1 while that goes on.
func (p *player) others() (n int) {
	for i, other := range p.players {
		if i == p.n {
			continue
		}
		if other.seat.holds.Load() {
			return -1
		}
		n += other.moves
	}
	return n
}

func (p *player) outrun(it *item) error {
	if err := p.look(it); err != nil {
		return err
	}
	if o := it.standing.Open; it.claim.Won && o != nil && o.Fence == it.claim.Fence {
		if it.standing.Reason != ledger.Done {
			return p.giveBack(it)
		}
		it.standing.Sweep = true
	}
	if it.standing.Reason.Run() {
		return p.settle(it, nil, p.later(it))
	}
	return p.idle(it)
}

// idle ends an item that the ledger does not let run.
func (p *player) idle(it *item) error {
	st := &it.standing
	switch st.Reason {
	case ledger.Done:
		it.acked = true
		if st.Sweep {
			return p.call("sweep", schedule.Commit, func() (string, error) {
				return "", p.seat.ledger.Sweep(p.Context(), p.kind, []*ledger.Open{st.Open})
			})
		}
		return nil
	case ledger.Conflict:
		it.acked, it.parked = true, true
		return nil
	}
	var o *ledger.Outcome
	news := st.Reason == ledger.InDoubt && st.Open.Trouble != ledger.Doubtful
	if news {
		o = p.outcome(it, ledger.Unclear)
		o.Error = "an attempt ended without an answer, and may not be repeated"
	}
	if st.Open.Covers(it.want) && (st.Open.Owner == 0 || news) {
		return p.settle(it, o, nil)
	}
	return p.settle(it, o, p.later(it))
}

// effect is the body's, outside of the database.
func (p *player) effect(it *item) {
	p.local("effect", func() string {
		if p.kind.Checked && p.lapsed[p.n] {
			return "not begun: its lease is over" // a done-check may only be believed because of this
		}
		p.effects = append(p.effects, effect{who: p.Name, epoch: it.outcomeEpoch(), source: it.want.SourceVersion,
			want: [2]int64{it.want.Epoch, it.want.SourceVersion}, reported: it.ends == well})
		return fmt.Sprintf("epoch %d, source %d", it.outcomeEpoch(), it.want.SourceVersion)
	})
}
