package matrix_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// A gate is the way of one process to SQS, as its proxy is to the database. It names the
// calls that change something there and strikes at one of them, at all of its tries: the
// SDK makes three of a call that fails, and else would hide what befell the first.
type gate struct {
	*tap
	sqs    *sqsfake.Fake
	queue  string
	server *httptest.Server

	mu      sync.Mutex
	calls   map[string]asked // by the SDK's id of a call, which its tries have in common
	refuses int              // so many further calls of the name are refused as well: the queue tries entries three times
	doubles bool             // the receives, until one brings something: nothing cannot be handed out twice
	open    chan struct{}    // closed unless paused
}

func newGate(t testing.TB, tap *tap, sqs *sqsfake.Fake, queue string) *gate {
	g := &gate{tap: tap, sqs: sqs, queue: queue, calls: map[string]asked{}, open: make(chan struct{})}
	close(g.open)
	g.server = httptest.NewServer(g)
	t.Cleanup(func() {
		g.server.CloseClientConnections()
		g.server.Close()
	})
	return g
}

// address is the queue's, by this way.
func (g *gate) address() string { return g.server.URL + "/000000000000/" + g.queue }

// pause lets nothing through for some time, in either direction.
func (g *gate) pause(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	open := make(chan struct{})
	g.open = open
	time.AfterFunc(d, func() { close(open) })
}

func (g *gate) passable() {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	<-open
}

// callName is what the matrix calls a call; empty: it changes nothing. An extension says
// the visibility timeout, which no release does.
func callName(action string, body []byte) string {
	switch action {
	case "SendMessageBatch":
		return "sqs: send"
	case "ReceiveMessage":
		return "sqs: receive"
	case "DeleteMessageBatch":
		return "sqs: delete"
	case "ChangeMessageVisibilityBatch":
		var in struct {
			Entries []struct{ VisibilityTimeout int }
		}
		if json.Unmarshal(body, &in) == nil && len(in.Entries) > 0 && in.Entries[0].VisibilityTimeout == int(visibility/time.Second) {
			return "sqs: extend"
		}
		return "sqs: release"
	}
	return ""
}

// What was asked is one of the writes of the tap, and what befalls it.
type asked struct {
	name  string
	fault fault
	which int
}

// call is the call of one of its tries, and whether that is the first.
func (g *gate) call(id, name string) (c asked, first bool) {
	if name == "" {
		return asked{}, true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c, again := g.calls[id]
	if again {
		return c, false
	}
	c.name = name
	if g.refuses > 0 && name == g.hit.target.name {
		g.refuses--
		c.fault = refused
	}
	which, is := g.meets(name)
	c.which = which
	if is {
		c.fault = g.hit.fault
		if c.fault == refused {
			g.refuses = 2
		}
		g.doubles = c.fault == twice
		g.begins(0, name)
	}
	if g.doubles && name == g.hit.target.name {
		c.fault = twice
	}
	if c.fault == "" {
		c.fault = g.first(name)
	}
	g.calls[id] = c
	return c, true
}

// befell notes that a fault has befallen the call. Whether a process was killed is known when
// it has ended.
func (g *gate) befell(c asked) {
	if c.fault != "" && !c.fault.kills() {
		g.strikesAt(c.name, c.fault)
	}
}

// answered looks into the answer to a call.
func (g *gate) answered(c asked, body []byte) {
	var out struct{ Messages, Failed []json.RawMessage }
	_ = json.Unmarshal(body, &out) // an error has neither
	if len(out.Messages) > 0 {
		g.brought(c.which)
	}
	if c.fault == twice && len(out.Messages) > 0 {
		g.mu.Lock()
		g.doubles = false
		g.mu.Unlock()
	}
	if c.fault == twice && len(out.Messages) > 0 || c.fault == refused && len(out.Failed) > 0 {
		g.befell(c)
	}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // it hung up
	}
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	c, first := g.call(r.Header.Get("Amz-Sdk-Invocation-Id"), callName(action, body))
	f := c.fault
	if first && f == cutOff {
		g.cut()
		g.befell(c)
	}
	g.passable()
	switch {
	case f == lost:
		g.befell(c)
		panic(http.ErrAbortHandler)
	case f == killedBefore:
		_ = syscall.Kill(<-g.pid, syscall.SIGKILL)
		panic(http.ErrAbortHandler)
	case f == slow && first:
		g.befell(c)
		time.Sleep(slowness)
	case f == twice:
		g.sqs.SetFaults(sqsfake.Faults{Duplicates: 1})
		defer g.sqs.SetFaults(sqsfake.Faults{})
	case f == refused:
		g.sqs.SetFaults(sqsfake.Faults{PartialFailures: 1})
		defer g.sqs.SetFaults(sqsfake.Faults{})
	}
	answer := httptest.NewRecorder()
	again := r.Clone(r.Context())
	again.Body = io.NopCloser(bytes.NewReader(body))
	g.sqs.ServeHTTP(answer, again)
	g.passable()
	g.answered(c, answer.Body.Bytes())
	switch f {
	case reportedLost:
		g.befell(c)
		panic(http.ErrAbortHandler)
	case killedAfter:
		_ = syscall.Kill(<-g.pid, syscall.SIGKILL)
		panic(http.ErrAbortHandler)
	}
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}
