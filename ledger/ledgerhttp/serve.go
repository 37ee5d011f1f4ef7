package ledgerhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A guarded is a handler behind an operation.
type guarded struct {
	*Keys
	op   Operation
	kind ledger.Type
	next http.Handler
	try  func(*request) (outcome, error) // inTransaction or outside
}

// A request is one that has been read whole.
type request struct {
	*http.Request
	key  string // empty: none, and none is needed
	body []byte
	want ledger.Want
}

// ServeHTTP reads the request, tries to bring it to its end, and waits where that is in
// other hands.
func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.enter() {
		g.refuse(w, unavailable.because(errClosing.Error()))
		return
	}
	defer g.running.Done()
	req, p := g.read(w, r)
	if p != nil {
		g.refuse(w, *p)
		return
	}
	if req.key == "" {
		g.forget(w, req)
		return
	}
	began := time.Now()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		out, err := g.try(req)
		switch {
		case err != nil:
			g.log.Error("request not brought to its end", "operation", g.op.Name, "entity", req.want.Entity, "error", err)
			g.refuse(w, unavailable)
			return
		case out.answer != nil:
			out.answer.write(w)
			return
		case out.problem != nil:
			g.refuse(w, *out.problem)
			return
		case out.busy && time.Since(began) >= g.op.Wait:
			g.elsewhere(w, req)
			return
		case time.Since(began) >= g.op.Wait+g.op.Timeout:
			g.log.Error("request not brought to its end", "operation", g.op.Name, "entity", req.want.Entity, "error", "the ledger is locked, or changes all the time")
			g.refuse(w, unavailable)
			return
		}
		// No connection is held while we wait: those who wait must not keep those who work from one.
		select {
		case <-r.Context().Done():
			return // nobody listens any more
		case <-time.After(pause):
		}
	}
}

func (g *guarded) refuse(w http.ResponseWriter, p problem) {
	p.write(w, g.config.Docs, g.op.RetryAfter)
}

// elsewhere answers a request whose twin is being worked on.
func (g *guarded) elsewhere(w http.ResponseWriter, req *request) {
	if g.op.Ongoing == Conflict {
		g.refuse(w, ongoing)
		return
	}
	w.Header().Set("Location", g.op.Status(req.Request, req.key))
	w.Header().Set("Retry-After", seconds(g.op.RetryAfter))
	w.Header().Set("Cache-Control", "no-store")
	status := http.StatusSeeOther
	if g.op.Ongoing == TemporaryRedirect {
		status = http.StatusTemporaryRedirect
	}
	w.WriteHeader(status)
}

// read takes the request in whole, and finds its identity. The cheap refusals come first.
func (g *guarded) read(w http.ResponseWriter, r *http.Request) (*request, *problem) {
	key, err := keyOf(r.Header)
	switch {
	case errors.Is(err, errNoKey) && g.op.Optional:
	case errors.Is(err, errNoKey):
		return nil, &keyMissing
	case err == nil:
		err = g.op.CheckKey(key)
		fallthrough
	default:
		if err != nil {
			p := keyInvalid.because(err.Error())
			return nil, &p
		}
	}
	scope, err := g.config.Scope(r)
	if err != nil {
		return nil, &unidentified
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.op.MaxRequest))
	if err != nil {
		p := unreadable
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			p = tooLarge.because(fmt.Sprintf("The request's body is longer than %d bytes.", large.Limit))
		}
		return nil, &p
	}
	req := &request{Request: r, key: key, body: body}
	if key != "" {
		req.want = ledger.Want{Entity: entityOf(r.Method, scope, key), Fingerprint: g.op.Fingerprint.of(r, body)}
	}
	return req, nil
}

// run lets the handler write its answer. ctx is its request's.
func (g *guarded) run(ctx context.Context, req *request) (*answer, error) {
	rec := newRecorder(g.op.MaxResponse)
	r := req.again(ctx)
	defer func() {
		if r.MultipartForm != nil { // net/http cleans up after its own request, and this is a copy
			_ = r.MultipartForm.RemoveAll()
		}
	}()
	g.next.ServeHTTP(rec, r)
	if rec.err != nil {
		return nil, rec.err
	}
	return rec.answer(), nil
}

// again is the request under another context, its body to be read from the beginning.
func (req *request) again(ctx context.Context) *http.Request {
	r := req.WithContext(ctx)
	r.Body = io.NopCloser(bytes.NewReader(req.body))
	return r
}
