package ledgerhttp_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// charge has its effect outside: a row that is committed by itself, with the key that a
// provider would know repeats by.
func (s *shop) charge(w http.ResponseWriter, r *http.Request) {
	if ledgerhttp.Tx(r.Context()) != nil {
		s.Error("there is a transaction")
	}
	if _, err := s.pool.Exec(s.Context(), `INSERT INTO orders (item) VALUES ($1)`, ledgerhttp.EffectKey(r.Context())); err != nil {
		s.Error(err)
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintln(w, "charged", ledgerhttp.EffectKey(r.Context()))
}

func (s *shop) claims() int { return s.count(`SELECT count(*) FROM oncemore.claim`) }

func TestAnOutsideEffectHappensOnceAndItsAnswerIsShownAgain(t *testing.T) {
	for _, class := range []ledger.Effect{ledger.Repeatable, ledger.Keyed(time.Hour), ledger.Once} {
		t.Run(class.String(), func(t *testing.T) {
			s := newShop(t)
			s.guard(ledgerhttp.Operation{Effect: class, Wait: 30 * time.Second}, s.charge)
			replies := make([]reply, 12)
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
			for _, r := range replies {
				s.want("status", r.status, http.StatusCreated)
				s.same(replies[0], r)
			}
			s.want("an effect key", len(strings.TrimPrefix(replies[0].body, "charged ")), 33)
			s.again(replies[0], "k", "tea")
			s.want("another body", s.post("k", "coffee").said(), "422 key-reused")
			s.tally(1, 1, 1)
			s.want("claims", s.claims(), 0)
		})
	}
}

// After an attempt whose outcome is unknown the effect class says what the next request is.
func TestAnUnknownOutcomeFollowsTheEffectClass(t *testing.T) {
	check := func(done bool, err error) func(http.ResponseWriter, *http.Request) (bool, error) {
		return func(w http.ResponseWriter, r *http.Request) (bool, error) {
			if done {
				all, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, "checked %s", all)
			}
			return done, err
		}
	}
	for name, test := range map[string]struct {
		op      ledgerhttp.Operation
		next    string
		effects int
	}{
		"repeatable":                  {ledgerhttp.Operation{Effect: ledger.Repeatable}, "201 charged", 2},
		"keyed, inside the horizon":   {ledgerhttp.Operation{Effect: ledger.Keyed(time.Hour)}, "201 charged", 2},
		"keyed, past the horizon":     {ledgerhttp.Operation{Effect: ledger.Keyed(time.Nanosecond)}, "409 outcome-unknown", 1},
		"verifiable, it was done":     {ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: check(true, nil)}, "200 checked tea", 1},
		"verifiable, it was not":      {ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: check(false, nil)}, "201 charged", 2},
		"verifiable, nobody can tell": {ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: check(false, errors.New("away"))}, "409 outcome-unknown", 1},
		"verifiable, not settled yet": {ledgerhttp.Operation{Effect: ledger.Verifiable(time.Hour), Check: check(false, nil)}, "409 request-ongoing", 1},
		"once":                        {ledgerhttp.Operation{Effect: ledger.Once}, "409 outcome-unknown", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			var calls atomic.Int32
			s.guard(test.op, func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					s.charge(discard{http.Header{}}, r)
					http.Error(w, "the provider did not answer", http.StatusGatewayTimeout)
					return
				}
				s.charge(w, r)
			})
			first := s.post("k", "tea")
			s.want("the first", fmt.Sprint(first.status, " ", first.body), "504 the provider did not answer\n")
			got := s.post("k", "tea")
			text := got.said()
			if got.problem() == "" {
				text += " " + strings.TrimSpace(strings.Split(got.body, "  ")[0])
			}
			s.want("the next", strings.HasPrefix(text, test.next), true)
			if !strings.HasPrefix(text, test.next) {
				t.Logf("it is %q, want %q", text, test.next)
			}
			s.want("effects", s.count(`SELECT count(*) FROM orders`), test.effects)
			s.want("effect keys", s.count(`SELECT count(DISTINCT item) FROM orders`), 1)
			if got.problem() == "" {
				s.again(got, "k", "tea")
			}
		})
	}
}

