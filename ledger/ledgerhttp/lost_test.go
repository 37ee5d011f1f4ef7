package ledgerhttp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// newFaultyShop is a shop whose server reaches the database through a proxy. Every
// statement of the middleware that writes must have a name.
func newFaultyShop(t *testing.T) (*shop, func(func(*pgproxy.Batch) pgproxy.Fault)) {
	own := newShop(t)
	proxy, err := pgproxy.Start(own.pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	config, err := pgxpool.ParseConfig(proxy.DSN())
	if err != nil {
		t.Fatal(err)
	}
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // it would take the fault that is meant for another
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	decide := func(f func(*pgproxy.Batch) pgproxy.Fault) {
		proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
			for i, sql := range b.SQL {
				if pgproxy.Writes(sql) && b.Names[i] == "" && !strings.Contains(sql, "INTO orders") {
					t.Errorf("a statement writes and has no name: %s", sql)
				}
			}
			return f(b)
		})
	}
	return openShop(t, own.pool, pool), decide
}

// once strikes the first batch that is meant.
func once(f pgproxy.Fault, struck *atomic.Bool, meant func(*pgproxy.Batch) bool) func(*pgproxy.Batch) pgproxy.Fault {
	return func(b *pgproxy.Batch) pgproxy.Fault {
		if meant(b) && struck.CompareAndSwap(false, true) {
			return f
		}
		return pgproxy.Pass
	}
}

func commitOf(name string) func(*pgproxy.Batch) bool {
	return func(b *pgproxy.Batch) bool {
		return b.Has("commit") && strings.Contains(strings.Join(append(b.Tx, b.Names...), ","), name)
	}
}

// Every write is lost, and done and reported lost. An effect that may not be repeated is
// not, and nobody is told what is not so.
func TestALostWriteOfAnOutsideEffectIsTriedAgain(t *testing.T) {
	for _, step := range []string{"claim: insert", "response: store"} {
		for name, fault := range map[string]pgproxy.Fault{"lost": pgproxy.Lost, "reported lost": pgproxy.ReportedLost} {
			t.Run(step+" "+name, func(t *testing.T) {
				s, decide := newFaultyShop(t)
				s.guard(ledgerhttp.Operation{Effect: ledger.Once}, s.charge)
				var struck atomic.Bool
				decide(once(fault, &struck, commitOf(step)))
				first := s.post("k", "tea")
				s.want("struck", struck.Load(), true)
				if step == "claim: insert" {
					s.want("the first", first.said(), "503 unavailable")
				}
				var got reply
				eventually(t, "it is done", func() bool { got = s.post("k", "tea"); return got.status == http.StatusCreated })
				s.want("status", got.status, http.StatusCreated)
				s.again(got, "k", "tea")
				s.tally(1, 1, 1)
				s.want("claims", s.claims(), 0)
				s.want("attempts", s.count(`SELECT count(*) FROM oncemore.attempt`), 0)
			})
		}
	}
}

// The server cannot wait any longer for a handler. What it does late counts only if nobody
// has decided on it.
func TestAShutdownThatCannotWaitLeavesAnOutsideEffectToItsClass(t *testing.T) {
	s := newShop(t)
	begun, ended, on := make(chan struct{}), make(chan struct{}), make(chan struct{})
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		if !errors.Is(context.Cause(r.Context()), context.Canceled) {
			t.Errorf("the handler's context ended with %v", context.Cause(r.Context()))
		}
		close(ended)
		select {
		case <-on:
		case <-t.Context().Done():
		}
		s.charge(w, r)
	})
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.keys.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	within(t, "the handler's context has ended", ended)
	other := openShop(t, s.pool, s.pool)
	other.guard(ledgerhttp.Operation{Effect: ledger.Once}, other.charge)
	s.want("the next", other.post("k", "tea").said(), "409 outcome-unknown")
	close(on)
	s.want("the first", within(t, "the first is answered", first).said(), "409 outcome-unknown")
	s.want("disputed", s.count(`SELECT count(*) FROM oncemore.attempt WHERE outcome = 'disputed'`), 1)
	s.tally(1, 0, 0)
}

// Others have declared the process dead, wrongly: it takes a new lease, and goes on.
func TestALostLeaseIsReplaced(t *testing.T) {
	s := newShop(t)
	causes := make(chan error, 2)
	var calls atomic.Int32
	s.guard(ledgerhttp.Operation{Effect: ledger.Repeatable, Wait: 30 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) == 1 {
			<-r.Context().Done()
			causes <- context.Cause(r.Context())
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		s.charge(w, r)
	})
	first := s.async("k", "tea")
	eventually(t, "it is claimed", func() bool { return s.claims() == 1 })
	if _, err := s.pool.Exec(t.Context(), `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'`); err != nil {
		t.Fatal(err)
	}
	if err := within(t, "the handler's context has ended", causes); !errors.Is(err, ledger.ErrLeaseLost) {
		t.Errorf("it ended with %v", err)
	}
	s.want("the first", within(t, "the first is answered", first).status, http.StatusBadGateway)
	got := s.post("k", "tea")
	s.want("the next", got.status, http.StatusCreated)
	s.again(got, "k", "tea")
	if n := s.count(`SELECT count(*) FROM oncemore.worker`); n < 2 {
		t.Errorf("%d leases", n)
	}
	s.tally(1, 1, 1)
}

