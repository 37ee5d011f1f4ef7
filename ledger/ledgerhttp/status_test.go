package ledgerhttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// askable is a shop with a status page, to which who comes twice at once is sent.
func askable(t *testing.T) *shop {
	s := newShop(t)
	var err error
	if s.keys, err = ledgerhttp.New(s.pool, ledgerhttp.Config{Scope: caller, Status: "/requests", Lease: time.Second, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	keys := s.keys
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := keys.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	s.mux.Handle("/requests", s.keys.Status())
	return s
}

// ask asks what became of a POST to operation.
func (s *shop) ask(operation, key string, changes ...change) reply {
	s.Helper()
	at := s.srv.URL + "/requests?" + url.Values{"operation": {operation}, "method": {"POST"}, "key": {key}}.Encode()
	get := func(r *http.Request) { r.Method, r.Body, r.ContentLength = "GET", nil, 0 }
	return s.post("", "", append([]change{to(at), get}, changes...)...)
}

// A client that follows the redirect, as clients do by themselves, finds what it is looking for.
func TestWhoIsSentToTheStatusPageFindsTheAnswerThere(t *testing.T) {
	for name, test := range map[string]struct {
		how    ledgerhttp.Ongoing
		status int
	}{"303": {ledgerhttp.SeeOther, 303}, "307": {ledgerhttp.TemporaryRedirect, 307}} {
		t.Run(name, func(t *testing.T) {
			s := askable(t)
			h, begun, on := s.held(order)
			s.guard(ledgerhttp.Operation{Ongoing: test.how}, h)
			first := s.async("a key", "tea", with("Idempotency-Key", `"a key"`))
			within(t, "the handler has begun", begun)
			sent := s.post("k", "tea", with("Idempotency-Key", `"a key"`))
			s.want("status", sent.status, test.status)

			follow := func() reply {
				at, err := url.Parse(sent.header.Get("Location"))
				if err != nil {
					t.Fatal(err)
				}
				return s.post("k", "tea", func(r *http.Request) {
					r.URL = r.URL.ResolveReference(at)
					if test.status == 303 {
						r.Method, r.Body, r.ContentLength = "GET", nil, 0
					}
				})
			}
			there := follow()
			s.want("while it is worked on", fmt.Sprint(there.status, " ", there.header.Get("Retry-After"), " ", there.body), "202 1 {\"state\":\"ongoing\"}\n")
			close(on)
			done := within(t, "the first is answered", first)
			there = follow()
			s.want("replayed", there.replayed(), true)
			s.want("Cache-Control", there.header.Get("Cache-Control"), "no-store")
			s.same(done, there)
			s.tally(1, 1, 1)
		})
	}
}

func TestTheStatusPageTellsWhatBecameOfARequest(t *testing.T) {
	s := askable(t)
	s.guard(ledgerhttp.Operation{Name: "POST /orders", Aliases: []string{"POST /purchases"}}, order)
	fails := func(w http.ResponseWriter, r *http.Request) {
		order(discard{http.Header{}}, r)
		http.Error(w, "later", http.StatusBadGateway)
	}
	s.guard(ledgerhttp.Operation{Name: "POST /failing"}, fails)
	charge := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) }
	for name, effect := range map[string]ledger.Effect{"once": ledger.Once, "repeatable": ledger.Repeatable} {
		s.guard(ledgerhttp.Operation{Name: "POST /" + name, Effect: effect}, charge)
		s.post("k", "tea", to(s.srv.URL+"/"+name))
	}
	first := s.post("k", "tea")
	s.post("k", "tea", to(s.srv.URL+"/failing"))

	for what, test := range map[string]struct {
		got  reply
		want string
	}{
		"done":                       {s.ask("POST /orders", "k"), "201"},
		"done, by its earlier name":  {s.ask("POST /purchases", "k"), "201"},
		"never sent":                 {s.ask("POST /orders", "other"), "404 request-unknown"},
		"rolled back":                {s.ask("POST /failing", "k"), "404 request-unknown"},
		"never sent, outside":        {s.ask("POST /once", "other"), "404 request-unknown"},
		"to be tried again, outside": {s.ask("POST /repeatable", "k"), "409 request-unfinished"},
		"in doubt":                   {s.ask("POST /once", "k"), "409 outcome-unknown"},
		"of no operation":            {s.ask("POST /nothing", "k"), "404 request-unknown"},
		"of another's":               {s.ask("POST /orders", "k", by("bert")), "404 request-unknown"},
		"of nobody's":                {s.ask("POST /orders", "k", by("")), "401 caller-unknown"},
		"without a key":              {s.ask("POST /orders", ""), "400 key-invalid"},
	} {
		s.want(what, test.got.said(), test.want)
	}
	s.same(first, s.ask("POST /orders", "k"))
	s.tally(1, 1, 1)

	if _, err := s.pool.Exec(t.Context(), `UPDATE oncemore.response SET expires_at = expires_at - interval '1 day'`); err != nil {
		t.Fatal(err)
	}
	s.want("expired", s.ask("POST /orders", "k").said(), "410 response-gone")
}

// Who asks does nothing, and holds nothing up.
func TestAskingForTheStatusChangesNothing(t *testing.T) {
	s := askable(t)
	h, begun, on := s.held(order)
	s.guard(ledgerhttp.Operation{}, h)
	for range 3 {
		s.want("before", s.ask("POST /orders", "k").said(), "404 request-unknown")
	}
	s.tally(0, 0, 0)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	s.want("meanwhile", s.ask("POST /orders", "k").status, http.StatusAccepted)
	close(on)
	got := within(t, "the first is answered", first)
	s.want("status", got.status, http.StatusCreated)
	s.again(got, "k", "tea")
	s.want("claims", s.claims(), 0)
	s.tally(1, 1, 1)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := s.keys.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	s.want("after the end", s.ask("POST /orders", "k").said(), "503 unavailable")
}

func TestAnOutsideRequestIsOngoingOnTheStatusPage(t *testing.T) {
	s := askable(t)
	h, begun, on := s.held(s.charge)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, h)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	s.want("meanwhile", s.ask("POST /orders", "k").status, http.StatusAccepted)
	close(on)
	s.same(within(t, "the first is answered", first), s.ask("POST /orders", "k"))
}

// Only a request puts in doubt what a dead process left, so that an operator finds it. Who asks for
// the status is told to send it again, not to wait for somebody who knows nothing of it.
func TestTheStatusPageTellsOfNoDoubtThatIsNotListed(t *testing.T) {
	s := askable(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, s.charge)
	s.diedOver("k")
	s.want("before", s.ask("POST /orders", "k").said(), "409 request-unfinished")
	s.want("doubts", s.count(`SELECT count(*) FROM oncemore.claim WHERE trouble = 'in_doubt'`), 0)
	s.want("sent again", s.post("k", "tea").said(), "409 outcome-unknown")
	s.want("doubts", s.count(`SELECT count(*) FROM oncemore.claim WHERE trouble = 'in_doubt'`), 1)
	s.want("after", s.ask("POST /orders", "k").said(), "409 outcome-unknown")
}
