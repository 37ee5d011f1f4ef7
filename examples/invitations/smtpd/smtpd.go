// Package smtpd is the outside world of the invitations example: a mail server
// that one can break on purpose.
//
// It speaks real SMTP and keeps every message that it accepted, in the order of
// arrival, in a file that survives it. What is stored first is the rule here: a
// message is in the file before its 250 is on the wire, so whoever was answered
// 250 finds the message, and whoever was answered nothing has to ask. That second
// case is what the example is about, and [Drop], [Lose], [Hang] and [Late] bring it about.
//
// The server does not save anybody from duplicates: it puts a message that it
// has seen before into the mailbox again, and counts that. [Options.Dedupe] makes
// it the kinder server that recognises a Message-ID.
package smtpd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"
)

// A Mode is what the server does with messages.
type Mode string

const (
	OK   Mode = "ok"   // accept
	Fail Mode = "fail" // answer with an error and store nothing
	Hang Mode = "hang" // take the whole message and say nothing until the client gives up; store nothing
	Late Mode = "late" // as Hang, but the message is stored once the client gave up
	Drop Mode = "drop" // store the message, then cut the connection instead of answering 250
	Lose Mode = "lose" // take the whole message, then cut the connection; store nothing
	Down Mode = "down" // no listener and no connections, as if the process were gone
)

// A Stage is the command that [Fail] answers with an error.
type Stage string

const (
	AtEHLO Stage = "ehlo"
	AtMail Stage = "mail"
	AtRcpt Stage = "rcpt"
	AtData Stage = "data" // the end of the content: the last moment at which a server can say no
)

// A Behaviour is what a server is told to do. The zero value accepts everything at once.
type Behaviour struct {
	Mode  Mode          `json:"mode"`            // empty: OK
	N     int           `json:"n,omitempty"`     // for so many messages (commands, where At is not AtData), then OK again; 0: until told otherwise
	Code  int           `json:"code,omitempty"`  // of Fail, 400 to 599; 0: 451
	At    Stage         `json:"at,omitempty"`    // of Fail; empty: AtData
	Delay time.Duration `json:"delay,omitempty"` // waited after a message was stored or refused, before the client hears of it
	Blind bool          `json:"blind,omitempty"` // the question whether a message arrived is answered 503: nobody can tell
}

func (b *Behaviour) check() error {
	switch b.Mode {
	case "":
		b.Mode = OK
	case OK, Fail, Hang, Late, Drop, Lose, Down:
	default:
		return fmt.Errorf("unknown mode %q", b.Mode)
	}
	switch b.At {
	case "":
		b.At = AtData
	case AtEHLO, AtMail, AtRcpt, AtData:
	default:
		return fmt.Errorf("unknown stage %q", b.At)
	}
	if b.Code == 0 {
		b.Code = 451
	}
	if b.Code < 400 || b.Code > 599 {
		return fmt.Errorf("code %d is no SMTP error, those are 400 to 599", b.Code)
	}
	if b.N < 0 || b.Delay < 0 {
		return errors.New("n and delay cannot be negative")
	}
	return nil
}

// Options of a server. The zero value keeps messages in memory.
type Options struct {
	File    string // where accepted messages are appended, one JSON object a line; empty: in memory only
	Control string // address of the HTTP control port, which must be a loopback address; empty: 127.0.0.1:0
	Dedupe  bool   // accept a repeated Message-ID, but do not put it into the mailbox again
}

// A Server is a running mail server.
type Server struct {
	addr, control string
	dedupe        bool
	smtp          *smtp.Server
	http          *http.Server
	serving       sync.WaitGroup

	mu        sync.Mutex // guards all below; held while a message is stored, so that Down is a clean cut
	behaviour Behaviour
	box       *mailbox
	listener  *listener // nil: down
	closed    bool
}

