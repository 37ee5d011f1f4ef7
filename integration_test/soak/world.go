package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/migrations"
)

// A world is what is tormented: a Postgres, a provider outside of it, and worker
// processes. The processes end with this one, however it ends: Postgres by the kernel's
// hand, workers because their stdin does.
type world struct {
	dir      string
	log      *narrator
	db       *pgxpool.Pool // our own way to the database, which nobody cuts
	dsn      string
	provider *provider
	settings workerSettings

	pg     *pglocal.Cluster // owned by who torments
	places []*place
	fill   sync.WaitGroup // the goroutines that keep the places filled

	mu       sync.Mutex // owns what follows
	started  int        // workers
	unasked  []string   // how workers ended that nobody killed
	freezes  []freeze
	draining bool // nobody is restarted
}

// A place is filled by one worker after the other. They reach the database through its
// proxy, which is what cuts them off.
type place struct {
	number int
	proxy  *pgproxy.Proxy
	now    atomic.Pointer[process] // nil while there is none
}

// A freeze is a time in which a process stood still.
type freeze struct {
	Pid      int
	From, To int64 // Unix nanoseconds
}

// A process is one worker.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}

	mu    sync.Mutex
	meant string // why it is to end
}

const schema = `
CREATE SCHEMA soak;
CREATE TABLE soak.effect (type text NOT NULL, id bigint NOT NULL, epoch bigint NOT NULL DEFAULT 0, version bigint NOT NULL DEFAULT 0,
                          attempt int NOT NULL, pid int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE soak.member (type text NOT NULL, parent bigint NOT NULL, id bigint NOT NULL, PRIMARY KEY (type, parent, id))`

