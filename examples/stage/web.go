package stage

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// Serve answers requests on this machine until stop is called, which waits for those that are
// being answered.
func Serve(h http.Handler) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("serve: %w", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l)
	}()
	return "http://" + l.Addr().String(), func() {
		_ = server.Close()
		<-ended
	}, nil
}

// ErrLost is how a request ends whose answer did not arrive.
var ErrLost = errors.New("the answer was lost")

// A LossyNetwork carries requests, and loses some of the answers: what was asked for is done
// then, and the client does not know.
type LossyNetwork struct {
	Lose func(n int64) bool // tells whether the answer to the n-th request is lost, from 1 on

	Sent, Lost atomic.Int64
}

// RoundTrip makes it an [net/http.RoundTripper].
func (n *LossyNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	lose := n.Lose(n.Sent.Add(1))
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil || !lose {
		return resp, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	n.Lost.Add(1)
	return nil, ErrLost
}
