package ledgerhttp_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
)

// The tests here kill real processes. The test binary runs itself as a server when this
// variable names how its operation has its effect.
const (
	serverEnv = "ONCEMORE_TEST_HTTP_SERVER"
	worldEnv  = "ONCEMORE_TEST_HTTP_WORLD" // where an outside effect goes, past the proxy
)

// operation is POST /orders with its effect in transaction, or outside, in world.
func operation(mode string, world *pgxpool.Pool) (ledgerhttp.Operation, http.HandlerFunc) {
	o := ledgerhttp.Operation{Name: "POST /orders"}
	switch mode {
	case "in transaction":
		return o, order
	case "Once":
		o.Effect = ledger.Once
	case "Repeatable":
		o.Effect = ledger.Repeatable
	case "Keyed":
		o.Effect = ledger.Keyed(time.Hour)
	case "Verifiable":
		o.Effect = ledger.Verifiable(0)
		o.Check = func(w http.ResponseWriter, r *http.Request) (done bool, err error) {
			err = world.QueryRow(r.Context(), `SELECT EXISTS (SELECT FROM orders WHERE item = $1)`, ledgerhttp.EffectKey(r.Context())).Scan(&done)
			if done {
				w.WriteHeader(http.StatusCreated)
				fmt.Fprintln(w, "charged", ledgerhttp.EffectKey(r.Context()))
			}
			return done, err
		}
	}
	return o, func(w http.ResponseWriter, r *http.Request) {
		if _, err := world.Exec(r.Context(), `INSERT INTO orders (item) VALUES ($1)`, ledgerhttp.EffectKey(r.Context())); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, "charged", ledgerhttp.EffectKey(r.Context()))
	}
}

// serverProcess serves until it is killed, or its standard input ends with its parent.
func serverProcess(mode string) error {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	world, err := pgxpool.New(ctx, os.Getenv(worldEnv))
	if err != nil {
		return err
	}
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Scope: caller, Lease: time.Second, Log: quiet()})
	if err != nil {
		return err
	}
	o, h := operation(mode, world)
	g, err := keys.Guard(ctx, o, h)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("http://%s\n", l.Addr())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); os.Exit(1) }()
	return http.Serve(l, g)
}

// startServer runs the test binary as a server on the database at dsn.
func (s *shop) startServer(mode, dsn string) (pid int, url string) {
	s.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+mode, "DATABASE_URL="+dsn, worldEnv+"="+s.pool.Config().ConnString())
	var said bytes.Buffer
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.Fatal(err)
	}
	// It ends by the SIGKILL of its test. Had it ended by itself before, its caller would be
	// cut off just so, and what was to be killed at one statement would have died at another.
	s.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // how it ended is in ProcessState
		if st, _ := cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGKILL {
			s.Errorf("the server process was not killed, it ended by itself: %v\n%s", cmd.ProcessState, &said)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.Fatalf("the server did not begin: %v", err)
	}
	return cmd.Process.Pid, strings.TrimSpace(line)
}

// A server is killed -9 between the effect and its record, or between the record and its
// reply. The next request, to another server, is told what the effect class says.
func TestAServerIsKilledBetweenTheEffectAndItsRecord(t *testing.T) {
	before, after := pgproxy.KillBefore, pgproxy.KillAfter
	for name, test := range map[string]struct {
		mode    string
		fault   func(pid int) pgproxy.Fault
		next    string
		effects int
	}{
		"in transaction, before its commit": {"in transaction", before, "201 false", 1},
		"in transaction, after its commit":  {"in transaction", after, "201 true", 1},
		"once, before its record":           {"Once", before, "409 outcome-unknown false", 1},
		"once, after its record":            {"Once", after, "201 true", 1},
		"repeatable, before its record":     {"Repeatable", before, "201 false", 2},
		"keyed, before its record":          {"Keyed", before, "201 false", 2},
		"verifiable, before its record":     {"Verifiable", before, "201 false", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			proxy, err := pgproxy.Start(s.pool.Config().ConnString())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Close)
			pid, url := s.startServer(test.mode, proxy.DSN())
			var struck atomic.Bool
			proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
				if commitOf("response: store")(b) && struck.CompareAndSwap(false, true) {
					return test.fault(pid)
				}
				return pgproxy.Pass
			})
			if got, err := send(t.Context(), url, "k", "tea"); err == nil {
				t.Errorf("the killed server answered %v", got)
			}
			s.want("killed", struck.Load(), true)

			o, h := operation(test.mode, s.pool)
			s.guard(o, h)
			var got reply
			eventually(t, "it is no longer ongoing", func() bool { got = s.post("k", "tea"); return got.problem() != "request-ongoing" })
			s.want("the next", fmt.Sprint(got.said(), " ", got.replayed()), test.next)
			s.want("effects", s.count(`SELECT count(*) FROM orders`), test.effects)
			s.want("effect keys", s.count(`SELECT count(DISTINCT item) FROM orders`), 1)
			if got.problem() == "" {
				s.again(got, "k", "tea")
				s.want("claims", s.claims(), 0)
			}
		})
	}
}
