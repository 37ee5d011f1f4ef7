package ledgerhttp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// However a handler ends, what became of its request is plain.

func TestAPanicLeavesNothingAndGoesOnToTheServer(t *testing.T) {
	s := newShop(t)
	var panics atomic.Int32
	g, err := s.keys.Guard(t.Context(), ledgerhttp.Operation{Name: "POST /orders"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		order(w, r)
		if panics.Load() == 0 {
			panic("oh")
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	s.mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				panics.Add(1)
				panic(v)
			}
		}()
		g.ServeHTTP(w, r)
	})
	if got, err := s.try(t.Context(), "k", "tea"); err == nil {
		t.Errorf("the panic was answered: %v", got)
	}
	s.want("panics", panics.Load(), int32(1))
	s.tally(0, 0, 0)
	s.again(s.post("k", "tea"), "k", "tea")
	s.tally(1, 1, 1)
}

func TestAClientThatGoesAwayFindsItsAnswerWhenItComesBack(t *testing.T) {
	s := newShop(t)
	h, begun, on := s.held(order)
	s.guard(ledgerhttp.Operation{Wait: time.Minute}, h)
	ctx, away := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { _, err := s.try(ctx, "k", "tea"); gone <- err }()
	within(t, "the handler has begun", begun)
	away()
	if err := within(t, "the client has gone", gone); !errors.Is(err, context.Canceled) {
		t.Errorf("the client: %v", err)
	}
	close(on)
	eventually(t, "the order is there", func() bool { return s.count(`SELECT count(*) FROM orders`) == 1 })
	got := s.post("k", "tea")
	s.want("replayed", got.replayed(), true)
	s.want("body", got.body, "order 1: tea\n")
	s.tally(1, 1, 1)
}

// A client that goes away before it has sent all has asked for nothing.
func TestARequestThatBreaksOffDoesNothing(t *testing.T) {
	s := newShop(t)
	called := atomic.Bool{}
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) { called.Store(true) })
	conn, err := net.Dial("tcp", s.srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "POST /orders HTTP/1.1\r\nHost: x\r\nX-Caller: anna\r\nIdempotency-Key: k\r\nContent-Length: 10\r\n\r\ntea")
	_ = conn.(*net.TCPConn).CloseWrite()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	s.want("status", resp.StatusCode, http.StatusBadRequest)
	s.want("called", called.Load(), false)
	s.tally(0, 0, 0)
}

func TestAShutdownLetsRequestsEndAndRefusesLaterOnes(t *testing.T) {
	s := newShop(t)
	h, begun, on := s.held(order)
	s.guard(ledgerhttp.Operation{}, h)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	closed := make(chan error, 1)
	go func() { closed <- s.keys.Close(t.Context()) }()
	eventually(t, "later ones are refused", func() bool {
		got := s.post("k", "tea") // until then it is a twin
		return got.said() == "503 unavailable" && got.header.Get("Retry-After") == "1"
	})
	close(on)
	if err := within(t, "the keys are closed", closed); err != nil {
		t.Error(err)
	}
	s.want("status", within(t, "the first is answered", first).status, http.StatusCreated)
	s.tally(1, 1, 1)
}

func TestAnAnswerThatIsTooLargeIsAnErrorAndNothingIsKept(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{MaxResponse: 10}, func(w http.ResponseWriter, r *http.Request) {
		order(discard{http.Header{}}, r)
		if _, err := w.Write(bytes.Repeat([]byte("x"), 11)); !errors.Is(err, ledgerhttp.ErrResponseTooLarge) {
			t.Errorf("Write: %v", err)
		}
	})
	got := s.post("k", "tea")
	s.want("reply", got.said(), "500 response-too-large")
	s.tally(0, 0, 0)
}

// A handler that streams, or takes the connection over, is told that it cannot; one that does
// not heed it has its whole answer stored. Nothing leaves before the commit.
func TestAHandlerCannotStreamOrHijack(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_, flusher := w.(http.Flusher)
		_, hijacker := w.(http.Hijacker)
		_, _, err := c.Hijack()
		if flusher || hijacker || !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("flusher %t, hijacker %t, hijack: %v", flusher, hijacker, err)
		}
		io.WriteString(w, "one ")
		if err := c.Flush(); !errors.Is(err, http.ErrNotSupported) {
			t.Errorf("flush: %v", err)
		}
		io.WriteString(w, "two")
	})
	first := s.post("k", "tea")
	s.want("body", first.body, "one two")
	s.again(first, "k", "tea")
}

