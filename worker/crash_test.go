package worker_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// The tests here kill real processes. The test binary runs itself as a worker when this
// variable names the class of its job.
const workerEnv = "ONCEMORE_TEST_WORKER"

func TestMain(m *testing.M) {
	if class := os.Getenv(workerEnv); class != "" {
		if err := workerProcess(class); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// These tests wait for leases, backoffs and other processes much more than they compute.
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set("6")
	}
	os.Exit(pgtest.Main(m))
}

// outside is an effect outside the ledger's transactions: a row that is committed by
// itself, with the key that a provider would know repeats by.
const outside = `CREATE TABLE outside (id bigint GENERATED ALWAYS AS IDENTITY, entity text, key text, worker text, at timestamptz DEFAULT clock_timestamp())`

func workerProcess(class string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(context.WithoutCancel(ctx), os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	if class == "Chime" {
		return chimeProcess(ctx, pool)
	}
	set, err := jobs.NewSet(crashJob(class, pool))
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, pool, set, crashConfig(pool))
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

func crashConfig(pool *pgxpool.Pool) worker.Config {
	return worker.Config{
		Slots: 4, Name: strconv.Itoa(os.Getpid()), Lease: 2 * time.Second, Grace: 2 * time.Second, Recheck: 200 * time.Millisecond,
		Queues: map[string]queue.Queue{"": pgqueue.New(pool, "").WithVisibility(time.Second)},
		Log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

func crashJob(class string, pool *pgxpool.Pool) jobs.Definition {
	j := jobs.Job[letter]{Policy: jobs.Policy{Attempts: 4, Backoff: quickly}}
	effect := func(ctx context.Context, l letter) error {
		if os.Getenv("POISON") == strconv.Itoa(l.N) {
			os.Exit(3)
		}
		time.Sleep(20 * time.Millisecond)
		_, err := pool.Exec(ctx, `INSERT INTO outside (entity, key, worker) VALUES ($1, $2, $3)`, l.Entity(), jobs.Current(ctx).EffectKey(), strconv.Itoa(os.Getpid()))
		time.Sleep(20 * time.Millisecond)
		return errors.Join(err, jobs.Current(ctx).Return(os.Getpid()))
	}
	switch class {
	case "Repeatable":
		j.Effect, j.Do = jobs.Repeatable, effect
	case "Keyed":
		j.Effect, j.Do = jobs.Keyed(time.Hour), effect
	case "Once":
		j.Effect, j.Do = jobs.Once, effect
	case "Verifiable":
		j.Effect, j.Do = jobs.Verifiable(100*time.Millisecond), effect
		j.Done = func(ctx context.Context, l letter) (done bool, err error) {
			err = pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM outside WHERE entity = $1)`, l.Entity()).Scan(&done)
			return done, err
		}
	case "Fleet":
		j.Effect, j.Do = jobs.Repeatable, lingering(pool, strconv.Itoa(os.Getpid()), 20*time.Millisecond)
		j.FleetLimit.Running = fleetRunning
	case "Pod":
		j.Effect = jobs.Once
		j.Do = func(ctx context.Context, l letter) error {
			if _, err := pool.Exec(ctx, `INSERT INTO inside (entity) VALUES ($1)`, l.Entity()); err != nil {
				return err
			}
			d, err := time.ParseDuration(os.Getenv("BODY"))
			if err != nil {
				return err
			}
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	case "DoTx":
		j.DoTx = func(ctx context.Context, tx pgx.Tx, l letter) error {
			_, err := tx.Exec(ctx, `INSERT INTO outside (entity, key, worker) VALUES ($1, $2, $3)`, l.Entity(), jobs.Current(ctx).EffectKey(), strconv.Itoa(os.Getpid()))
			time.Sleep(20 * time.Millisecond)
			return errors.Join(err, jobs.Current(ctx).Return(os.Getpid()))
		}
	}
	return j
}

// A process is a worker process of its own. Unless it is said to be poisoned it ends by our
// SIGKILL, or well after a SIGTERM: a worker that dies by itself fails the test, for what
// the next one does would hide it.
type process struct {
	*os.Process
	died     chan struct{} // closed when it has ended
	poisoned bool          // a job ends it, with exit code 3
	state    *os.ProcessState
}

func (p *process) kill() { _ = p.Process.Kill(); <-p.died } // SIGKILL

// start starts a worker process; it is killed with the test.
func start(t *testing.T, class, dsn string, env ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), append(env, workerEnv+"="+class, "DATABASE_URL="+dsn)...)
	var said bytes.Buffer
	cmd.Stderr = io.MultiWriter(t.Output(), &said)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{Process: cmd.Process, died: make(chan struct{}), poisoned: slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "POISON=") })}
	go func() { _ = cmd.Wait(); p.state = cmd.ProcessState; close(p.died) }()
	t.Cleanup(func() {
		p.kill()
		// A lease that is lost while it stops is no fault of the story's.
		if !p.asPlanned() && !(p.state.ExitCode() == 1 && strings.Contains(said.String(), "the worker's lease is lost")) {
			t.Errorf("worker process %d (%s) ended by itself: %v\n%s", p.Pid, class, p.state, &said)
		}
	})
	return p
}

// asPlanned tells whether it ended as this file lets it.
func (p *process) asPlanned() bool {
	st, _ := p.state.Sys().(syscall.WaitStatus)
	return st.Signaled() && st.Signal() == syscall.SIGKILL || p.state.Success() || p.poisoned && p.state.ExitCode() == 3
}

// pack is one message with many letters.
func pack(t *testing.T, from, to int) queue.Message {
	t.Helper()
	m := queue.Message{Type: letter{}.JobType()}
	for n := from; n <= to; n++ {
		it, err := jobs.NewItem(letter{n})
		if err != nil {
			t.Fatal(err)
		}
		m.Items = append(m.Items, it)
	}
	return m
}

func TestI1NoLossWhenWorkersAreKilled(t *testing.T) {
	for _, class := range []string{"Repeatable", "Keyed", "Verifiable", "Once", "DoTx"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if _, err := pool.Exec(t.Context(), outside); err != nil {
				t.Fatal(err)
			}
			q := pgqueue.New(pool, "")
			ms := []queue.Message{pack(t, 1, 30), pack(t, 1, 30), pack(t, 31, 40)}
			for n := 41; n <= 50; n++ {
				ms = append(ms, pack(t, n, n), pack(t, n, n))
			}
			if err := q.Send(t.Context(), ms...); err != nil {
				t.Fatal(err)
			}
			effects := func() int64 { return count(t, pool, `SELECT count(*) FROM outside`) }
			dsn := pool.Config().ConnString()
			for killed := range int64(2) {
				victim := start(t, class, dsn)
				await(t, func() bool { return effects() >= 8*(killed+1) })
				victim.kill()
			}
			start(t, class, dsn)
			// Recovery is the normal path: nobody does anything but start another worker.
			ends := []string{"failed"}
			if class == "Once" {
				ends = append(ends, "in_doubt") // another class resolves it by itself
			}
			settled := func() bool {
				return count(t, pool, `SELECT (SELECT count(*) FROM oncemore.ledger) + (SELECT count(*) FROM oncemore.claim WHERE trouble = ANY ($1))`, ends) == 50 &&
					count(t, pool, `SELECT count(*) FROM oncemore.message`) == 0
			}
			await(t, settled)

			inDoubt := count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE trouble = 'in_doubt'`)
			done := count(t, pool, `SELECT count(*) FROM oncemore.ledger`)
			twice := count(t, pool, `SELECT count(*) FROM (SELECT entity FROM outside GROUP BY entity HAVING count(*) > 1) x`)
			keys := count(t, pool, `SELECT count(DISTINCT key) FROM outside`)
			t.Logf("%s: %d done, %d in doubt, %d effects, %d of them on the same entity again", class, done, inDoubt, effects(), twice)
			if done+inDoubt != 50 {
				t.Errorf("%d done and %d in doubt, want 50 in all: something failed", done, inDoubt)
			}
			if class != "Once" && inDoubt != 0 {
				t.Errorf("%d are in doubt, and this class has ways to know", inDoubt)
			}
			if (class == "Once" || class == "Verifiable" || class == "DoTx") && twice != 0 {
				t.Errorf("%d effects happened twice", twice)
			}
			if class == "Once" && inDoubt == 0 {
				t.Error("two workers were killed at their work, and nothing is in doubt")
			}
			if keys > 50 {
				t.Errorf("%d effect keys for 50 entities: a provider would have taken repeats for new work", keys)
			}
		})
	}
}

