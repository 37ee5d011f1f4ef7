package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Lease is short, as is the time for which messages are held: a play must not take minutes
// to show what a death costs.
const Lease = 3 * time.Second

// Work is a worker process: it works the jobs on the database that DATABASE_URL names,
// until SIGTERM, or until its stdin ends. It reads the queues of c beside the database's own.
func Work(name string, c worker.Config, of func(db *pgxpool.Pool) []jobs.Definition) error {
	signal.Ignore(os.Interrupt) // a Ctrl-C is for the play, which then ends us
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	if c.Slots == 0 {
		c.Slots = 8
	}
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	config.MaxConns = int32(c.Slots) + 6 // one for each body, and those of the worker's own
	config.ConnConfig.RuntimeParams["application_name"] = name
	db, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	defer db.Close()
	set, err := jobs.NewSet(of(db)...)
	if err != nil {
		return err
	}
	c.Name, c.Lease, c.Grace, c.Recheck = name, Lease, 2*time.Second, time.Second
	queues := map[string]queue.Queue{"": pgqueue.New(db, "").WithVisibility(Lease)}
	maps.Copy(queues, c.Queues)
	c.Queues = queues
	c.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	w, err := worker.New(ctx, db, set, c)
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

// A Process is a worker.
type Process struct {
	Name  string
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{} // closed when it has ended; err is then how
	err   error
	meant bool // it was to end
}

// Pid of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// StartWorker starts this program again, as "worker", the next name and args, and returns
// when the worker is there.
func (s *Stage) StartWorker(ctx context.Context, args ...string) (*Process, error) {
	p := &Process{Name: fmt.Sprintf("worker-%d", len(s.workers)+1), ended: make(chan struct{})}
	fail := func(err error) (*Process, error) { return nil, fmt.Errorf("start %s: %w", p.Name, err) }
	program, err := os.Executable()
	if err != nil {
		return fail(err)
	}
	p.cmd = exec.Command(program, append([]string{"worker", p.Name}, args...)...)
	p.cmd.Env = append(os.Environ(), "DATABASE_URL="+s.DSN)
	log, err := os.Create(filepath.Join(s.Dir, p.Name+".log"))
	if err != nil {
		return fail(err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return fail(err)
	}
	if err := p.cmd.Start(); err != nil {
		return fail(err)
	}
	s.workers = append(s.workers, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	// The database may remember workers of an earlier play.
	err = s.Await(ctx, p.Name+" is there", `SELECT EXISTS (SELECT FROM oncemore.worker WHERE name = $1 AND dead_at IS NULL AND started_at > $2)`, p.Name, s.since)
	return p, err
}

// Kill is kill -9; it returns when the process is gone.
func (p *Process) Kill() error {
	p.meant = true
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-p.ended
	if st, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
		return fmt.Errorf("%s was not killed: %v", p.Name, p.err)
	}
	return nil
}

// Stop asks the worker to stop, as a deployment does, and waits for it.
func (p *Process) Stop() error {
	p.meant = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it fails only when the process has ended
	p.wait(time.After(20 * time.Second))
	if p.err != nil {
		return fmt.Errorf("stop %s: %w", p.Name, p.err)
	}
	return nil
}

func (p *Process) hangUp() {
	p.meant = true
	_ = p.stdin.Close()
}

func (p *Process) wait(limit <-chan time.Time) {
	select {
	case <-p.ended:
	case <-limit:
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// Living are the workers that were started and not ended by us.
func (s *Stage) Living() (ps []*Process) {
	for _, p := range s.workers {
		if !p.meant {
			ps = append(ps, p)
		}
	}
	return ps
}

// StopWorkers stops all of them.
func (s *Stage) StopWorkers() error {
	var errs []error
	for _, p := range s.Living() {
		errs = append(errs, p.Stop())
	}
	return errors.Join(errs...)
}

// lost tells of a worker that ended unasked, with the end of its log.
func (s *Stage) lost() error {
	for _, p := range s.workers {
		select {
		case <-p.ended:
			if !p.meant {
				log, _ := os.ReadFile(filepath.Join(s.Dir, p.Name+".log"))
				return errors.Join(fmt.Errorf("%s has ended unasked: %v", p.Name, p.err), errors.New(string(log[max(0, len(log)-1000):])))
			}
		default:
		}
	}
	return nil
}
