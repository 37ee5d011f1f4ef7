// Package sqspeer gives tests an SQS server that somebody else wrote: the one of
// [sqslocal]. Where TEST_SQS_ENDPOINT names a running server, that is it, and all tests
// share it.
package sqspeer

import (
	"os"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/sqslocal"
)

// A Peer is a running server.
type Peer struct{ *sqslocal.Server }

// Start starts a server that ends with the test, unless TEST_SQS_ENDPOINT names one. Where
// there is no Node.js the test is skipped; TEST_REQUIRE=1 makes that a failure.
func Start(t testing.TB) *Peer {
	t.Helper()
	if endpoint := os.Getenv("TEST_SQS_ENDPOINT"); endpoint != "" {
		return &Peer{&sqslocal.Server{Endpoint: endpoint}}
	}
	s, err := sqslocal.Start(t.Context(), t.Output())
	switch {
	case err == nil:
		t.Cleanup(s.Stop)
		return &Peer{s}
	case os.Getenv("TEST_REQUIRE") == "1":
		t.Fatalf("no SQS peer, and TEST_REQUIRE=1: %v", err)
	}
	t.Skipf("no SQS peer: %v", err)
	return nil
}

// CreateQueue makes a queue with such attributes and returns its URL.
func (p *Peer) CreateQueue(t testing.TB, name string, attributes map[string]string) (url string) {
	t.Helper()
	url, err := p.Create(t.Context(), name, attributes)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// Setenv has the AWS SDK of this test, and of its child processes, talk to the peer alone.
func (p *Peer) Setenv(t testing.TB) {
	for _, pair := range p.Environment() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
}
