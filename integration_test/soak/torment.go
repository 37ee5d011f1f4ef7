package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
)

// A tormentor breaks things at random times, and mends what would not mend itself.
type tormentor struct {
	w    *world
	rand *rand.Rand
	gap  time.Duration // between two torments, on average

	lasting sync.WaitGroup // what goes on beside the next torments
}

// A torment is something that goes wrong. It returns when it is over, or goes on beside
// the others under lasting.
type torment struct {
	name   string
	weight int
	do     func(t *tormentor, ctx context.Context, at *place) string
}

var torments = []torment{
	{"kill -9", 16, (*tormentor).kill},
	{"freeze", 16, (*tormentor).freeze},
	{"freeze, then kill -9", 4, (*tormentor).freezeKill},
	{"SIGTERM", 11, (*tormentor).term},
	{"cut connections", 11, (*tormentor).cut},
	{"packets dropped", 10, (*tormentor).pause},
	{"flaky connections", 12, (*tormentor).flaky},
	{"replies lost", 9, (*tormentor).reportedLost},
	{"kill -9 at a reply", 6, (*tormentor).killAtReply},
	{"backends terminated", 3, (*tormentor).backends},
	{"Postgres restart", 3, (*tormentor).restart},
	{"Postgres kill -9", 3, (*tormentor).killPostgres},
}

// enough is the time in which each kind of torment surely has its turn: as many gaps as there
// are kinds, each as long as they get then, and Postgres comes back twice.
func enough(gap time.Duration) time.Duration {
	return 2*time.Minute + longest*time.Duration(len(torments))*gap
}

// longest is how many times the average a gap is at most before every kind had its turn.
const longest = 3

// run torments until ctx ends, and returns when all is mended. Each kind has its turn once,
// and then comes by its weight: what a soak has withstood is no matter of luck.
func (t *tormentor) run(ctx context.Context) {
	total := 0
	for _, d := range torments {
		total += d.weight
	}
	first := t.rand.Perm(len(torments))
	for {
		gap := time.Duration(t.rand.ExpFloat64() * float64(t.gap))
		if len(first) > 0 {
			gap = min(gap, longest*t.gap)
		}
		select {
		case <-ctx.Done():
			t.lasting.Wait()
			for _, at := range t.w.places {
				at.proxy.Decide(nil)
				at.proxy.Resume()
			}
			return
		case <-time.After(gap):
		}
		at := t.w.places[t.rand.IntN(len(t.w.places))]
		if len(first) > 0 {
			if t.inflict(ctx, torments[first[0]], at) { // else there was nobody to suffer it: it comes next
				first = first[1:]
			}
			continue
		}
		n := t.rand.IntN(total)
		for _, d := range torments {
			if n -= d.weight; n < 0 {
				t.inflict(ctx, d, at)
				break
			}
		}
	}
}

// inflict tells whether it happened.
func (t *tormentor) inflict(ctx context.Context, d torment, at *place) bool {
	what := d.do(t, ctx, at)
	if what == "" {
		return false
	}
	t.w.log.count(d.name)
	t.w.log.event("%s: %s", d.name, what)
	return true
}

func (t *tormentor) upTo(d time.Duration) time.Duration {
	return time.Duration(t.rand.Int64N(int64(d)))
}

// after does f when d is over, or ctx has ended.
func (t *tormentor) after(ctx context.Context, d time.Duration, f func()) {
	t.lasting.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
		f()
	})
}

func (t *tormentor) kill(_ context.Context, at *place) string {
	p := at.now.Load()
	if p == nil {
		return ""
	}
	p.signal(syscall.SIGKILL, "kill -9")
	return p.name
}

func (t *tormentor) term(ctx context.Context, at *place) string {
	p := at.now.Load()
	if p == nil {
		return ""
	}
	p.signal(syscall.SIGTERM, "SIGTERM")
	// A supervisor is patient for so long. The worker bounds its own shutdown; here it is
	// waited for longer than that.
	t.lasting.Go(func() {
		select {
		case <-p.ended:
		case <-time.After(45 * time.Second):
			t.w.mu.Lock()
			t.w.unasked = append(t.w.unasked, p.name+" did not end within 45 s of a SIGTERM")
			t.w.mu.Unlock()
			p.signal(syscall.SIGQUIT, "SIGQUIT")
		}
	})
	return p.name
}

// freeze stops a worker in its tracks, past its lease or not, and lets it go on.
func (t *tormentor) freeze(ctx context.Context, at *place) string {
	return t.freezeFor(ctx, at, 200*time.Millisecond+t.upTo(3*lease), false)
}

