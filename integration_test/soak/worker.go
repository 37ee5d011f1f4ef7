package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/rpc"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Short times, so that an hour has many deaths in it.
const (
	lease      = 3 * time.Second
	visibility = 5 * time.Second
	grace      = 2 * time.Second
	settle     = 2 * time.Second
	timeout    = 3 * time.Second
	stuckGrace = 5 * time.Second // the worker's own: a body that goes on for so long after its timeout is fenced off
)

// workerSettings is what a worker process is told, as its one argument.
type workerSettings struct {
	DSN, Socket, Name string
	Seed              uint64
	Slots             int
}

// workerMain is a worker process, as an application's own would be. It stops gracefully
// at SIGTERM, and when its stdin ends.
func workerMain(arg string) error {
	var s workerSettings
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return fmt.Errorf("this command is for the soak's own use: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	client, err := rpc.Dial("unix", s.Socket)
	if err != nil {
		return fmt.Errorf("reach the provider: %w", err)
	}
	pool, err := pgxpool.New(ctx, s.DSN)
	if err != nil {
		return fmt.Errorf("reach the database: %w", err)
	}
	defer pool.Close()
	b := &bodies{client: client, seed: s.Seed}
	set, err := b.set()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	for {
		w, err := worker.New(ctx, pool, set, worker.Config{
			Queues: map[string]queue.Queue{"": pgqueue.New(pool, "").WithVisibility(visibility)},
			Name:   s.Name, Slots: s.Slots, Lease: lease, Grace: grace, Recheck: 2 * time.Second, Log: log,
		})
		if err == nil {
			if err := w.Run(ctx); err != nil {
				log.Warn("the worker did not stop cleanly", "error", err)
			}
			return nil
		}
		log.Warn("the worker cannot begin", "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// bodies are what the jobs do: all make the same kind of effect, and each entity makes the
// trouble that is its fate.
type bodies struct {
	client *rpc.Client
	seed   uint64
}

func (b *bodies) set() (*jobs.Set, error) {
	policy := jobs.Policy{Timeout: timeout, Attempts: 12, Backoff: backoff}
	return jobs.NewSet(
		jobs.Job[thing[ofRepeatable]]{Effect: jobs.Repeatable, Policy: policy, Do: outside[thing[ofRepeatable]](b)},
		jobs.Job[thing[ofKeyed]]{Effect: jobs.Keyed(time.Hour), Policy: policy, Do: outside[thing[ofKeyed]](b)},
		jobs.Job[thing[ofVerifiable]]{Effect: jobs.Verifiable(settle), Policy: policy, Do: outside[thing[ofVerifiable]](b), Done: b.done},
		jobs.Job[thing[ofOnce]]{Effect: jobs.Once, Policy: policy, Do: outside[thing[ofOnce]](b)},
		jobs.Job[thing[ofTx]]{Policy: policy, DoTx: inside[thing[ofTx]](b)},
		jobs.Job[thing[ofMany]]{Policy: policy, DoMany: b.many},
		jobs.Job[revision[ofPage]]{Effect: jobs.Repeatable, Policy: policy, Do: outside[revision[ofPage]](b)},
		jobs.Job[revision[ofPageTx]]{Policy: policy, DoTx: inside[revision[ofPageTx]](b)},
		jobs.Job[thing[ofFan]]{Policy: policy, FanOut: func(p thing[ofFan]) jobs.Source { return members[thing[ofChild]](p.ID) }},
		jobs.Job[thing[ofFanTx]]{Policy: policy, FanOut: func(p thing[ofFanTx]) jobs.Source { return members[thing[ofChildTx]](p.ID) }},
		jobs.Job[thing[ofChild]]{Effect: jobs.Repeatable, Policy: policy, Do: outside[thing[ofChild]](b)},
		jobs.Job[thing[ofChildTx]]{Policy: policy, DoTx: inside[thing[ofChildTx]](b)},
	)
}

func members[A jobs.Args](parent int64) jobs.Source {
	var zero A
	return jobs.SQL[A](`SELECT m.id::text AS entity, m.id FROM soak.member m WHERE m.type = $1 AND m.parent = $2`, zero.JobType(), parent)
}

func backoff(attempt int) time.Duration {
	return min(8*time.Second, 200*time.Millisecond<<min(attempt, 10))
}

// identity is the number of args, and the source version where they have one.
func identity(a jobs.Args) (t *jobType, id, version int64) {
	if s, ok := a.(jobs.Sourced); ok {
		version = s.SourceVersion()
	}
	_, _ = fmt.Sscan(a.Entity(), &id)
	return typeNamed(a.JobType()), id, version
}

var errTrouble = errors.New("trouble")

// outside makes bodies whose effect is the provider's.
func outside[A jobs.Args](b *bodies) func(context.Context, A) error {
	return func(ctx context.Context, a A) error {
		began := time.Now()
		t, id, version := identity(a)
		at := jobs.Current(ctx)
		e := Effect{Type: t.name, ID: id, Epoch: at.Epoch, Key: at.EffectKey(), Version: version, Attempt: at.Number, Pid: os.Getpid(), Began: began.UnixNano()}
		if t.sourced { // it is made from what the source is now
			if err := b.client.Call("Provider.Version", Entity{t.name, id}, &e.Version); err != nil {
				return jobs.NotApplied(err)
			}
		}
		if t.class == once {
			if err := b.tell(e, "began"); err != nil {
				return err
			}
		}
		f := b.fate(t, id)
		if err := b.before(ctx, f); err != nil {
			if jobs.Meant(err).NotApplied && t.class == once {
				err = errors.Join(err, b.tell(e, "refused"))
			}
			return err
		}
		if ctx.Err() != nil && f != ignores {
			return context.Cause(ctx)
		}
		if err := b.tell(e, ""); err != nil {
			return err
		}
		return b.after(f)
	}
}

func (b *bodies) tell(e Effect, kind string) error {
	e.Kind = kind
	return b.client.Call("Provider.Do", e, &struct{}{})
}

// inside makes bodies whose effect is a row.
func inside[A jobs.Args](b *bodies) func(context.Context, pgx.Tx, A) error {
	return func(ctx context.Context, tx pgx.Tx, a A) error {
		t, id, version := identity(a)
		at := jobs.Current(ctx)
		f := b.fate(t, id)
		if err := b.before(ctx, f); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO soak.effect (type, id, epoch, version, attempt, pid) VALUES ($1, $2, $3, $4, $5, $6)`,
			t.name, id, at.Epoch, version, at.Number, os.Getpid())
		if err != nil {
			return err
		}
		return b.after(f)
	}
}

func (b *bodies) many(ctx context.Context, tx pgx.Tx, as []thing[ofMany]) error {
	ids := make([]int64, len(as))
	for i, a := range as {
		ids[i] = a.ID
	}
	for _, id := range ids {
		f := b.fate(typeNamed("many"), id)
		if err := b.before(ctx, f); err != nil {
			return err
		}
		if err := b.after(f); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO soak.effect (type, id, attempt, pid) SELECT 'many', m.id, 0, $2 FROM unnest($1::bigint[]) AS m(id)`, ids, os.Getpid())
	return err
}

// fate is the trouble of this attempt. How many there were before it the provider knows: a
// body has only the number of those that were charged, and DoMany not even that.
func (b *bodies) fate(t *jobType, id int64) trouble {
	f := fateOf(b.seed, t, id)
	if f.trouble == none {
		return none
	}
	var n int
	if err := b.client.Call("Provider.Try", Entity{t.name, id}, &n); err != nil || n > f.times {
		return none
	}
	return f.trouble
}

// before is the part of the trouble that comes before the effect.
func (b *bodies) before(ctx context.Context, f trouble) error {
	switch f {
	case fails:
		return errTrouble
	case refused:
		return jobs.NotApplied(errTrouble)
	case hopeless:
		return jobs.Permanent(jobs.NotApplied(errTrouble))
	case panics:
		panic("trouble")
	case ignores:
		time.Sleep(timeout + stuckGrace + 600*time.Millisecond)
	case kills:
		die()
	case slow:
		return sleep(ctx, time.Second)
	case hangs:
		return sleep(ctx, time.Hour)
	}
	return nil
}

// after is the part that comes after it.
func (b *bodies) after(f trouble) error {
	switch f {
	case failsAfter:
		return errTrouble
	case panicsAfter:
		panic("trouble")
	case killsAfter:
		die()
	}
	return nil
}

// die is what running out of memory looks like from outside.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// done asks the provider about the effect under the key of this attempt.
func (b *bodies) done(ctx context.Context, v thing[ofVerifiable]) (has bool, err error) {
	key := jobs.Current(ctx).EffectKey()
	err = b.client.Call("Provider.Has", key, &has)
	return has, err
}
