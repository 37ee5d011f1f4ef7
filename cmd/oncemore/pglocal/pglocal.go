// Package pglocal runs a private PostgreSQL from the server binaries that are
// installed: what `oncemore dev`, the demo and the tests use when nobody names a
// database.
//
// A cluster is one folder, and it is always in one of three states: stopped,
// being started by the one process that holds the folder's lock, or serving on a
// unix socket that only the user who started it may enter. No TCP port is ever
// opened, so there is none to choose and nobody to keep out. Run as root, which
// the server refuses to be, it hands the folder's data to the user postgres.
//
// Linux and macOS. (A library that downloads binaries would do without an
// installed server; those that exist delete data when versions differ, or cannot
// run as root.)
package pglocal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options say where a cluster lives and how it runs. Only Dir is required.
type Options struct {
	// Dir is the cluster's home. It is created when absent, and keeps the data
	// (data/), the socket (run/), the server's log (postgres.log) and a lock file.
	// When this process is root the user postgres must be able to enter it, so not
	// under /root.
	Dir string

	// Bin is the folder that holds initdb and postgres. Empty: [FindBin].
	Bin string

	// Params are further server settings, "name=value". They bind only the
	// process that starts the server, not one that attaches.
	Params []string

	// NoSync trades durability for speed: a power cut loses the cluster. For tests.
	NoSync bool

	// Bind lets the server end with this process, however the process ends, kill
	// -9 included. Linux only; elsewhere it has no effect. Without it the server
	// of a killed process goes on, and the next Start attaches to it.
	Bind bool
}

// A Cluster is a server that answered.
type Cluster struct {
	DSN     string // the superuser's, for the database postgres
	Started bool   // false: another process runs the server, and this one attached
	Version string // of the server, such as "15.18"

	sock string
	proc *process // nil when attached
}

// Start starts the cluster in o.Dir, creating it on first use (about a second),
// and returns when it accepts connections. If another process runs it already,
// Start attaches, and Stop will leave it running. Of processes that start it at
// once, one starts and the others attach. ctx bounds the start only.
//
// The error is [ErrNoBinaries] when no server is installed.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, fmt.Errorf("prepare PostgreSQL in %s: %w", o.Dir, err)
	}
	unlock, err := lock(ctx, filepath.Join(s.dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", s.dir, err)
	}
	defer unlock()

	c := &Cluster{DSN: dsn(s.sock), sock: s.sock}
	if c.ping(ctx) == nil {
		return c, nil
	}
	if err := s.initdb(ctx); err != nil {
		return nil, fmt.Errorf("create a PostgreSQL cluster in %s: %w", s.dir, err)
	}
	if c.proc, err = s.serve(); err != nil {
		return nil, fmt.Errorf("start PostgreSQL in %s: %w", s.dir, err)
	}
	if err := c.await(ctx); err != nil {
		return nil, fmt.Errorf("start PostgreSQL in %s: %w%s", s.dir, err, s.logTail())
	}
	c.Started = true
	return c, nil
}

// Stop shuts the server down: open transactions are rolled back, a checkpoint is
// written. When ctx ends first the server is stopped without the checkpoint, its
// next start recovers, and Stop returns the error of ctx. It returns when the
// server is gone. Stopping again, or a cluster that this process attached to,
// does nothing.
func (c *Cluster) Stop(ctx context.Context) error {
	if !c.Started {
		return nil
	}
	c.Started = false
	defer os.Remove(c.sock)
	c.proc.signal(syscall.SIGINT)
	select {
	case <-c.proc.done:
		if c.proc.err != nil {
			return fmt.Errorf("stop PostgreSQL: %w", c.proc.err)
		}
		return nil
	case <-ctx.Done():
		c.proc.signal(syscall.SIGQUIT)
		<-c.proc.done
		return fmt.Errorf("stop PostgreSQL: %w", context.Cause(ctx))
	}
}

