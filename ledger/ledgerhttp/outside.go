package ledgerhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// outside tries to do a request whose effect is not in our Postgres: claim, handler, record.
func (g *guarded) outside(req *request) (outcome, error) {
	ctx, cancel := recording(req)
	defer cancel()
	lease, err := g.living(ctx)
	if err != nil {
		return outcome{}, err
	}
	looked := time.Now() // before: so what is added to the server's time is too much, if anything
	standings, err := g.ledger.Look(ctx, &g.kind, []ledger.Want{req.want})
	if err != nil {
		return outcome{}, err
	}
	st := &standings[0]
	h := hand{g.kind.ID, req.want.Entity}
	// A hand is dropped when the end is recorded, and else only after the lease has ended. So under a
	// lease that goes on, asked about after the hand, a claim of ours that is in no hand is one whose
	// handler never began. Under one that has ended, the handler may have had its effect.
	if st.Reason == ledger.Ongoing && st.Open.Owner == lease.ID && !g.holds(h) && lease.Context().Err() == nil {
		return outcome{}, g.giveBack(ctx, req, lease, st.Open)
	}
	if st.Reason == ledger.InDoubt && st.Open.Trouble != ledger.Doubtful {
		if listed, err := g.listDoubt(ctx, req, lease, st.Open); err != nil || !listed {
			return outcome{}, err // what was in doubt has just been recorded, or decided on: look again
		}
	}
	if !st.Reason.Run() {
		return g.standing(ctx, st)
	}
	if !g.take(h) {
		return outcome{busy: true}, nil
	}
	at := &attempt{guarded: g, req: req, lease: lease, hand: h, verify: st.Verify, standing: *st, looked: looked}
	claims, err := g.ledger.Claim(ctx, &g.kind, lease.ID, []ledger.Candidate{{Want: req.want, Standing: *st, Args: described(req)}})
	if err != nil || !claims[0].Won {
		g.drop(h)
		return outcome{}, err // outrun: look again
	}
	at.claim = claims[0]
	return at.make()
}

// giveBack ends a claim of ours that no request here has: the answer to the claim was lost,
// and its handler never began. By its fence, for should it just have been settled, then the
// fence has changed.
func (g *guarded) giveBack(ctx context.Context, req *request, lease *ledger.Lease, o *ledger.Open) error {
	out := &ledger.Outcome{Want: req.want, State: ledger.Returned, Fence: o.Fence, Attempts: o.Attempts - 1, Absent: true}
	return g.ledger.RunBatch(ctx, func(b *pgx.Batch) { ledger.Settle(b, &g.kind, lease.ID, []*ledger.Outcome{out}) })
}

// listDoubt writes down what the class makes of a claim whose process died, or whose horizon is
// past, so that it is found among what is in doubt. It is compared and set by the fence that was seen, and so waits for
// that process's last transaction, where the server still has one: nobody is told of a doubt that
// a late commit then resolves.
func (g *guarded) listDoubt(ctx context.Context, req *request, lease *ledger.Lease, o *ledger.Open) (listed bool, err error) {
	out := &ledger.Outcome{Want: req.want, State: ledger.Unclear, Fence: o.Fence, Attempts: o.Attempts, Class: "http"}
	if out.Error = o.Error; o.Abandoned() || o.Error == "" { // else what its handler answered is known
		out.Error = "its process died over it"
	}
	err = g.ledger.RunBatch(ctx, func(b *pgx.Batch) {
		out.Refused = false
		ledger.Settle(b, &g.kind, lease.ID, []*ledger.Outcome{out})
	})
	if err != nil {
		return false, fmt.Errorf("list a doubt: %w", err)
	}
	return !out.Refused, nil
}

// described is what an operator finds beside a claim, who reads of an entity in doubt.
func described(req *request) string {
	text, _ := json.Marshal(map[string]string{"method": req.Method, "path": req.URL.EscapedPath()}) // of strings: it cannot fail
	return string(text)
}

// An attempt is a claimed try to do one request.
type attempt struct {
	*guarded
	req    *request
	lease  *ledger.Lease
	hand   hand // held until the end is recorded
	claim  ledger.Claim
	verify bool // the world is to be asked first

	standing ledger.Standing // that it was decided on
	looked   time.Time       // when, by our clock
}

