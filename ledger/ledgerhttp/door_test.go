package ledgerhttp_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// What is refused before the handler is reached leaves no trace.

func TestARequestWithoutAKeyIsRefusedWhereOneIsRequired(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	got := s.post("", "tea")
	s.want("status", got.status, http.StatusBadRequest)
	s.want("problem", got.problem(), "key-missing")
	s.tally(0, 0, 0)
}

// A problem tells where the API's rules stand, in its type and in a header.
func TestAProblemPointsToTheDocumentation(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	got := s.post("", "tea")
	s.want("Link", got.header.Get("Link"), "<"+ledgerhttp.Docs+`>; rel="describedby"; type="text/html"`)
	s.want("type", strings.Contains(got.body, `"type":"`+ledgerhttp.Docs+`#key-missing"`), true)
	s.want("Content-Type", got.header.Get("Content-Type"), "application/problem+json")
	s.want("Content-Language", got.header.Get("Content-Language"), "en")
}

func TestARequestWithoutAKeyRunsWhereNoneIsRequiredAndIsNotRemembered(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Optional: true}, order)
	for range 2 {
		s.want("status", s.post("", "tea").status, http.StatusCreated)
	}
	s.tally(2, 0, 0)
	s.guard(ledgerhttp.Operation{Name: "POST /failing", Optional: true}, func(w http.ResponseWriter, r *http.Request) {
		order(discard{http.Header{}}, r)
		http.Error(w, "no", http.StatusPaymentRequired)
	})
	s.want("status", s.post("", "tea", to(s.srv.URL+"/failing")).status, http.StatusPaymentRequired)
	s.tally(2, 0, 0)
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

func TestAKeyIsAStringOrItsCharacters(t *testing.T) {
	long := strings.Repeat("k", 255)
	for _, test := range []struct{ header, key string }{
		{`"8e03978e-40d5-43e8-bc93-6894a57f9324"`, "8e03978e-40d5-43e8-bc93-6894a57f9324"},
		{`8e03978e-40d5-43e8-bc93-6894a57f9324`, "8e03978e-40d5-43e8-bc93-6894a57f9324"},
		{` "a" `, "a"},
		{`"with \"quotes\" and a \\"`, `with "quotes" and a \`},
		{`"two words"`, "two words"},
		{`"a;b,c"`, "a;b,c"},
		{long, long},
		{``, ""}, {`""`, ""}, {`two words`, ""}, {`a,b`, ""}, {`"a", "b"`, ""}, {`"a";p=1`, ""}, {`a;p`, ""},
		{`"open`, ""}, {`"a"b`, ""}, {`"a\b"`, ""}, {`"a\`, ""}, {`"a\"`, ""}, {"schl\u00fcssel", ""}, {"\"schl\u00fcssel\"", ""}, {"\"a\tb\"", ""},
		{long + "k", ""}, {`"` + long + `k"`, ""},
	} {
		got, err := ledgerhttp.KeyOf(http.Header{"Idempotency-Key": {test.header}})
		if got != test.key || (err == nil) != (test.key != "") {
			t.Errorf("%s: key %q, error %v, want %q", test.header, got, err, test.key)
		}
	}
}

func TestAnInvalidKeyIsRefused(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{CheckKey: func(key string) error {
		if len(key) < 8 {
			return errors.New("a key has at least 8 characters")
		}
		return nil
	}}, order)
	for name, got := range map[string]reply{
		"syntax":                        s.post(`"open`, "tea"),
		"two":                           s.post("12345678", "tea", func(r *http.Request) { r.Header.Add("Idempotency-Key", "12345678") }),
		"ours":                          s.post("short", "tea"),
		"nothing":                       s.post(`""`, "tea"),
		"before anybody asks who calls": s.post(`"open`, "tea", by("")),
	} {
		s.want(name, got.said(), "400 key-invalid")
	}
	s.want("ours says why", strings.Contains(s.post("short", "tea").body, "at least 8"), true)
	s.tally(0, 0, 0)
	s.want("corrected", s.post("short no more", "tea", with("Idempotency-Key", `"short no more"`)).status, http.StatusCreated)
}

func TestACallerWhoIsNotKnownIsRefused(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	got := s.post("k", "tea", by(""))
	s.want("status", got.said(), "401 caller-unknown")
	s.tally(0, 0, 0)
}

