package ledgerhttp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Status returns a handler that tells what became of a request: the place for [SeeOther] and
// [TemporaryRedirect] to go to. Mount it, for all methods, where [Config].Status says; that is
// then the Status of every operation that has none of its own. It answers only who has the
// identity that sent the request ([Config].Scope): to others there is no such request.
//
//	it is being worked on                  202, with Retry-After
//	it was done                            what it was answered, marked as shown again
//	… and the answer is not kept any more  410 response-gone
//	a try came to no final answer          409 request-unfinished: send it again, it will be tried
//	nobody may guess whether it was done   409 outcome-unknown
//	nothing is known of it                 404 request-unknown: it did not come, or what it did was undone
//
// It does no work and changes nothing, whatever it is sent.
func (k *Keys) Status() http.Handler { return http.HandlerFunc(k.status) }

// statusOf is the address at which a request is asked about.
func (k *Keys) statusOf(operation string) func(r *http.Request, key string) string {
	return func(r *http.Request, key string) string {
		return k.config.Status + "?" + url.Values{"operation": {operation}, "method": {r.Method}, "key": {key}}.Encode()
	}
}

func (k *Keys) status(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query()
	k.mu.Lock()
	g := k.operations[asked.Get("operation")]
	k.mu.Unlock()
	if g == nil {
		unknown.write(w, k.config.Docs, 0)
		return
	}
	if !g.enter() {
		g.refuse(w, unavailable.because(errClosing.Error()))
		return
	}
	defer g.running.Done()
	key := asked.Get("key")
	if err := checkKey(key); err != nil {
		g.refuse(w, keyInvalid.because(err.Error()))
		return
	}
	scope, p := g.caller(r)
	if p != nil {
		g.refuse(w, *p)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), recordTime)
	defer cancel()
	out, err := g.known(ctx, ledger.Want{Entity: entityOf(asked.Get("method"), scope, key)}) // and whatever fingerprint
	switch {
	case err != nil:
		g.log.Error("status not found out", "operation", g.op.Name, "error", err)
		g.refuse(w, unavailable)
	case out.answer != nil:
		w.Header().Set("Cache-Control", "no-store") // it is the caller's alone
		out.answer.write(w)
	case out.problem != nil:
		g.refuse(w, *out.problem)
	default:
		h := w.Header()
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "no-store")
		h.Set("Retry-After", seconds(g.op.RetryAfter))
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, `{"state":"ongoing"}`+"\n") // the client may have gone
	}
}

// known is what the ledger knows of a request: an answer, a problem, or that it is busy.
func (g *guarded) known(ctx context.Context, want ledger.Want) (outcome, error) {
	for {
		standings, err := g.ledger.Look(ctx, &g.kind, []ledger.Want{want})
		if err != nil {
			return outcome{}, err
		}
		st := &standings[0]
		switch {
		case st.Reason.Run() && st.Open != nil,
			st.Reason == ledger.InDoubt && st.Open.Trouble != ledger.Doubtful: // nobody has listed it: the next request does
			return unfinished.outcome(), nil
		case st.Reason.Run() && g.op.Effect != ledger.InTransaction:
			return unknown.outcome(), nil
		case !st.Reason.Run():
			out, err := g.standing(ctx, st)
			if out.problem != nil && *out.problem == expired {
				out.problem = &gone
			}
			return out, err
		}
		// Nobody sees the fact of a transaction that goes on, but who wants to record it waits.
		t, err := g.hold(ctx, want)
		switch {
		case err == nil:
			t.rollback()
			return unknown.outcome(), nil
		case errors.Is(err, ledger.ErrBusy):
			return outcome{busy: true}, nil
		case !errors.Is(err, errTaken): // which it was just now: look again
			return outcome{}, err
		}
	}
}