// What surely did not happen may be tried again, even once.
func TestAnEffectThatSurelyDidNotHappenIsTriedAgain(t *testing.T) {
	for name, fail := range map[string]http.HandlerFunc{
		"NotApplied": func(w http.ResponseWriter, r *http.Request) {
			ledgerhttp.NotApplied(r.Context())
			w.WriteHeader(http.StatusBadGateway)
		},
		"429": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
		"panic": func(w http.ResponseWriter, r *http.Request) {
			ledgerhttp.NotApplied(r.Context())
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			var calls atomic.Int32
			s.guard(ledgerhttp.Operation{Effect: ledger.Once, Wait: 10 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					fail(w, r)
					return
				}
				s.charge(w, r)
			})
			_, _ = s.try(t.Context(), "k", "tea")
			got := s.post("k", "tea")
			s.want("status", got.status, http.StatusCreated)
			s.tally(1, 1, 1)
		})
	}
}

func TestAPanicOverAnOutsideEffectIsAnUnknownOutcome(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once, Wait: 10 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		s.charge(w, r)
		panic("oh")
	})
	if got, err := s.try(t.Context(), "k", "tea"); err == nil {
		t.Errorf("the panic was answered: %v", got)
	}
	s.want("reply", s.post("k", "tea").said(), "409 outcome-unknown")
	s.tally(1, 0, 0)
}

// An operator who has found out says so, and that is what the next request is told.
func TestAnOperatorEndsTheDoubt(t *testing.T) {
	for _, done := range []bool{true, false} {
		t.Run(fmt.Sprint("done=", done), func(t *testing.T) {
			s := newShop(t)
			var calls atomic.Int32
			s.guard(ledgerhttp.Operation{Effect: ledger.Once}, func(w http.ResponseWriter, r *http.Request) {
				if calls.Add(1) == 1 {
					w.WriteHeader(http.StatusGatewayTimeout)
					return
				}
				s.charge(w, r)
			})
			s.post("k", "tea")
			s.want("in doubt", s.post("k", "tea").said(), "409 outcome-unknown")
			l := ledger.New(s.pool)
			kind := ledger.Type{Name: "POST /orders", Effect: ledger.Once}
			if err := l.Register(t.Context(), &kind); err != nil {
				t.Fatal(err)
			}
			for o, err := range l.Opens(t.Context(), &kind, ledger.Doubtful, "", 10) {
				if err != nil {
					t.Fatal(err)
				}
				err = pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
					return ledger.Resolve(t.Context(), tx, &kind, o, ledger.Verdict{Done: done, Evidence: ledger.ByOperator, By: "anna", Why: "asked the provider"})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			want := map[bool]string{true: "409 response-expired", false: "201"}[done]
			s.want("resolved", s.post("k", "tea").said(), want)
		})
	}
}

// The fence is checked: who was declared dead, and whose claim another has, completes
// nothing, and its client is told what counts.
func TestAHandlerWhoseClaimWasTakenOverCompletesNothing(t *testing.T) {
	s := newShop(t)
	var calls atomic.Int32
	begun, on := make(chan struct{}), make(chan struct{})
	s.guard(ledgerhttp.Operation{Effect: ledger.Repeatable, Wait: 30 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			close(begun)
			select {
			case <-on:
			case <-t.Context().Done():
			}
			fmt.Fprint(w, "the late one")
			return
		}
		fmt.Fprint(w, "the one that counts")
	})
	other := openShop(t, s.pool, s.pool)
	other.guard(ledgerhttp.Operation{Effect: ledger.Repeatable, Wait: 30 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		fmt.Fprint(w, "the one that counts")
	})
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	if _, err := s.pool.Exec(t.Context(), `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed' WHERE id = (SELECT owner FROM oncemore.claim)`); err != nil {
		t.Fatal(err)
	}
	second := other.post("k", "tea")
	s.want("the second", second.body, "the one that counts")
	close(on)
	s.want("the first", within(t, "the first is answered", first).body, "the one that counts")
	s.want("disputed", s.count(`SELECT count(*) FROM oncemore.attempt WHERE outcome = 'disputed'`), 1)
	s.tally(0, 1, 1)
	s.want("claims", s.claims(), 0)
}

// The app records by itself that a request was done, while its handler is at it: that fact
// counts, and the claim goes.
func TestARequestThatTheAppHasRecordedItselfIsDone(t *testing.T) {
	s := newShop(t)
	h, begun, on := s.held(s.charge)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, h)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	if _, err := s.pool.Exec(t.Context(), `
INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity) SELECT fingerprint, job_type, 1, 'a', entity FROM oncemore.claim`); err != nil {
		t.Fatal(err)
	}
	close(on)
	s.want("the first", within(t, "the first is answered", first).said(), "409 response-expired")
	s.want("claims", s.claims(), 0)
	s.want("attempts", s.count(`SELECT count(*) FROM oncemore.attempt`), 0)
	s.tally(1, 1, 0)
}

