package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// schema stands for the tables that a shop has anyway. (moved has no unique key: what is there
// twice can be counted. It takes its time, as what else a shop writes would.)
const schema = `
CREATE SCHEMA IF NOT EXISTS shop;
CREATE TABLE IF NOT EXISTS shop.orders (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    play    text   NOT NULL,
    state   text   NOT NULL DEFAULT 'cart',
    version bigint NOT NULL DEFAULT 1,      -- every change raises it
    pieces  bigint NOT NULL DEFAULT 1
);
CREATE TABLE IF NOT EXISTS shop.moved (order_id bigint NOT NULL, was text NOT NULL, became text NOT NULL);
CREATE TABLE IF NOT EXISTS shop.server (name text NOT NULL, url text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE OR REPLACE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO shop.moved VALUES (OLD.id, OLD.state, NEW.state);
    PERFORM pg_sleep(0.02);
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER note BEFORE UPDATE OF state ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.note()`

// A server answers requests, and works the jobs.
type server struct {
	name     string
	provider string // of payments: its URL

	db     *pgxpool.Pool
	ledger *ledger.Ledger
	moves  ledger.Type
}

// open begins to serve, and returns the jobs.
func (s *server) open(db *pgxpool.Pool) []jobs.Definition {
	s.db, s.ledger = db, ledger.New(db)
	ctx := context.Background() // the server is there as long as its process is
	if err := s.serve(ctx); err != nil {
		slog.Error("the shop does not open", "error", err)
	}
	return []jobs.Definition{jobs.Job[Charge]{
		Do:     s.charge,
		Effect: jobs.Keyed(23 * time.Hour), // the provider keeps keys for a day
		Policy: jobs.Policy{Backoff: func(int) time.Duration { return 50 * time.Millisecond }},
	}}
}

func (s *server) serve(ctx context.Context) error {
	s.moves = ledger.Type{Name: "move_order", Effect: ledger.InTransaction}
	if err := s.ledger.Register(ctx, &s.moves); err != nil {
		return err
	}
	keys, err := ledgerhttp.New(s.db, ledgerhttp.Config{Scope: func(r *http.Request) (string, error) { return r.Header.Get("Client"), nil }})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for pattern, handler := range map[string]http.HandlerFunc{
		"POST /orders/{id}/order": s.move("cart", "ordered"),
		"POST /orders/{id}/ship":  s.move("paid", "shipped"),
	} {
		guarded, err := keys.Guard(ctx, ledgerhttp.Operation{Name: pattern, Wait: 2 * time.Second}, handler)
		if err != nil {
			return err
		}
		mux.Handle(pattern, guarded)
	}
	mux.HandleFunc("GET /orders/{id}", s.show)
	mux.HandleFunc("GET /orders/{id}/receipt", s.receipt)
	url, _, err := stage.Serve(mux)
	if err != nil {
		return err
	}
	_, err = s.db.Exec(ctx, `/* shop: open */ INSERT INTO shop.server (name, url) VALUES ($1, $2)`, s.name, url)
	return err
}

// An Order is what clients see of one.
type Order struct {
	State   string `json:"state"`
	Version int64  `json:"version"`
}

// A Moved is the answer to who moved an order, or had it moved before.
type Moved struct {
	Applied bool `json:"applied"` // by this request
}

// move is the handler of a transition: who asks says which version of the order was seen. The
// fact that the order went this way, the order's row, the payment's message, the fact that this
// request was done, and its answer commit together.
func (s *server) move(from, to string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var seen Order
		if err := json.NewDecoder(r.Body).Decode(&seen); err != nil || seen.Version < 1 {
			http.Error(w, "say which version of the order you saw", http.StatusBadRequest)
			return
		}
		ctx, tx := r.Context(), ledgerhttp.Tx(r.Context())
		applied, err := s.apply(ctx, tx, r.PathValue("id"), from, to, seen.Version)
		if err == nil && applied && to == "ordered" {
			err = jobs.Enqueue(ctx, pgqueue.New(s.db, "").Tx(tx), Charge{OrderID: r.PathValue("id"), Version: seen.Version + 1})
		}
		if conflict, is := errors.AsType[*ledger.ConflictError](err); is {
			answer(w, http.StatusConflict, Order{conflict.FoundState, conflict.FoundVersion})
			return
		}
		if err != nil {
			http.Error(w, "try again", http.StatusInternalServerError)
			return
		}
		answer(w, http.StatusOK, Moved{applied})
	}
}

// apply is the transition: a conditional update, and its fact.
func (s *server) apply(ctx context.Context, tx pgx.Tx, id, from, to string, version int64) (bool, error) {
	t := ledger.Transition{Type: &s.moves, Entity: id, From: from, To: to, Version: version}
	return t.Apply(ctx, tx,
		func() (pgconn.CommandTag, error) { return tx.Exec(ctx, moveSQL, id, from, to, version) },
		func() pgx.Row { return tx.QueryRow(ctx, seeSQL, id) })
}

const (
	moveSQL = `/* order: move */ UPDATE shop.orders SET state = $3, version = version + 1 WHERE id = $1::text::bigint AND state = $2 AND version = $4`
	seeSQL  = `SELECT state, version FROM shop.orders WHERE id = $1::text::bigint`
)

func (s *server) show(w http.ResponseWriter, r *http.Request) {
	var o Order
	if err := s.db.QueryRow(r.Context(), seeSQL, r.PathValue("id")).Scan(&o.State, &o.Version); err != nil {
		http.Error(w, "try again", http.StatusInternalServerError)
		return
	}
	answer(w, http.StatusOK, o)
}

// receipt waits until the order is paid, wherever that is done.
func (s *server) receipt(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	receipt, err := jobs.Await[Receipt](ctx, s.ledger, Charge{OrderID: r.PathValue("id")})
	if err != nil {
		w.Header().Set("Retry-After", "0")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer(w, http.StatusOK, receipt)
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Charge asks that an order is paid, as of the version at which it was ordered.
type Charge struct {
	OrderID string `json:"order_id"`
	Version int64  `json:"source_version"`
}

func (Charge) JobType() string        { return "charge" }
func (c Charge) Entity() string       { return c.OrderID }
func (c Charge) SourceVersion() int64 { return c.Version }

// A Receipt is what a charge returns.
type Receipt struct {
	Charge string `json:"charge"`
}

// charge has two effects. The provider knows repeats of the first by the effect key; the ledger
// knows those of the second. So a worker that is killed between them costs nothing: both are
// asked for again.
func (s *server) charge(ctx context.Context, c Charge) error {
	attempt := jobs.Current(ctx)
	receipt, err := pay(ctx, s.provider, attempt.EffectKey(), c.OrderID)
	if err != nil {
		return fmt.Errorf("charge order %s: %w", c.OrderID, err)
	}
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		_, err := s.apply(ctx, tx, c.OrderID, "ordered", "paid", c.Version)
		return err
	})
	if err != nil {
		return err
	}
	return attempt.Return(receipt)
}