// make runs the handler and records how it ended. The claim is durable: from here on a
// crash is what the effect class says of it.
func (at *attempt) make() (outcome, error) {
	timed, cancel := context.WithTimeout(context.WithoutCancel(at.req.Context()), at.op.Timeout)
	defer cancel()
	ctx, end := context.WithCancelCause(timed)
	defer end(nil)
	defer context.AfterFunc(at.lease.Context(), func() { end(context.Cause(at.lease.Context())) })()
	c := &call{effectKey: ledger.EffectKey(at.keyType, at.req.want.Entity, at.claim.Epoch)}
	ctx = context.WithValue(ctx, callKey{}, c)

	ended := false
	defer func() {
		if !ended { // a panic, which goes on
			_, _ = at.leave(at.interrupted(c), c.absent.Load(), "panic", nil)
		}
	}()
	record := at.work(ctx, c)
	ended = true
	return record()
}

// work runs the app's own code, Check and the handler, and returns what records how that ended.
func (at *attempt) work(ctx context.Context, c *call) (record func() (outcome, error)) {
	// It did not begin, or was not let finish, which is no answer.
	notBegun := func() (outcome, error) { return at.leave(ledger.Returned, true, "", nil) }
	if at.verify {
		rec := newRecorder(at.req.outer, at.op.MaxResponse)
		r := at.req.again(ctx)
		defer removeForm(r)
		done, err := at.check(rec, r)
		switch {
		case err != nil && !at.lease.Alive():
			return notBegun
		case err != nil:
			at.log.Warn("it cannot be told whether a request was done", "operation", at.op.Name, "entity", at.req.want.Entity, "error", err)
			return func() (outcome, error) {
				return at.leaveSaying(outcomeUnknown, ledger.Unclear, false, "check: "+err.Error())
			}
		case done && rec.err != nil:
			return func() (outcome, error) { return at.tooLarge(ledger.DoneCheck) }
		case done:
			return func() (outcome, error) { return at.complete(rec.answer(), ledger.DoneCheck) }
		}
	}
	// The last look before the effect: a process that stood still wakes up without notice, and a
	// Check may have taken longer than the lease. Somebody else may have been told since that the
	// effect did not happen.
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		at.log.Error("request not brought to its end", "operation", at.op.Name, "entity", at.req.want.Entity, "error", "its Check took all of its Timeout")
		return func() (outcome, error) { return at.leaveSaying(unavailable, ledger.Returned, true, "") }
	case ctx.Err() != nil || !at.lease.Alive():
		return notBegun
	case !at.verify && ledger.MustVerify(&at.kind, at.standing.Open, at.standing.Now.Add(time.Since(at.looked))):
		return notBegun // while we waited for a connection the provider may have forgotten the key
	}
	c.absent.Store(false) // what Check said of it was of an earlier attempt
	a, err := at.run(ctx, at.req)
	switch {
	case errors.Is(err, errSilent):
		return func() (outcome, error) {
			return at.leaveSaying(unavailable, at.interrupted(c), c.absent.Load(), err.Error())
		}
	case at.op.Store(a.status) && err != nil:
		return func() (outcome, error) { return at.tooLarge(ledger.Reported) }
	case at.op.Store(a.status):
		return func() (outcome, error) { return at.complete(a, ledger.Reported) }
	case a.status == http.StatusTooManyRequests:
		c.absent.Store(true)
	}
	return func() (outcome, error) {
		out, left := at.leave(at.interrupted(c), c.absent.Load(), fmt.Sprintf("answered %d", a.status), a)
		if err != nil { // it is not kept, and is not whole either
			out = unstorable.outcome()
		}
		return out, left
	}
}

// tooLarge records an effect that has happened: it is not to be repeated for the length of its
// answer.
func (at *attempt) tooLarge(evidence ledger.Evidence) (outcome, error) {
	at.log.Error("response too large to be kept", "operation", at.op.Name, "entity", at.req.want.Entity, "allowed", at.op.MaxResponse)
	rec := newRecorder(at.req.outer, 1<<16)
	at.refuse(rec, unstorable)
	return at.complete(rec.answer(), evidence)
}

