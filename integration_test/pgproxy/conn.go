package pgproxy

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// A conn is one client's connection, and ours to the server for it.
//
// Two goroutines serve it, one in each direction. The first notes the fault of every batch
// that it forwards; the second meets them in the same order, because the server answers
// batches in order and ends each answer with ReadyForQuery.
type conn struct {
	proxy  *Proxy
	client net.Conn
	script *script // owned by the goroutine that reads the client

	once sync.Once
	done chan struct{} // closed by cut

	mu      sync.Mutex // owns what follows
	server  net.Conn
	cutting bool
	waiting []Fault // of the batches that the server has not answered yet
}

// cut closes both sides. What the client was sent before still arrives there.
func (c *conn) cut() {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.cutting = true
		close(c.done)
		c.client.Close()
		if c.server != nil {
			c.server.Close()
		}
	})
}

// connect opens the side of the server.
func (c *conn) connect() error {
	if !c.pass() {
		return net.ErrClosed
	}
	server, err := c.proxy.dial()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutting {
		server.Close()
		return net.ErrClosed
	}
	c.server = server
	return nil
}

// pass waits while the proxy is paused, and tells whether the connection is still there.
func (c *conn) pass() bool {
	select {
	case <-c.proxy.gate():
	case <-c.done:
	}
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// sleep tells whether the connection is still there after d.
func (c *conn) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.done:
		return false
	}
}

func (c *conn) serve() {
	defer c.cut()
	client := bufio.NewReaderSize(c.client, 1<<16)
	first, err := startup(client, c.client)
	if err != nil || c.connect() != nil {
		return
	}
	if _, err := c.server.Write(first); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { defer c.cut(); c.requests(client) })
	both.Go(func() { defer c.cut(); c.replies(bufio.NewReaderSize(c.server, 1<<16)) })
	both.Wait()
}

// Codes of the messages that may come first.
const (
	sslRequest = 80877103
	gssRequest = 80877104
)

// startup reads the first message that is for the server, declining to encrypt. It may
// be the cancelling of a statement on another connection: it passes like any other.
func startup(r *bufio.Reader, w io.Writer) ([]byte, error) {
	for {
		head, err := r.Peek(8)
		if err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(head)
		if n < 8 || n > 10_000 {
			return nil, fmt.Errorf("a first message of %d bytes", n)
		}
		m := make([]byte, n)
		if _, err := io.ReadFull(r, m); err != nil {
			return nil, err
		}
		switch binary.BigEndian.Uint32(m[4:]) {
		case sslRequest, gssRequest:
			if _, err := w.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		default:
			return m, nil
		}
	}
}

// readFrame reads one message after the first: a letter, a length, a body. buf is used
// when it is large enough.
func readFrame(r *bufio.Reader, buf []byte) ([]byte, error) {
	head, err := r.Peek(5)
	if err != nil {
		return buf, err
	}
	n := int(binary.BigEndian.Uint32(head[1:])) + 1
	if n < 5 || n > 1<<30 {
		return buf, fmt.Errorf("a message of %d bytes", n)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	_, err = io.ReadFull(r, buf[:n])
	return buf[:n], err
}

// requests forwards what the client sends, until the connection ends.
func (c *conn) requests(r *bufio.Reader) {
	var frame []byte
	var err error
	for {
		if frame, err = readFrame(r, frame); err != nil {
			return
		}
		whole, err := c.script.add(frame)
		if err != nil {
			slog.Error("pgproxy: connection cut", "error", err)
			return
		}
		if !whole {
			switch frame[0] {
			case 'P', 'B', 'D', 'E', 'C': // wait for the end of the batch
				continue
			}
			// A password, data of a COPY, a Flush, the end: no batch, or not one yet.
			if !c.pass() || !c.write(c.script.raw) {
				return
			}
			c.script.raw = c.script.raw[:0]
			for i := range c.script.ends {
				c.script.ends[i] = 0
			}
			continue
		}
		fault := c.proxy.fault(c.script.batch)
		switch fault.kind {
		case lost:
			return
		case killBefore:
			kill(fault.pid)
			return
		case torn:
			if c.pass() {
				c.write(c.script.part(fault.part))
			}
			return
		case slow:
			if !c.sleep(fault.delay) {
				return
			}
		case stepwise:
			if !c.step(fault) {
				return
			}
			c.script.next()
			continue
		}
		c.mu.Lock()
		c.waiting = append(c.waiting, fault)
		c.mu.Unlock()
		if !c.pass() || !c.write(c.script.raw) {
			return
		}
		c.script.next()
	}
}

func (c *conn) write(b []byte) bool {
	_, err := c.server.Write(b)
	return err == nil
}

// head is the fault of the batch that the server answers now.
func (c *conn) head() Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) == 0 {
		return Pass
	}
	return c.waiting[0]
}

func (c *conn) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.waiting) > 0 { // else it is the end of the startup
		c.waiting = c.waiting[1:]
	}
}

// replies delivers what the server sends, until the connection ends.
func (c *conn) replies(r *bufio.Reader) {
	w := bufio.NewWriterSize(c.client, 1<<16)
	var frame, held []byte
	var err error
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		if frame, err = readFrame(r, frame); err != nil {
			w.Flush()
			return
		}
		if !c.pass() {
			return
		}
		fault := c.head()
		if fault.steps != nil {
			fault.steps.answer(frame)
		}
		ready := frame[0] == 'Z'
		if ready {
			c.answered()
		}
		if !fault.afterReply() {
			if _, err := w.Write(frame); err != nil {
				return
			}
			continue
		}
		held = append(held, frame...)
		if !ready {
			continue
		}
		switch fault.kind {
		case reportedLost:
			w.Flush()
			return
		case killAfter:
			kill(fault.pid)
			return
		case slowReply:
			if w.Flush() != nil || !c.sleep(fault.delay) || !c.pass() {
				return
			}
			if _, err := w.Write(held); err != nil {
				return
			}
			held = held[:0]
		}
	}
}

func kill(pid int) {
	if pid <= 1 { // would be a group of processes, ours perhaps
		slog.Error("pgproxy: no process to kill; the connection is cut instead", "pid", pid)
		return
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		slog.Error("pgproxy: process not killed", "pid", pid, "error", err)
	}
}
