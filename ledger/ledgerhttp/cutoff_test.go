package ledgerhttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// An answer that is not stored is no deed, however long it is: a provider's page about its own
// failure, say.
func TestALongAnswerThatIsNotStoredIsNotTakenForADeed(t *testing.T) {
	s := newShop(t)
	var calls atomic.Int32
	s.guard(ledgerhttp.Operation{Effect: ledger.Once, MaxResponse: 50}, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			ledgerhttp.NotApplied(r.Context())
			http.Error(w, strings.Repeat("The provider is away. ", 10), http.StatusBadGateway)
			return
		}
		s.charge(w, r)
	})
	s.want("the first", s.post("k", "tea").said(), "500 response-too-large")
	s.tally(0, 0, 0)
	next := s.post("k", "tea")
	s.want("the next", next.status, http.StatusCreated)
	s.again(next, "k", "tea")
	s.tally(1, 1, 1)
}

// net/http takes silence for a 200. But a handler that sees its context end and returns has been
// cut off.
func TestAHandlerThatIsCutOffAndSaysNothingHasNotSucceeded(t *testing.T) {
	for name, effect := range map[string]ledger.Effect{"in transaction": ledger.InTransaction, "outside": ledger.Repeatable} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			var calls atomic.Int32
			s.guard(ledgerhttp.Operation{Effect: effect, Timeout: time.Second}, func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					<-r.Context().Done()
					return
				}
				w.WriteHeader(http.StatusCreated)
			})
			s.want("the first", s.post("k", "tea").said(), "503 unavailable")
			s.tally(0, 0, 0)
			next := s.post("k", "tea")
			s.want("the next", next.status, http.StatusCreated)
			s.again(next, "k", "tea")
			s.tally(0, 1, 1)
		})
	}
}

// A Check takes longer than its process is taken for alive, and does not look at its context.
// Meanwhile others may have asked the world, too, and have begun.
func TestNothingBeginsAfterACheckDuringWhichTheLeaseHasEnded(t *testing.T) {
	s := newShop(t)
	var mu sync.Mutex
	var story []string
	tell := func(what string) (times int) {
		mu.Lock()
		defer mu.Unlock()
		story = append(story, what)
		return strings.Count(strings.Join(story, " "), what)
	}
	check := func(_ http.ResponseWriter, r *http.Request) (bool, error) {
		if tell("check") == 1 {
			if _, err := s.pool.Exec(t.Context(), `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'`); err != nil {
				t.Error(err)
			}
			<-r.Context().Done()
		}
		return false, nil
	}
	s.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: check}, func(w http.ResponseWriter, r *http.Request) {
		if tell("try") == 1 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		s.charge(w, r)
	})
	s.want("the first", s.post("k", "tea").status, http.StatusBadGateway)
	s.want("the next", s.post("k", "tea").status, http.StatusCreated)
	s.want("what happened", fmt.Sprint(story), "[try check check try]")
	s.tally(1, 1, 1)
}

// Who could not finish asking has not learned that nobody can tell.
func TestACheckThatAShutdownInterruptsIsAskedAgain(t *testing.T) {
	s := newShop(t)
	asking := make(chan struct{})
	cut := func(_ http.ResponseWriter, r *http.Request) (bool, error) {
		close(asking)
		<-r.Context().Done()
		return false, r.Context().Err()
	}
	s.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: cut}, func(w http.ResponseWriter, r *http.Request) {
		s.charge(discard{http.Header{}}, r)
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	s.post("k", "tea")
	second := s.async("k", "tea")
	within(t, "it is asked", asking)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.keys.Close(over); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: %v", err)
	}
	s.want("the second", within(t, "it is answered", second).said(), "503 unavailable")
	other := openShop(t, s.pool, s.pool)
	found := func(w http.ResponseWriter, _ *http.Request) (bool, error) {
		fmt.Fprint(w, "it was done")
		return true, nil
	}
	other.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: found}, other.charge)
	s.want("the third", other.post("k", "tea").body, "it was done")
	s.tally(1, 1, 1)
}

// A Check that gives up by itself, since its time is over, could not tell. The operator must know.
func TestACheckThatTakesTooLongIsADoubt(t *testing.T) {
	s := newShop(t)
	slow := func(_ http.ResponseWriter, r *http.Request) (bool, error) {
		<-r.Context().Done()
		return false, r.Context().Err()
	}
	s.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: slow, Timeout: time.Second}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	s.post("k", "tea")
	s.want("the next", s.post("k", "tea").said(), "409 outcome-unknown")
	s.want("listed", s.count(`SELECT count(*) FROM oncemore.claim WHERE trouble = 'in_doubt'`), 1)
}

// It says at last that nothing was done, and no time is left to do it.
func TestACheckThatLeavesNoTimeIsToldAsThat(t *testing.T) {
	s := newShop(t)
	slow := func(_ http.ResponseWriter, r *http.Request) (bool, error) {
		<-r.Context().Done()
		return false, nil
	}
	s.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: slow, Timeout: time.Second, Wait: 30 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		s.charge(discard{http.Header{}}, r)
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	s.post("k", "tea")
	s.want("the next", s.post("k", "tea").said(), "503 unavailable")
	s.want("charges", s.count(`SELECT count(*) FROM orders`), 1)
}

