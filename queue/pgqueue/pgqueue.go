// Package pgqueue is a [queue.Queue] in PostgreSQL, in the tables oncemore.message
// and oncemore.message_receive.
//
// A message is a row, and its lock says where it is:
//
//	lock NULL  ready, in the index message_ready
//	lock 0     delayed until visible_at, in the index message_delayed
//	lock > 0   held until visible_at by the receive with that number
//
// Every receive draws a new number and leaves one row in message_receive, with the
// ids that it took. What always holds: a held message is named by the row of its
// lock. That row is how messages of a dead holder are found. (Not by an index on
// the messages: it would be written once for each message, about an eighth of what
// a message and its fact cost the server. Not by the lease of the holder: the queue knows no workers.)
//
// Three statements move messages: [Queue.Receive] makes ready ones held; a wake,
// which Receive runs beside, makes delayed and lapsed ones ready; an
// acknowledgement deletes by id and lock, so who lost a message deletes nothing.
//
// # Old snapshots
//
// While some session holds an old snapshot, no dead row and no dead index entry
// goes away, and a claim that begins at the start of an index walks over all of
// them, every time. So a Queue remembers its mark, the lowest position it claimed
// last, and begins there. What lies before the mark (late commits, released
// messages, higher priorities) is found by sweeps from the start: when there is
// nothing after the mark, when a hint says that something came, and once a second;
// never more often than costs a tenth of the time.
//
// # Hints
//
// Polling alone is correct. A NOTIFY in the sender's transaction, at most one every
// few milliseconds for each Queue since it costs the server a global lock, wakes
// the receivers of processes that run [Queue.Listen]; a lost hint costs one poll
// interval.
//
// The statements name all their objects in full and set planner options for their
// own transactions only; with pgx's exec or simple query mode on the pool they work
// behind PgBouncer in transaction mode too. There LISTEN has no effect.
package pgqueue

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/queue"
)

// DefaultVisibility is how long a message is held when nothing else was said.
const DefaultVisibility = 10 * time.Second

// A Queue is one named queue in one database. It is safe for concurrent use, and
// any number of Queues in any number of processes may serve the same name.
type Queue struct {
	pool       *pgxpool.Pool
	name       string
	visibility time.Duration
	notify     debounce
	hint       chan struct{} // holds one hint: that there may be something to receive
	pace       pace
}

var _ queue.Queue = (*Queue)(nil)

// New returns the queue called name in pool's database, whose schema must be
// current (see package migrations). Empty is the name of the default queue. It does
// not touch the database.
func New(pool *pgxpool.Pool, name string) *Queue {
	return &Queue{pool: pool, name: name, visibility: DefaultVisibility, hint: make(chan struct{}, 1)}
}

// WithVisibility sets how long q's receives hold a message, and returns q. It must
// be called before q is used. Durations under a millisecond count as one.
func (q *Queue) WithVisibility(d time.Duration) *Queue {
	q.visibility = max(d, time.Millisecond)
	return q
}

// Visibility is how long a delivery is held before it is handed out again.
func (q *Queue) Visibility() time.Duration { return q.visibility }

// Pool leads to the queue's database.
func (q *Queue) Pool() *pgxpool.Pool { return q.pool }

// Name is the queue's name in the database.
func (q *Queue) Name() string { return q.name }

// READ COMMITTED is said explicitly: under a stricter default, claims beside each
// other would fail instead of passing each other by. The planner is told to reach
// rows by index in index order, because it would keep for hours a plan that it made
// while the table was empty.
const (
	beginSQL  = `BEGIN ISOLATION LEVEL READ COMMITTED`
	plansSQL  = `SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true)`
	commitSQL = `COMMIT`
)

// run sends what fill queues, as one transaction in one round trip. What the
// statements return is read by the functions given to their QueuedQuery.
func run(ctx context.Context, db batcher, fill func(b *pgx.Batch)) error {
	b := &pgx.Batch{}
	b.Queue(beginSQL)
	b.Queue(plansSQL)
	fill(b)
	b.Queue(commitSQL)
	return db.SendBatch(ctx, b).Close()
}

// A batcher is a pool or one of its connections.
type batcher interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func microseconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/time.Microsecond) + 1 // rounded up, so that a delay is never zero by rounding
}
