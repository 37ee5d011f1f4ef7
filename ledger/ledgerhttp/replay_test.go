package ledgerhttp_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

func TestARequestThatIsSentAgainIsAnsweredWithWhatItWasAnswered(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	first := s.post("k", "tea")
	s.want("status", first.status, http.StatusCreated)
	s.want("body", first.body, "order 1: tea\n")
	s.want("replayed", first.header.Get("Idempotency-Replayed"), "")
	s.want("cookie", first.header.Get("Set-Cookie"), "secret=1")
	for range 3 {
		s.again(first, "k", "tea")
	}
	s.again(first, `"k"`, "tea")
	s.want("a cookie is shown again", s.post("k", "tea").header.Get("Set-Cookie"), "")
	s.tally(1, 1, 1)
}

// Whatever a handler may write is the same when it is shown again.
func TestEveryKindOfAnswerIsShownAgainAsItWas(t *testing.T) {
	s := newShop(t)
	for name, h := range map[string]http.HandlerFunc{
		"empty":      func(w http.ResponseWriter, r *http.Request) {},
		"no-content": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"binary":     func(w http.ResponseWriter, r *http.Request) { w.Write([]byte{0, 255, 1, 254, 0}) },
		"guessed":    func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html><p>hello") },
		"typed": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("content-type", "a/b")
			io.WriteString(w, "{}")
		},
		"untyped":     func(w http.ResponseWriter, r *http.Request) { w.Header()["Content-Type"] = nil; io.WriteString(w, "x") },
		"many":        func(w http.ResponseWriter, r *http.Request) { w.Header()["Link"] = []string{"<a>", "<b>"} },
		"latin-1":     func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Etag", "\"\xfc\"") },
		"late header": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "x"); w.Header().Set("Etag", `"late"`) },
		"wrong length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "99")
			io.WriteString(w, "x")
		},
		"early hints": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.WriteHeader(202) },
		"moved":       func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/there", http.StatusSeeOther) },
		"refused":     func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no money", http.StatusPaymentRequired) },
	} {
		path := "/" + strings.ReplaceAll(name, " ", "-")
		s.guard(ledgerhttp.Operation{Name: "POST " + path}, h)
		first := s.post("k", "", to(s.srv.URL+path))
		s.want(name+" is a problem of ours", first.problem(), "")
		s.again(first, "k", "", to(s.srv.URL+path))
	}
}

func TestTheEffectTheJobsTheFactAndTheAnswerCommitTogether(t *testing.T) {
	s := newShop(t)
	q := pgqueue.New(s.pool, "")
	fail := atomic.Bool{}
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		if err := q.Tx(ledgerhttp.Tx(r.Context())).Send(r.Context(), queue.Message{Type: "mail", Items: []queue.Item{{Entity: "7", Args: []byte(`{}`)}}}); err != nil {
			t.Error(err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if fail.Load() {
			order(discard{http.Header{}}, r)
			http.Error(w, "later", http.StatusBadGateway)
			return
		}
		order(w, r)
	})
	messages := func() int { return s.count(`SELECT count(*) FROM oncemore.message`) }
	fail.Store(true)
	s.want("status", s.post("k", "tea").status, http.StatusBadGateway)
	s.tally(0, 0, 0)
	s.want("messages", messages(), 0)
	fail.Store(false)
	first := s.post("k", "tea")
	s.again(first, "k", "tea")
	s.tally(1, 1, 1)
	s.want("messages", messages(), 1)
}

// 4xx say that nothing was done, so nothing is; but that is the answer, and stays it.
func TestA4xxIsStoredAndWhatTheHandlerWroteIsRolledBack(t *testing.T) {
	s := newShop(t)
	var calls atomic.Int32
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		order(discard{http.Header{}}, r)
		http.Error(w, "sold out", http.StatusConflict)
	})
	first := s.post("k", "tea")
	s.want("body", first.body, "sold out\n")
	s.again(first, "k", "tea")
	s.want("calls", calls.Load(), int32(1))
	s.tally(0, 1, 1)
}

