package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// An ask is one request; several may be the same.
type ask struct{ operation, key string }

// plan draws what is sent, in order. Of four requests about one is the first of its key; the
// others follow at once, or long after.
func (o *ordeal) plan() (asks []ask, keys int) {
	random := rand.New(rand.NewPCG(o.seed, 1))
	var known []ask
	for range o.requests {
		if n := len(known); n > 0 && random.IntN(4) > 0 {
			near := min(n, o.clients/4+1)
			if random.IntN(10) == 0 {
				near = n
			}
			asks = append(asks, known[n-1-random.IntN(near)])
			continue
		}
		a := ask{order, fmt.Sprintf("key-%06d", len(known))}
		switch random.IntN(10) {
		case 0:
			a.operation = refuse
		case 1, 2:
			a.operation = charge
		}
		known = append(known, a)
		asks = append(asks, a)
	}
	return asks, len(known)
}

// A reply is what a client took for the final answer.
type reply struct {
	ask
	status   int
	header   http.Header
	body     string
	replayed bool
}

// A crowd sends everything, so many at once.
type crowd struct {
	client  *retryablehttp.Client
	retries atomic.Int64
	marks   map[int64]chan struct{} // closed when so many replies are there

	mu      sync.Mutex
	replies []reply
}

// crowd makes the clients; when so many replies are there as marks say, they tell.
func (o *ordeal) crowd(n *network, marks []int64) *crowd {
	c := &crowd{client: retryablehttp.NewClient(), marks: map[int64]chan struct{}{}}
	for _, m := range marks {
		c.marks[m] = make(chan struct{})
	}
	c.client.HTTPClient = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DialContext: n.dial, MaxIdleConnsPerHost: o.clients}}
	c.client.Logger = nil
	c.client.RetryMax = 1000
	c.client.RetryWaitMin, c.client.RetryWaitMax = 5*time.Millisecond, time.Second
	c.client.RequestLogHook = func(_ retryablehttp.Logger, _ *http.Request, attempt int) {
		if attempt > 0 {
			c.retries.Add(1)
		}
	}
	// Its own policy sends again after an error, a 429 and a 5xx. This is for the conflict that says: later.
	c.client.CheckRetry = func(ctx context.Context, resp *http.Response, err error) (bool, error) {
		if err == nil && resp.StatusCode == http.StatusConflict && resp.Header.Get("Retry-After") != "" {
			return true, nil
		}
		return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
	}
	return c
}

// send returns when everything has a reply.
func (c *crowd) send(ctx context.Context, asks []ask, clients int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.client.HTTPClient.CloseIdleConnections()
	var next atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(asks)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				got, err := c.insist(ctx, asks[i])
				if err != nil {
					cancel(fmt.Errorf("%s of %s: %w", asks[i].operation, asks[i].key, err))
					return
				}
				c.keep(got)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

func (c *crowd) keep(got reply) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies = append(c.replies, got)
	if mark := c.marks[int64(len(c.replies))]; mark != nil {
		close(mark)
	}
}

// insist sends a request again whose reply broke off: that is past what the client does itself.
func (c *crowd) insist(ctx context.Context, a ask) (reply, error) {
	method, path, _ := strings.Cut(a.operation, " ")
	for {
		r, err := retryablehttp.NewRequestWithContext(ctx, method, "http://shop"+path, strings.NewReader("the body of "+a.key))
		if err != nil {
			return reply{}, err
		}
		r.Header.Set(ledgerhttp.Header, a.key)
		r.Header.Set("X-Caller", "anna")
		resp, err := c.client.Do(r)
		if err != nil {
			return reply{}, err
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil {
			return reply{a, resp.StatusCode, kept(resp.Header), string(body), resp.Header.Get(ledgerhttp.Replayed) == "true"}, nil
		}
		if ctx.Err() != nil {
			return reply{}, context.Cause(ctx)
		}
		c.retries.Add(1)
	}
}

// kept are the headers that must be the same each time.
func kept(h http.Header) http.Header {
	these := http.Header{}
	for _, name := range ledgerhttp.KeptHeaders {
		if values := h.Values(name); len(values) > 0 {
			these[name] = values
		}
	}
	return these
}

// text is the reply in a form in which two can be compared.
func (r reply) text() string {
	header, _ := json.Marshal(r.header) // sorted
	return fmt.Sprint(r.status, " ", string(header), " ", r.body)
}
