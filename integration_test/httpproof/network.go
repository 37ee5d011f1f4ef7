package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
)

// A network leads to whatever servers there are, and its connections break.
type network struct {
	dir    string
	breaks float64 // the probability, for each read and each write
	broken atomic.Int64

	mu      sync.Mutex
	servers []string // their names
}

func (n *network) add(server string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers = append(n.servers, server)
}

func (n *network) remove(server string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, s := range n.servers {
		if s == server {
			n.servers = append(n.servers[:i:i], n.servers[i+1:]...)
			return
		}
	}
}

// dial connects to any of them.
func (n *network) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	servers := n.servers
	n.mu.Unlock()
	if len(servers) == 0 {
		return nil, errors.New("there is no server")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket(n.dir, servers[rand.IntN(len(servers))]))
	if err != nil {
		return nil, err
	}
	return &frail{c, n}, nil
}

// A frail connection breaks when it has sent a half, or when something has arrived.
type frail struct {
	net.Conn
	network *network
}

var errBroken = errors.New("the connection broke")

func (f *frail) Write(p []byte) (int, error) {
	if rand.Float64() >= f.network.breaks {
		return f.Conn.Write(p)
	}
	n, _ := f.Conn.Write(p[:rand.IntN(len(p)+1)]) // all of it, perhaps: and then nobody hears the answer
	return n, f.end()
}

func (f *frail) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if err == nil && rand.Float64() < f.network.breaks {
		return 0, f.end()
	}
	return n, err
}

func (f *frail) end() error {
	f.network.broken.Add(1)
	_ = f.Close()
	return errBroken
}
