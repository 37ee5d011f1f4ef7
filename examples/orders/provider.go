package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
)

// A provider takes payments, and knows repeats by their key, as Stripe and others do. It is
// outside of the shop, and of its database.
type provider struct {
	mu      sync.Mutex // owns what follows
	asked   int64
	lost    int64
	charges map[string]Receipt // by key
	orders  map[string]int64   // how often each was charged
}

func newProvider() *provider {
	return &provider{charges: map[string]Receipt{}, orders: map[string]int64{}}
}

// ServeHTTP charges an order, and loses each fifth answer.
func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var order string
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	key := r.Header.Get("Idempotency-Key")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	receipt, repeated := p.charges[key]
	if !repeated {
		receipt = Receipt{fmt.Sprintf("ch_%d", len(p.charges)+1)}
		p.charges[key] = receipt
		p.orders[order]++
	}
	if p.asked%5 == 0 {
		p.lost++
		panic(http.ErrAbortHandler) // the money has moved, and nobody is told
	}
	answer(w, http.StatusOK, receipt)
}

// pay asks a provider for a charge.
func pay(ctx context.Context, url, key, order string) (receipt Receipt, err error) {
	body, err := json.Marshal(order)
	if err != nil {
		return receipt, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return receipt, err
	}
	r.Header.Set("Idempotency-Key", key)
	resp, err := paying.Do(r)
	if err != nil {
		return receipt, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return receipt, fmt.Errorf("the provider answers %s", resp.Status)
	}
	return receipt, json.NewDecoder(resp.Body).Decode(&receipt)
}

// paying tries nothing again by itself, as net/http does on connections that it has used
// before: who tries again is the worker.
var paying = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
