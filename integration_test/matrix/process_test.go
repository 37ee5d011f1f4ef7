package matrix_test

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A run is a worker that runs, in this process or in one of its own.
type run struct {
	stop  func()        // gracefully; returns when it has ended
	ended chan struct{} // closed when it has
	pid   int           // of its own process; 0: ours
}

// startSecond starts another worker, behind no proxy, unless it runs already.
func (w *world) startSecond() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.second == nil {
		w.second = w.inProcess("second", w.dsn, w.quiet.address())
	}
}

func (w *world) inProcess(name, dsn, address string) *run {
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{ended: make(chan struct{})}
	r.stop = func() { cancel(); <-r.ended }
	log := slog.New(slog.NewTextHandler(w.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("by", name)
	go func() {
		defer close(r.ended)
		if err := work(ctx, w.scenario, name, dsn, address, w.pool, log); err != nil {
			w.Errorf("worker %s: %v", name, err)
		}
	}()
	w.Cleanup(r.stop)
	return r
}

// workerEnv names the scenario whose worker a process of the test binary is to be.
const workerEnv = "ONCEMORE_MATRIX_WORKER"

func (w *world) inOwnProcess(dsn, address string) *run {
	w.Helper()
	p := w.working.startProcess(w.Output(), workerEnv+"="+w.scenario.String(), "DATABASE_URL="+dsn, "QUEUE_ADDRESS="+address, "OUTSIDE_URL="+w.dsn)
	return &run{ended: p.ended, pid: p.Process.Pid, stop: func() { _ = p.Process.Signal(syscall.SIGTERM); <-p.ended }}
}

// A process is one of the test binary that does the part of a worker or a server.
type process struct {
	*exec.Cmd
	life  io.Closer     // its standard input, which ends with us, however we end
	ended chan struct{} // closed when it has, and was seen to end as planned
}

// startProcess starts one, behind the tap. It must end by the tap's fault, or by itself and
// without a complaint: a panic, a data race or a worker that cannot begin would else be taken
// for the crash that is played.
func (t *tap) startProcess(out io.Writer, env ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	p.Env = append(os.Environ(), env...)
	p.Stdout, p.Stderr = out, t.Output()
	var err error
	if p.life, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	var givenUp atomic.Bool
	go func() {
		defer close(p.ended)
		_ = p.Wait()
		_ = p.life.Close()
		status, _ := p.ProcessState.Sys().(syscall.WaitStatus)
		killed := status.Signaled() && status.Signal() == syscall.SIGKILL
		switch {
		case killed && t.hit.fault.kills() && t.hasCome():
			t.strikes()
		case killed && givenUp.Load():
		case !p.ProcessState.Success():
			t.Errorf("a process ended with %v, and nothing of that is planned; its output is above", p.ProcessState)
		}
	}()
	t.Cleanup(func() { givenUp.Store(true); _ = p.Process.Kill(); <-p.ended })
	return p
}

// workerProcess is what a process of the test binary does that is a worker.
func workerProcess(name string) error {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // ends when the test does
		os.Exit(2)
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	effects, err := openPool(os.Getenv("OUTSIDE_URL"), "victim", 2)
	if err != nil {
		return err
	}
	defer effects.Close()
	return work(ctx, scenarios[name], "victim", os.Getenv("DATABASE_URL"), os.Getenv("QUEUE_ADDRESS"), effects, log)
}

// work is a worker of the scenario until ctx ends. Where it cannot begin it tries again,
// as whatever starts processes does.
func work(ctx context.Context, s *scenario, name, dsn, address string, effects *pgxpool.Pool, log *slog.Logger) error {
	pool, err := openPool(dsn, name, 4)
	if err != nil {
		return err
	}
	defer pool.Close()
	set, err := jobs.NewSet(s.define(&outside{effects, name, s.traits})...)
	if err != nil {
		return err
	}
	for {
		q, closeIt, err := openQueue(context.WithoutCancel(ctx), address, pool)
		if err == nil {
			defer closeIt()
			var w *worker.Worker
			w, err = worker.New(ctx, pool, set, worker.Config{
				Slots: s.slots, Lease: cmp.Or(s.lease, lease), Grace: 100 * time.Millisecond, Recheck: 200 * time.Millisecond, Name: name, Log: log,
				Queues:    map[string]queue.Queue{"": q},
				Schedules: s.clocks,
			})
			if err == nil {
				if err := w.Run(ctx); err != nil {
					log.Warn("worker stopped", "error", err)
				}
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
			log.Warn("worker did not begin", "error", err)
		}
	}
}
