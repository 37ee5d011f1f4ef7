// Package worker gives jobs time: it receives messages, asks the ledger what is to be
// done, does it, and records what came of it.
//
// Read deliver.go first. It follows one delivery from the queue to its acknowledgement,
// and says at each step what a crash costs there. The other files each hold one part of
// that way: inbox.go receives and keeps what is held, slots.go starts work as slots free,
// group.go lets statements take whatever waits, attempt.go runs one body, transact.go
// those inside a transaction, settle.go records, run.go and plan.go are fan-outs, tick.go
// calls things again by the clock, and doubt.go asks again about what is in doubt.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// Config is how a worker works. The zero Config is a good beginning.
type Config struct {
	// Queues are read side by side, by the names that jobs' policies use. The default
	// queue "" is one in the pool's database unless it is given. Retries, delays and sends
	// inside transactions travel through the database, so its queue "" is always read. A queue in
	// Postgres must be in that same database.
	Queues map[string]queue.Queue

	Slots int           // bodies that run at once: one for each item, or for a whole DoMany; 0: 16
	Lease time.Duration // after which others take over from a dead worker; at most 10 minutes; 0: [ledger.DefaultLease]
	Grace time.Duration // for running bodies at shutdown, before their contexts end; 0: 10 s
	Name  string        // in lists of workers; "": host name and process id
	Log   *slog.Logger  // nil: slog.Default()

	// Throttles are asked before a re-run sends more; any of them can hold it up, and its
	// history says which did, and why. nil: [throttle.Defaults]; empty but not nil: none.
	Throttles []throttle.Signal

	// Schedules are declared by this program, see [Schedule].
	Schedules []Schedule

	// Recheck is how often the done-checks are asked about what is in doubt; 0: 30 s.
	Recheck time.Duration
}

// A Worker works the jobs of a set. Several may run in one process, and any number in any
// number of processes.
type Worker struct {
	pool   *pgxpool.Pool
	set    *jobs.Set
	config Config
	log    *slog.Logger
	ledger *ledger.Ledger
	pg     *pgqueue.Queue // the database's queue "": what carries retries
	gauge  *throttle.Gauge
	queues map[string]queue.Queue
	kinds  map[string]*kind // by type and alias

	declared  []*storedSchedule // of Config.Schedules
	openRerun func(context.Context, pgx.Tx, Order) (Opened, error)

	awayFor    time.Duration // see defaultAwayFor
	stuckGrace time.Duration // how long a body may go on after its context has ended, before it is fenced off
	rollEvery  time.Duration // how often the statistics are brought up to date

	running atomic.Bool
	current atomic.Pointer[life]
	away    atomic.Bool // the last life ended, or did not begin, for want of the database or the lease
}

// longestLease is far more than a database is away that a worker is to outlive.
const longestLease = 10 * time.Minute

// New registers the set's job types in the database, whose schema must be current, and so needs
// the right to write there. It refuses a job on a queue that Config.Queues does not name, a Source
// that cannot be run or whose columns do not decode as the arguments, a schedule that could start
// nothing, and settings that are out of bounds. It starts nothing.
func New(ctx context.Context, pool *pgxpool.Pool, set *jobs.Set, c Config) (*Worker, error) {
	if c.Slots == 0 {
		c.Slots = 16
	}
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	if c.Recheck == 0 {
		c.Recheck = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = fmt.Sprintf("%s/%d", host, os.Getpid())
	}
	if c.Slots < 0 || c.Lease < 0 || c.Grace < 0 || c.Recheck < 0 {
		return nil, errors.New("worker: Slots, Lease, Grace and Recheck must not be negative")
	}
	if c.Lease > longestLease {
		return nil, fmt.Errorf("worker: a Lease of %s is too long: only who has lived for a lease takes over from the dead, and that is for how long their work waits; at most %s", c.Lease, longestLease)
	}
	w := &Worker{pool: pool, set: set, config: c, log: c.Log, ledger: ledger.New(pool),
		queues: map[string]queue.Queue{}, kinds: map[string]*kind{}, stuckGrace: 5 * time.Second, rollEvery: time.Minute, awayFor: defaultAwayFor}
	for name, q := range c.Queues {
		if pg, is := q.(*pgqueue.Queue); is && pg.Pool() != pool {
			if err := sameDatabase(ctx, pool, pg.Pool()); err != nil {
				return nil, fmt.Errorf("worker: queue %q: %w", name, err)
			}
		}
		w.queues[name] = q
	}
	if c.Throttles == nil {
		c.Throttles = throttle.Defaults()
	}
	var err error
	if w.gauge, err = throttle.NewGauge(pool, 2*time.Second, c.Throttles...); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if pg, ok := w.queues[""].(*pgqueue.Queue); ok && pg.Name() == "" {
		w.pg = pg
	} else {
		w.pg = pgqueue.New(pool, "")
	}
	if w.queues[""] == nil {
		w.queues[""] = w.pg
	}
	w.openRerun = func(ctx context.Context, tx pgx.Tx, o Order) (Opened, error) { return OpenRerun(ctx, tx, w.pg, o) }
	if err := w.register(ctx); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	if err := w.checkSchedules(); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	return w, nil
}

