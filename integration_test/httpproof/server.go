package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// schema is where the effects are. Neither table has a key: what is done twice stands there twice.
// A charge is outside: no transaction of the middleware has anything to do with it.
const schema = `
CREATE SCHEMA shop;
CREATE TABLE shop.effect (id bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL, nonce text NOT NULL);
CREATE TABLE shop.charge (id bigint GENERATED ALWAYS AS IDENTITY, key text NOT NULL, nonce text NOT NULL, effect_key text NOT NULL);
CREATE INDEX ON shop.charge (effect_key)`

// The operations.
const (
	order  = "POST /orders"  // inserts a row through the middleware's transaction
	refuse = "POST /refused" // does so, too, and then answers 402, which is stored
	charge = "POST /charges" // has its effect outside, and can ask whether it did
)

const lease = 1500 * time.Millisecond

// serve is a server process, until its standard input ends. It listens on a socket in dir.
func serve(ctx context.Context, name, dir string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); stop() }()
	pool, err := openPool(ctx, name, 12)
	if err != nil {
		return err
	}
	defer pool.Close()
	world, err := openPool(ctx, name+" outside", 4)
	if err != nil {
		return err
	}
	defer world.Close()
	// Who connects now waits until we accept.
	l, err := net.Listen("unix", socket(dir, name))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Name: name, Lease: lease, Log: log, Scope: func(r *http.Request) (string, error) { return r.Header.Get("X-Caller"), nil }})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	for o, h := range operations(name, world) {
		g, err := keys.Guard(ctx, *o, h)
		if err != nil {
			return err
		}
		mux.Handle(o.Name, g)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelError)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(server.Shutdown(last), keys.Close(last))
}

func socket(dir, name string) string { return filepath.Join(dir, name+".socket") }

func openPool(ctx context.Context, name string, most int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, fmt.Errorf("reach the database: %w", err)
	}
	config.MaxConns = most
	config.ConnConfig.RuntimeParams["application_name"] = name
	return pgxpool.NewWithConfig(ctx, config)
}

// operations are unsteady: they are slow now and then, and fail, before their effect or after it.
func operations(server string, world *pgxpool.Pool) map[*ledgerhttp.Operation]http.HandlerFunc {
	const wait = 2 * time.Second // for a twin
	insert := func(w http.ResponseWriter, r *http.Request) (nonce string, ok bool) {
		nonce = rand.Text()
		dawdle()
		_, err := ledgerhttp.Tx(r.Context()).Exec(r.Context(), `/* shop: order */ INSERT INTO shop.effect (key, nonce) VALUES ($1, $2)`, keyOf(r), nonce)
		if err != nil || fails() {
			http.Error(w, fmt.Sprint("try again: ", err), http.StatusBadGateway)
			return "", false
		}
		dawdle()
		return nonce, true
	}
	return map[*ledgerhttp.Operation]http.HandlerFunc{
		{Name: order, Wait: wait}: func(w http.ResponseWriter, r *http.Request) {
			if nonce, ok := insert(w, r); ok {
				answer(w, r, server, http.StatusCreated, nonce)
			}
		},
		{Name: refuse, Wait: wait}: func(w http.ResponseWriter, r *http.Request) {
			if nonce, ok := insert(w, r); ok {
				answer(w, r, server, http.StatusPaymentRequired, nonce)
			}
		},
		{Name: charge, Wait: wait, Effect: ledger.Verifiable(0), Check: func(w http.ResponseWriter, r *http.Request) (bool, error) {
			var nonce string
			err := world.QueryRow(r.Context(), `SELECT nonce FROM shop.charge WHERE effect_key = $1`, ledgerhttp.EffectKey(r.Context())).Scan(&nonce)
			if errors.Is(err, pgx.ErrNoRows) {
				return false, nil
			}
			if err == nil {
				answer(w, r, server, http.StatusCreated, nonce)
			}
			return err == nil, err
		}}: func(w http.ResponseWriter, r *http.Request) {
			nonce := rand.Text()
			dawdle()
			if fails() {
				ledgerhttp.NotApplied(r.Context())
				http.Error(w, "try again", http.StatusBadGateway)
				return
			}
			_, err := world.Exec(r.Context(), `/* shop: charge */ INSERT INTO shop.charge (key, nonce, effect_key) VALUES ($1, $2, $3)`,
				keyOf(r), nonce, ledgerhttp.EffectKey(r.Context()))
			if dawdle(); err != nil || fails() {
				http.Error(w, fmt.Sprint("perhaps: ", err), http.StatusBadGateway)
				return
			}
			answer(w, r, server, http.StatusCreated, nonce)
		},
	}
}

func keyOf(r *http.Request) string { return r.Header.Get(ledgerhttp.Header) }

// answer has something of each kind: what is kept, what is not, and what nobody could make again.
func answer(w http.ResponseWriter, r *http.Request, server string, status int, nonce string) {
	body, _ := io.ReadAll(r.Body) // it is in memory
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Etag", `"`+nonce+`"`)
	h.Set("Location", r.URL.Path+"/"+nonce)
	h["Link"] = []string{"</" + nonce + ">; rel=self", "</shop>; rel=up"}
	h.Set("X-Server", server)
	h.Set("Set-Cookie", "session="+nonce)
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"nonce":%q,"asked":%q}`+"\n", nonce, body)
}

func fails() bool { return mathrand.IntN(50) == 0 }

func dawdle() {
	if mathrand.IntN(10) == 0 {
		time.Sleep(mathrand.N(20 * time.Millisecond)) // as work does
	}
}
