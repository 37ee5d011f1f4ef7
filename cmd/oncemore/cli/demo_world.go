package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/examples/invitations"
	"github.com/oncemore-jobs/oncemore/examples/invitations/smtpd"
	"github.com/oncemore-jobs/oncemore/migrations"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A demo is the world in which the story is played: a folder, a database, a mail server
// and workers. The processes end with this one, however it ends: the server by the
// kernel's hand, the others because their stdin does.
type demo struct {
	*narrator
	self    func(name string, args ...string) *exec.Cmd // one of our hidden commands
	dir     string
	logs    string
	cluster *pglocal.Cluster
	db      *pgxpool.Pool
	queue   queue.Sender
	sqs     *demoSQS // nil: all travels through Postgres
	smtp    *smtpd.Process
	workers []*demoProcess // that were ever started
	killed  int
	last    demoState
}

// hiddenCommands makes commands that run this program again, wherever in a larger one the
// demo is.
func hiddenCommands(demo *cobra.Command) func(name string, args ...string) *exec.Cmd {
	path := strings.Fields(demo.Parent().CommandPath())[1:]
	return func(name string, args ...string) *exec.Cmd {
		program, err := os.Executable()
		if err != nil {
			program = os.Args[0]
		}
		return exec.Command(program, append(append(path[:len(path):len(path)], name), args...)...)
	}
}

// begin starts everything. What it started is ended by end, also when it failed.
func (d *demo) begin(ctx context.Context, through string) (err error) {
	d.say("Starting a private PostgreSQL.")
	if d.dir, err = os.MkdirTemp("", "oncemore-demo-"); err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	d.logs = filepath.Join(d.dir, "logs")
	// The database's user, who is another one when we are root, must be able to enter.
	if err := errors.Join(os.Chmod(d.dir, 0o755), os.Mkdir(d.logs, 0o755)); err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	if d.cluster, err = pglocal.Start(ctx, pglocal.Options{Dir: filepath.Join(d.dir, "pg"), Bind: true}); err != nil {
		return err
	}
	if d.db, err = pgxpool.New(ctx, d.cluster.DSN); err != nil {
		return fmt.Errorf("reach the private database: %w", err)
	}
	if _, err := migrations.Up(ctx, d.db); err != nil {
		return err
	}
	if err := invitations.Seed(ctx, d.db, demoEvents, demoInvitees); err != nil {
		return err
	}
	d.queue = pgqueue.New(d.db, "")
	if through == "sqs" {
		if err := d.beginSQS(ctx); err != nil {
			return err
		}
	}
	if d.smtp, err = smtpd.Spawn(d.self("demo-smtp", "--file", filepath.Join(d.dir, "mail"))); err != nil {
		return err
	}
	if err := d.mail(ctx, smtpd.Behaviour{Mode: smtpd.OK, Delay: demoPace}); err != nil {
		return err
	}
	for range demoWorkers {
		if err := d.startWorker(ctx); err != nil {
			return err
		}
	}
	return d.await(ctx, "the workers are there", func(s demoState) bool { return s.Workers >= demoWorkers })
}

// mail tells the mail server what to do.
func (d *demo) mail(ctx context.Context, b smtpd.Behaviour) error {
	return smtpd.Control{URL: d.smtp.Control}.Set(ctx, b)
}

// A demoProcess is a worker process.
type demoProcess struct {
	name  string
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{} // closed when it has ended; err is then how
	err   error
	meant bool // it was to end
}

func (d *demo) nextName() string { return fmt.Sprintf("worker-%d", len(d.workers)+1) }

func (d *demo) startWorker(ctx context.Context) error {
	p := &demoProcess{name: d.nextName(), ended: make(chan struct{})}
	args := []string{"--name", p.name, "--smtp", d.smtp.SMTP, "--control", d.smtp.Control}
	if d.sqs != nil {
		args = append(args, "--sqs", d.sqs.url)
	}
	p.cmd = d.self("demo-worker", args...)
	p.cmd.Env = append(os.Environ(), "DATABASE_URL="+d.cluster.DSN)
	log, err := os.Create(filepath.Join(d.logs, p.name+".log"))
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	stdin, err := p.cmd.StdinPipe()
	if err == nil {
		p.stdin = stdin
		err = p.cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	d.workers = append(d.workers, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return nil
}

// lost tells of a worker that ended unasked.
func (d *demo) lost() error {
	for _, p := range d.workers {
		select {
		case <-p.ended:
			if !p.meant {
				return fmt.Errorf("%s has ended unasked: %v", p.name, p.err)
			}
		default:
		}
	}
	return nil
}

const claimsOfSQL = `
SELECT count(*) FROM oncemore.claim c JOIN oncemore.worker w ON w.id = c.owner
WHERE w.name = $1 AND c.job_type IN (SELECT id FROM oncemore.job_type WHERE name = $2)`

func (d *demo) claimsOf(ctx context.Context, name string) (n int64, err error) {
	err = d.db.QueryRow(ctx, claimsOfSQL, name, invitations.SendEventEmailToInvitee{}.JobType()).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the claims of %s: %w", name, err)
	}
	return n, nil
}

// freezeBusy stops a worker in its tracks that holds claims; nil when none does just now.
func (d *demo) freezeBusy(ctx context.Context) *demoProcess {
	for _, p := range d.workers {
		if n, err := d.claimsOf(ctx, p.name); err != nil || n < 2 {
			continue
		}
		// Frozen, it cannot complete what it holds between our look and the kill.
		if p.cmd.Process.Signal(syscall.SIGSTOP) != nil {
			continue
		}
		if n, err := d.claimsOf(ctx, p.name); err == nil && n >= 2 {
			return p
		}
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
	}
	return nil
}

// kill is kill -9; it returns when the process is gone.
func (p *demoProcess) kill() error {
	p.meant = true
	if err := p.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s: %w", p.name, err)
	}
	<-p.ended
	if st, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
		return fmt.Errorf("%s was not killed: %v", p.name, p.err)
	}
	return nil
}

// end ends all that runs and removes the folder, except for the logs when they are wanted.
func (d *demo) end(keepLogs bool) {
	patience := time.After(3 * time.Second)
	for _, p := range d.workers {
		p.meant = true
		_ = p.stdin.Close()
	}
	for _, p := range d.workers {
		select {
		case <-p.ended:
		case <-patience:
			_ = p.cmd.Process.Kill()
			<-p.ended
		}
	}
	if d.smtp != nil {
		d.smtp.Kill()
	}
	if d.sqs != nil {
		d.sqs.end()
	}
	if d.db != nil {
		d.db.Close()
	}
	if d.cluster != nil {
		limit, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_ = d.cluster.Stop(limit) // on a timeout it is stopped all the same
		cancel()
	}
	if keepLogs && d.logs != "" {
		_ = os.RemoveAll(filepath.Join(d.dir, "pg", "data"))
		d.say("The logs of the workers are in %s", d.logs)
		return
	}
	if d.dir != "" {
		_ = os.RemoveAll(d.dir)
	}
}
