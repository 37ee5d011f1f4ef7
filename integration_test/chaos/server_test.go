//go:build linux

package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/pglocal"
	"github.com/oncemore-jobs/oncemore/migrations"
)

// A server is a PostgreSQL that one story may do to as it likes. A commit that it has
// confirmed outlives its processes (the file system's cache keeps it), but not the machine.
type server struct {
	*pglocal.Cluster
	options pglocal.Options
	pool    *pgxpool.Pool // the test's own
}

// folderPrefix begins the names of our folders; the process id follows.
const folderPrefix = "oncemore-chaos-"

// diskName is where a small disk is mounted in such a folder. A server has its data there.
const diskName = "data"

// newFolder makes a folder that the server's user can enter. t.TempDir is not one.
func newFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", folderPrefix, os.Getpid()))
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// sweep removes what test binaries left that were killed, and at the end what is our own.
func sweep(ours bool) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), folderPrefix+"*"))
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), folderPrefix+"%d-", &pid); err == nil && (ours && pid == os.Getpid() || syscall.Kill(pid, 0) == syscall.ESRCH) {
			_ = syscall.Unmount(filepath.Join(dir, diskName), syscall.MNT_DETACH)
			_ = os.RemoveAll(dir)
		}
	}
}

// newServer starts a server in dir, with our schema and the table of effects.
func newServer(t *testing.T, dir string, params ...string) *server {
	t.Helper()
	params = append([]string{"max_connections=100", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=32MB"}, params...)
	s := &server{options: pglocal.Options{Dir: dir, NoSync: true, Bind: true, Params: params}}
	s.start(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = s.Stop(ctx)
	})
	s.pool = openPool(t, s.DSN)
	return s
}

// migrate makes our schema, and the table of effects.
func migrate(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := migrations.Up(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	mustExec(t, pool, effectTable)
}

func (s *server) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := pglocal.Start(ctx, s.options)
	if errors.Is(err, pglocal.ErrNoBinaries) {
		lacking(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.Cluster = c
	if s.pool != nil {
		s.pool.Reset() // its connections are broken, and it does not know yet
	}
}

// stop shuts it down as an operator does: fast, open transactions are rolled back.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *server) log(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.options.Dir, "postgres.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// kill is kill -9 of the postmaster and all its children, and returns when they are gone.
func (s *server) kill(t *testing.T) {
	t.Helper()
	postmaster, ok := s.postmaster(t)
	if !ok {
		t.Fatal("the server is gone already")
	}
	// Held still, it starts no further children while we count them.
	_ = syscall.Kill(postmaster, syscall.SIGSTOP)
	pids := append(children(t, postmaster), postmaster)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, pid := range pids {
		await(t, "the server's processes are gone", func() bool { return !alive(pid) })
	}
}

// postmaster is the process id of the server, while it runs.
func (s *server) postmaster(t *testing.T) (pid int, ok bool) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.options.Dir, "data", "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, false
	}
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	if pid, err = strconv.Atoi(line); err != nil {
		t.Fatal(err)
	}
	return pid, alive(pid)
}

// children are the process ids whose parent is pid.
func children(t *testing.T, pid int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		if state, parent, ok := readStat(stat); ok && parent == pid && state != 'Z' {
			child, _ := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
			pids = append(pids, child)
		}
	}
	return pids
}

// alive tells whether a process exists and is more than an entry that nobody has read.
func alive(pid int) bool {
	state, _, ok := readStat(fmt.Sprintf("/proc/%d/stat", pid))
	return ok && state != 'Z' && state != 'X'
}

func readStat(file string) (state byte, parent int, ok bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return 0, 0, false
	}
	// The name stands in parentheses, and may have any character in it.
	_, rest, ok := bytes.Cut(raw[bytes.LastIndexByte(raw, ')'):], []byte(") "))
	if !ok {
		return 0, 0, false
	}
	_, err = fmt.Sscanf(string(rest), "%c %d", &state, &parent)
	return state, parent, err == nil
}
