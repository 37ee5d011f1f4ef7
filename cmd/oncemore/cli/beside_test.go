package cli

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A web server stands beside the workers, and records what it did without a job. It starts last.
func TestAnAppThatRecordsWorkOfAJobDoesNotHideWhatIsMissingOfIt(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	set, err := testSet(t.Context(), pool)
	if err == nil {
		_, err = worker.New(t.Context(), pool, set, worker.Config{Log: slog.New(slog.DiscardHandler)})
	}
	if err != nil {
		t.Fatal(err)
	}
	byApp := &ledger.Type{Name: "letter", Effect: ledger.InTransaction}
	if err := ledger.New(pool).Register(t.Context(), byApp); err != nil {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := ledger.Record(t.Context(), tx, byApp, ledger.Want{Entity: "7"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	a := call(t, Options{}, "status", "--check", "-o", "json", "--database-url", dsn)
	if a.code != 4 || !strings.Contains(a.err, "letter: 24 missing") {
		t.Errorf("%+v", a)
	}
	for _, ty := range decodeJSON[admin.Status](t, a.out).Types {
		if ty.Type == "letter" && ty.Effect != "Once" {
			t.Errorf("the effect class is not that of the worker any more: %+v", ty)
		}
	}
	if a := call(t, Options{}, "missing", "letter", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "24 of letter missing") {
		t.Errorf("%+v", a)
	}
}

// No worker takes a request, and its client brings it again by itself. A message of it would stay
// in the queue for ever.
func TestAnOperatorWhoEndsTheDoubtAboutARequestLeavesNoMessageBehind(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Scope: func(*http.Request) (string, error) { return "anna", nil }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = keys.Close(context.Background()) }()
	var calls atomic.Int32
	orders, err := keys.Guard(t.Context(), ledgerhttp.Operation{Name: "POST /orders", Effect: ledger.Once}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) == 1 {
			w.WriteHeader(http.StatusGatewayTimeout)
			return
		}
		w.WriteHeader(http.StatusCreated)
	}))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(orders)
	defer server.Close()
	post := func(want int) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/orders", strings.NewReader("tea"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Idempotency-Key", "k")
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("status %d, want %d", resp.StatusCode, want)
		}
	}
	post(http.StatusGatewayTimeout)
	post(http.StatusConflict)
	list := decodeJSON[admin.List[admin.Open]](t, call(t, Options{}, "doubt", "ls", "-o", "json", "--database-url", dsn).out)
	if len(list.Rows) != 1 || list.Rows[0].Effect != "Once" || !strings.HasPrefix(list.Rows[0].Next, "find out whether it happened, then say so with 'doubt resolve'") {
		t.Fatalf("%+v", list)
	}
	a := call(t, Options{}, "doubt", "resolve", "POST /orders", "--all", "--as", "not-applied", "--reason", "is on no statement", "--yes", "--database-url", dsn)
	if a.code != 0 {
		t.Errorf("%+v", a)
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.message`); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
	a = call(t, Options{}, "ledger", "show", "POST /orders", list.Rows[0].Entity, "--database-url", dsn)
	if !strings.Contains(a.out, "It is done when its client sends it again") || strings.Contains(a.out, "'retry'") {
		t.Errorf("%+v", a)
	}
	post(http.StatusCreated)
	if a := call(t, Options{}, "status", "--check", "--database-url", dsn); a.code != 0 {
		t.Errorf("%+v", a)
	}
	for _, args := range [][]string{{"retry", "POST /orders", "--all", "--yes"}, {"enqueue", "POST /orders", "{}", "--entity", "x", "--yes"}, {"rerun", "POST /orders", "--dry-run"}} {
		if a := call(t, Options{}, append(args, "--database-url", dsn)...); a.code != 1 || !strings.Contains(a.err, "POST /orders: it comes as requests, which no worker takes") {
			t.Errorf("%v: %+v", args, a)
		}
	}
}
