package smtpd

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/smtp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// send is one mail by the standard library's client, which knows nothing of this server.
func send(addr, id, to string) error {
	c, err := smtp.Dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Mail("from@example.com"); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "Message-ID: <%s>\r\nSubject: Hello %s\r\n\r\nCome.\r\n", id, to); err != nil {
		return err
	}
	return w.Close()
}

func start(t *testing.T, addr string, o Options) *Server {
	t.Helper()
	s, err := Start(addr, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func set(t *testing.T, s *Server, b Behaviour) {
	t.Helper()
	if err := (Control{URL: s.ControlURL()}).Set(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatWasAcceptedIsKnownAfterARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mailbox")
	s := start(t, "127.0.0.1:0", Options{File: file})
	must(t, send(s.Addr(), "a@x", "ana@example.com"))
	must(t, send(s.Addr(), "b@x", "ben@example.com"))
	before := s.Stats()
	must(t, s.Close())

	s = start(t, s.Addr(), Options{File: file})
	if after := s.Stats(); after.Accepted != 2 || !slices.Equal(after.IDs, []string{"a@x", "b@x"}) || !after.Last.Equal(before.Last) {
		t.Errorf("before the restart %+v, after it %+v", before, after)
	}
	must(t, send(s.Addr(), "a@x", "ana@example.com"))
	if after := s.Stats(); after.DeliveredTwice != 1 {
		t.Errorf("a repeat over the restart was not noticed: %+v", after)
	}
}

// A message is written before it is acknowledged, so half a line was never promised to anybody.
func TestAHalfWrittenLineIsForgottenAndDoesNotSpoilTheNext(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mailbox")
	s := start(t, "127.0.0.1:0", Options{File: file})
	must(t, send(s.Addr(), "a@x", "ana@example.com"))
	must(t, s.Close())
	whole, err := os.ReadFile(file)
	must(t, err)
	must(t, os.WriteFile(file, slices.Concat(whole, whole[:len(whole)/2]), 0o600))

	s = start(t, s.Addr(), Options{File: file})
	must(t, send(s.Addr(), "b@x", "ben@example.com"))
	must(t, s.Close())
	s = start(t, s.Addr(), Options{File: file})
	if st := s.Stats(); st.Accepted != 2 || st.Distinct != 2 {
		t.Errorf("%+v", st)
	}
}

func TestAFileThatIsNoMailboxIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "notes.txt")
	notes := []byte("my notes\nof yesterday\n")
	must(t, os.WriteFile(file, notes, 0o600))
	if s, err := Start("127.0.0.1:0", Options{File: file}); err == nil {
		s.Close()
		t.Error("it was taken for a mailbox")
	}
	if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, notes) {
		t.Errorf("the file is now %q, %v", now, err)
	}
}

func TestRepeatsAreCountedAndADedupingServerKeepsThemOutOfTheMailbox(t *testing.T) {
	for _, dedupe := range []bool{false, true} {
		s := start(t, "127.0.0.1:0", Options{Dedupe: dedupe})
		for _, id := range []string{"a@x", "b@x", "a@x", "a@x"} {
			must(t, send(s.Addr(), id, id))
		}
		st := s.Stats()
		want := Stats{Accepted: 4, Distinct: 2, DeliveredTwice: 1, SameMailTwice: 1}
		if dedupe {
			want = Stats{Accepted: 4, Distinct: 2, Repeats: 2}
		}
		if st.Accepted != want.Accepted || st.Distinct != want.Distinct || st.Repeats != want.Repeats ||
			st.DeliveredTwice != want.DeliveredTwice || st.SameMailTwice != want.SameMailTwice {
			t.Errorf("dedupe %v: %+v, want %+v", dedupe, st, want)
		}
	}
}

// An unstable key would give the second copy another Message-ID, and hide it.
func TestTheSameMailUnderAnotherMessageIDIsNoticed(t *testing.T) {
	s := start(t, "127.0.0.1:0", Options{})
	must(t, send(s.Addr(), "a@x", "ana@example.com"))
	must(t, send(s.Addr(), "b@x", "ana@example.com"))
	if st := s.Stats(); st.DeliveredTwice != 0 || st.SameMailTwice != 1 {
		t.Errorf("%+v", st)
	}
}

func TestABehaviourForNMessagesEndsAfterThem(t *testing.T) {
	for _, b := range []Behaviour{
		{Mode: Fail, N: 2}, {Mode: Fail, N: 2, At: AtRcpt, Code: 550}, {Mode: Drop, N: 2}, {Mode: Lose, N: 2},
	} {
		s := start(t, "127.0.0.1:0", Options{})
		set(t, s, b)
		for i := range 4 {
			err := send(s.Addr(), fmt.Sprintf("%d@x", i), "ana@example.com")
			if (err != nil) != (i < 2) {
				t.Errorf("%s at %q: mail %d: %v", b.Mode, b.At, i, err)
			}
		}
		want := 2
		if b.Mode == Drop {
			want = 4
		}
		if st := s.Stats(); st.Accepted != want {
			t.Errorf("%s at %q: %d accepted, want %d", b.Mode, b.At, st.Accepted, want)
		}
	}
}

