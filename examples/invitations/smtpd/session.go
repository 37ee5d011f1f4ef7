package smtpd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/mail"
	"strings"
	"time"

	"github.com/emersion/go-smtp"
)

// errCut ends a session whose connection is closed already; nobody reads it.
var errCut = errors.New("connection cut")

// session serves one connection.
type session struct {
	s    *Server
	conn *conn
	to   []string
}

func (s *Server) session(c *smtp.Conn) (smtp.Session, error) {
	if b := s.next(AtEHLO); b.Mode == Fail {
		return nil, refusal(b.Code)
	}
	return &session{s: s, conn: c.Conn().(*conn)}, nil
}

func (x *session) Reset()        { x.to = nil }
func (x *session) Logout() error { return nil }

func (x *session) Mail(string, *smtp.MailOptions) error {
	if b := x.s.next(AtMail); b.Mode == Fail {
		return refusal(b.Code)
	}
	return nil
}

func (x *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if b := x.s.next(AtRcpt); b.Mode == Fail {
		return refusal(b.Code)
	}
	x.to = append(x.to, to)
	return nil
}

// Data reads the whole message before it decides anything, since what is to be
// shown is the moment after the client's last byte.
func (x *session) Data(r io.Reader) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err // the client left in the middle: this was no message
	}
	m, err := parse(text, x.to)
	if err != nil {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: err.Error()}
	}
	b := x.s.next(AtData)
	switch b.Mode {
	case Fail:
		x.wait(b.Delay)
		return refusal(b.Code)
	case Hang, Late:
		x.untilClientGaveUp()
		if b.Mode == Late {
			_ = x.s.store(x.conn.of, m)
		}
		return x.cut()
	case Lose:
		return x.cut()
	}
	if err := x.s.store(x.conn.of, m); err != nil {
		if errors.Is(err, errCut) {
			return x.cut()
		}
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "mailbox is not writable"}
	}
	x.wait(b.Delay)
	if b.Mode == Drop {
		return x.cut()
	}
	return nil
}

func (x *session) cut() error {
	_ = x.conn.Close()
	return errCut
}

// wait ends early when the server goes down.
func (x *session) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-x.conn.of.done:
	}
}

// untilClientGaveUp blocks until the connection ends. A client that waits for an
// answer sends nothing, and what an impatient one sends is thrown away.
func (x *session) untilClientGaveUp() {
	_ = x.conn.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, x.conn)
}

// store puts a message into the mailbox, unless the listener that it came through is gone.
func (s *Server) store(through *listener, m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != through {
		return errCut
	}
	m.At = time.Now().UTC()
	m.Repeat = s.dedupe && s.box.accepted(m.ID) > 0
	return s.box.add(m)
}

// parse takes from a message what the mailbox is asked for later.
func parse(text []byte, to []string) (message, error) {
	head, err := mail.ReadMessage(bytes.NewReader(text))
	if err != nil {
		return message{}, fmt.Errorf("not a message: %v", err)
	}
	id := trimID(head.Header.Get("Message-Id"))
	if id == "" {
		return message{}, errors.New("a Message-ID is required here: it is what a message is asked for by")
	}
	subject := head.Header.Get("Subject")
	if plain, err := new(mime.WordDecoder).DecodeHeader(subject); err == nil {
		subject = plain
	}
	return message{ID: id, To: to, Subject: subject, Text: string(text)}, nil
}

// trimID takes the angle brackets off a Message-ID.
func trimID(id string) string {
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(id), "<"), ">")
}

func refusal(code int) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{code / 100, 0, 0}, Message: "refused on purpose"}
}