func TestAHandlerCannotEndTheTransaction(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		tx := ledgerhttp.Tx(r.Context())
		if err := tx.Commit(r.Context()); err == nil {
			t.Error("committed")
		}
		if err := tx.Rollback(r.Context()); err == nil {
			t.Error("rolled back")
		}
		order(w, r)
	})
	s.again(s.post("k", "tea"), "k", "tea")
	s.tally(1, 1, 1)
}

// Its connection is another request's then.
func TestATransactionEndsWithItsHandler(t *testing.T) {
	s := newShop(t)
	var tx, savepoint pgx.Tx
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		var err error
		tx = ledgerhttp.Tx(r.Context())
		if savepoint, err = tx.Begin(r.Context()); err != nil {
			t.Error(err)
		}
		order(w, r)
	})
	s.post("k", "tea")
	for name, use := range map[string]func(pgx.Tx) error{
		"Exec":     func(tx pgx.Tx) error { _, err := tx.Exec(t.Context(), `SELECT 1`); return err },
		"Query":    func(tx pgx.Tx) error { rows, _ := tx.Query(t.Context(), `SELECT 1`); return rows.Err() },
		"QueryRow": func(tx pgx.Tx) error { return tx.QueryRow(t.Context(), `SELECT 1`).Scan(new(int)) },
		"SendBatch": func(tx pgx.Tx) error {
			b := &pgx.Batch{}
			b.Queue(`SELECT 1`)
			return tx.SendBatch(t.Context(), b).Close()
		},
		"CopyFrom": func(tx pgx.Tx) error {
			_, err := tx.CopyFrom(t.Context(), pgx.Identifier{"orders"}, []string{"item"}, pgx.CopyFromRows([][]any{{"x"}}))
			return err
		},
		"Prepare": func(tx pgx.Tx) error { _, err := tx.Prepare(t.Context(), "x", `SELECT 1`); return err },
		"Begin":   func(tx pgx.Tx) error { _, err := tx.Begin(t.Context()); return err },
		"LargeObjects": func(tx pgx.Tx) error {
			objects := tx.LargeObjects()
			_, err := objects.Create(t.Context(), 0)
			return err
		},
	} {
		for what, tx := range map[string]pgx.Tx{"transaction": tx, "savepoint": savepoint} {
			if what == "savepoint" && name == "LargeObjects" {
				continue // pgx has none there
			}
			if err := use(tx); !errors.Is(err, pgx.ErrTxClosed) {
				t.Errorf("%s of a %s that has ended: %v", name, what, err)
			}
		}
	}
	s.tally(1, 1, 1)
}

// A handler may have a part of what it wrote undone, and answer with the rest.
func TestAHandlerMaySetSavepoints(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		tx := ledgerhttp.Tx(r.Context())
		for _, sql := range []string{`INSERT INTO orders (item) VALUES ('kept')`, `INSERT INTO orders (item) VALUES (NULL)`} {
			if err := pgx.BeginFunc(r.Context(), tx, func(tx pgx.Tx) error { _, err := tx.Exec(r.Context(), sql); return err }); err != nil {
				fmt.Fprintln(w, "one was not possible")
			}
		}
	})
	first := s.post("k", "")
	s.want("reply", fmt.Sprint(first.status, " ", first.body), "200 one was not possible\n")
	s.again(first, "k", "")
	s.tally(1, 1, 1)
}

// A handler that says 200 although a statement of its failed is not believed.
func TestAFailedTransactionIsNotAnsweredAsIfItWereDone(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, func(w http.ResponseWriter, r *http.Request) {
		order(discard{http.Header{}}, r)
		_, _ = ledgerhttp.Tx(r.Context()).Exec(r.Context(), `SELECT 1/0`)
		io.WriteString(w, "fine")
	})
	got := s.post("k", "tea")
	s.want("reply", got.said(), "500 transaction-failed")
	s.tally(0, 0, 0)
}

func TestAHandlerThatTakesTooLongIsRolledBack(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Timeout: 2 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		order(w, r)
	})
	s.want("status", s.post("k", "tea").status, http.StatusInternalServerError)
	s.tally(0, 0, 0)
}

