package pgproxy

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A Proxy is one address through which clients reach the server. It is safe for
// concurrent use.
type Proxy struct {
	upstream *pgconn.Config
	listener net.Listener
	decide   atomic.Pointer[func(*Batch) Fault]

	running sync.WaitGroup // the accepting goroutine, and those of connections

	mu     sync.Mutex // owns what follows
	conns  map[*conn]bool
	number int
	closed bool
	open   chan struct{} // closed unless paused
}

// Start begins to listen for clients of the server that the DSN upstream names. It does
// not connect to it by itself.
func Start(upstream string) (*Proxy, error) {
	config, err := pgconn.ParseConfig(upstream)
	if err != nil {
		return nil, fmt.Errorf("start a proxy: %w", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a proxy: %w", err)
	}
	p := &Proxy{upstream: config, listener: listener, conns: map[*conn]bool{}, open: make(chan struct{})}
	close(p.open)
	p.running.Go(p.accept)
	return p, nil
}

// DSN is the address for clients: the same user, database and settings, through the proxy.
func (p *Proxy) DSN() string {
	u := url.URL{Scheme: "postgres", Host: p.listener.Addr().String(), Path: "/" + p.upstream.Database, User: url.User(p.upstream.User)}
	if p.upstream.Password != "" {
		u.User = url.UserPassword(p.upstream.User, p.upstream.Password)
	}
	q := url.Values{"sslmode": {"disable"}}
	for name, value := range p.upstream.RuntimeParams {
		q.Set(name, value)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// Decide sets the function that is asked about every batch from now on; nil lets all of
// them pass. It is called on the goroutine of the connection, for several at a time, and
// may block: the batch waits meanwhile.
func (p *Proxy) Decide(f func(*Batch) Fault) {
	if f == nil {
		p.decide.Store(nil)
		return
	}
	p.decide.Store(&f)
}

// CutAll closes every connection, whatever is under way on it, and returns how many. New
// ones may come.
func (p *Proxy) CutAll() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.cut()
	}
	return len(p.conns)
}

// Pause stops forwarding in both directions, on open and on new connections, without
// closing any: what a network does that drops packets.
func (p *Proxy) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
		p.open = make(chan struct{})
	default:
	}
}

// Resume ends a pause. What was sent meanwhile arrives now.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.open:
	default:
		close(p.open)
	}
}

// Close stops listening, cuts all connections, and returns when nothing of it runs.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.listener.Close()
	p.CutAll()
	p.running.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			client.Close()
			return
		}
		p.number++
		c := &conn{proxy: p, client: client, script: newScript(p.number), done: make(chan struct{})}
		p.conns[c] = true
		p.mu.Unlock()
		p.running.Go(func() {
			c.serve()
			p.mu.Lock()
			delete(p.conns, c)
			p.mu.Unlock()
		})
	}
}

// gate is closed when bytes may pass.
func (p *Proxy) gate() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

func (p *Proxy) fault(b *Batch) Fault {
	if f := p.decide.Load(); f != nil {
		return (*f)(b)
	}
	return Pass
}

func (p *Proxy) dial() (net.Conn, error) {
	network, address := pgconn.NetworkAddress(p.upstream.Host, p.upstream.Port)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return (&net.Dialer{}).DialContext(ctx, network, address)
}
