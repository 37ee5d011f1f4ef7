//go:build linux

package chaos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A service is what a worker process is told to be, in its environment. What is not told
// has a default that is made for tests.
type service struct {
	Database string
	World    world
	Types    []string // empty: all
	Name     string

	Slots      int           // 0: 4
	Conns      int32         // of the pool; 0: 6
	Lease      time.Duration // 0: 1 s
	Visibility time.Duration // 0: 1 s
	Timeout    time.Duration // of one attempt; 0: 20 s
	Attempts   int           // 0: 30
	Pause      time.Duration // before and after an effect
	Retry      time.Duration // between attempts; 0: 50 ms
	Settle     time.Duration // of Verifiable; 0: 100 ms
	Horizon    time.Duration // of Keyed; 0: 1 h
	Memory     uint64        // bytes of address space beyond what it has after its start; 0: no limit
}

const serviceEnv = "ONCEMORE_CHAOS_SERVICE"

// work is the arguments of every job type: How tells its body what to do, word by word,
// before it has its effect.
//
//	fail    the first time: fail
//	hold    the first time: wait for the mark "open", deaf to all else
//	exit    end the process
//	gobble  have so much memory that the process ends
type work struct {
	N   int    `json:"n"`
	How string `json:"how,omitempty"`
	Fat string `json:"fat,omitempty"` // takes room in the database
}

func (w work) Entity() string { return jobs.Key(w.N) }

// deaf tells whether its body takes no notice of the end of its context.
func (w work) deaf() bool { return strings.Contains(w.How, "hold") }

// A job type for each effect class.
type (
	repeatable struct{ work }
	keyed      struct{ work }
	verifiable struct{ work }
	once       struct{ work }
	inTx       struct{ work }
	many       struct{ work }
)

func (repeatable) JobType() string { return "repeatable" }
func (keyed) JobType() string      { return "keyed" }
func (verifiable) JobType() string { return "verifiable" }
func (once) JobType() string       { return "once" }
func (inTx) JobType() string       { return "in_tx" }
func (many) JobType() string       { return "many" }

// A mailing fans out to keyed work.
type mailing struct {
	From int `json:"from"`
	To   int `json:"to"`
}

func (mailing) JobType() string  { return "mailing" }
func (m mailing) Entity() string { return jobs.Key(m.From, m.To) }

// of makes the arguments of a job type by its name.
func of(jobType string, w work) jobs.Args {
	switch jobType {
	case "repeatable":
		return repeatable{w}
	case "keyed":
		return keyed{w}
	case "verifiable":
		return verifiable{w}
	case "once":
		return once{w}
	case "in_tx":
		return inTx{w}
	case "many":
		return many{w}
	}
	panic("no such job type: " + jobType)
}

// allTypes are the job types that have effects, and outsideTypes those that have them
// outside the database.
var (
	allTypes     = []string{"repeatable", "keyed", "verifiable", "once", "in_tx", "many"}
	outsideTypes = []string{"repeatable", "keyed", "verifiable", "once"}
)

// effectTable is where the types in_tx and many have their effect.
const effectTable = `CREATE TABLE effect (type text, entity text, pid int)`

func (s *service) set() (*jobs.Set, error) {
	p := jobs.Policy{Timeout: s.Timeout, Attempts: s.Attempts, PackSize: 10, Backoff: func(int) time.Duration { return s.Retry }}
	all := map[string]jobs.Definition{
		"repeatable": jobs.Job[repeatable]{Effect: jobs.Repeatable, Policy: p, Do: func(ctx context.Context, a repeatable) error { return s.body(ctx, a.work) }},
		"keyed":      jobs.Job[keyed]{Effect: jobs.Keyed(s.Horizon), Policy: p, Do: func(ctx context.Context, a keyed) error { return s.body(ctx, a.work) }},
		"verifiable": jobs.Job[verifiable]{Effect: jobs.Verifiable(s.Settle), Policy: p, Do: func(ctx context.Context, a verifiable) error { return s.body(ctx, a.work) },
			Done: func(ctx context.Context, _ verifiable) (bool, error) { return s.World.happened(ctx) }},
		"once": jobs.Job[once]{Effect: jobs.Once, Policy: p, Do: func(ctx context.Context, a once) error { return s.body(ctx, a.work) }},
		"in_tx": jobs.Job[inTx]{Policy: p, DoTx: func(ctx context.Context, tx pgx.Tx, a inTx) error {
			return s.bodyTx(ctx, tx, "in_tx", a.work)
		}},
		"many": jobs.Job[many]{Policy: p, DoMany: func(ctx context.Context, tx pgx.Tx, as []many) error {
			for _, a := range as {
				if err := s.bodyTx(ctx, tx, "many", a.work); err != nil {
					return err
				}
			}
			return nil
		}},
		"mailing": jobs.Job[mailing]{Policy: p, FanOut: func(m mailing) jobs.Source {
			return jobs.SQL[keyed](`SELECT n::text AS entity, n FROM generate_series($1::int, $2::int) n`, m.From, m.To)
		}},
	}
	var ds []jobs.Definition
	for name, d := range all {
		if len(s.Types) == 0 || slices.Contains(s.Types, name) {
			ds = append(ds, d)
		}
	}
	return jobs.NewSet(ds...)
}