// The COMMIT is lost, or done and reported lost: the fact tells which.
func TestALostCommitIsAnsweredByTheFact(t *testing.T) {
	for name, test := range map[string]struct {
		fault  pgproxy.Fault
		first  string
		orders int
	}{
		"lost":          {pgproxy.Lost, "503 unavailable false", 0},
		"reported lost": {pgproxy.ReportedLost, "201  true", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, decide := newFaultyShop(t)
			s.guard(ledgerhttp.Operation{}, order)
			var struck atomic.Bool
			decide(once(test.fault, &struck, commitOf("response: store")))
			got := s.post("k", "tea")
			s.want("struck", struck.Load(), true)
			s.want("reply", fmt.Sprint(got.status, " ", got.problem(), " ", got.replayed()), test.first)
			s.tally(test.orders, test.orders, test.orders)
			eventually(t, "it is done", func() bool { got = s.post("k", "tea"); return got.status == http.StatusCreated })
			s.again(got, "k", "tea")
			s.tally(1, 1, 1)
		})
	}
}

// What is checked at the end of a transaction fails it for certain, and again and again: then it is
// not said that the request may be sent again. What may pass by itself is.
func TestACommitThatTheDatabaseRefusesIsToldAsWhatItIs(t *testing.T) {
	for name, test := range map[string]struct{ code, want string }{
		"a constraint":         {"23503", "500 transaction-failed "},
		"an app's own":         {"P0001", "500 transaction-failed "},
		"serialization":        {"40001", "503 unavailable 1"},
		"a deadlock":           {"40P01", "503 unavailable 1"},
		"a lock that is taken": {"55P03", "503 unavailable 1"},
		"shutdown":             {"57P01", "503 unavailable 1"},
		"a full disk":          {"53100", "503 unavailable 1"},
		"a disk that fails":    {"58030", "503 unavailable 1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			if _, err := s.pool.Exec(t.Context(), fmt.Sprintf(`
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '%s'; END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`, test.code)); err != nil {
				t.Fatal(err)
			}
			s.guard(ledgerhttp.Operation{}, order)
			got := s.post("k", "tea")
			s.want("reply", got.said()+" "+got.header.Get("Retry-After"), test.want)
			s.tally(0, 0, 0)
		})
	}
}

// The server's own context has ended, and the client is there still.
func TestARequestWhoseWaitTheServerEndsIsToldToComeAgain(t *testing.T) {
	s := newShop(t)
	h, begun, on := s.held(order)
	s.guard(ledgerhttp.Operation{Wait: time.Minute}, h)
	first := s.async("k", "tea")
	within(t, "the handler has begun", begun)
	stopping, stop := context.WithCancel(t.Context())
	stop()
	srv := httptest.NewUnstartedServer(s.mux)
	srv.Config.BaseContext = func(net.Listener) context.Context { return stopping }
	srv.Start()
	defer srv.Close()
	got, err := send(t.Context(), srv.URL, "k", "tea")
	if err != nil {
		t.Fatal(err)
	}
	s.want("the twin", got.said()+" "+got.header.Get("Retry-After"), "503 unavailable 1")
	close(on)
	s.want("the first", within(t, "the first is answered", first).status, http.StatusCreated)
	s.tally(1, 1, 1)
}

// A lock that many who insert at once take from each other, to make the table or an index longer,
// is not mistaken for a twin's.
func TestAWaitForATableThatIsLockedIsNotCalledOngoing(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{}, order)
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	for i := range 8 { // until their connection has a plan that lasts: planning would wait first, and longer
		s.post(fmt.Sprint("warm-", i), "tea")
	}
	if _, err := tx.Exec(t.Context(), `ALTER INDEX oncemore.ledger_pkey SET TABLESPACE pg_default`); err != nil { // where it is
		t.Fatal(err)
	}
	first := s.async("k", "tea")
	select {
	case got := <-first:
		t.Fatalf("answered %s while the table was locked", got.said())
	case <-time.After(300 * time.Millisecond): // several times as long as a fact is waited for
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := within(t, "it is answered", first)
	s.want("status", got.status, http.StatusCreated)
	s.again(got, "k", "tea")
}

func TestATableThatStaysLockedIsNotWaitedForWithoutEnd(t *testing.T) {
	s := newShop(t)
	s.guard(ledgerhttp.Operation{Timeout: 200 * time.Millisecond}, order)
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE oncemore.ledger IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	s.want("reply", s.post("k", "tea").said(), "503 unavailable")
}