// The caller may well be known, to an identity provider that is away: nobody is told to log in again.
func TestAScopeThatCannotTellNowIsNotACallerWhoIsUnknown(t *testing.T) {
	s := newShop(t)
	var log strings.Builder
	scope := func(r *http.Request) (string, error) {
		if r.Header.Get("X-Caller") == "anna" {
			return "", fmt.Errorf("ask for the session: %w", ledgerhttp.ErrUnavailable)
		}
		return caller(r)
	}
	keys, err := ledgerhttp.New(s.pool, ledgerhttp.Config{Scope: scope, Challenge: "Bearer", Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close(t.Context())
	g, err := keys.Guard(t.Context(), ledgerhttp.Operation{Name: "POST /orders"}, http.HandlerFunc(order))
	if err != nil {
		t.Fatal(err)
	}
	s.mux.Handle("POST /orders", g)
	s.mux.Handle("POST /requests", keys.Status())
	status := to(s.srv.URL + "/requests?operation=POST+/orders&method=POST&key=k")
	for name, changes := range map[string][]change{"a request": nil, "its status": {status}} {
		got := s.post("k", "tea", changes...)
		s.want(name, got.said()+" "+got.header.Get("Retry-After")+got.header.Get("WWW-Authenticate"), "503 unavailable 1")
		got = s.post("k", "tea", append(changes, by(""))...)
		s.want(name, got.said()+" "+got.header.Get("WWW-Authenticate"), "401 caller-unknown Bearer")
	}
	s.tally(0, 0, 0)
	s.want("logged", strings.Count(log.String(), "level=WARN"), 4)
	s.want("logged why", strings.Count(log.String(), "nobody"), 2)
}

func TestARequestThatIsTooLargeIsRefused(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{MaxRequest: 3}, order)
	got := s.post("k", "coffee")
	s.want("status", got.said(), "413 request-too-large")
	s.tally(0, 0, 0)
	s.want("as long as allowed", s.post("k", "tea").status, http.StatusCreated)
}

func TestTheSameKeyOfAnotherCallerIsAnotherKey(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	anna, bert := s.post("k", "tea"), s.post("k", "coffee", by("bert"))
	s.want("bert's answer is anna's", bert.replayed() || bert.body == anna.body, false)
	s.again(anna, "k", "tea")
	s.again(bert, "k", "coffee", by("bert"))
	s.tally(2, 2, 2)
}

// No caller's name can be chosen so that, with a key, it passes for another's.
func TestNoCallerAndKeyMakeTheIdentityOfOthers(t *testing.T) {
	seen := map[string]string{}
	parts := []string{"", "a", "b", "a b", "a+b", "+", " ", "%20", "a%20b", "sha256:", "sha256%3A", "\x00", "ü", strings.Repeat("ü", 200), strings.Repeat("a", 255), strings.Repeat("a", 254)}
	for _, method := range []string{"POST", "PATCH", "POST a", strings.Repeat("M", 300)} {
		for _, scope := range parts {
			for _, key := range parts {
				e, name := ledgerhttp.EntityOf(method, scope, key), method+"|"+scope+"|"+key
				if other, twice := seen[e]; twice {
					t.Errorf("%q and %q are both %q", name, other, e)
				}
				seen[e] = name
				if len(e) > 512 {
					t.Errorf("%q has %d bytes", e, len(e))
				}
			}
		}
	}
}

func TestTheSameKeyForAnotherOperationIsAnotherKey(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	s.guard(ledgerhttp.Operation{Name: "POST /returns"}, order)
	s.post("k", "tea")
	s.want("replayed", s.post("k", "tea", to(s.srv.URL+"/returns")).replayed(), false)
	s.tally(2, 2, 2)
}

// A pattern without a method takes them all, and the method is part of the key.
func TestTheSameKeyWithAnotherMethodIsAnotherKey(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Name: "/orders"}, order)
	s.post("k", "tea")
	s.want("replayed", s.post("k", "tea", func(r *http.Request) { r.Method = "PATCH" }).replayed(), false)
	s.tally(2, 2, 2)
}

func TestTheSameKeyWithAnotherRequestIsRefused(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Name: "POST /shops/{shop}/orders"}, order)
	url := func(rest string) change { return to(s.srv.URL + "/shops/" + rest) }
	first := s.post("k", "tea", url("7/orders"))
	for name, got := range map[string]reply{
		"body":  s.post("k", "coffee", url("7/orders")),
		"path":  s.post("k", "tea", url("8/orders")),
		"query": s.post("k", "tea", url("7/orders?gift=1")),
	} {
		s.want("another "+name, got.said(), "422 key-reused")
	}
	s.again(first, "k", "tea", url("7/orders"))
	s.tally(1, 1, 1)
}

// The rule of what is the same has a number: requests from before it was changed are not
// compared by it.
func TestAChangedFingerprintRuleDoesNotRefuseWhatWasDoneBefore(t *testing.T) {
	s := newShop(t)
	body := func(rule int, f func(string) string) *ledgerhttp.Fingerprint {
		return &ledgerhttp.Fingerprint{Rule: rule, Of: func(w io.Writer, _ *http.Request, body []byte) { io.WriteString(w, f(string(body))) }}
	}
	mux := s.mux
	serve := func(f *ledgerhttp.Fingerprint) {
		g, err := s.keys.Guard(t.Context(), ledgerhttp.Operation{Name: "POST /orders", Fingerprint: f}, http.HandlerFunc(order))
		if err != nil {
			t.Fatal(err)
		}
		*mux = http.ServeMux{}
		mux.Handle("POST /orders", g)
	}
	serve(body(1, strings.ToLower))
	first := s.post("k", "Tea")
	s.again(first, "k", "TEA") // the same, says rule 1
	s.want("another body", s.post("k", "coffee").status, http.StatusUnprocessableEntity)
	serve(body(2, strings.ToUpper))
	s.again(first, "k", "tea")
	s.again(first, "k", "Tea, please") // not comparable
	s.tally(1, 1, 1)
}

func TestAnOperationThatCannotWorkIsRefused(t *testing.T) {
	s := newShop(t)
	for want, o := range map[string]ledgerhttp.Operation{
		"Name":        {},
		"Status":      {Name: "x", Ongoing: ledgerhttp.SeeOther},
		"bound":       {Name: "x", Timeout: -time.Second},
		"Fingerprint": {Name: "x", Fingerprint: &ledgerhttp.Fingerprint{}},
	} {
		if _, err := s.keys.Guard(t.Context(), o, http.NotFoundHandler()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one that speaks of %s", o, err, want)
		}
	}
	if _, err := ledgerhttp.New(s.pool, ledgerhttp.Config{}); err == nil || !strings.Contains(err.Error(), "Scope") {
		t.Errorf("without a scope: %v", err)
	}
}
