package invitations

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
)

func startServer(t testing.TB) (*smtpd.Server, *Mailer) {
	t.Helper()
	s, err := smtpd.Start("127.0.0.1:0", smtpd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, NewMailer(s.Addr(), s.ControlURL())
}

func invitation(id string) Mail {
	return Mail{MessageID: MessageID(id), To: "Ana <ana@example.com>", Subject: "Kommst Du? Ärgerlich, wenn nicht.",
		Body: "Dear Ana,\n.\nthe line above is a dot, which must not end the mail.\n"}
}

// What the mailer claims to know is compared with what the server has. "Not sent" is
// the only claim that makes a worker send again, so it must never be said of a mail that arrived.
func TestTheMailerClaimsToKnowOnlyWhatTheServerWillConfirm(t *testing.T) {
	for _, tt := range []struct {
		name    string
		told    smtpd.Behaviour
		sent    bool // Send returns nil
		notSent bool
		code    int
		arrived bool
	}{
		{name: "accepted", told: smtpd.Behaviour{Mode: smtpd.OK}, sent: true, arrived: true},
		{name: "EHLO refused", told: smtpd.Behaviour{Mode: smtpd.Fail, At: smtpd.AtEHLO}, notSent: true, code: 451},
		{name: "sender refused", told: smtpd.Behaviour{Mode: smtpd.Fail, At: smtpd.AtMail, Code: 550}, notSent: true, code: 550},
		{name: "recipient refused", told: smtpd.Behaviour{Mode: smtpd.Fail, At: smtpd.AtRcpt, Code: 450}, notSent: true, code: 450},
		{name: "content refused for now", told: smtpd.Behaviour{Mode: smtpd.Fail}, notSent: true, code: 451},
		{name: "content refused for ever", told: smtpd.Behaviour{Mode: smtpd.Fail, Code: 554}, notSent: true, code: 554},
		{name: "server down", told: smtpd.Behaviour{Mode: smtpd.Down}, notSent: true},
		{name: "accepted and the answer lost", told: smtpd.Behaviour{Mode: smtpd.Drop}, arrived: true},
		{name: "lost with the answer", told: smtpd.Behaviour{Mode: smtpd.Lose}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, m := startServer(t)
			if err := s.Set(tt.told); err != nil {
				t.Fatal(err)
			}
			err := m.Send(t.Context(), invitation("a1"))
			if (err == nil) != tt.sent {
				t.Fatalf("Send: %v", err)
			}
			if got := NotSent(err); got != tt.notSent {
				t.Errorf("NotSent(%v) = %v", err, got)
			}
			if e, ok := errors.AsType[*SendError](err); ok && e.Code != tt.code {
				t.Errorf("code %d, want %d, in %v", e.Code, tt.code, err)
			}
			arrived, err := m.Delivered(t.Context(), MessageID("a1"))
			if err != nil || arrived != tt.arrived {
				t.Errorf("Delivered = %v, %v; want %v", arrived, err, tt.arrived)
			}
		})
	}
}

