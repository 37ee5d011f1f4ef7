package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// A client wants an order to move on. It loses answers, is impatient, and sends everything
// twice.
type client struct {
	name string
	urls func() []string // of the servers that are there
	net  stage.LossyNetwork

	tries     atomic.Int64 // requests that brought no answer
	replayed  atomic.Int64 // answers that were those of an earlier request
	applied   atomic.Int64 // wishes of which the answer says that this request fulfilled them
	before    atomic.Int64 // and those that somebody else had fulfilled
	conflicts atomic.Int64
}

func newClient(name string, urls func() []string) *client {
	c := &client{name: name, urls: urls}
	c.net.Lose = func(n int64) bool { return n%5 == 0 }
	return c
}

// move has the order moved on, from the version that was seen. After a conflict it looks again,
// and decides anew: under a new key, since that is another wish.
func (c *client) move(ctx context.Context, order, verb, from string, seen Order) error {
	for {
		status, body, err := c.twice(ctx, "/orders/"+order+"/"+verb, rand.Text(), seen)
		switch {
		case err != nil:
			return err
		case status == http.StatusOK:
			var m Moved
			if err := json.Unmarshal(body, &m); err != nil {
				return err
			}
			if m.Applied {
				c.applied.Add(1)
			} else {
				c.before.Add(1)
			}
			return nil
		case status != http.StatusConflict:
			return fmt.Errorf("%s order %s: status %d: %s", verb, order, status, body)
		}
		c.conflicts.Add(1)
		if err := json.Unmarshal(body, &seen); err != nil {
			return err
		}
		if seen.State != from {
			return nil // somebody else has moved it on, and further
		}
	}
}

// twice sends one wish twice at the same time, under its one key, and sees that the answers
// are the same.
func (c *client) twice(ctx context.Context, path, key string, body any) (status int, answer []byte, err error) {
	var (
		both     sync.WaitGroup
		statuses [2]int
		answers  [2][]byte
		errs     [2]error
	)
	for i := range 2 {
		both.Go(func() { statuses[i], answers[i], errs[i] = c.send(ctx, http.MethodPost, path, key, body) })
	}
	both.Wait()
	switch {
	case errs[0] != nil || errs[1] != nil:
		return 0, nil, fmt.Errorf("%s: %w", path, firstOf(errs[:]))
	case statuses[0] != statuses[1] || !bytes.Equal(answers[0], answers[1]):
		return 0, nil, fmt.Errorf("%s under one key: %d %s, and %d %s", path, statuses[0], answers[0], statuses[1], answers[1])
	}
	return statuses[0], answers[0], nil
}

func firstOf(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// send sends a request until there is an answer to keep, every time under the same key.
func (c *client) send(ctx context.Context, method, path, key string, body any) (status int, answer []byte, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	for try := 0; ctx.Err() == nil; try++ {
		urls := c.urls()
		status, answer, err = c.once(ctx, method, urls[try%len(urls)]+path, key, raw)
		if err == nil {
			return status, answer, nil
		}
		c.tries.Add(1)
		select { // nobody knows whether it was done: once more
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return 0, nil, fmt.Errorf("%s %s: %w; the last try ended with: %w", method, path, context.Cause(ctx), err)
}

// once sends it once. That it is being worked on, or failed in the server, is no answer.
func (c *client) once(ctx context.Context, method, url, key string, body []byte) (status int, answer []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Client", c.name)
	if key != "" {
		r.Header.Set(ledgerhttp.Header, key)
	}
	impatient := http.Client{Transport: &c.net, Timeout: 3 * time.Second}
	resp, err := impatient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil, err
	}
	if resp.StatusCode >= 500 || resp.Header.Get("Retry-After") != "" {
		return 0, nil, fmt.Errorf("status %d: %s", resp.StatusCode, answer)
	}
	if resp.Header.Get(ledgerhttp.Replayed) == "true" {
		c.replayed.Add(1)
	}
	return resp.StatusCode, answer, nil
}

// get is a GET into what has the form of its answer.
func (c *client) get(ctx context.Context, path string, into any) error {
	status, body, err := c.send(ctx, http.MethodGet, path, "", nil)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("GET %s: status %d: %s", path, status, body)
	}
	return json.Unmarshal(body, into)
}
