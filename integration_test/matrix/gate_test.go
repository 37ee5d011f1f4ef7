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
	calls   map[string]fault // by the SDK's id of a call, which its tries have in common
	refuses int              // so many further calls of the name are refused as well: the queue tries entries three times
	open    chan struct{}    // closed unless paused
}

func newGate(t testing.TB, tap *tap, sqs *sqsfake.Fake, queue string) *gate {
	g := &gate{tap: tap, sqs: sqs, queue: queue, calls: map[string]fault{}, open: make(chan struct{})}
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

// fault is what befalls one try of a call, and whether it is the first.
func (g *gate) fault(id, name string) (f fault, first bool) {
	if name == "" {
		return "", true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	f, again := g.calls[id]
	if again {
		return f, false
	}
	if g.refuses > 0 && name == g.hit.target.name {
		g.refuses--
		f = refused
	}
	if g.meets(name) {
		f = g.hit.fault
		if f == refused {
			g.refuses = 2
		}
		defer close(g.struck)
	}
	g.calls[id] = f
	return f, true
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // it hung up
	}
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	f, first := g.fault(r.Header.Get("Amz-Sdk-Invocation-Id"), callName(action, body))
	if first && f == cutOff {
		g.cut()
	}
	g.passable()
	switch {
	case f == lost:
		panic(http.ErrAbortHandler)
	case f == killedBefore:
		_ = syscall.Kill(<-g.pid, syscall.SIGKILL)
		panic(http.ErrAbortHandler)
	case f == slow && first:
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
	switch f {
	case reportedLost:
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