// await returns when the server answers. On an error the server is gone.
func (c *Cluster) await(ctx context.Context) error {
	for {
		select {
		case <-c.proc.done:
			return fmt.Errorf("the server ended (%v)", c.proc.err)
		case <-ctx.Done():
			c.proc.signal(syscall.SIGQUIT)
			<-c.proc.done
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
		if c.ping(ctx) == nil {
			return nil
		}
	}
}

// ping also learns the version.
func (c *Cluster) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.DSN)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.QueryRow(ctx, "SELECT split_part(current_setting('server_version'), ' ', 1)").Scan(&c.Version)
}

// A server is what [Options] come to on this machine.
type server struct {
	Options
	dir, data, sock string
	cred            *syscall.Credential // whom the server runs as; nil: as this process
}

// prepare finds the binaries and lays out the folders.
func prepare(o Options) (*server, error) {
	if o.Dir == "" {
		return nil, errors.New("no folder named")
	}
	s := &server{Options: o}
	var err error
	if s.Bin == "" {
		if s.Bin, err = FindBin(); err != nil {
			return nil, err
		}
	}
	if s.dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if s.cred, err = credential(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	if s.cred != nil {
		if err := enterable(s.dir, s.cred); err != nil {
			return nil, err
		}
	}
	s.data = filepath.Join(s.dir, "data")
	s.sock = socketFolder(s.dir)
	return s, errors.Join(s.ownFolder(s.data), s.ownFolder(s.sock))
}

// socketFolder is in the cluster's folder, unless that lies too deep: the path of
// a unix socket may have 107 bytes at most, on macOS 103. Then it is a temporary
// folder whose name follows from the cluster's.
func socketFolder(dir string) string {
	if sock := filepath.Join(dir, "run"); len(sock) <= 103-len("/.s.PGSQL.5432") {
		return sock
	}
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(os.TempDir(), fmt.Sprintf("oncemore-pg-%d-%x", os.Geteuid(), sum[:5]))
}

// ownFolder makes a folder that only the server's user may enter.
func (s *server) ownFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	// A temporary folder's name can be guessed, and taken by somebody else first.
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	mine := ok && (int(st.Uid) == os.Geteuid() || s.cred != nil && st.Uid == s.cred.Uid)
	if !fi.IsDir() || !mine {
		return fmt.Errorf("%s is not a folder of our own", path)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return err
	}
	if s.cred == nil {
		return nil
	}
	return os.Lchown(path, int(s.cred.Uid), int(s.cred.Gid))
}

// initdb creates the cluster, unless it is there.
func (s *server) initdb(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(s.data, "PG_VERSION")); err == nil {
		return nil
	}
	args := []string{"-D", s.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"}
	if s.NoSync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, "initdb"), args...)
	s.dress(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// serve starts the server process.
func (s *server) serve() (*process, error) {
	args := []string{"-D", s.data,
		"-c", "listen_addresses=", "-c", "port=5432", "-c", "unix_socket_directories=" + s.sock, "-c", "unix_socket_permissions=0700"}
	if s.NoSync {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
	}
	for _, p := range s.Params {
		args = append(args, "-c", p)
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.Bin, "postgres"), args...)
	s.dress(cmd)
	cmd.Stdout, cmd.Stderr = log, log
	return launch(cmd, s.Bind)
}

// dress gives a command of the server its surroundings.
func (s *server) dress(cmd *exec.Cmd) {
	cmd.Dir = s.data // the server's user may not be able to enter our own working directory
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "HOME=" + s.data}
	// A process group of its own: Ctrl-C must reach the program alone, which
	// drains, with the database still there, and then stops the server.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.cred}
}

func (s *server) logFile() string { return filepath.Join(s.dir, "postgres.log") }

// logTail is the end of the server's log, for an error message.
func (s *server) logTail() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil || len(b) == 0 {
		return ""
	}
	return fmt.Sprintf("\nfrom %s:\n%s", s.logFile(), b[max(0, len(b)-1000):])
}

func dsn(sock string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Path: "/postgres",
		RawQuery: url.Values{"host": {sock}, "port": {"5432"}, "sslmode": {"disable"}}.Encode()} // said in full: PG* variables are not for us
	return u.String()
}

// lock waits until this process alone holds the file. The kernel lets go when
// the process dies.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