func (t *tormentor) freezeKill(ctx context.Context, at *place) string {
	return t.freezeFor(ctx, at, 200*time.Millisecond+t.upTo(2*lease), true)
}

func (t *tormentor) freezeFor(ctx context.Context, at *place, d time.Duration, kill bool) string {
	p := at.now.Load()
	if p == nil {
		return ""
	}
	from := time.Now()
	p.signal(syscall.SIGSTOP, "")
	t.after(ctx, d, func() {
		if kill {
			p.signal(syscall.SIGKILL, "kill -9")
		}
		p.signal(syscall.SIGCONT, "")
		t.w.mu.Lock()
		defer t.w.mu.Unlock()
		t.w.freezes = append(t.w.freezes, freeze{p.cmd.Process.Pid, from.UnixNano(), time.Now().UnixNano()})
	})
	return fmt.Sprintf("%s for %s", p.name, d.Round(100*time.Millisecond))
}

func (t *tormentor) cut(_ context.Context, at *place) string {
	n := at.proxy.CutAll()
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d of place %d", n, at.number)
}

// pause drops packets for a while: no error, no answer.
func (t *tormentor) pause(ctx context.Context, at *place) string {
	d := 100*time.Millisecond + t.upTo(2*lease)
	at.proxy.Pause()
	t.after(ctx, d, at.proxy.Resume)
	return fmt.Sprintf("place %d for %s", at.number, d.Round(100*time.Millisecond))
}

// flaky breaks one connection in so many batches: before, after, or within.
func (t *tormentor) flaky(ctx context.Context, at *place) string {
	d := time.Second + t.upTo(15*time.Second)
	at.proxy.Decide(pgproxy.Random(0.01, t.rand.Uint64()))
	t.after(ctx, d, func() { at.proxy.Decide(nil) })
	return fmt.Sprintf("place %d for %s", at.number, d.Round(100*time.Millisecond))
}

// reportedLost has the server do what changes something, and loses the reply.
func (t *tormentor) reportedLost(ctx context.Context, at *place) string {
	d, share, seed := time.Second+t.upTo(5*time.Second), 0.02+0.3*t.rand.Float64(), t.rand.Uint64()
	at.proxy.Decide(ofWrites(share, seed, func() pgproxy.Fault { return pgproxy.ReportedLost }))
	t.after(ctx, d, func() { at.proxy.Decide(nil) })
	return fmt.Sprintf("%.0f %% of the writes of place %d for %s", 100*share, at.number, d.Round(100*time.Millisecond))
}

// killAtReply kills the worker when the server has done one of its next writes, or just
// before it does.
func (t *tormentor) killAtReply(ctx context.Context, at *place) string {
	p := at.now.Load()
	if p == nil {
		return ""
	}
	fault := pgproxy.KillAfter(p.cmd.Process.Pid)
	if t.rand.IntN(3) == 0 {
		fault = pgproxy.KillBefore(p.cmd.Process.Pid)
	}
	var one sync.Once
	at.proxy.Decide(ofWrites(0.05, t.rand.Uint64(), func() (f pgproxy.Fault) {
		if at.now.Load() != p {
			return pgproxy.Pass
		}
		one.Do(func() {
			f = fault
			p.mu.Lock()
			p.meant = "kill -9"
			p.mu.Unlock()
		})
		return f
	}))
	t.after(ctx, 2*time.Second, func() { at.proxy.Decide(nil) })
	return p.name
}

// ofWrites makes a fault of a share of the batches that change something.
func ofWrites(share float64, seed uint64, fault func() pgproxy.Fault) func(*pgproxy.Batch) pgproxy.Fault {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 3))
	return func(b *pgproxy.Batch) pgproxy.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !b.Writes || r.Float64() >= share {
			return pgproxy.Pass
		}
		return fault()
	}
}

const backendsSQL = `
SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' AND random() < 0.3`

func (t *tormentor) backends(ctx context.Context, _ *place) string {
	var n int
	if err := t.w.db.QueryRow(ctx, backendsSQL).Scan(&n); err != nil || n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func (t *tormentor) restart(context.Context, *place) string { return t.postgres(t.w.restartPostgres) }

func (t *tormentor) killPostgres(context.Context, *place) string {
	return t.postgres(t.w.killPostgres)
}

// postgres is not tormented half: it comes back even if the time is over.
func (t *tormentor) postgres(f func(context.Context) error) string {
	began := time.Now()
	if err := f(context.Background()); err != nil {
		return fmt.Sprintf("it did not come back: %.200s", err)
	}
	return fmt.Sprintf("away for %s", time.Since(began).Round(100*time.Millisecond))
}