// The reply to a claim is lost: it stands under our name, and nobody here has it.
func TestAClaimWhoseReplyWasLostIsGivenBackByItsOwnProcess(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once, Wait: 30 * time.Second}, s.charge)
	if _, err := s.pool.Exec(t.Context(), `
INSERT INTO oncemore.claim (fence, owner, claimed_at, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), w.id, now(), now(), 0, 0, 0, 0, t.id, 1, $1, '' FROM oncemore.worker w, oncemore.job_type t`, ledgerhttp.EntityOf("POST", "anna", "k")); err != nil {
		t.Fatal(err)
	}
	s.again(s.post("k", "tea"), "k", "tea")
	s.tally(1, 1, 1)
	s.want("claims", s.claims(), 0)
}

// diedOver leaves the claim of another process, which was declared dead, on the request with key.
func (s *shop) diedOver(key string) {
	s.Helper()
	if _, err := s.pool.Exec(s.Context(), `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at, cause) VALUES ('another', now(), now(), 'lapsed') RETURNING id)
INSERT INTO oncemore.claim (fence, owner, claimed_at, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), now(), 0, 0, 0, 0, t.id, 1, $1, '' FROM dead, oncemore.job_type t`, ledgerhttp.EntityOf("POST", "anna", key)); err != nil {
		s.Fatal(err)
	}
}

// A process was declared dead when its last transaction was about to commit. Who asks meanwhile
// waits for that, and is not told of a doubt that is then none.
func TestALateCommitOfTheDeadIsNotADoubt(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, s.charge)
	s.diedOver("k")
	last, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer last.Rollback(context.Background())
	if _, err := last.Exec(t.Context(), `
WITH gone AS (DELETE FROM oncemore.claim RETURNING job_type, entity),
fact AS (INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence) SELECT job_type, entity, 0, 1, 'r' FROM gone)
INSERT INTO oncemore.response (job_type, entity, epoch, status, headers, body, expires_at)
SELECT job_type, entity, 0, 201, '{}', 'charged', now() + interval '1 hour' FROM gone`); err != nil {
		t.Fatal(err)
	}
	asked := s.async("k", "tea")
	eventually(t, "who asks waits", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 1
	})
	if err := last.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := within(t, "it is answered", asked)
	s.want("reply", fmt.Sprint(got.said(), " ", got.body, " ", got.replayed()), "201 charged true")
	s.tally(0, 1, 1)
	s.want("claims", s.claims(), 0)
}

// A process died when it had found out that a twin was faster, and before it gave its claim back.
func TestAClaimThatTheDeadLeftBesideAFactIsSwept(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, s.charge)
	s.post("k", "tea")
	if _, err := s.pool.Exec(t.Context(), `
WITH dead AS (INSERT INTO oncemore.worker (name, expires, dead_at, cause) VALUES ('another', now(), now(), 'lapsed') RETURNING id)
INSERT INTO oncemore.claim (fence, owner, claimed_at, first_claimed_at, fingerprint, epoch, source_version, run, job_type, attempts, entity, args)
SELECT nextval('oncemore.fence'), dead.id, now(), now(), l.fingerprint, 0, 0, 0, l.job_type, 1, l.entity, '' FROM dead, oncemore.ledger l`); err != nil {
		t.Fatal(err)
	}
	s.want("claims", s.claims(), 1)
	if err := ledgerhttp.Tidy(s.keys, t.Context()); err != nil {
		t.Fatal(err)
	}
	s.want("claims", s.claims(), 0)
	s.tally(1, 1, 1)
}

func TestAnOutsideAnswerThatIsTooLargeIsRecordedAsDone(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Repeatable, MaxResponse: 10}, func(w http.ResponseWriter, r *http.Request) {
		s.charge(w, r)
		fmt.Fprint(w, "and much more")
	})
	first := s.post("k", "tea")
	s.want("reply", first.said(), "500 response-too-large")
	s.again(first, "k", "tea")
	s.tally(1, 1, 1)
}

