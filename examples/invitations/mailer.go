package invitations

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
)

// Mail is one message to one person. Its MessageID, without angle brackets, must be
// the same in every attempt to send it: it is what the mail server is asked about.
type Mail struct {
	MessageID, To, Subject, Body string
}

// MessageID makes a Message-ID of an effect key.
func MessageID(key string) string { return key + "@oncemore.example" }

// Mailer sends mail over SMTP, and asks the mail server's HTTP side what became of it.
// All methods may be called from many goroutines at once. Make one with [NewMailer].
type Mailer struct {
	From    string        // who sends; empty: invitations@oncemore.example
	Timeout time.Duration // bounds one Send from the dial to the last answer, and one Delivered; 0: 10 s
	Settle  time.Duration // after a Send that ended without an answer, when Delivered may be believed; 0: 1 s

	smtpAddr, controlURL string
	http                 *http.Client
}

// NewMailer sends to the SMTP server at host:port smtpAddr and asks for arrivals at controlURL.
func NewMailer(smtpAddr, controlURL string) *Mailer {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64 // one for each job that may ask at once
	return &Mailer{smtpAddr: smtpAddr, controlURL: strings.TrimSuffix(controlURL, "/"), http: &http.Client{Transport: transport}}
}

// A SendError says what is known of a mail that was not acknowledged.
type SendError struct {
	// NotSent: the server surely did not take the message. False means that it may
	// have: the content was on its way and the answer never came.
	NotSent bool
	Code    int // the server's answer, 400 to 599; 0: there was none
	Err     error
}

func (e *SendError) Error() string {
	if e.NotSent {
		return "mail not sent: " + e.Err.Error()
	}
	return "mail perhaps sent: " + e.Err.Error()
}

func (e *SendError) Unwrap() error { return e.Err }

// NotSent tells whether err, of [Mailer.Send], proves that the mail did not go out.
// What is false here must not be sent again before somebody has looked.
func NotSent(err error) bool {
	e, ok := errors.AsType[*SendError](err)
	return ok && e.NotSent
}

// NoSuchMailbox tells whether err, of [Mailer.Send], is the server's answer that it will
// never take mail for this recipient.
func NoSuchMailbox(err error) bool {
	e, ok := errors.AsType[*SendError](err)
	return ok && e.NotSent && (e.Code == 550 || e.Code == 551 || e.Code == 553)
}

// Send hands a mail to the server, on a connection of its own. It returns nil once
// the server took the message, else a [*SendError]. A canceled ctx cuts the connection at
// once, which after the content has been sent leaves open whether the mail arrived.
func (m *Mailer) Send(ctx context.Context, mail Mail) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.timeout(),
		fmt.Errorf("the mail server took longer than %s: %w", m.timeout(), context.DeadlineExceeded))
	defer cancel()
	msg, err := m.compose(mail)
	if err != nil {
		return &SendError{NotSent: true, Err: err}
	}
	line := line{ctx: ctx}
	defer line.close() // go-mail leaves the connection open when EHLO fails
	client, err := m.client(line.dial)
	if err != nil {
		return &SendError{NotSent: true, Err: err}
	}
	// Not DialAndSend: it hears nothing of ctx once it is connected. It calls a mail that
	// arrived an error when the QUIT after it fails. And when writing the content fails half
	// way, its QUIT ends the content with a dot, so that the server takes half a message.
	session, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		refused := &SendError{NotSent: true, Err: because(ctx, err)}
		if answer, ok := errors.AsType[*textproto.Error](err); ok {
			refused.Code = answer.Code
		}
		return refused
	}
	err = client.SendWithSMTPClient(session, msg)
	if msg.IsDelivered() {
		_ = line.conn.SetDeadline(time.Now().Add(time.Second))
		_ = session.Quit() // a courtesy: the message is theirs now, whatever they say
		return nil
	}
	notSent, code := classify(err)
	return &SendError{NotSent: notSent, Code: code, Err: because(ctx, err)}
}