// check asks the world. Without a Check nobody can tell.
func (at *attempt) check(w http.ResponseWriter, r *http.Request) (bool, error) {
	if at.op.Check == nil {
		return false, errors.New("the operation has no Check")
	}
	return at.op.Check(w, r)
}

// interrupted is what becomes of a request whose handler ended without a final answer. For
// all but Once the decision comes with the next request, which looks at the class and the time.
func (at *attempt) interrupted(c *call) ledger.State {
	if at.op.Effect == ledger.Once && !c.absent.Load() {
		return ledger.Unclear
	}
	return ledger.ToRetry
}

// leave records that the attempt came to no final answer; a is what the client gets all the
// same.
func (at *attempt) leave(state ledger.State, absent bool, why string, a *answer) (outcome, error) {
	o := at.outcome(state)
	o.Absent, o.Error, o.Class = absent, why, "http"
	if state == ledger.Returned {
		o.Attempts--
	}
	if !absent {
		o.Delay = at.op.Effect.Settle()
	}
	err := at.persist(func(ctx context.Context) error {
		// A second time, after a lost reply, the fence has changed and nothing happens.
		return at.ledger.RunBatch(ctx, func(b *pgx.Batch) { ledger.Settle(b, &at.kind, at.lease.ID, []*ledger.Outcome{o}) })
	})
	if a != nil {
		return outcome{answer: a}, nil // true of this attempt, whatever is recorded of it
	}
	return outcome{}, err
}

// leaveSaying is leave for a client that is told p, as soon as that is recorded.
func (at *attempt) leaveSaying(p problem, state ledger.State, absent bool, why string) (outcome, error) {
	out, err := at.leave(state, absent, why, nil)
	if err == nil {
		out = p.outcome()
	}
	return out, err
}

// complete records the fact by the claim's fence, and the answer with it.
func (at *attempt) complete(a *answer, evidence ledger.Evidence) (outcome, error) {
	o := at.outcome(ledger.Completed)
	o.Evidence = evidence
	var lost bool
	err := at.persist(func(ctx context.Context) (err error) {
		lost, err = at.tryComplete(ctx, o, a)
		o.Again = true
		return err
	})
	switch {
	case err != nil:
		return outcome{}, err
	case lost: // it was done or decided on by others meanwhile: that is what counts
		return at.look(at.req)
	}
	return outcome{answer: a}, nil
}

func (at *attempt) tryComplete(ctx context.Context, o *ledger.Outcome, a *answer) (lost bool, err error) {
	var mine []bool
	tx, err := at.begin(ctx, idleGrace, func(b *pgx.Batch) { mine = ledger.QueueHold(b, &at.kind, recordTime, []*ledger.Outcome{o}) })
	if err != nil {
		return false, err
	}
	if !mine[0] {
		tx.rollback()
		return true, at.concede(ctx, o)
	}
	return false, tx.commit(ctx, func(b *pgx.Batch) { at.queueStore(b, o.Want, a) })
}

// concede ends a claim whose fact is there already, recorded by the app itself. Where the
// claim is gone, its fence was lost, and what we did is disputed; or it was us, and only the
// reply was lost, which is told apart there.
func (at *attempt) concede(ctx context.Context, o *ledger.Outcome) error {
	end := *o
	end.Again = true // the fact that is there must not fail it
	if err := at.ledger.RunBatch(ctx, func(b *pgx.Batch) {
		end.Refused = false
		ledger.Settle(b, &at.kind, at.lease.ID, []*ledger.Outcome{&end})
	}); err != nil {
		return err
	}
	if o.Refused = end.Refused; !o.Refused {
		return nil
	}
	return at.ledger.RecordDisputes(ctx, &at.kind, at.lease.ID, []*ledger.Outcome{o})
}

func (at *attempt) outcome(state ledger.State) *ledger.Outcome {
	w := at.req.want
	w.Epoch = at.claim.Epoch
	return &ledger.Outcome{Want: w, State: state, Fence: at.claim.Fence, Attempts: at.claim.Attempts}
}