var errElsewhere = errors.New("it is in another database than the ledger, where nothing of it could be acknowledged together with what is recorded: it needs a worker and a ledger there")

// sameDatabase is nil where two pools lead to one database: a lock that is taken by one is then
// seen by the other, whatever the addresses are, or what stands between.
func sameDatabase(ctx context.Context, a, b *pgxpool.Pool) error {
	key, free := rand.Int64(), false
	err := pgx.BeginFunc(ctx, a, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, key); err != nil {
			return err
		}
		return pgx.BeginFunc(ctx, b, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `SELECT pg_try_advisory_xact_lock($1)`, key).Scan(&free)
		})
	})
	if err == nil && free {
		err = errElsewhere
	}
	return err
}

// A kind is a job type as the worker knows it.
type kind struct {
	*jobs.Erased
	ledger.Type
	name    string       // of the type; Erased and Type agree on it
	rerunOf *kind        // whose re-runs its messages carry; nil: it is one of the set's
	asking  atomic.Int32 // done-checks that recheck asks, with those that it has given up
}

// register gives every job type its number and checks what only the database can tell.
func (w *Worker) register(ctx context.Context) error {
	var mistakes []error
	for _, name := range w.set.Types() {
		e, _ := w.set.Lookup(name)
		k := &kind{Erased: e, name: name, Type: ledger.Type{Name: name, Effect: e.Effect, Version: e.Policy.Version, Timeout: e.Policy.Timeout, Checked: e.Done != nil, ResultTTL: e.Policy.ResultTTL}}
		if w.queues[e.Queue] == nil {
			mistakes = append(mistakes, fmt.Errorf("job %s is sent to queue %q, which Config.Queues does not name", name, e.Queue))
			continue
		}
		if err := w.checkSources(ctx, k); err != nil {
			mistakes = append(mistakes, err)
			continue
		}
		query, params := e.Source.Query()
		if len(params) > 0 {
			query = "" // nobody else has the parameters
		}
		if err := w.ledger.Declare(ctx, &k.Type, query, e.Aliases...); err != nil {
			return err
		}
		if k.FleetLimit != (jobs.Limit{}) {
			if _, err := w.pool.Exec(ctx, newTurnstileSQL, k.ID); err != nil {
				return fmt.Errorf("limit job type %s across the fleet: %w", name, err)
			}
		}
		w.kinds[name] = k
		for _, alias := range e.Aliases {
			w.kinds[alias] = k
		}
		if e.FanOut != nil {
			continue // calling it again is its re-run
		}
		if err := w.registerRerun(ctx, k); err != nil {
			return err
		}
	}
	return errors.Join(mistakes...)
}

// ErrStopping is the cause of a body's context when the worker shuts down and its grace
// is over.
var ErrStopping = errors.New("the worker is stopping")