// A request has had its effect, and its end could not be recorded before the lease was lost. A twin
// that began under that lease finds its claim and nobody at it: that does not say that the handler
// never began.
func TestAnEndThatCouldNotBeRecordedIsNotTakenForARequestThatNeverBegan(t *testing.T) {
	s, decide := newFaultyShop(t)
	h, begun, on := s.held(s.charge)
	s.guard(ledgerhttp.Operation{Effect: ledger.Once}, h)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)

	var losing atomic.Bool
	looking, look := make(chan struct{}, 10), make(chan struct{})
	decide(func(b *pgproxy.Batch) pgproxy.Fault {
		switch {
		case slices.ContainsFunc(b.SQL, func(sql string) bool { return pgproxy.Name(sql) == "" && strings.Contains(sql, "oncemore.claim") }):
			looking <- struct{}{}
			select {
			case <-look:
			case <-t.Context().Done():
			}
		case losing.Load():
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	twin := s.async("k", "tea")
	within(t, "the twin looks", looking)
	losing.Store(true)
	on <- struct{}{}
	s.want("the first", within(t, "the first is answered", first).said(), "503 unavailable")
	losing.Store(false)
	close(look)
	close(on)
	s.want("the twin", within(t, "the twin is answered", twin).said(), "409 request-ongoing")
	s.want("handlers", len(begun), 0)
	s.tally(1, 0, 0)
}

// The database does not answer who wants a new lease. Nobody waits for that without end, and who
// closes does not wait for it at all.
func TestADatabaseThatDoesNotAnswerHoldsNobodyUp(t *testing.T) {
	s, decide := newFaultyShop(t)
	begun := make(chan struct{}, 1)
	s.guard(ledgerhttp.Operation{Effect: ledger.Repeatable}, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-r.Context().Done()
		w.WriteHeader(http.StatusBadGateway)
	})
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	if _, err := s.pool.Exec(t.Context(), `UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'`); err != nil {
		t.Fatal(err)
	}
	s.want("the first", within(t, "the lease is lost", first).status, http.StatusBadGateway)
	eventually(t, "the lost lease has no connection any more", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '/* lease:%'`) == 0
	})

	joining, frozen := make(chan struct{}, 10), make(chan struct{})
	defer close(frozen)
	decide(func(b *pgproxy.Batch) pgproxy.Fault {
		if b.Has("lease: join") {
			joining <- struct{}{}
			<-frozen
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	asked := []<-chan reply{s.async("k", "tea"), s.async("l", "tea"), s.async("m", "tea")}
	within(t, "one joins", joining)
	closed := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		closed <- s.keys.Close(ctx)
	}()
	within(t, "the keys are closed", closed)
	for _, a := range asked {
		s.want("a request", within(t, "it is answered", a).said(), "503 unavailable")
	}
}

// Without its database the middleware says so, and the handler does not run.
func TestWithoutADatabaseARequestIsToldToComeAgain(t *testing.T) {
	s, decide := newFaultyShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	var away atomic.Bool
	decide(func(*pgproxy.Batch) pgproxy.Fault {
		if away.Load() {
			return pgproxy.Lost
		}
		return pgproxy.Pass
	})
	away.Store(true)
	got := s.post("k", "tea")
	s.want("reply", fmt.Sprint(got.said(), " ", got.header.Get("Retry-After")), "503 unavailable 1")
	away.Store(false)
	s.tally(0, 0, 0)
	eventually(t, "it is done", func() bool { return s.post("k", "tea").status == http.StatusCreated })
	s.tally(1, 1, 1)
}

// What a request costs beside its handler: a round trip to begin with the fact in hand, and one
// to store the answer and commit. The handler's transaction has the usual patience with locks.
func TestARequestTakesTwoRoundTripsBesideThoseOfItsHandler(t *testing.T) {
	s, decide := newFaultyShop(t)
	var limits string
	s.guard(ledgerhttp.Operation{Timeout: 10 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		if err := ledgerhttp.Tx(r.Context()).QueryRow(r.Context(), `SELECT concat_ws(' ', current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'), current_setting('transaction_isolation'))`).Scan(&limits); err != nil {
			t.Error(err)
		}
		order(w, r)
	})
	s.post("warm", "tea") // its statements are prepared once on each connection
	var mu sync.Mutex
	var trips []string
	decide(func(b *pgproxy.Batch) pgproxy.Fault {
		mu.Lock()
		defer mu.Unlock()
		if len(b.Names) > 0 { // else it prepares
			trips = append(trips, strings.Join(b.Names, ","))
		}
		return pgproxy.Pass
	})
	s.want("status", s.post("k", "tea").status, http.StatusCreated)
	mu.Lock()
	defer mu.Unlock()
	s.want("round trips", strings.Join(trips, " | "), "begin,fact: hold |  |  | response: store,commit")
	s.want("limits", limits, "0 15s read committed")
}
