//go:build linux

package chaos_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A process is a worker process. It ends with its test at the latest.
type process struct {
	cmd    *exec.Cmd
	stderr *safeBuffer
	died   chan struct{} // closed when it has ended
}

// start starts a worker process of this test binary.
func (s service) start(t *testing.T, env ...string) *process {
	t.Helper()
	return s.startBinary(t, os.Args[0], env...)
}

func (s service) startBinary(t *testing.T, binary string, env ...string) *process {
	t.Helper()
	told, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(binary), stderr: &safeBuffer{}, died: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), append(env, serviceEnv+"="+string(told))...)
	p.cmd.Stderr = io.MultiWriter(t.Output(), p.stderr)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.died) }()
	t.Cleanup(p.kill)
	return p
}

// fleet starts n worker processes, and returns when all of them live.
func (s service) fleet(t *testing.T, pool *pgxpool.Pool, n int) (ps []*process) {
	t.Helper()
	for range n {
		ps = append(ps, s.start(t))
	}
	awaitRow(t, pool, "all workers live", `SELECT count(*) = $1 FROM oncemore.worker WHERE dead_at IS NULL`, n)
	return ps
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill is kill -9.
func (p *process) kill() { _ = p.cmd.Process.Kill(); <-p.died }

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// stop asks it to stop, and wants it to do so cleanly.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	select {
	case <-p.died:
	case <-time.After(patience):
		t.Fatalf("process %d does not stop", p.pid())
	}
	// A lease that was lost in the same moment is no fault of the story's.
	if code := p.cmd.ProcessState.ExitCode(); code != 0 && !p.said("the worker's lease is lost") {
		t.Errorf("process %d did not stop cleanly: exit code %d", p.pid(), code)
	}
}

func (p *process) said(words string) bool { return strings.Contains(p.stderr.String(), words) }

// keepAlive starts n worker processes, and another one for each that dies, as a supervisor
// does, until the test ends. deaths returns how those ended that did.
func (s service) keepAlive(t *testing.T, n int) (deaths func() []*process) {
	t.Helper()
	var mu sync.Mutex
	var dead []*process
	stop := make(chan struct{})
	var keepers sync.WaitGroup
	for range n {
		first := s.start(t)
		keepers.Go(func() {
			for p := first; ; {
				select {
				case <-stop:
					return
				case <-p.died:
				}
				mu.Lock()
				dead = append(dead, p)
				mu.Unlock()
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond):
				}
				p = s.start(t)
			}
		})
	}
	t.Cleanup(func() { close(stop); keepers.Wait() })
	return func() []*process { mu.Lock(); defer mu.Unlock(); return append([]*process(nil), dead...) }
}

// A safeBuffer may be written and read at the same time.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *safeBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }
