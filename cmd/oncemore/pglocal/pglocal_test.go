package pglocal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("PGLOCAL_TEST_HOST"); dir != "" {
		host(dir)
	}
	os.Exit(m.Run())
}

func TestAClusterKeepsItsDataFromStartToStart(t *testing.T) {
	dir := folder(t)
	c := start(t, Options{Dir: dir, NoSync: true, Params: []string{"work_mem=7MB"}})
	if !c.Started || c.Version == "" {
		t.Errorf("the first start: %+v", c)
	}
	query(t, c, "CREATE TABLE kept AS SELECT 42 AS n")
	if got := query(t, c, "SHOW work_mem"); got != "7MB" {
		t.Errorf("work_mem is %s, want the 7MB of Params", got)
	}
	if got := query(t, c, "SHOW listen_addresses"); got != "" {
		t.Errorf("the server listens on %q, want a unix socket only", got)
	}
	stop(t, c)
	stop(t, c) // again: nothing
	if err := c.ping(t.Context()); err == nil {
		t.Error("a stopped server answers")
	}

	c = start(t, Options{Dir: dir, NoSync: true})
	if got := query(t, c, "SELECT n::text FROM kept"); got != "42" {
		t.Errorf("after a restart the table holds %s, want 42", got)
	}
}

func TestOfManyWhoStartItOneDoesAndTheOthersAttach(t *testing.T) {
	dir := folder(t)
	var starters atomic.Int32
	var wg sync.WaitGroup
	attached := make(chan *Cluster, 4)
	for range 4 {
		wg.Go(func() {
			c, err := Start(t.Context(), Options{Dir: dir, NoSync: true})
			if err != nil {
				t.Error(err)
				return
			}
			if c.Started {
				starters.Add(1)
				t.Cleanup(func() { stop(t, c) })
			} else {
				attached <- c
			}
		})
	}
	wg.Wait()
	close(attached)
	if starters.Load() != 1 {
		t.Errorf("%d started the server, want 1", starters.Load())
	}
	for c := range attached {
		stop(t, c)
		if err := c.ping(t.Context()); err != nil {
			t.Errorf("Stop by one who only attached stopped the server: %v", err)
		}
	}
}

// A test binary that is killed must leave no server behind; `oncemore dev` may,
// and finds it again.
func TestABoundServerDiesWithItsProcessAndAnUnboundOneIsFoundAgain(t *testing.T) {
	for _, bind := range []bool{true, false} {
		t.Run(fmt.Sprintf("bind=%v", bind), func(t *testing.T) {
			if bind && runtime.GOOS != "linux" {
				t.Skip("only Linux ends a child with its parent")
			}
			dir := folder(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "PGLOCAL_TEST_HOST="+dir, fmt.Sprintf("PGLOCAL_TEST_BIND=%v", bind))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
				t.Fatalf("the process said %q, %v", line, err)
			}
			pid := serverPID(t, dir)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()

			if bind {
				await(t, "the server to end", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
				return
			}
			t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGINT) })
			c := start(t, Options{Dir: dir})
			if c.Started || serverPID(t, dir) != pid {
				t.Errorf("another server was started beside the one that goes on")
			}
		})
	}
}

// host is the process that the test above kills.
func host(dir string) {
	_, err := Start(context.Background(), Options{Dir: dir, NoSync: true, Bind: os.Getenv("PGLOCAL_TEST_BIND") == "true"})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up")
	select {}
}

// A socket's path may have about a hundred bytes.
func TestAClusterMayLieInADeepFolder(t *testing.T) {
	deep := filepath.Join(folder(t), strings.Repeat("deep/", 30))
	c := start(t, Options{Dir: deep, NoSync: true})
	stop(t, c)
	if _, err := os.Stat(c.sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's folder is left behind: %v", err)
	}
}

func TestWithoutBinariesTheErrorNamesTheCommand(t *testing.T) {
	defer func(old []string) { serverFolders = old }(serverFolders)
	serverFolders = nil
	t.Setenv("PGBIN", "")
	t.Setenv("PATH", t.TempDir())
	_, err := Start(t.Context(), Options{Dir: folder(t)})
	if !errors.Is(err, ErrNoBinaries) || !strings.Contains(err.Error(), "apt-get install -y postgresql") {
		t.Errorf("without binaries: %v", err)
	}
	t.Setenv("PGBIN", "/nowhere")
	if _, err := FindBin(); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("with a wrong PGBIN: %v", err)
	}
}

func TestTheNewestInstalledVersionIsTaken(t *testing.T) {
	defer func(old []string) { serverFolders = old }(serverFolders)
	root := t.TempDir()
	serverFolders = []string{filepath.Join(root, "*/bin")}
	t.Setenv("PGBIN", "")
	for _, version := range []string{"9", "15", "18", "100"} {
		dir := filepath.Join(root, version, "bin")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		programs := []string{"initdb", "postgres"}
		if version == "100" {
			programs = programs[:1] // only the client package
		}
		for _, name := range programs {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := FindBin(); got != filepath.Join(root, "18/bin") || err != nil {
		t.Errorf("FindBin() = %s, %v; want version 18", got, err)
	}
}

func TestAFolderThatTheServersUserCannotEnterIsNamed(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root hands the server to another user")
	}
	closed := filepath.Join(folder(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{Dir: filepath.Join(closed, "pg")})
	if err == nil || !strings.Contains(err.Error(), "may not enter "+closed) {
		t.Errorf("in a folder that only root may enter: %v", err)
	}
}

func TestAServerThatCannotStartShowsItsLog(t *testing.T) {
	_, err := Start(t.Context(), Options{Dir: folder(t), NoSync: true, Params: []string{"work_mem=lots"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "work_mem"`) {
		t.Errorf("with a setting that is wrong: %v", err)
	}
}

// folder is one that the server's user can enter; t.TempDir is not.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pglocal-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, o Options) *Cluster {
	t.Helper()
	if _, err := FindBin(); errors.Is(err, ErrNoBinaries) && os.Getenv("TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })
	return c
}

func stop(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func query(t *testing.T, c *Cluster, sql string) (text string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.DSN)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if err := conn.QueryRow(t.Context(), sql).Scan(&text); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func serverPID(t *testing.T, dir string) (pid int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "data/postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}
