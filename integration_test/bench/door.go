package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

const (
	doorClients = 16   // requests at once, each with a connection to the database
	doorWarmUp  = 2000 // requests before the clock starts
)

// timeRequests measures what a request takes that inserts a row and is answered with its number,
// over HTTP on this machine, client and server in this one process: behind the middleware, as the
// same handler in a transaction of its own, or as that with its keys kept by hand.
func timeRequests(ctx context.Context, o *options, db string, pool *pgxpool.Pool, m measurement, n int) (_ sample, err error) {
	if _, err := pool.Exec(ctx, `CREATE TABLE bench_order (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item text NOT NULL)`); err != nil {
		return sample{}, fmt.Errorf("make the table of the orders: %w", err)
	}
	config := pool.Config()
	config.MaxConns = doorClients
	conns, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return sample{}, fmt.Errorf("open a pool: %w", err)
	}
	defer conns.Close()
	handler := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := pgx.BeginFunc(r.Context(), conns, func(tx pgx.Tx) error { return order(w, r, tx) }); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}))
	switch m.kind {
	case doorByHand:
		if _, err := pool.Exec(ctx, createKeys); err != nil {
			return sample{}, fmt.Errorf("make the table of the keys: %w", err)
		}
		handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { byHand(w, r, conns) })
	case doorGuarded:
		keys, err := ledgerhttp.New(conns, ledgerhttp.Config{Scope: func(*http.Request) (string, error) { return "customer 17", nil }})
		if err != nil {
			return sample{}, err
		}
		defer func() { err = errors.Join(err, keys.Close(context.WithoutCancel(ctx))) }()
		handler, err = keys.Guard(ctx, ledgerhttp.Operation{Name: "POST /orders"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := order(w, r, ledgerhttp.Tx(r.Context())); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		}))
		if err != nil {
			return sample{}, err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return sample{}, fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: handler}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { err = errors.Join(err, server.Close()); <-served }()

	url := "http://" + listener.Addr().String() + "/orders"
	if err := knock(ctx, url, doorWarmUp); err != nil {
		return sample{}, err
	}
	if o.profiles != "" {
		f, err := os.Create(filepath.Join(o.profiles, fmt.Sprintf("%s-%s.pprof", m.kind, db)))
		if err != nil {
			return sample{}, fmt.Errorf("write a profile: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return sample{}, fmt.Errorf("write a profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	start := time.Now()
	if err := knock(ctx, url, n); err != nil {
		return sample{}, err
	}
	took := time.Since(start)

	counts := []string{`SELECT count(*) FROM bench_order`}
	switch m.kind {
	case doorByHand:
		counts = append(counts, `SELECT count(*) FROM bench_key WHERE status = 201`)
	case doorGuarded:
		counts = append(counts, `SELECT count(*) FROM oncemore.ledger`, `SELECT count(*) FROM oncemore.response`)
	}
	for _, query := range counts {
		if err := expect(ctx, pool, query, doorWarmUp+n); err != nil {
			return sample{}, fmt.Errorf("%s: %w", query, err)
		}
	}
	return sample{took: took * doorClients / time.Duration(n)}, nil
}

// order inserts what is ordered, and answers with its number.
func order(w http.ResponseWriter, r *http.Request, tx pgx.Tx) error {
	item, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	var id int64
	if err := tx.QueryRow(r.Context(), `INSERT INTO bench_order (item) VALUES ($1) RETURNING id`, string(item)).Scan(&id); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", "/orders/"+strconv.FormatInt(id, 10))
	w.WriteHeader(http.StatusCreated)
	_, err = fmt.Fprintf(w, `{"id":%d,"item":%q}`+"\n", id, item)
	return err
}

const createKeys = `
CREATE TABLE bench_key (
    key text PRIMARY KEY, created_at timestamptz NOT NULL DEFAULT now(), digest bytea NOT NULL,
    status int, headers jsonb, body bytea
)`

// byHand is order with its keys kept by hand, as it is mostly written: the key first, so that a twin
// waits for it, and the answer at the end, in one transaction.
func byHand(w http.ResponseWriter, r *http.Request, conns *pgxpool.Pool) {
	ctx := r.Context()
	item, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	digest := sha256.Sum256(item)
	key := r.Header.Get("Idempotency-Key")
	answer := httptest.NewRecorder()
	err = pgx.BeginFunc(ctx, conns, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `INSERT INTO bench_key (key, digest) VALUES ($1, $2) ON CONFLICT DO NOTHING`, key, digest[:])
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 0 {
			return errors.New("the key is there: here the stored answer would be read")
		}
		r.Body = io.NopCloser(bytes.NewReader(item))
		if err := order(answer, r, tx); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE bench_key SET status = $2, headers = $3, body = $4 WHERE key = $1`, key, answer.Code, answer.Header(), answer.Body.Bytes())
		return err
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()) // the client says what it got
}

// knock sends n requests, doorClients at a time, each with a key of its own, drawn at random as
// clients are told to: so neighbours in time are none in the index.
func knock(ctx context.Context, url string, n int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: doorClients}}
	defer client.CloseIdleConnections()
	var next atomic.Int64
	var clients sync.WaitGroup
	for range doorClients {
		clients.Go(func() {
			for i := next.Add(1); i <= int64(n) && ctx.Err() == nil; i = next.Add(1) {
				if err := knockOnce(ctx, client, url, rand.Text()); err != nil {
					cancel(err)
				}
			}
		})
	}
	clients.Wait()
	return context.Cause(ctx)
}

func knockOnce(ctx context.Context, client *http.Client, url, key string) error {
	r, err := http.NewRequestWithContext(ctx, "POST", url, bytes.NewReader([]byte("a pound of tea")))
	if err != nil {
		return err
	}
	r.Header.Set("Idempotency-Key", key)
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusCreated {
		err = fmt.Errorf("answered %d: %s", resp.StatusCode, body)
	}
	return err
}