// The same comparison under load, while the server breaks in every way at moments that nobody chose.
func TestNoClaimIsWrongWhileTheServerBreaksUnderLoad(t *testing.T) {
	s, m := startServer(t)
	m.Timeout = 200 * time.Millisecond
	stop := make(chan struct{})
	var claims sync.Map // Message-ID to Send's error
	var senders sync.WaitGroup
	for g := range 16 {
		senders.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				mail := invitation(fmt.Sprintf("%d-%d", g, i))
				claims.Store(mail.MessageID, m.Send(t.Context(), mail))
			}
		})
	}
	for range 5 {
		for _, b := range []smtpd.Behaviour{
			{Mode: smtpd.OK, Delay: time.Millisecond}, {Mode: smtpd.Drop, N: 10}, {Mode: smtpd.Down}, {Mode: smtpd.Fail}, {Mode: smtpd.Hang, N: 4},
			{Mode: smtpd.Lose, N: 10}, {Mode: smtpd.Late, N: 4}, {Mode: smtpd.Fail, At: smtpd.AtRcpt},
		} {
			if err := s.Set(b); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond) // lets some mails meet it
		}
	}
	close(stop)
	senders.Wait()
	if err := s.Close(); err != nil { // a late mail is there by now, or never
		t.Fatal(err)
	}
	there := s.Stats().IDs
	var sent, notSent, open, openAndThere int
	claims.Range(func(id, claim any) bool {
		err, _ := claim.(error)
		_, arrived := slices.BinarySearch(there, id.(string))
		switch {
		case err == nil:
			sent++
			if !arrived {
				t.Errorf("%s was sent without an error, and is not there", id)
			}
		case NotSent(err):
			notSent++
			if arrived {
				t.Errorf("%s is there, although: %v", id, err)
			}
		default:
			open++
			if arrived {
				openAndThere++
			}
		}
		return true
	})
	t.Logf("%d sent, %d surely not, %d left open, of which %d arrived", sent, notSent, open, openAndThere)
	if sent == 0 || notSent == 0 || openAndThere == 0 || openAndThere == open {
		t.Error("not every case came up")
	}
}

func TestADeadlineWhileTheServerIsSilentLeavesOpenWhetherTheMailArrived(t *testing.T) {
	for _, tt := range []struct {
		mode    smtpd.Mode
		arrives bool
	}{{smtpd.Hang, false}, {smtpd.Late, true}} {
		t.Run(string(tt.mode), func(t *testing.T) {
			s, m := startServer(t)
			if err := s.Set(smtpd.Behaviour{Mode: tt.mode}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // within which it connects
			defer cancel()
			began := time.Now()
			err := m.Send(ctx, invitation("b2"))
			if err == nil || NotSent(err) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Send: %v; want an error that leaves it open and says that the deadline passed", err)
			}
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("Send came back only after %s", took)
			}
			if tt.arrives {
				await(t, "the mail that nobody waited for", func() bool {
					arrived, err := m.Delivered(t.Context(), MessageID("b2"))
					return err == nil && arrived
				})
			} else if arrived, err := m.Delivered(t.Context(), MessageID("b2")); err != nil || arrived {
				t.Errorf("Delivered = %v, %v", arrived, err)
			}
		})
	}
}

func TestTheMailersOwnTimeoutBoundsASend(t *testing.T) {
	s, m := startServer(t)
	m.Timeout = 2 * time.Second
	if err := s.Set(smtpd.Behaviour{Mode: smtpd.Hang}); err != nil {
		t.Fatal(err)
	}
	err := m.Send(t.Context(), invitation("c3"))
	if err == nil || NotSent(err) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2s") {
		t.Errorf("Send: %v", err)
	}
}

func TestACanceledSendNeverStarts(t *testing.T) {
	s, m := startServer(t)
	why := errors.New("the worker stops")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := m.Send(ctx, invitation("d4")); !NotSent(err) || !errors.Is(err, why) {
		t.Errorf("Send: %v", err)
	}
	if st := s.Stats(); st.Accepted != 0 {
		t.Errorf("the server has %d mails", st.Accepted)
	}
}