// body has its effect outside the database.
func (s *service) body(ctx context.Context, w work) error {
	if w.deaf() {
		ctx = context.WithoutCancel(ctx)
	}
	if err := s.World.write(ctx, "began", ""); err != nil {
		return err
	}
	if err := s.follow(ctx, w); err != nil {
		return err
	}
	if err := s.pause(ctx); err != nil {
		return err
	}
	if err := s.World.write(ctx, "effect", ""); err != nil {
		return err
	}
	return s.pause(ctx)
}

// bodyTx has its effect inside the transaction; what else it does comes after that.
func (s *service) bodyTx(ctx context.Context, tx pgx.Tx, jobType string, w work) error {
	if w.deaf() {
		ctx = context.WithoutCancel(ctx)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO effect (type, entity, pid) VALUES ($1, $2, $3)`, jobType, w.Entity(), os.Getpid()); err != nil {
		return err
	}
	if err := s.World.write(ctx, "began", w.Entity()); err != nil { // a pack's context names its first item
		return err
	}
	if err := s.follow(ctx, w); err != nil {
		return err
	}
	return s.pause(ctx)
}

var errTrouble = errors.New("some trouble")

// follow does as How says.
func (s *service) follow(ctx context.Context, w work) error {
	for step := range strings.FieldsSeq(w.How) {
		mark := fmt.Sprintf("%s-%s-%s", step, jobs.Current(ctx).JobType, strings.ReplaceAll(w.Entity(), "/", "-"))
		switch step {
		case "exit":
			os.Exit(3)
		case "gobble":
			gobble()
		case "fail":
			if s.World.mark(mark) {
				return errors.Join(errTrouble, s.World.write(ctx, "failed", ""))
			}
		case "hold":
			if s.World.mark(mark) {
				if err := s.World.write(ctx, "held", ""); err != nil {
					return err
				}
				s.World.deafly("open")
				if err := s.World.write(ctx, "went_on", ""); err != nil {
					return err
				}
			}
		default:
			return jobs.Permanent(fmt.Errorf("nobody knows how to %q", step))
		}
	}
	return nil
}

func (s *service) pause(ctx context.Context) error {
	if s.Pause == 0 {
		return ctx.Err()
	}
	select {
	case <-time.After(s.Pause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// gobbled keeps what is gobbled.
var gobbled [][]byte

// gobble asks for memory until there is none.
func gobble() {
	for {
		gobbled = append(gobbled, make([]byte, 16<<20))
	}
}

func orElse[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// runService is a worker process from start to end.
func runService(told string) error {
	var s service
	if err := json.Unmarshal([]byte(told), &s); err != nil {
		return err
	}
	orElse(&s.Slots, 4)
	orElse(&s.Conns, 6)
	orElse(&s.Lease, time.Second)
	orElse(&s.Visibility, time.Second)
	orElse(&s.Timeout, 20*time.Second)
	orElse(&s.Attempts, 30)
	orElse(&s.Retry, 50*time.Millisecond)
	orElse(&s.Settle, 100*time.Millisecond)
	orElse(&s.Horizon, time.Hour)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go endWithParent(os.Getppid())
	config, err := pgxpool.ParseConfig(s.Database)
	if err != nil {
		return err
	}
	config.MaxConns = s.Conns
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	set, err := s.set()
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, pool, set, worker.Config{
		Name: s.Name, Slots: s.Slots, Lease: s.Lease, Grace: 2 * time.Second, Recheck: 200 * time.Millisecond,
		Queues: map[string]queue.Queue{"": pgqueue.New(pool, "").WithVisibility(s.Visibility)},
		Log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	if err := s.World.write(ctx, "started", time.Now().Format(time.RFC3339)); err != nil {
		return err
	}
	go s.tellHealth(ctx, w)
	if s.Memory > 0 {
		if err := limitMemory(s.Memory); err != nil {
			return err
		}
	}
	return w.Run(ctx)
}

// tellHealth writes each change of the worker's health down.
func (s *service) tellHealth(ctx context.Context, w *worker.Worker) {
	for before := "?"; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		now := ""
		if err := w.Health(); err != nil {
			now = err.Error()
		}
		if now != before {
			_ = s.World.write(ctx, "health", now)
		}
		before = now
	}
}

// endWithParent ends the process when the test that started it is gone.
func endWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(100 * time.Millisecond)
	}
	os.Exit(4)
}

// limitMemory limits the address space to what there is and some more. The limit is
// relative, since a race detector has terabytes of it from the beginning.
func limitMemory(more uint64) error {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	var pages uint64
	if _, err := fmt.Sscan(string(raw), &pages); err != nil {
		return err
	}
	limit := pages*uint64(os.Getpagesize()) + more
	return syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: limit, Max: limit})
}