// What a Check says of an earlier attempt is not said of the one that follows.
func TestThatAnEarlierAttemptLeftNothingIsNotSaidOfTheNext(t *testing.T) {
	s := newShop(t)
	nothing := func(_ http.ResponseWriter, r *http.Request) (bool, error) {
		ledgerhttp.NotApplied(r.Context())
		return false, nil
	}
	s.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: nothing}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	since := func() (at time.Time) {
		if err := s.pool.QueryRow(t.Context(), `SELECT claimed_at FROM oncemore.claim`).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	s.post("k", "tea")
	first := since()
	s.post("k", "tea")
	if second := since(); !second.After(first) {
		t.Errorf("the time to settle counts from %v, the attempt before, and not from the last", first)
	}
}

// An operator who reads of a doubt finds what is known of it.
func TestADoubtKeepsWhatTheHandlerSaid(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Keyed(time.Nanosecond)}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	s.post("k", "tea")
	s.want("the next", s.post("k", "tea").said(), "409 outcome-unknown")
	var listed string
	if err := s.pool.QueryRow(t.Context(), `SELECT trouble || ': ' || error FROM oncemore.claim`).Scan(&listed); err != nil {
		t.Fatal(err)
	}
	s.want("listed", listed, "in_doubt: answered 504")
	s.want("doubts since", s.count(`SELECT count(*) FROM oncemore.attempt WHERE outcome = 'in_doubt' AND error_class = 'http' AND error = 'answered 504'`), 1)
}

// Whoever authenticates by a field of the form reads the body. Requests that differ in it would be
// the same then.
func TestABodyThatWasReadBeforeIsNotTakenForAnEmptyOne(t *testing.T) {
	pool := newShop(t).pool
	for name, read := range map[string]func(*http.Request){
		"a form": func(r *http.Request) { r.FormValue("token") },
		"all":    func(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); _ = r.Body.Close() },
		"a part, which is put back": func(r *http.Request) {
			some, _ := io.ReadAll(io.LimitReader(r.Body, 5))
			r.Body = io.NopCloser(bytes.NewReader(some))
		},
		"behind something else": func(r *http.Request) {
			r.Body = http.MaxBytesReader(nil, r.Body, 1<<20)
			_, _ = io.Copy(io.Discard, r.Body)
		},
	} {
		keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Log: quiet(), Scope: func(r *http.Request) (string, error) {
			read(r)
			return "anna", nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		s := &shop{T: t, pool: pool, keys: keys, mux: http.NewServeMux()}
		s.serve()
		s.guard(ledgerhttp.Operation{}, order)
		form := with("Content-Type", "application/x-www-form-urlencoded")
		s.want(name, s.post("k", "token=7&item=tea", form).said(), "500 request-consumed")
		chunked := func(r *http.Request) { r.ContentLength = -1 }
		s.want(name+", chunked", s.post("k", "token=7&item=tea", form, chunked).said(), "500 request-consumed")
		s.want("no body", s.post("none", "", form).status, http.StatusCreated)
	}
}

// Where callers are known by a signature over the body, Scope reads it, and puts it back.
func TestABodyThatScopePutsBackIsComparedAndHandled(t *testing.T) {
	pool := newShop(t).pool
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Log: quiet(), Scope: func(r *http.Request) (string, error) {
		all, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		r.Body = io.NopCloser(bytes.NewReader(all))
		return "anna", err
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t, pool: pool, keys: keys, mux: http.NewServeMux()}
	s.serve()
	s.guard(ledgerhttp.Operation{Optional: true}, order)
	first := s.post("k", "tea")
	s.want("with a key", fmt.Sprint(first.status, " ", first.body), "201 order 1: tea\n")
	s.again(first, "k", "tea")
	s.want("another body", s.post("k", "coffee").said(), "422 key-reused")
	s.want("without a key", s.post("", "cake").body, "order 2: cake\n")
}

// Without a key nothing is compared. But a handler would take the body for an empty one.
func TestABodyThatIsLostIsNotHandledWithoutAKeyEither(t *testing.T) {
	pool := newShop(t).pool
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Log: quiet(), Scope: func(r *http.Request) (string, error) {
		if r.FormValue("token") == "" {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return "anna", nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t, pool: pool, keys: keys, mux: http.NewServeMux()}
	s.serve()
	s.guard(ledgerhttp.Operation{Optional: true}, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.FormValue("item")) })
	s.want("lost", s.post("", "tea").said(), "500 request-consumed")
	form := with("Content-Type", "application/x-www-form-urlencoded")
	s.want("a form, which a handler has all the same", s.post("", "token=7&item=tea", form).body, "tea")
}

// A client that reads slowly what was not done holds nothing in the database.
func TestARefusalWithoutAKeyIsRolledBackBeforeItIsSent(t *testing.T) {
	s := newShop(t)
	const long = 64 << 20
	s.guard(ledgerhttp.Operation{Optional: true, MaxResponse: long}, func(w http.ResponseWriter, r *http.Request) {
		order(discard{http.Header{}}, r)
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write(make([]byte, long))
	})
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.srv.URL+"/orders", strings.NewReader("tea"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Caller", "anna")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.want("status", resp.StatusCode, http.StatusBadRequest)
	s.want("open transactions", s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`), 0)
	n, err := io.Copy(io.Discard, resp.Body) // it had not been sent whole
	if err != nil || n != long {
		t.Error(n, err)
	}
	s.tally(0, 0, 0)
}
