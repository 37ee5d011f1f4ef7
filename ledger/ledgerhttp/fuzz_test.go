package ledgerhttp_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// Whatever comes over the wire, the middleware neither panics nor answers with a failure of
// the server; and a request that was done is shown again as it was.
func FuzzTheKeyTheScopeAndTheBodyAreNeverA500(f *testing.F) {
	f.Add("k", "anna", "/orders", "a=b", []byte("tea"), []byte("text/plain"))
	f.Add(`"with \"quotes\""`, "a b", "/orders/%00", "%zz;&", []byte{0, 255}, []byte{0xfc, 0})
	f.Add(`"open`, "\x00", "//", "", []byte(nil), []byte("a\r\nb"))
	f.Add("schl\u00fcssel", "\xff", "/\u00fc", "=", bytes.Repeat([]byte("x"), 200), []byte(nil))
	pool := pgtest.Pool(f)
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Scope: func(r *http.Request) (string, error) { return r.Header.Get("X-Caller"), nil }, Log: quiet()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = keys.Close(f.Context()) })
	guarded, err := keys.Guard(f.Context(), ledgerhttp.Operation{Name: "POST /", MaxRequest: 150}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		all, _ := io.ReadAll(r.Body)
		w.Header().Set("Etag", r.Header.Get("X-Echo"))
		w.WriteHeader(200 + len(all)) // up to 350
		_, _ = w.Write(all)
	}))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, key, scope, path, query string, body, echo []byte) {
		ask := func() *httptest.ResponseRecorder {
			r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
			r.URL.Path, r.URL.RawQuery = path, query
			r.Header["Idempotency-Key"], r.Header["X-Caller"], r.Header["X-Echo"] = []string{key}, []string{scope}, []string{string(echo)}
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, r)
			return w
		}
		first := ask()
		if first.Code >= 500 {
			t.Fatalf("%d: %s", first.Code, first.Body)
		}
		again := ask()
		if first.Code < 400 && first.Header().Get(ledgerhttp.Replayed) == "" {
			if again.Code != first.Code || !bytes.Equal(again.Body.Bytes(), first.Body.Bytes()) || again.Header().Get("Etag") != first.Header().Get("Etag") || again.Header().Get(ledgerhttp.Replayed) != "true" {
				t.Errorf("first %d %q %q, again %d %q %q", first.Code, first.Header(), first.Body, again.Code, again.Header(), again.Body)
			}
		}
	})
}

// Nor does the status page, of whatever it is asked; and it leaves nothing behind.
func FuzzTheStatusPageIsNeverA500(f *testing.F) {
	f.Add("POST /orders", "POST", "k", "anna")
	f.Add("POST /orders", "POST", "other", "\x00\xff")
	f.Add("", strings.Repeat("M", 600), strings.Repeat("k", 256), "")
	f.Add("POST /orders", "a b", "\x00", "%zz")
	pool := pgtest.Pool(f)
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Scope: func(r *http.Request) (string, error) { return r.Header.Get("X-Caller"), nil }, Log: quiet()})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = keys.Close(f.Context()) })
	orders, err := keys.Guard(f.Context(), ledgerhttp.Operation{Name: "POST /orders"}, http.NotFoundHandler())
	if err != nil {
		f.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/orders", nil)
	r.Header.Set("Idempotency-Key", "k")
	r.Header.Set("X-Caller", "anna")
	orders.ServeHTTP(httptest.NewRecorder(), r)
	f.Fuzz(func(t *testing.T, operation, method, key, scope string) {
		r := httptest.NewRequest("GET", "/requests?"+url.Values{"operation": {operation}, "method": {method}, "key": {key}}.Encode(), nil)
		r.Header["X-Caller"] = []string{scope}
		w := httptest.NewRecorder()
		keys.Status().ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		var facts int
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM oncemore.ledger`).Scan(&facts); err != nil || facts != 1 {
			t.Errorf("%d facts, error %v", facts, err)
		}
	})
}
