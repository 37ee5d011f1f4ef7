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

	keyType string // the operation's first name, of which its effect keys are made
}

// A request is one that has been read whole.
type request struct {
	*http.Request
	key   string // empty: none, and none is needed
	body  []byte
	want  ledger.Want
	outer http.Header // what was set of the answer before it came to us; nil: nothing
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
			g.refuse(w, unavailable) // the client may be there still: a server that stops ends this context, too
			return
		case <-time.After(pause):
		}
	}
}

func (g *guarded) refuse(w http.ResponseWriter, p problem) {
	if p.status == http.StatusUnauthorized && g.config.Challenge != "" {
		w.Header().Set("WWW-Authenticate", g.config.Challenge)
	}
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
	before := &watched{ReadCloser: r.Body}
	r.Body = before
	scope, p := g.caller(r)
	if p != nil {
		return nil, p
	}
	restored := r.Body != io.ReadCloser(before)
	if !restored {
		r.Body = before.ReadCloser
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, g.op.MaxRequest))
	if err != nil {
		p := unreadable
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			p = tooLarge.because(fmt.Sprintf("The request's body is longer than %d bytes.", large.Limit))
		}
		return nil, &p
	}
	lost := before.n > 0 && !restored
	if restored { // all of it? Else it has ended here, and not there
		_, _ = before.Read(make([]byte, 1))
		lost = before.n > int64(len(body))
	}
	form := len(r.PostForm) > 0 || r.MultipartForm != nil // what was in it is there, for a handler
	if key != "" && (lost || len(body) == 0 && (r.ContentLength > 0 || form)) || lost && !form {
		// Two requests with different bodies would be taken for the same one. Without a key, a handler
		// would take the body for an empty one.
		g.log.Error("request refused: its body was read before it was compared, by Scope or by a middleware around the operation; let them restore it", "operation", g.op.Name)
		return nil, &consumed
	}
	req := &request{Request: r, key: key, body: body}
	if h := w.Header(); len(h) > 0 {
		req.outer = h.Clone() // an end may be recorded when the client has been answered something else
	}
	if key != "" {
		req.want = ledger.Want{Entity: entityOf(r.Method, scope, key), Fingerprint: g.op.Fingerprint.of(r, body)}
	}
	return req, nil
}

// A watched body tells how much of it somebody has read, and is not closed by them.
type watched struct {
	io.ReadCloser
	n int64
}

func (b *watched) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

func (*watched) Close() error { return nil }

// caller asks the app whose r is.
func (g *guarded) caller(r *http.Request) (scope string, p *problem) {
	scope, err := g.config.Scope(r)
	if err == nil {
		return scope, nil
	}
	g.log.Warn("request refused: it is not known who calls", "operation", g.op.Name, "error", err)
	if errors.Is(err, ErrUnavailable) {
		return "", &unaskable
	}
	return "", &unidentified
}

// errSilent says that a handler said nothing, after its context had ended: it was cut off. For
// net/http that would be an empty 200, and a 200 says that it was done.
var errSilent = errors.New("the handler's time was over, and it returned without an answer")

// run lets the handler write its answer. ctx is its request's. With [ErrResponseTooLarge] the
// answer is the beginning of what was written.
func (g *guarded) run(ctx context.Context, req *request) (*answer, error) {
	rec := newRecorder(req.outer, g.op.MaxResponse)
	r := req.again(ctx)
	defer removeForm(r)
	g.next.ServeHTTP(rec, r)
	if rec.status == 0 && ctx.Err() != nil {
		return nil, errSilent
	}
	return rec.answer(), rec.err
}

// again is the request under another context, its body to be read from the beginning. Who has
// let somebody read it calls [removeForm].
func (req *request) again(ctx context.Context) *http.Request {
	r := req.WithContext(ctx)
	r.Body = io.NopCloser(bytes.NewReader(req.body))
	return r
}

// removeForm deletes the files of a form that was read: net/http does so for its own request, and
// not for a copy.
func removeForm(r *http.Request) {
	if r.MultipartForm != nil {
		_ = r.MultipartForm.RemoveAll()
	}
}
