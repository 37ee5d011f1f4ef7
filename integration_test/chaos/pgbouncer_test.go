//go:build linux

package chaos_test

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// PgBouncer knows prepared statements, which pgx uses unless it is told not to, since 1.21.
const preparedSince = "1.21"

// A pooler is a PgBouncer in transaction mode: each transaction may run over another one
// of its few connections to the server.
type pooler struct {
	dir, binary string
	cred        *syscall.Credential // whom it runs as; nil: us
	cmd         *exec.Cmd
}

// pooled is how many connections it has to a database: fewer than a worker has to it.
const pooled = 5

// startPooler starts a PgBouncer in front of the server of dsn.
func startPooler(t *testing.T, binary, dsn string, prepared int) *pooler {
	t.Helper()
	server, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := &pooler{dir: newFolder(t), binary: binary, cred: notRoot(t)}
	password := ""
	if server.Password != "" {
		password = "password='" + strings.ReplaceAll(server.Password, "'", "''") + "'"
	}
	config := fmt.Sprintf(`[databases]
* = host=%s port=%d user=%s %s pool_size=%d
[pgbouncer]
pool_mode = transaction
listen_addr =
listen_port = 6432
unix_socket_dir = %s
auth_type = any
max_client_conn = 500
logfile = %s
`, server.Host, server.Port, server.User, password, pooled, p.dir, p.file("log"))
	if newEnough(t, binary) {
		config += fmt.Sprintf("max_prepared_statements = %d\n", prepared)
	}
	if err := os.WriteFile(p.file("ini"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if p.cred != nil {
		if err := os.Chown(p.dir, int(p.cred.Uid), int(p.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	p.start(t)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			log, _ := os.ReadFile(p.file("log"))
			t.Logf("PgBouncer's log:\n%s", log)
		}
	})
	return p
}

func (p *pooler) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(p.binary, "-q", p.file("ini"))
	p.cmd.Dir = p.dir
	p.cmd.Stderr = t.Output()
	if p.cred != nil { // it refuses to run as root
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.cred}
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "PgBouncer listens", func() bool {
		c, err := net.Dial("unix", p.file(".s.PGSQL.6432"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// kill is kill -9.
func (p *pooler) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	_ = os.Remove(p.file(".s.PGSQL.6432"))
}

func (p *pooler) file(name string) string { return filepath.Join(p.dir, name) }

// dsn is the way to a database through it.
func (p *pooler) dsn(t *testing.T, direct string, more ...string) string {
	t.Helper()
	c, err := pgx.ParseConfig(direct)
	if err != nil {
		t.Fatal(err)
	}
	q := url.Values{"host": {p.dir}, "port": {"6432"}, "sslmode": {"disable"}}
	for i := 0; i < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	u := url.URL{Scheme: "postgres", User: url.User(c.User), Path: "/" + c.Database, RawQuery: q.Encode()}
	return u.String()
}

// notRoot is whom a program runs as that refuses to be root: the user that the private
// server runs as, whose socket only he may enter. Nil when we are not root.
func notRoot(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
			gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	lacking(t, "PgBouncer refuses to run as root, and there is neither a user postgres nor a user nobody")
	return nil
}

// findPooler finds a PgBouncer: the newest of what PGBOUNCER names, what .ci/setup built,
// and what is installed.
func findPooler(t *testing.T) string {
	t.Helper()
	best, newest := "", [2]int{}
	for _, name := range []string{os.Getenv("PGBOUNCER"), "/opt/pgbouncer/bin/pgbouncer", "pgbouncer", "/usr/sbin/pgbouncer"} {
		if name == "" {
			continue
		}
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if v := poolerVersion(t, path); best == "" || v[0] > newest[0] || v[0] == newest[0] && v[1] > newest[1] {
			best, newest = path, v
		}
	}
	if best == "" {
		lacking(t, "PgBouncer is not installed: .ci/setup installs it as root on Debian (or name it in PGBOUNCER)")
	}
	return best
}

func poolerVersion(t *testing.T, binary string) (v [2]int) {
	t.Helper()
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(strings.ToLower(string(out)), "pgbouncer %d.%d", &v[0], &v[1]); err != nil {
		t.Fatalf("the version of %s: %q: %v", binary, out, err)
	}
	return v
}

func newEnough(t *testing.T, binary string) bool {
	v := poolerVersion(t, binary)
	return v[0] > 1 || v[1] >= 21
}

// All of a worker's connections go through a PgBouncer in transaction mode, that of its
// lease too. It does everything that it does without one: singles, packs, transactions,
// fan-outs, retries and delays. Named statements need a PgBouncer that knows them; without
// them any will do.
func TestEverythingWorksBehindPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	binary := findPooler(t)
	for name, c := range map[string]struct {
		prepared int
		more     []string
		onlyFull bool
	}{
		"pgx's default mode, with max_prepared_statements": {100, nil, false},
		"exec mode, without prepared statements":           {0, []string{"default_query_exec_mode", "exec"}, false},
		"simple protocol":                                  {0, []string{"default_query_exec_mode", "simple_protocol"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.onlyFull {
				onlyFull(t)
			}
			if c.prepared > 0 && !newEnough(t, binary) {
				lacking(t, "%s is older than %s and knows no prepared statements", binary, preparedSince)
			}
			direct, pool := database(t)
			p := startPooler(t, binary, direct, c.prepared)
			w := newWorld(t)
			l := load{}
			n := size(40, 200)
			l.sendMixed(t, pool, n, allTypes...)
			for _, jobType := range []string{"repeatable", "keyed", "verifiable", "in_tx", "many"} {
				l.send(t, pool, jobType, work{N: n + 1, How: "fail"}, work{N: n + 2}, work{N: n + 3, How: "fail"})
			}
			l.fanOut(t, pool, n+10, 2*n)
			late := message(t, "once", work{N: n + 1})
			if err := queue.After(pgqueue.New(pool, ""), 500*time.Millisecond).Send(t.Context(), late); err != nil {
				t.Fatal(err)
			}
			l.add(t, "once", work{N: n + 1})
			told := service{Database: p.dsn(t, direct, c.more...), World: w, Slots: 8, Conns: 8, Lease: 15 * time.Second, Visibility: 5 * time.Second}
			ps := []*process{told.start(t), told.start(t)}
			most := 0
			await(t, "all work has ended", func() bool {
				most = max(most, ask[int](t, pool, `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`))
				return ask[bool](t, pool, settled)
			})
			if n := ask[int](t, pool, `SELECT count(*) FROM oncemore.worker`); n != len(ps) {
				t.Errorf("%d lives of %d workers", n, len(ps))
			}
			if n := ask[int](t, pool, `SELECT count(*) FROM oncemore.parked`); n != 0 {
				t.Errorf("%d messages were parked", n)
			}
			if n := ask[int](t, pool, `SELECT count(*) FROM oncemore.run WHERE complete`); n != 1 {
				t.Errorf("%d runs are complete, want 1", n)
			}
			if most > pooled+4 { // and the test's own
				t.Errorf("%d connections to the server: they do not go through the pooler", most)
			}
			stopAll(t, ps...)
			checkEnd(t, pool, w, l)
			for _, p := range ps {
				if p.said("level=ERROR") || p.said("lease not renewed") {
					t.Errorf("process %d complains", p.pid())
				}
			}
		})
	}
}

// The pooler dies under load, and with it every connection, in the middle of transactions
// that the server may or may not have committed.
func TestI1NoLossWhenPgBouncerIsKilledUnderLoad(t *testing.T) {
	t.Parallel()
	onlyFull(t)
	direct, pool := database(t)
	p := startPooler(t, findPooler(t), direct, 0)
	w := newWorld(t)
	ps := service{Database: p.dsn(t, direct, "default_query_exec_mode", "exec"), World: w, Pause: 10 * time.Millisecond, Lease: 3 * time.Second}.fleet(t, pool, 2)
	l := load{}
	l.sendMixed(t, pool, 200, allTypes...)
	for i := range 6 {
		await(t, "a part of the work is done", func() bool { return w.busy((i + 1) * len(l) / 12) })
		p.kill()
		p.start(t)
	}
	awaitSettled(t, pool)
	resolveDoubts(t, pool, w)
	awaitSettled(t, pool)
	stopAll(t, ps...)
	checkEnd(t, pool, w, l)
}