// What it reports late of a claim that others have taken over by then, and that this is kept as
// disputed, is told by TestI2OneCompletionOfAWorkerThatWasFrozenPastItsLeaseIsRefusedAndDisputed of
// integration_test/chaos: there it is surely in a body when it freezes.
func TestI10TheWorkOfAFrozenWorkerIsDoneAndItLivesAnewWhenItThaws(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), outside); err != nil {
		t.Fatal(err)
	}
	dsn := pool.Config().ConnString()
	frozen := start(t, "Keyed", dsn)
	if err := pgqueue.New(pool, "").Send(t.Context(), pack(t, 1, 200)); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE owner IS NOT NULL`) > 0 })
	if err := frozen.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start(t, "Keyed", dsn)
	await(t, func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.ledger`) == 200 })
	facts := `SELECT sum(hashtextextended(l::text, 0)) % 1000000007 FROM oncemore.ledger l`
	before := count(t, pool, facts)
	if err := frozen.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL`) == 2 })
	if after := count(t, pool, facts); after != before {
		t.Error("the facts have changed")
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.worker WHERE cause = 'lapsed'`); n != 1 {
		t.Errorf("%d workers were declared dead, want the frozen one", n)
	}
}

func TestAPoisonItemIsFoundAndItsNeighboursAreDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), outside); err != nil {
		t.Fatal(err)
	}
	if err := pgqueue.New(pool, "").Send(t.Context(), pack(t, 1, 20)); err != nil {
		t.Fatal(err)
	}
	deaths := 0
	for end := time.Now().Add(50 * time.Second); ; deaths++ {
		if time.Now().After(end) {
			t.Fatalf("after %d deaths the poison is still not found", deaths)
		}
		died := start(t, "Keyed", pool.Config().ConnString(), "POISON=7").died
		found := false
		for alive := true; alive && !found && time.Now().Before(end); {
			select {
			case <-died:
				alive = false
			case <-time.After(20 * time.Millisecond):
				found = count(t, pool, `SELECT count(*) FROM oncemore.ledger`) == 19 && count(t, pool, `SELECT count(*) FROM oncemore.claim WHERE trouble = 'failed'`) == 1
			}
		}
		if found {
			break
		}
	}
	if entity, n := "7", count(t, pool, `SELECT attempts FROM oncemore.claim WHERE entity = '7'`); n != 4 {
		t.Errorf("letter %s was attempted %d times, its policy says 4", entity, n)
	}
	t.Logf("found after %d deaths", deaths)
}