// build makes the world. What it has made is taken away by end, also when it failed.
func build(ctx context.Context, w *world, workers, slots int, seed uint64) (err error) {
	if w.dir, err = os.MkdirTemp("", "oncemore-soak-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	// Under root the server runs as another user, who must be able to enter.
	if err := errors.Join(os.Chmod(w.dir, 0o755), os.Mkdir(w.logs(), 0o755)); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if err := w.startPostgres(ctx); err != nil {
		return err
	}
	w.dsn = w.pg.DSN
	if w.db, err = pgxpool.New(ctx, w.dsn); err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	if _, err := migrations.Up(ctx, w.db); err != nil {
		return err
	}
	if _, err := w.db.Exec(ctx, schema); err != nil {
		return fmt.Errorf("make the soak's own tables: %w", err)
	}
	if w.provider, err = newProvider(filepath.Join(w.dir, "provider.sock"), w.effectLog(), seed); err != nil {
		return err
	}
	w.settings = workerSettings{Socket: w.provider.socket, Seed: seed, Slots: slots}
	for n := range workers {
		p := &place{number: n + 1}
		if p.proxy, err = pgproxy.Start(w.dsn); err != nil {
			return err
		}
		w.places = append(w.places, p)
		w.fill.Go(func() { w.keepFilled(p) })
	}
	return nil
}

func (w *world) logs() string      { return filepath.Join(w.dir, "logs") }
func (w *world) effectLog() string { return filepath.Join(w.dir, "effects.jsonl") }

// startPostgres starts the server, or starts it again in the same folder. After a kill -9
// its children may need a moment to notice.
func (w *world) startPostgres(ctx context.Context) error {
	for began := time.Now(); ; {
		pg, err := pglocal.Start(ctx, pglocal.Options{Dir: filepath.Join(w.dir, "pg"), Bind: true,
			Params: []string{"max_connections=300", "shared_buffers=256MB", "max_wal_size=2GB", "log_checkpoints=off"}})
		if err == nil {
			w.pg = pg
			return nil
		}
		if time.Since(began) > 3*time.Minute || ctx.Err() != nil || errors.Is(err, pglocal.ErrNoBinaries) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// restartPostgres stops the server as an operator would, and starts it again.
func (w *world) restartPostgres(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	_ = w.pg.Stop(limit) // on a timeout it is stopped all the same
	cancel()
	return w.startPostgres(ctx)
}

// killPostgres kills the server with -9, unless it is away already, and starts it again.
func (w *world) killPostgres(ctx context.Context) error {
	line, err := os.ReadFile(filepath.Join(w.dir, "pg", "data", "postmaster.pid"))
	if err == nil {
		first, _, _ := strings.Cut(string(line), "\n")
		var pid int
		if pid, err = strconv.Atoi(strings.TrimSpace(first)); err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill Postgres: %w", err)
	}
	return w.startPostgres(ctx)
}

// keepFilled is a supervisor: when its worker has ended it starts another one.
func (w *world) keepFilled(at *place) {
	for life := 1; ; life++ {
		p, err := w.startWorker(at, life)
		if err != nil {
			w.log.say("a worker cannot be started: %v", err)
		}
		if p == nil {
			return
		}
		<-p.ended
		at.now.Store(nil)
		w.buried(p)
	}
}

// startWorker returns nil when no more are wanted.
func (w *world) startWorker(at *place, life int) (*process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.draining {
		return nil, nil
	}
	name := fmt.Sprintf("worker-%d.%d", at.number, life)
	s := w.settings
	s.Name, s.DSN = name, at.proxy.DSN()
	arg, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(w.logs(), name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, ended: make(chan struct{})}
	p.cmd = exec.Command(self, "worker", string(arg))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	// A group of its own: Ctrl-C must reach this process alone. And should we die while it
	// is frozen, the kernel wakes the stopped members of an orphaned group, by SIGHUP.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	w.started++
	at.now.Store(p)
	go func() {
		_ = p.cmd.Wait() // how it ended is in ProcessState
		close(p.ended)
	}()
	return p, nil
}

// buried notes how p ended, if nobody had asked for it. Jobs may kill their process with
// -9; nothing else may end it.
func (w *world) buried(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	st, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	killed := st.Signaled() && st.Signal() == syscall.SIGKILL
	early := st.Signaled() && st.Signal() == syscall.SIGTERM // before it listens for that
	switch {
	case killed && p.meant == "":
		w.log.event("%s is killed by a job", p.name)
	case killed, p.meant != "" && (early || p.cmd.ProcessState.Success()):
	default:
		w.unasked = append(w.unasked, fmt.Sprintf("%s: %v (asked for: %q; see %s)", p.name, p.cmd.ProcessState, p.meant, filepath.Join(w.logs(), p.name+".log")))
	}
}

// signal sends a signal; why is said when it is to end the process.
func (p *process) signal(s syscall.Signal, why string) {
	if why != "" {
		p.mu.Lock()
		p.meant = why
		p.mu.Unlock()
	}
	_ = p.cmd.Process.Signal(s) // it fails only when the process has ended
}

// stopWorkers stops all of them gracefully, and starts no more. It tells how many did not
// end in time.
func (w *world) stopWorkers(patience time.Duration) (late int) {
	w.mu.Lock()
	w.draining = true
	var all []*process
	for _, at := range w.places {
		if p := at.now.Load(); p != nil {
			all = append(all, p)
		}
	}
	w.mu.Unlock()
	for _, p := range all {
		p.signal(syscall.SIGTERM, "the end")
	}
	limit := time.After(patience)
	for _, p := range all {
		select {
		case <-p.ended:
		case <-limit:
			late++
			limit = time.After(0)
			p.signal(syscall.SIGKILL, "the end")
			<-p.ended
		}
	}
	w.fill.Wait()
	return late
}

// end ends everything, and removes the folder unless it is wanted.
func (w *world) end(keep bool) {
	w.stopWorkers(10 * time.Second)
	for _, at := range w.places {
		at.proxy.Close()
	}
	if w.db != nil {
		w.db.Close()
	}
	if w.provider != nil {
		_ = w.provider.close()
	}
	if w.pg != nil {
		limit, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		_ = w.pg.Stop(limit) // on a timeout it is stopped all the same
		cancel()
	}
	if keep {
		w.log.say("The data, the logs of the workers and the effect log are kept in %s", w.dir)
		return
	}
	if w.dir != "" {
		_ = os.RemoveAll(w.dir)
	}
}