// What was refused for what it says is refused under its key for ever; said otherwise it is another
// request. What the middleware refused is not remembered at all.
func TestACorrectedRequestNeedsANewKeyWhereTheAnswerWasStored(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{MaxRequest: 10}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Sold-Out") != "" {
			http.Error(w, "sold out", http.StatusUnprocessableEntity)
			return
		}
		order(w, r)
	})
	s.want("refused", s.post("k", "tea", with("X-Sold-Out", "1")).body, "sold out\n")
	s.want("corrected, under the same key", s.post("k", "coffee").said(), "422 key-reused")
	s.want("unchanged, though it would do now", s.post("k", "tea").body, "sold out\n")
	s.want("corrected, under a new key", s.post("l", "coffee").status, http.StatusCreated)
	s.want("too large", s.post("m", "much too large a request").said(), "413 request-too-large")
	s.want("corrected, under the same key", s.post("m", "cocoa").status, http.StatusCreated)
	s.tally(2, 3, 3)
}

func TestA5xxAnd429AreNotStoredAndTheNextRequestRuns(t *testing.T) {
	for _, status := range []int{http.StatusInternalServerError, http.StatusServiceUnavailable, http.StatusTooManyRequests} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := newShop(t)
			var calls atomic.Int32
			s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) < 3 {
					order(discard{http.Header{}}, r)
					w.WriteHeader(status)
					return
				}
				order(w, r)
			})
			for range 2 {
				got := s.post("k", "tea")
				s.want("status", got.status, status)
				s.want("replayed", got.replayed(), false)
				s.tally(0, 0, 0)
			}
			s.again(s.post("k", "tea"), "k", "tea")
			s.tally(1, 1, 1)
		})
	}
}

func TestWhichFailuresAreStoredIsAChoice(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Store: func(status int) bool { return status == 500 || status < 400 }}, func(w http.ResponseWriter, r *http.Request) {
		all, _ := io.ReadAll(r.Body)
		order(discard{http.Header{}}, r)
		w.WriteHeader(map[string]int{"fail": 500, "refuse": 404}[string(all)])
	})
	s.again(s.post("a", "fail"), "a", "fail")
	for range 2 {
		s.want("replayed", s.post("b", "refuse").replayed(), false)
	}
	s.tally(0, 1, 1)
}

// What was answered with success has happened, whatever an operation wants to keep.
func TestASuccessIsAlwaysStored(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Store: func(status int) bool { return status == 500 }}, order)
	first := s.post("k", "tea")
	s.want("status", first.status, http.StatusCreated)
	s.tally(1, 1, 1)
	s.again(first, "k", "tea")
}

