package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/rpc"
	"os"
	"sync"
	"time"
)

// An Effect is what somebody did to the world outside the database: one line of the
// provider's log.
type Effect struct {
	Kind    string `json:"kind,omitempty"` // empty: an effect; or began, refused: what the body of a Once said about itself
	Type    string `json:"type"`
	ID      int64  `json:"id"`
	Epoch   int64  `json:"epoch,omitempty"`
	Key     string `json:"key,omitempty"`
	Version int64  `json:"version,omitempty"` // of the source, as it was when the body read it
	Attempt int    `json:"attempt"`
	Pid     int    `json:"pid"`
	Began   int64  `json:"began"` // when the body began, in Unix nanoseconds
	At      int64  `json:"at"`    // when the provider accepted it
}

// An Entity is what an effect was done to.
type Entity struct {
	Type string
	ID   int64
}

// A provider is the world outside: it accepts effects over a socket, appends each to a
// file with one write, and only then says so. What it has accepted nobody takes back,
// whoever dies.
type provider struct {
	socket, file string
	listener     net.Listener

	mu       sync.Mutex
	log      *os.File
	accepted map[string]struct{} // effect keys of what done-checks may ask for
	source   map[Entity]int64    // the newest version of each source
	tried    map[Entity]int      // attempts on what makes trouble
	rand     *rand.Rand
	effects  int64
	healthy  bool // it answers every question
}

var errAway = errors.New("the provider cannot tell just now")

func newProvider(socket, file string, seed uint64) (*provider, error) {
	p := &provider{socket: socket, file: file, accepted: map[string]struct{}{}, source: map[Entity]int64{}, tried: map[Entity]int{}, rand: rand.New(rand.NewPCG(seed, 1))}
	var err error
	if p.log, err = os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
		return nil, fmt.Errorf("open the effect log: %w", err)
	}
	if p.listener, err = net.Listen("unix", socket); err != nil {
		return nil, fmt.Errorf("listen for effects: %w", err)
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Provider", &providerAPI{p}); err != nil {
		return nil, fmt.Errorf("serve the provider: %w", err)
	}
	go p.serve(server)
	return p, nil
}

// serve serves every client until the listener is closed.
func (p *provider) serve(server *rpc.Server) {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		go server.ServeConn(conn)
	}
}

// close ends it; what was accepted is in the file.
func (p *provider) close() error { return errors.Join(p.listener.Close(), p.log.Close()) }

func (p *provider) do(e Effect) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e.At = time.Now().UnixNano()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := p.log.Write(append(line, '\n')); err != nil {
		return err
	}
	if e.Kind == "" {
		p.effects++
		if t := typeNamed(e.Type); t != nil && t.class == verifiable {
			p.accepted[e.Key] = struct{}{}
		}
	}
	return nil
}

// has tells whether an effect was accepted under key. Now and then it cannot tell.
func (p *provider) has(key string) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.healthy && p.rand.IntN(100) == 0 {
		return false, errAway
	}
	_, ok := p.accepted[key]
	return ok, nil
}

// raise gives a source its next version.
func (p *provider) raise(e Entity) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.source[e]++
	return p.source[e]
}

func (p *provider) version(e Entity) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.source[e]
}

// try counts an attempt.
func (p *provider) try(e Entity) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tried[e]++
	return p.tried[e]
}

// heal ends its moods.
func (p *provider) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.healthy = true
}

// providerAPI is what its clients may call.
type providerAPI struct{ p *provider }

func (a *providerAPI) Do(e Effect, _ *struct{}) error { return a.p.do(e) }

func (a *providerAPI) Has(key string, has *bool) (err error) {
	*has, err = a.p.has(key)
	return err
}

func (a *providerAPI) Version(e Entity, v *int64) error {
	*v = a.p.version(e)
	return nil
}

func (a *providerAPI) Try(e Entity, n *int) error {
	*n = a.p.try(e)
	return nil
}

// readEffects reads the log back.
func readEffects(file string) ([]Effect, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the effect log: %w", err)
	}
	defer f.Close()
	var out []Effect
	d := json.NewDecoder(bufio.NewReaderSize(f, 1<<20))
	for {
		var e Effect
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the effect log: line %d: %w", len(out)+1, err)
		}
		out = append(out, e)
	}
}