// A Check's answer is kept whole or not at all, as a handler's.
func TestACheckedAnswerThatIsTooLargeIsRecordedAsDone(t *testing.T) {
	s := newShop(t)
	var file string
	check := func(w http.ResponseWriter, r *http.Request) (bool, error) {
		if err := r.ParseMultipartForm(0); err != nil {
			return false, err
		}
		f, err := r.MultipartForm.File["item"][0].Open()
		if err != nil {
			return false, err
		}
		defer f.Close()
		file = f.(*os.File).Name()
		fmt.Fprint(w, "it was ")
		fmt.Fprint(w, "done, and more")
		return true, nil
	}
	s.guard(ledgerhttp.Operation{Effect: ledger.Verifiable(0), Check: check, MaxResponse: 10}, func(w http.ResponseWriter, r *http.Request) {
		s.charge(discard{http.Header{}}, r)
		w.WriteHeader(http.StatusGatewayTimeout)
	})
	form := func(r *http.Request) { r.Header.Set("Content-Type", "multipart/form-data; boundary=x") }
	body := "--x\r\nContent-Disposition: form-data; name=\"item\"; filename=\"item\"\r\n\r\n" + strings.Repeat("tea", 1<<10) + "\r\n--x--\r\n"
	s.want("the first", s.post("k", body, form).status, http.StatusGatewayTimeout)
	next := s.post("k", body, form)
	s.want("the next", next.said(), "500 response-too-large")
	s.again(next, "k", body, form)
	s.tally(1, 1, 1)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the form's file %s is there still: %v", file, err)
	}
}

func TestAnOperationWithAnOutsideEffectIsNotTurnedIntoOneInTransactionWhileRequestsAreOpen(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s.post("k", "tea")
	if _, err := s.keys.Guard(t.Context(), ledgerhttp.Operation{Name: "POST /orders"}, http.HandlerFunc(order)); err == nil || !strings.Contains(err.Error(), "requests are open") {
		t.Errorf("error %v", err)
	}
}

// A request was interrupted by a deploy that gives its operation another name. Its provider must not
// take what the next attempt sends for new work.
func TestARenamedOperationKeepsItsEffectKeys(t *testing.T) {
	s := newShop(t)
	fails := func(w http.ResponseWriter, r *http.Request) {
		s.charge(discard{http.Header{}}, r)
		w.WriteHeader(http.StatusGatewayTimeout)
	}
	s.guard(ledgerhttp.Operation{Name: "POST /pay/{shop}", Effect: ledger.Keyed(time.Hour)}, fails)
	s.want("before", s.post("k", "tea", to(s.srv.URL+"/pay/7")).status, http.StatusGatewayTimeout)
	s = openShop(t, s.pool, s.pool)
	s.guard(ledgerhttp.Operation{Name: "POST /pay/{id}", Aliases: []string{"POST /pay/{shop}"}, Effect: ledger.Keyed(time.Hour)}, s.charge)
	s.want("after", s.post("k", "tea", to(s.srv.URL+"/pay/7")).status, http.StatusCreated)
	s.want("effects", s.count(`SELECT count(*) FROM orders`), 2)
	s.want("effect keys", s.count(`SELECT count(DISTINCT item) FROM orders`), 1)
}

// Inside its horizon a provider knows our key. The last look at the clock comes when there is
// nothing more to wait for.
func TestNothingBeginsWhoseHorizonHasPassedWhileItsClaimWasWaitedFor(t *testing.T) {
	s, decide := newFaultyShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Keyed(3 * time.Second), Timeout: time.Second, Wait: 10 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		s.charge(w, r)
	})
	s.diedOver("k") // a moment ago
	var slow sync.Once
	decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if slices.ContainsFunc(b.Names, func(name string) bool { return name == "claim: take over" }) {
			slow.Do(func() { time.Sleep(2200 * time.Millisecond) })
		}
		return pgproxy.Pass
	})
	s.want("reply", s.post("k", "tea").said(), "409 outcome-unknown")
	s.tally(0, 0, 0)
}

// The machine is cut off between the fact of an outside effect and its answer. What it has locked is
// free again soon, and not when the server finds out by itself.
func TestTheServerEndsARecordingThatGoesNoFurther(t *testing.T) {
	s, decide := newFaultyShop(t)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, s.charge)
	var stuck, cut atomic.Bool
	on := make(chan struct{})
	defer sync.OnceFunc(func() { close(on) })()
	decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if slices.Contains(b.Names, "response: store") && cut.CompareAndSwap(false, true) {
			stuck.Store(true)
			<-on
		}
		return pgproxy.Pass
	})
	answered := s.async("k", "tea")
	idle := func() int {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'`)
	}
	eventually(t, "it is stuck", func() bool { return stuck.Load() && idle() == 1 })
	eventually(t, "the server has ended it", func() bool { return idle() == 0 })
	s.want("claims", s.claims(), 1)
	on <- struct{}{}
	s.again(within(t, "it is recorded after all", answered), "k", "tea")
	s.tally(1, 1, 1)
}