func TestDownRefusesAndComingBackIsAtTheSamePort(t *testing.T) {
	s := start(t, "127.0.0.1:0", Options{})
	addr := s.Addr()
	idle, err := smtp.Dial(addr)
	must(t, err)
	defer idle.Close()

	set(t, s, Behaviour{Mode: Down})
	if err := idle.Noop(); err == nil {
		t.Error("a connection outlived the server")
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("the server that is down took a connection")
	}
	set(t, s, Behaviour{Mode: Down}) // to say it twice changes nothing

	set(t, s, Behaviour{Mode: OK})
	if s.Addr() != addr {
		t.Errorf("it came back at %s, and was at %s", s.Addr(), addr)
	}
	must(t, send(addr, "a@x", "ana@example.com"))
}

// The server goes down and comes back under load. Whoever heard 250 finds the mail, and
// while it is down nothing arrives: else the counts that a test compares would still move.
func TestEveryAcknowledgedMailIsThereAndNothingArrivesWhileDown(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mailbox")
	s := start(t, "127.0.0.1:0", Options{File: file})
	stop := make(chan struct{})
	var acknowledged sync.Map
	var senders sync.WaitGroup
	for g := range 8 {
		senders.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if id := fmt.Sprintf("%d-%d@x", g, i); send(s.Addr(), id, "ana@example.com") == nil {
					acknowledged.Store(id, true)
				}
			}
		})
	}
	grown := func(from int) func() bool { return func() bool { return s.Stats().Accepted > from+20 } }
	for range 5 {
		await(t, "mail", grown(s.Stats().Accepted))
		set(t, s, Behaviour{Mode: Down})
		cut := s.Stats().Accepted
		time.Sleep(10 * time.Millisecond) // gives what must not happen the time to happen
		if now := s.Stats().Accepted; now != cut {
			t.Errorf("%d mails arrived while the server was down", now-cut)
		}
		set(t, s, Behaviour{Mode: OK})
	}
	close(stop)
	senders.Wait()
	must(t, s.Close())
	again := start(t, s.Addr(), Options{File: file})
	there := again.Stats().IDs
	acknowledged.Range(func(id, _ any) bool {
		if _, ok := slices.BinarySearch(there, id.(string)); !ok {
			t.Errorf("%s was acknowledged, and is not there", id)
		}
		return true
	})
}

func TestSilenceLastsUntilTheClientGivesUp(t *testing.T) {
	for mode, arrives := range map[Mode]bool{Hang: false, Late: true} {
		s := start(t, "127.0.0.1:0", Options{})
		set(t, s, Behaviour{Mode: mode, N: 1})
		raw, err := net.Dial("tcp", s.Addr())
		must(t, err)
		c, err := smtp.NewClient(raw, "x")
		must(t, err)
		must(t, c.Mail("from@example.com"))
		must(t, c.Rcpt("ana@example.com"))
		w, err := c.Data()
		must(t, err)
		fmt.Fprint(w, "Message-ID: <a@x>\r\n\r\nCome.\r\n")
		must(t, raw.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if err := w.Close(); err == nil {
			t.Errorf("%s: the server answered", mode)
		}
		if st := s.Stats(); st.Accepted != 0 {
			t.Errorf("%s: the mail arrived while the client was still waiting", mode)
		}
		must(t, raw.Close())
		must(t, send(s.Addr(), "b@x", "ben@example.com"))
		if arrives {
			await(t, "the late mail", func() bool { return s.Stats().Accepted == 2 })
		} else if st := s.Stats(); st.Accepted != 1 {
			t.Errorf("%s: %+v", mode, st)
		}
	}
}

func TestAMailIsThereBeforeItIsAnswered(t *testing.T) {
	s := start(t, "127.0.0.1:0", Options{})
	set(t, s, Behaviour{Mode: OK, Delay: time.Minute})
	answer := make(chan error, 1)
	go func() { answer <- send(s.Addr(), "a@x", "ana@example.com") }()
	await(t, "the mail", func() bool { return s.Stats().Accepted == 1 })
	select {
	case err := <-answer:
		t.Errorf("it was answered at once: %v", err)
	default:
	}
	set(t, s, Behaviour{Mode: Down})
	if err := <-answer; err == nil {
		t.Error("a mail was acknowledged by a server that is down")
	}
}

func TestAMailWithoutAMessageIDIsRefused(t *testing.T) {
	s := start(t, "127.0.0.1:0", Options{})
	if err := send(s.Addr(), "", "ana@example.com"); err == nil || !strings.HasPrefix(err.Error(), "554") {
		t.Errorf("%v", err)
	}
}

func TestTheControlPortRefusesWhatItDoesNotUnderstand(t *testing.T) {
	s := start(t, "127.0.0.1:0", Options{})
	set(t, s, Behaviour{Mode: OK, Blind: true})
	for _, path := range []string{"/explode", "/fail?code=250", "/fail?at=quit", "/drop?n=-1", "/drop?n=few", "/ok?delya=1s", "/ok?delay=-1s"} {
		res, err := http.Post(s.ControlURL()+path, "", nil)
		must(t, err)
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
	res, err := http.Get(s.ControlURL() + "/arrived?id=a@x")
	must(t, err)
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("what was refused changed the behaviour: %s", res.Status)
	}
	if s, err := Start("127.0.0.1:0", Options{Control: "0.0.0.0:0"}); err == nil {
		s.Close()
		t.Error("the control port opened to the network")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
