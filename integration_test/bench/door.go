package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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
// over HTTP on this machine, client and server in this one process: behind the middleware, or
// as the same handler in a transaction of its own.
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
	if m.kind == doorGuarded {
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
	if m.kind == doorGuarded {
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
