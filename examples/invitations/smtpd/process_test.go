package smtpd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const asServer = "SMTPD_TEST_AS_SERVER"

// TestMain makes of the test's own binary the program that [Spawn] starts.
func TestMain(m *testing.M) {
	if os.Getenv(asServer) == "" {
		os.Exit(m.Run())
	}
	if err := Main(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func spawn(t *testing.T, args ...string) *Process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), asServer+"=1")
	p, err := Spawn(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestAServerThatIsKilledComesBackWithItsMailWhereItWas(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mailbox")
	p := spawn(t, "-file", file)
	for i := range 20 {
		must(t, send(p.SMTP, fmt.Sprintf("%d@x", i), "ana@example.com"))
	}
	p.Kill()
	if err := send(p.SMTP, "lost@x", "ana@example.com"); err == nil {
		t.Fatal("a dead server accepted mail")
	}

	p = spawn(t, "-file", file, "-smtp", p.SMTP, "-http", strings.TrimPrefix(p.Control, "http://"))
	st, err := Control{URL: p.Control}.Stats(t.Context())
	if err != nil || st.Accepted != 20 {
		t.Errorf("%+v, %v", st, err)
	}
	must(t, send(p.SMTP, "20@x", "ana@example.com"))
}

func TestTheProcessEndsWithItsStdinAndNotWithCtrlC(t *testing.T) {
	p := spawn(t)
	must(t, p.cmd.Process.Signal(syscall.SIGINT))
	must(t, send(p.SMTP, "a@x", "ana@example.com"))
	if err := p.Stop(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestAProcessThatCannotStartSaysWhy(t *testing.T) {
	var stderr strings.Builder
	cmd := exec.Command(os.Args[0], "-smtp", "not an address")
	cmd.Env = append(os.Environ(), asServer+"=1")
	cmd.Stderr = &stderr
	if _, err := Spawn(cmd); err == nil || !strings.Contains(stderr.String(), "listen for SMTP") {
		t.Errorf("%v; stderr: %s", err, &stderr)
	}
}