// Run works until ctx ends, then stops gracefully: it receives nothing more, gives
// running bodies Config.Grace, cancels what still runs, records what came of it, and
// releases what did not start without charging an attempt. It returns when nothing of it
// runs any more, nil unless it could not stop cleanly: a body that ignores the end of its
// context for some seconds is left behind, and the error says so. A queue in a service may
// make it wait for what it has asked for there (see [queue.Drainer]): SQS for up to 20 seconds.
//
// A worker that loses its lease (the database was away, the process was frozen) cancels
// what it does and begins a new life under a new id, for as long as it takes.
func (w *Worker) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return errors.New("worker: Run is called twice at once")
	}
	defer w.running.Store(false)
	wait := 100 * time.Millisecond
	for {
		began := time.Now()
		err := w.live(ctx)
		if ctx.Err() != nil {
			return err
		}
		w.away.Store(true)
		if time.Since(began) > time.Minute {
			wait = 100 * time.Millisecond
		}
		w.log.Warn("worker begins anew", "in", wait, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// A life is one incarnation of a worker: what happens under one lease.
type life struct {
	*Worker
	lease *ledger.Lease
	slots *slots

	// jobs is the parent of every body's context. It ends when the lease does, or when the
	// grace of a shutdown is over.
	jobs   context.Context
	cancel context.CancelCauseFunc
	// record is the context of what must be written down even so. It outlives jobs.
	record context.Context
	// settling is that of settlements, and ends a little earlier.
	settling context.Context

	inboxes  []*inbox
	claims   map[*kind]*group[*claimRequest]
	settles  map[*kind]*group[*item]
	blocked  map[*kind]*group[[]*item] // what could not be settled for somebody's lock
	tempos   tempos
	hands    hands
	suspects chan struct{} // holds one while work runs that workers died over again and again: one at a time
	stopping atomic.Bool
	clogged  atomic.Bool  // every slot is stuck
	watched  atomic.Int64 // when watch last looked, in Unix nanoseconds
}

// live is one life: it ends with ctx, or with the lease.
func (w *Worker) live(ctx context.Context) error {
	l := &life{Worker: w, claims: map[*kind]*group[*claimRequest]{}, settles: map[*kind]*group[*item]{}, blocked: map[*kind]*group[[]*item]{}, hands: newHands(), suspects: make(chan struct{}, 1)}
	// Nothing of a life ends with ctx directly: shutting down has an order of its own.
	outlive := context.WithoutCancel(ctx)
	lease, err := w.ledger.Join(outlive, w.config.Name, w.config.Lease, w.log)
	if err != nil {
		return err
	}
	l.lease = lease
	l.jobs, l.cancel = context.WithCancelCause(lease.Context())
	defer l.cancel(nil)
	var recorded, settled context.CancelFunc
	l.record, recorded = context.WithCancel(outlive)
	defer recorded()
	l.settling, settled = context.WithCancel(l.record)
	defer settled()
	l.slots = newSlots(w.config.Slots, l.work, l.widened)
	grants := map[*kind]*line{}
	for _, k := range w.kinds {
		if l.claims[k] == nil {
			if k.Limit != (jobs.Limit{}) || k.FleetLimit != (jobs.Limit{}) {
				if ln := l.slots.limit(k); ln.fleet != nil {
					grants[k] = ln
				}
			}
			if k.rerunOf != nil {
				l.slots.beside(k)
			}
			l.claims[k] = newGroup(1, maxGroup, func(rs []*claimRequest) { l.claimAll(k, rs) })
			l.settles[k] = newGroup(2, maxGroup, func(is []*item) { l.settle(k, is) })
			l.blocked[k] = newGroup(1, maxGroup, func(batches [][]*item) { l.settleBlocked(k, batches) })
		}
	}

	receiving, stopReceiving := context.WithCancel(lease.Context())
	defer stopReceiving()
	var loops, helpers sync.WaitGroup
	for _, b := range l.openInboxes() {
		loops.Go(func() { l.receive(receiving, b) })
	}
	helping, stopHelping := context.WithCancel(lease.Context())
	defer stopHelping()
	helpers.Go(func() { l.heartbeats(helping) })
	helpers.Go(func() { l.watch(helping) })
	helpers.Go(func() { l.recheck(helping) })
	helpers.Go(func() { l.keepStatistics(helping) })
	helpers.Go(func() { l.schedule(helping) })
	helpers.Go(func() { l.keepTempo(helping) })
	for k, ln := range grants {
		helpers.Go(func() { l.keepGrant(helping, k, ln) })
	}
	l.watched.Store(time.Now().UnixNano())
	w.current.Store(l)
	w.away.Store(false)
	defer w.current.Store(nil)
	w.log.Info("worker started", "worker", lease.ID, "name", w.config.Name, "slots", w.config.Slots, "types", w.set.Types())

	select {
	case <-ctx.Done():
	case <-lease.Context().Done():
	}

	// The order of a shutdown: no new messages; what has not started is given back; what
	// runs gets its grace, then its context ends; what came of it is recorded; what is
	// still held is released; and only then others may take our claims.
	l.stopping.Store(true)
	stopReceiving()
	loops.Wait()
	drained := l.drain(ctx) // meanwhile
	l.slots.drain(func(its []*item) { l.giveBack(its, ErrStopping) })
	grace := w.config.Grace
	if lease.Context().Err() != nil {
		grace = 0 // others may act for us: stop at once
	}
	var left error
	if !l.slots.wait(grace) {
		l.cancel(ErrStopping)
		if !l.slots.wait(w.stuckGrace) {
			left = fmt.Errorf("worker %d leaves %d bodies running that ignore the end of their context", lease.ID, l.slots.count())
			w.log.Error("worker leaves bodies running that ignore the end of their context", "worker", lease.ID, "stuck", l.slots.count())
		}
	}
	stopHelping()
	helpers.Wait()
	for after, end := range map[time.Duration]func(){7 * time.Second: settled, 10 * time.Second: recorded} {
		defer time.AfterFunc(after, end).Stop() // the database may be away, or somebody may have locked what is to be written
	}
	for _, g := range l.claims {
		g.wait()
	}
	for k, g := range l.settles {
		g.wait()
		l.blocked[k].wait()
	}
	var closing sync.WaitGroup
	for _, b := range l.inboxes {
		closing.Go(func() { // side by side: one may hang
			b.acks.wait()
			l.releaseHeld(b)
		})
	}
	closing.Wait()
	lost := context.Cause(lease.Context()) // before Leave ends it
	err = lease.Leave(l.record)
	drained.Wait()
	l.drain(ctx).Wait() // what followed in its group when the last of it was acknowledged
	w.log.Info("worker stopped", "worker", lease.ID)
	return errors.Join(lost, left, err)
}

// drain has the queues give back what still comes for Receives that have ended. A worker that
// goes on under another lease receives again, and needs none of it.
func (l *life) drain(ctx context.Context) *sync.WaitGroup {
	var draining sync.WaitGroup
	if ctx.Err() == nil {
		return &draining
	}
	for _, b := range l.inboxes {
		if q, ok := b.Queue.(queue.Drainer); ok {
			draining.Go(func() {
				limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
				defer cancel()
				if err := q.Drain(limit); err != nil {
					l.log.Warn("draining failed: messages may come again only when their visibility ends", "queue", b.name, "error", err)
				}
			})
		}
	}
	return &draining
}