// classify reads what a failed transaction proves. Until the server has said 354 there is
// no content it could take; and an answer of 4xx or 5xx to the end of the content is a refusal.
// Anything else that ends a transaction after 354 proves nothing. A mail program sends
// again then, and that is how people get mail twice (RFC 1047).
func classify(err error) (notSent bool, code int) {
	e, ok := errors.AsType[*gomail.SendError](err)
	if !ok {
		return false, 0
	}
	switch e.Reason {
	case gomail.ErrConnCheck, gomail.ErrNoUnencoded, gomail.ErrGetSender, gomail.ErrGetRcpts,
		gomail.ErrSMTPMailFrom, gomail.ErrSMTPRcptTo, gomail.ErrSMTPData:
		notSent = true
	case gomail.ErrSMTPDataClose:
		notSent = e.ErrorCode() >= 400
	}
	return notSent, e.ErrorCode()
}

// because adds why ctx ended to an error that only says "use of closed connection".
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// Delivered asks the mail server whether a message arrived. An error means that it
// could not tell. A false answer is final only for a mail whose Send ended a while ago,
// since a server may still be busy with a message whose sender gave up.
func (m *Mailer) Delivered(ctx context.Context, messageID string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.controlURL+"/arrived?id="+url.QueryEscape(messageID), nil)
	if err != nil {
		return false, fmt.Errorf("ask for mail %s: %w", messageID, err)
	}
	res, err := m.http.Do(req)
	if err != nil {
		return false, fmt.Errorf("ask for mail %s: %w", messageID, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false, fmt.Errorf("ask for mail %s: %s", messageID, res.Status)
	}
	var answer struct {
		Arrived *bool `json:"arrived"` // a pointer: some other page that answers 200 must not pass for "no"
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return false, fmt.Errorf("ask for mail %s: %w", messageID, err)
	}
	if answer.Arrived == nil {
		return false, fmt.Errorf("ask for mail %s: the answer does not say whether it arrived", messageID)
	}
	return *answer.Arrived, nil
}

func (m *Mailer) timeout() time.Duration {
	if m.Timeout > 0 {
		return m.Timeout
	}
	return 10 * time.Second
}

func (m *Mailer) settle() time.Duration {
	if m.Settle > 0 {
		return m.Settle
	}
	return time.Second
}

func (m *Mailer) compose(mail Mail) (*gomail.Msg, error) {
	if mail.MessageID == "" || strings.ContainsFunc(mail.MessageID, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '<' || r == '>'
	}) {
		return nil, fmt.Errorf("%q is no Message-ID", mail.MessageID)
	}
	from := m.From
	if from == "" {
		from = "invitations@oncemore.example"
	}
	msg := gomail.NewMsg()
	if err := msg.From(from); err != nil {
		return nil, fmt.Errorf("sender: %w", err)
	}
	if err := msg.To(mail.To); err != nil {
		return nil, fmt.Errorf("recipient: %w", err)
	}
	msg.SetMessageIDWithValue(mail.MessageID)
	msg.Subject(mail.Subject)
	msg.SetBodyString(gomail.TypeTextPlain, mail.Body)
	return msg, nil
}

func (m *Mailer) client(dial gomail.DialContextFunc) (*gomail.Client, error) {
	host, port, err := net.SplitHostPort(m.smtpAddr)
	if err != nil {
		return nil, fmt.Errorf("mail server: %w", err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("mail server: port %q is no number", port)
	}
	client, err := gomail.NewClient(host, gomail.WithPort(number),
		gomail.WithTimeout(2*m.timeout()),  // Send's context ends first, and says why
		gomail.WithTLSPolicy(gomail.NoTLS), // the server of this example is on loopback
		gomail.WithoutNoop(), gomail.WithoutRset(), gomail.WithDialContextFunc(dial))
	if err != nil {
		return nil, fmt.Errorf("mail server: %w", err)
	}
	return client, nil
}

// line is a connection that ends with its context, which go-mail does not see to after the dial.
type line struct {
	ctx  context.Context
	conn net.Conn
	stop func() bool
}

func (l *line) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.conn = conn
	l.stop = context.AfterFunc(l.ctx, func() { _ = conn.Close() })
	return conn, nil
}

func (l *line) close() {
	if l.conn != nil {
		l.stop()
		_ = l.conn.Close()
	}
}