func TestAMailThatCannotBeWrittenIsNotSent(t *testing.T) {
	s, m := startServer(t)
	for name, change := range map[string]func(*Mail){
		"no recipient":                func(m *Mail) { m.To = "" },
		"recipient with a line break": func(m *Mail) { m.To = "ana@example.com\r\nBcc: eve@example.com" },
		"two recipients":              func(m *Mail) { m.To = "ana@example.com, eve@example.com" },
		"no Message-ID":               func(m *Mail) { m.MessageID = "" },
		"Message-ID with brackets":    func(m *Mail) { m.MessageID = "<e5@oncemore.example>" },
		"Message-ID with a header":    func(m *Mail) { m.MessageID = "e5@x\r\nBcc: eve@example.com" },
	} {
		mail := invitation("e5")
		change(&mail)
		if err := m.Send(t.Context(), mail); !NotSent(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if st := s.Stats(); st.Accepted != 0 {
		t.Errorf("the server has %d mails", st.Accepted)
	}
}

func TestALongEffectKeyIsFoundAgain(t *testing.T) {
	_, m := startServer(t)
	id := strings.Repeat("0123456789abcdef", 8) // past the length at which headers are folded
	if err := m.Send(t.Context(), invitation(id)); err != nil {
		t.Fatal(err)
	}
	if arrived, err := m.Delivered(t.Context(), MessageID(id)); err != nil || !arrived {
		t.Errorf("Delivered = %v, %v", arrived, err)
	}
}

// Servers fail in ways that smtpd has no mode for, so here one is played line by line.
func TestWhatAnEndInTheMiddleProves(t *testing.T) {
	const content = "(content)"
	for _, tt := range []struct {
		name    string
		answers []string // to the greeting, EHLO, MAIL, RCPT, DATA, the content, QUIT; then the connection ends
		sent    bool
		notSent bool
	}{
		{name: "no greeting", answers: nil, notSent: true},
		{name: "greeted with an error", answers: []string{"554 no"}, notSent: true},
		{name: "cut after EHLO", answers: []string{"220 hi", "250 hi"}, notSent: true},
		{name: "cut at DATA", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok"}, notSent: true},
		{name: "DATA refused", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "503 no"}, notSent: true},
		{name: "cut as soon as DATA is allowed", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go"}},
		{name: "cut after the content", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go", content}},
		{name: "an answer that is none", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go", content + "hello?"}},
		{name: "an answer that makes no sense", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go", content + "354 go on"}},
		{name: "shutting down instead of accepting", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go", content + "421 bye"}, notSent: true},
		{name: "accepted, and QUIT unanswered", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go", content + "250 ok"}, sent: true},
		{name: "accepted, and QUIT refused", answers: []string{"220 hi", "250 hi", "250 ok", "250 ok", "354 go", content + "250 ok", "500 no"}, sent: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMailer(play(t, tt.answers, content), "http://127.0.0.1:0")
			err := m.Send(t.Context(), invitation("f6"))
			if (err == nil) != tt.sent || NotSent(err) != tt.notSent {
				t.Errorf("Send: %v; NotSent %v", err, NotSent(err))
			}
		})
	}
}

// play serves one connection: it gives an answer to each line, or after the whole content.
func play(t *testing.T, answers []string, content string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		lines := bufio.NewScanner(c)
		for i, a := range answers {
			a, whole := strings.CutPrefix(a, content)
			for i > 0 && lines.Scan() && whole && lines.Text() != "." {
			}
			if a != "" {
				fmt.Fprintf(c, "%s\r\n", a)
			}
		}
	}()
	return l.Addr().String()
}

func TestTheDoneCheckSaysWhenItCannotTell(t *testing.T) {
	s, m := startServer(t)
	if err := m.Send(t.Context(), invitation("g7")); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(smtpd.Behaviour{Mode: smtpd.OK, Blind: true}); err != nil {
		t.Fatal(err)
	}
	if arrived, err := m.Delivered(t.Context(), MessageID("g7")); err == nil {
		t.Errorf("a blind server was understood as %v", arrived)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if arrived, err := m.Delivered(t.Context(), MessageID("g7")); err == nil {
		t.Errorf("a closed server was understood as %v", arrived)
	}
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"error":"log in first"}`) }))
	defer page.Close()
	if arrived, err := NewMailer("127.0.0.1:1", page.URL).Delivered(t.Context(), MessageID("g7")); err == nil {
		t.Errorf("some other page was understood as %v", arrived)
	}
}

// The demo sends a thousand mails while one watches, with a connection for each.
func BenchmarkSendWithSixteenAtOnce(b *testing.B) {
	_, m := startServer(b)
	var n atomic.Int64
	b.SetParallelism(8) // times GOMAXPROCS
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := m.Send(b.Context(), invitation(fmt.Sprint(n.Add(1)))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
