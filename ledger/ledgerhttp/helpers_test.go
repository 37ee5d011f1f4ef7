package ledgerhttp_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(serverEnv); mode != "" {
		if err := serverProcess(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("6")
	}
	os.Exit(pgtest.Main(m))
}

// A shop is a server with guarded operations, and the table that they have their effect on.
type shop struct {
	*testing.T
	pool *pgxpool.Pool // of the test
	keys *ledgerhttp.Keys
	mux  *http.ServeMux
	srv  *httptest.Server
}

const orders = `CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, item text NOT NULL)`

// newShop lets the test run beside others: they wait for leases and connections more than
// they compute.
func newShop(t *testing.T) *shop {
	t.Helper()
	t.Parallel()
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), orders); err != nil {
		t.Fatal(err)
	}
	return openShop(t, pool, pool)
}

// openShop is a server whose own connections are those of pool.
func openShop(t *testing.T, own, pool *pgxpool.Pool) *shop {
	t.Helper()
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Scope: caller, Lease: 3 * time.Second, Log: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{T: t, pool: own, keys: keys, mux: http.NewServeMux()}
	s.serve()
	return s
}

// serve opens the shop, until the test ends.
func (s *shop) serve() {
	s.srv = httptest.NewServer(s.mux)
	s.srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // panics are meant
	s.Cleanup(func() {
		s.srv.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.keys.Close(ctx); err != nil {
			s.Error(err)
		}
	})
}

// caller is who the request says it comes from. A real one would be authenticated.
func caller(r *http.Request) (string, error) {
	if u := r.Header.Get("X-Caller"); u != "" {
		return u, nil
	}
	return "", fmt.Errorf("nobody")
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// guard puts h behind o, as POST /orders unless o says otherwise.
func (s *shop) guard(o ledgerhttp.Operation, h http.HandlerFunc) {
	s.Helper()
	if o.Name == "" {
		o.Name = "POST /orders"
	}
	g, err := s.keys.Guard(s.Context(), o, h)
	if err != nil {
		s.Fatal(err)
	}
	s.mux.Handle(o.Name, g)
}

// order inserts what the body asks for, through the middleware's transaction.
func order(w http.ResponseWriter, r *http.Request) {
	item, _ := io.ReadAll(r.Body)
	var id int
	if err := ledgerhttp.Tx(r.Context()).QueryRow(r.Context(), `INSERT INTO orders (item) VALUES ($1) RETURNING id`, string(item)).Scan(&id); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Location", fmt.Sprintf("/orders/%d", id))
	w.Header().Set("Set-Cookie", "secret=1")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "order %d: %s\n", id, item)
}

// A reply is what a client got.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) replayed() bool { return r.header.Get("Idempotency-Replayed") == "true" }

// problem is the name of the problem that the reply is; empty: none.
func (r reply) problem() string {
	if r.header.Get("Content-Type") != "application/problem+json" {
		return ""
	}
	var p struct {
		Type, Title string
		Status      int
	}
	if json.Unmarshal([]byte(r.body), &p) != nil || p.Status != r.status || p.Title == "" {
		return "malformed"
	}
	_, slug, _ := strings.Cut(p.Type, "#")
	return slug
}

// A change makes a request another one.
type change func(*http.Request)

func with(header, value string) change { return func(r *http.Request) { r.Header.Set(header, value) } }
func by(name string) change            { return with("X-Caller", name) }
func to(path string) change            { return func(r *http.Request) { r.URL, _ = r.URL.Parse(path) } }

func (s *shop) post(key, body string, changes ...change) reply {
	s.Helper()
	got, err := s.try(s.Context(), key, body, changes...)
	if err != nil {
		s.Fatal(err)
	}
	return got
}

var client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func (s *shop) try(ctx context.Context, key, body string, changes ...change) (reply, error) {
	return send(ctx, s.srv.URL, key, body, changes...)
}

func send(ctx context.Context, url, key, body string, changes ...change) (reply, error) {
	r, err := http.NewRequestWithContext(ctx, "POST", url+"/orders", strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	// Go's own client would send requests with this header again by itself, where a connection
	// breaks: here every try is meant to be seen.
	r.GetBody = nil
	r.Header.Set("X-Caller", "anna")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for _, c := range changes {
		c(r)
	}
	resp, err := client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(all)}, err
}

func (s *shop) want(what string, got, want any) {
	s.Helper()
	if got != want {
		s.Errorf("%s: %v, want %v", what, got, want)
	}
}

func (s *shop) count(sql string, args ...any) (n int) {
	s.Helper()
	if err := s.pool.QueryRow(s.Context(), sql, args...).Scan(&n); err != nil {
		s.Fatal(err)
	}
	return n
}

// tally checks how many effects, facts and answers there are.
func (s *shop) tally(effects, facts, answers int) {
	s.Helper()
	s.want("orders", s.count(`SELECT count(*) FROM orders`), effects)
	s.want("facts", s.count(`SELECT count(*) FROM oncemore.ledger`), facts)
	s.want("answers", s.count(`SELECT count(*) FROM oncemore.response`), answers)
}

// again sends the request again and checks that it is answered as the first time.
func (s *shop) again(first reply, key, body string, changes ...change) {
	s.Helper()
	got := s.post(key, body, changes...)
	s.want("replayed", got.replayed(), true)
	s.same(first, got)
}

func (s *shop) same(first, got reply) {
	s.Helper()
	s.want("status", got.status, first.status)
	s.want("body", got.body, first.body)
	for _, name := range ledgerhttp.KeptHeaders {
		s.want(name, fmt.Sprint(got.header.Values(name)), fmt.Sprint(first.header.Values(name)))
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within 30 s: " + what)
		}
	}
}

func within[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("not within 30 s: " + what)
	}
	return v
}

// said is the status, and the problem if it is one.
func (r reply) said() string { return strings.TrimSpace(fmt.Sprint(r.status, " ", r.problem())) }