func TestManyAtOnceAreOne(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Wait: 30 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(20 * time.Millisecond) // so that the others come
		order(w, r)
	})
	replies := make([]reply, 24) // more than there are connections
	var wg sync.WaitGroup
	for i := range replies {
		wg.Go(func() {
			var err error
			if replies[i], err = s.try(t.Context(), "k", "tea"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	originals := 0
	for _, r := range replies {
		s.same(replies[0], r)
		if !r.replayed() {
			originals++
		}
	}
	s.want("originals", originals, 1)
	s.want("status", replies[0].status, http.StatusCreated)
	s.tally(1, 1, 1)
}

// held is a handler that says when it has begun, and goes on when it is told.
func (s *shop) held(h http.HandlerFunc) (_ http.HandlerFunc, begun chan struct{}, on chan struct{}) {
	begun, on = make(chan struct{}, 10), make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-on:
		case <-s.Context().Done(): // the test has failed
		}
		h(w, r)
	}, begun, on
}

// async posts in the background.
func (s *shop) async(key, body string, changes ...change) <-chan reply {
	done := make(chan reply, 1)
	go func() {
		got, err := s.try(s.Context(), key, body, changes...)
		if err != nil {
			got.body = err.Error()
		}
		done <- got
	}()
	return done
}

func TestARequestWhoseTwinIsBeingWorkedIsToldSo(t *testing.T) {
	status := func(r *http.Request, key string) string { return "/status/" + key }
	for name, test := range map[string]struct {
		op   ledgerhttp.Operation
		want string
	}{
		"409":              {ledgerhttp.Operation{RetryAfter: 1500 * time.Millisecond}, "409 request-ongoing 2 "},
		"409 after a wait": {ledgerhttp.Operation{Wait: 50 * time.Millisecond}, "409 request-ongoing 1 "},
		"303":              {ledgerhttp.Operation{Ongoing: ledgerhttp.SeeOther, Status: status}, "303  1 /status/k"},
		"307":              {ledgerhttp.Operation{Ongoing: ledgerhttp.TemporaryRedirect, Status: status}, "307  1 /status/k"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			h, begun, on := s.held(order)
			s.guard(test.op, h)
			first := s.async("k", "tea")
			within(t, "the handler has begun", begun)
			got := s.post("k", "tea")
			s.want("reply", fmt.Sprint(got.status, " ", got.problem(), " ", got.header.Get("Retry-After"), " ", got.header.Get("Location")), test.want)
			close(on)
			s.again(within(t, "the first is answered", first), "k", "tea")
			s.tally(1, 1, 1)
		})
	}
}

func TestARequestThatWaitsIsAnsweredWhenItsTwinIs(t *testing.T) {
	s := newShop(t)
	h, begun, on := s.held(order)
	s.guard(ledgerhttp.Operation{Wait: time.Minute}, h)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	second := s.async("k", "tea")
	select {
	case got := <-second:
		t.Errorf("the second was answered %v before the first", got)
	case <-time.After(100 * time.Millisecond):
	}
	close(on)
	a, b := within(t, "the first is answered", first), within(t, "the second is answered", second)
	s.same(a, b)
	s.want("replayed", fmt.Sprint(a.replayed(), b.replayed()), "false true")
	s.tally(1, 1, 1)
}

func TestAnExpiredAnswerIsNotPermissionToRunAgain(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{TTL: time.Hour}, order)
	s.post("k", "tea")
	if _, err := s.pool.Exec(t.Context(), `UPDATE oncemore.response SET expires_at = expires_at - interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got := s.post("k", "tea")
		s.want("reply", got.said(), "409 response-expired")
		n, err := s.keys.Expire(t.Context())
		if err != nil || n > 1 {
			t.Errorf("deleted %d, error %v", n, err)
		}
	}
	s.tally(1, 1, 0)
	s.want("another body", s.post("k", "coffee").status, http.StatusUnprocessableEntity)
}

// PgBouncer in transaction mode knows no named statements; others want the simple protocol.
func TestARequestIsDoneOnceHoweverStatementsAreSent(t *testing.T) {
	for _, mode := range []string{"exec", "cache_describe", "describe_exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			own := newShop(t)
			config := own.pool.Config()
			config.ConnConfig.DefaultQueryExecMode = map[string]pgx.QueryExecMode{"exec": pgx.QueryExecModeExec, "cache_describe": pgx.QueryExecModeCacheDescribe,
				"describe_exec": pgx.QueryExecModeDescribeExec, "simple_protocol": pgx.QueryExecModeSimpleProtocol}[mode]
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			s := openShop(t, own.pool, pool)
			s.guard(ledgerhttp.Operation{}, order)
			s.guard(ledgerhttp.Operation{Name: "POST /charges", Effect: ledger.Once}, s.charge)
			first := s.post("k", "tea")
			s.want("status", first.status, http.StatusCreated)
			s.again(first, "k", "tea")
			charged := s.post("k", "tea", to(s.srv.URL+"/charges"))
			s.want("status", charged.status, http.StatusCreated)
			s.again(charged, "k", "tea", to(s.srv.URL+"/charges"))
			s.tally(2, 2, 2)
		})
	}
}
