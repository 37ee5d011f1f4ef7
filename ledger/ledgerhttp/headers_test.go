package ledgerhttp_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// behind puts POST /orders behind a middleware that sets headers first.
func (s *shop) behind(o ledgerhttp.Operation, outer func(http.Header), h http.HandlerFunc) {
	s.Helper()
	o.Name = "POST /orders"
	g, err := s.keys.Guard(s.Context(), o, h)
	if err != nil {
		s.Fatal(err)
	}
	s.mux.HandleFunc(o.Name, func(w http.ResponseWriter, r *http.Request) {
		outer(w.Header())
		g.ServeHTTP(w, r)
	})
}

// headers are those of got that a handler or its middleware has set, in the order of names.
func headers(got reply, names ...string) string {
	var all []string
	for _, name := range names {
		if values, ok := got.header[name]; ok {
			all = append(all, name+": "+strings.Join(values, ", "))
		}
	}
	return strings.Join(all, "\n")
}

// A handler finds what was set before it, and adds to it, replaces or removes it, as it would
// without the guard between. Shown again, its answer comes with what the middleware sets then.
func TestHeadersOfOuterMiddlewareStayAndAreNotDoubled(t *testing.T) {
	names := []string{"Content-Type", "Etag", "Link", "Retry-After", "Server", "Set-Cookie", "Vary", "X-Request-Id"}
	for name, o := range map[string]ledgerhttp.Operation{
		"in transaction":            {},
		"outside":                   {Effect: ledger.Repeatable},
		"without a key":             {Optional: true},
		"outside, and without keys": {Effect: ledger.Repeatable, Optional: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			n := 0
			o.Headers = append([]string{"Set-Cookie", "X-Request-Id"}, ledgerhttp.KeptHeaders...)
			s.behind(o, func(h http.Header) {
				n++
				h.Set("Content-Type", "text/x-order")
				h.Set("Server", "shop")
				h.Set("X-Request-Id", fmt.Sprint(n))
				h.Set("Retry-After", "5")
				h.Set("Etag", `"outer"`)
				h.Add("Link", "<outer>")
				h.Add("Set-Cookie", fmt.Sprintf("session=%d", n))
				h.Add("Vary", "Origin")
			}, func(w http.ResponseWriter, r *http.Request) {
				h := w.Header()
				h.Del("Server")
				h.Set("Etag", `"inner"`)
				h.Add("Link", "<inner>")
				h.Add("Set-Cookie", "order=1")
				h.Add("Vary", "Accept")
				io.WriteString(w, "<html>")
			})
			same := "Content-Type: text/x-order\nEtag: \"inner\"\nLink: <outer>, <inner>\nRetry-After: 5\n"
			key := map[bool]string{false: "k"}[o.Optional]
			s.want("the first", headers(s.post(key, "tea"), names...), same+"Set-Cookie: session=1, order=1\nVary: Origin, Accept\nX-Request-Id: 1")
			if o.Optional {
				return
			}
			again := s.post(key, "tea")
			s.want("replayed", again.replayed(), true)
			s.want("the next", headers(again, names...), "Content-Type: text/x-order\nEtag: \"inner\"\nLink: <outer>, <inner>\nRetry-After: 5\nServer: shop\nSet-Cookie: session=2, order=1\nVary: Origin, Accept\nX-Request-Id: 2")
		})
	}
}

// What a body is was said with it, whoever said it: the middleware may say something else by the
// time that the body is shown again.
func TestABodyKeepsTheTypeThatItHadWhoeverSaidIt(t *testing.T) {
	s := newShop(t)
	kind := "application/json"
	s.behind(ledgerhttp.Operation{}, func(h http.Header) { h.Set("Content-Type", kind) }, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })
	first := s.post("k", "tea")
	s.want("Content-Type", first.header.Get("Content-Type"), kind)
	kind = "text/html"
	s.again(first, "k", "tea")
}

// Whether a connection is closed says who keeps connections.
func TestAConnectionIsClosedWhereOuterMiddlewareSaysSo(t *testing.T) {
	s := newShop(t)
	var closed []bool
	g, err := s.keys.Guard(t.Context(), ledgerhttp.Operation{Name: "POST /orders"}, http.HandlerFunc(order))
	if err != nil {
		t.Fatal(err)
	}
	s.mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		g.ServeHTTP(w, r)
		closed = append(closed, w.Header().Get("Connection") == "close")
	})
	s.post("k", "tea")
	s.post("k", "tea")
	s.want("closed", fmt.Sprint(closed), "[true true]")
}

// Middleware that compresses says so before the handler, and compresses what comes after. What is
// kept is plain, and shown again as such to a client that wants nothing compressed.
func TestTheEncodingOfAnOuterCompressorIsNotThatOfWhatIsKept(t *testing.T) {
	s := newShop(t)
	encoding := "br" // which no client of Go undoes by itself
	s.behind(ledgerhttp.Operation{}, func(h http.Header) {
		if encoding != "" {
			h.Set("Content-Encoding", encoding)
		}
	}, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>tea</html>") })
	s.want("the first", headers(s.post("k", "tea"), "Content-Encoding", "Content-Type"), "Content-Encoding: br\nContent-Type: text/html; charset=utf-8")
	encoding = ""
	s.want("the next", headers(s.post("k", "tea"), "Content-Encoding", "Content-Type"), "Content-Type: text/html; charset=utf-8")
}