// Start serves SMTP on addr ("127.0.0.1:0" chooses a port) and the control port
// beside it. It returns when both can be connected to. An existing file is read
// first, so that a restarted server knows what it had accepted.
func Start(addr string, o Options) (*Server, error) {
	box, err := openMailbox(o.File)
	if err != nil {
		return nil, fmt.Errorf("open mailbox: %w", err)
	}
	s := &Server{addr: addr, dedupe: o.Dedupe, box: box, behaviour: Behaviour{Mode: OK}}
	s.smtp = smtp.NewServer(smtp.BackendFunc(s.session))
	s.smtp.Domain = "mail.example.com"
	s.smtp.MaxMessageBytes = 1 << 20
	s.smtp.MaxRecipients = 100
	s.smtp.ReadTimeout = time.Minute
	s.smtp.WriteTimeout = 10 * time.Second
	s.smtp.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // cut connections are what this server is for
	if err := s.open(); err != nil {
		return nil, errors.Join(err, box.close())
	}
	s.addr = s.listener.Addr().String() // the port that was chosen is kept from now on
	if err := s.serveControl(o.Control); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Addr is the host and port of SMTP. It stays the same while the server is down.
func (s *Server) Addr() string { return s.addr }

// ControlURL is where the server is told what to do and asked what arrived.
func (s *Server) ControlURL() string { return s.control }

// Set changes what the server does from now on. When it returns from [Down] every
// connection is cut and nothing more is stored; coming back opens the same port, which
// may take a moment when something else has taken it meanwhile.
func (s *Server) Set(b Behaviour) error {
	if err := b.check(); err != nil {
		return fmt.Errorf("set behaviour: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("set behaviour: the server is closed")
	}
	if b.Mode == Down {
		s.shut()
	} else if err := s.open(); err != nil {
		return fmt.Errorf("set behaviour: %w", err)
	}
	s.behaviour = b
	return nil
}

// Close cuts all connections and closes the mailbox. The file stays.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.shut()
	err := s.box.close()
	s.mu.Unlock()
	if s.http != nil {
		err = errors.Join(err, s.http.Close())
	}
	s.serving.Wait()
	return err
}

// open listens, if the server does not. The caller holds mu, or is Start.
func (s *Server) open() error {
	if s.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", s.addr)
	// While the server was down, an outgoing connection may have got the port for a moment.
	for patience := time.Now().Add(3 * time.Second); errors.Is(err, syscall.EADDRINUSE) && time.Now().Before(patience); {
		time.Sleep(20 * time.Millisecond)
		l, err = net.Listen("tcp", s.addr)
	}
	if err != nil {
		return fmt.Errorf("listen for SMTP: %w", err)
	}
	s.listener = &listener{Listener: l, conns: map[*conn]struct{}{}, done: make(chan struct{})}
	serve := s.listener
	s.serving.Go(func() { _ = s.smtp.Serve(serve) }) // ends with the listener
	return nil
}

// shut cuts everything. The caller holds mu.
func (s *Server) shut() {
	if s.listener != nil {
		s.listener.shut()
		s.listener = nil
	}
}

// next is the behaviour that a session at this stage has to show, and counts it off.
func (s *Server) next(at Stage) Behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.behaviour
	plain := Behaviour{Mode: OK, Delay: b.Delay, Blind: b.Blind}
	if b.Mode == OK || b.Mode == Down {
		return plain
	}
	stage := AtData
	if b.Mode == Fail {
		stage = b.At
	}
	if at != stage {
		return plain
	}
	if b.N > 0 {
		if s.behaviour.N--; s.behaviour.N == 0 {
			s.behaviour = plain
		}
	}
	return b
}

// listener knows its connections, so that it can cut them all. (Not smtp.Server.Close:
// it misses a connection that is just being accepted, it cannot be undone, and it
// takes a session away under the feet of the goroutine that serves it.)
type listener struct {
	net.Listener
	done chan struct{} // closed when the listener is shut

	mu    sync.Mutex
	conns map[*conn]struct{} // nil: shut
}

func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conns == nil {
		_ = raw.Close()
		return nil, net.ErrClosed
	}
	c := &conn{Conn: raw, of: l}
	l.conns[c] = struct{}{}
	return c, nil
}

func (l *listener) shut() {
	_ = l.Listener.Close()
	l.mu.Lock()
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
	close(l.done) // last: who was waiting to answer must find its connection cut
}

type conn struct {
	net.Conn
	of *listener
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
