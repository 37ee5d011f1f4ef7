package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Workers run in a process of their own, this program once more, so that the memory
// that is read is theirs. The conversation: the worker says "ready" when it has
// connected, is told to begin by a line, says "ran" after the last job, and ends when its
// stdin does.
type workerProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ran   chan struct{} // closed when the worker has run all jobs
	ended chan error    // gets the end of the process, once
}

func startWorker(ctx context.Context, o *options, db string, m measurement, n int) (*workerProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	profile := ""
	if o.profiles != "" && m.side == ours {
		profile = filepath.Join(o.profiles, fmt.Sprintf("%s-%s.pprof", strings.ReplaceAll(string(m.kind), " ", "-"), db))
	}
	w := &workerProcess{ran: make(chan struct{}), ended: make(chan error, 1)}
	w.cmd = exec.CommandContext(ctx, self, "worker", m.side, string(m.kind), o.baseDSN, db, strconv.Itoa(n), profile)
	w.cmd.Stderr = os.Stderr
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	stdout, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	ready := make(chan struct{})
	go func() {
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			switch lines.Text() {
			case "ready":
				close(ready)
			case "ran":
				close(w.ran)
			}
		}
		err := w.cmd.Wait()
		if err == nil {
			err = errors.New("it left")
		}
		w.ended <- err
	}()
	select {
	case <-ready:
		return w, nil
	case err := <-w.ended:
		return nil, fmt.Errorf("the worker did not start: %w", err)
	}
}

// begin lets the worker begin and returns the time.
func (w *workerProcess) begin() (time.Time, error) {
	now := time.Now()
	if _, err := io.WriteString(w.stdin, "begin\n"); err != nil {
		return now, fmt.Errorf("begin: %w", err)
	}
	return now, nil
}

// peakMemory is the most resident memory the process ever held, in MiB. (The maximum
// that wait reports will not do: Linux starts it at that of the parent.)
func (w *workerProcess) peakMemory() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of the worker: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				return 0, fmt.Errorf("read the memory of the worker: %w", err)
			}
			return kib / 1024, nil
		}
	}
	return 0, errors.New("read the memory of the worker: no VmHWM in /proc")
}

// stop ends the worker gracefully.
func (w *workerProcess) stop() error {
	if err := w.stdin.Close(); err != nil {
		return fmt.Errorf("stop the worker: %w", err)
	}
	select {
	case err := <-w.ended:
		if w.cmd.ProcessState.Success() {
			return nil
		}
		return fmt.Errorf("stop the worker: %w", err)
	case <-time.After(time.Minute):
		return errors.New("stop the worker: it did not end within a minute")
	}
}

// kill ends the process if it still runs.
func (w *workerProcess) kill() {
	_ = w.cmd.Process.Kill() // fails only when it has ended
}

// workerMain is the worker process: its arguments are side, kind of measurement, DSN,
// database, number of jobs, and where to write a CPU profile, which may be empty.
func workerMain(ctx context.Context, args []string) (err error) {
	if len(args) != 6 {
		return errors.New("this command is for the benchmark's own use")
	}
	name, k, dsn, db, profile := args[0], kind(args[1]), args[2], args[3], args[5]
	n, err := strconv.ParseInt(args[4], 10, 64)
	if err != nil {
		return fmt.Errorf("number of jobs: %w", err)
	}
	pool, err := connect(ctx, dsn, db)
	if err != nil {
		return err
	}
	defer pool.Close()
	s, err := newSide(name, pool)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	stdin := bufio.NewReader(os.Stdin)
	if _, err := stdin.ReadString('\n'); err != nil {
		return nil // not wanted any more
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = stdin.ReadString('\n') // the end of stdin is the wish to stop
		cancel()
	}()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return fmt.Errorf("write a profile: %w", err)
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("write a profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	var did atomic.Int64
	return s.work(ctx, k, func(int64) {
		if did.Add(1) == n {
			fmt.Println("ran")
		}
	})
}
