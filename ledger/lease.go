package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrLeaseLost is the cause of a lease's context when the worker may no longer act: it
// could not renew in time, or another worker has declared it dead.
var ErrLeaseLost = errors.New("the worker's lease is lost")

// DefaultLease is the length of a lease when none is given. A worker that dies is
// declared dead by the others within about this time.
const DefaultLease = 10 * time.Second

// A Lease is one process incarnation's right to hold claims: a row of the worker table
// that expires unless it is renewed.
//
// Death is positive and for ever. A worker whose lease expired is dead when another
// worker has set its dead_at, and not before; only then are its claims taken over.
// Renewal succeeds only while dead_at is not set. So of a late renewal and a
// declaration exactly one happens, by the lock on the row. The id is never used again.
//
// The row's clock is the server's. Our own clocks only make us stop earlier: the
// lease's context ends a fifth of a lease before the expiry as we measure it, counted
// from the moment the renewal was sent, by the monotonic clock and by the wall clock
// alike, because a suspended machine stops the first.
type Lease struct {
	ID     int64
	length time.Duration
	log    *slog.Logger
	config *pgx.ConnConfig

	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan struct{}

	renewed   atomic.Pointer[moment] // the last renewal that succeeded
	unbroken  time.Time              // owned by keep: since when we renewed without a gap
	conn      *pgx.Conn              // owned by keep: a drained pool must not kill a process's lease
	leaveOnce sync.Once
}

// A moment is a time on both clocks.
type moment struct{ mono, wall time.Time }

func now() *moment {
	t := time.Now()
	return &moment{mono: t, wall: t.Round(0)}
}

// since is the longer of what the two clocks say has passed.
func (m *moment) since() time.Duration {
	return max(time.Since(m.mono), time.Now().Round(0).Sub(m.wall))
}

// Join registers a new worker and keeps its lease until ctx ends or the lease is lost.
// name says in lists which process it is. length 0 means [DefaultLease]; it is renewed
// five times in that time, over a connection of its own. Joining itself is given up after that
// time: a lease that takes longer to get has lapsed.
func (l *Ledger) Join(ctx context.Context, name string, length time.Duration, log *slog.Logger) (*Lease, error) {
	if length == 0 {
		length = DefaultLease
	}
	s := &Lease{length: length, log: log, config: l.pool.Config().ConnConfig, done: make(chan struct{})}
	joining, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	at := now()
	if err := s.connect(joining); err != nil {
		return nil, fmt.Errorf("join the workers: %w", err)
	}
	if err := s.conn.QueryRow(joining, joinSQL, name, length).Scan(&s.ID); err != nil {
		s.conn.Close(joining)
		return nil, fmt.Errorf("join the workers: %w", explain(err))
	}
	s.renewed.Store(at)
	s.unbroken = time.Now()
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	go s.keep()
	return s, nil
}

const (
	joinSQL  = `/* lease: join */ INSERT INTO oncemore.worker (name, expires) VALUES ($1, clock_timestamp() + $2::interval) RETURNING id`
	renewSQL = `/* lease: renew */ UPDATE oncemore.worker SET expires = clock_timestamp() + $2::interval WHERE id = $1 AND dead_at IS NULL`
	leaveSQL = `/* lease: leave */ UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'stopped' WHERE id = $1 AND dead_at IS NULL`

	// Committed by itself, before anything is taken over. It may be executed long after it was
	// sent, by a server that stood still meanwhile, in whose eyes every lease has lapsed then:
	// so it declares nothing unless our own renewal is quite fresh when it is executed.
	declareSQL = `
/* lease: declare dead */
UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed'
WHERE id = ANY (ARRAY(SELECT w.id FROM oncemore.worker w
                      WHERE w.dead_at IS NULL AND w.expires < clock_timestamp() AND w.id <> $1
                      AND EXISTS (SELECT FROM oncemore.worker me WHERE me.id = $1 AND me.dead_at IS NULL AND me.expires > clock_timestamp() + $2::interval)
                      ORDER BY w.id FOR UPDATE OF w SKIP LOCKED))
  AND dead_at IS NULL AND expires < clock_timestamp()
RETURNING id, name`
)

// Context ends when the worker must stop acting; its cause then wraps [ErrLeaseLost],
// or is that of the context given to Join.
func (s *Lease) Context() context.Context { return s.ctx }

// Alive looks at the clocks: it tells whether the lease surely still runs. Ask it just
// before acting on a claim, since a frozen process wakes up without notice.
func (s *Lease) Alive() bool {
	return s.left() > 0 && s.ctx.Err() == nil
}

// left is how long we may still act on the last renewal.
func (s *Lease) left() time.Duration { return s.length - s.length/5 - s.renewed.Load().since() }

// Leave ends the lease: the worker is dead at once, and others may take its claims.
// Call it when nothing is held any more.
func (s *Lease) Leave(ctx context.Context) error {
	var err error
	s.leaveOnce.Do(func() {
		s.cancel(context.Canceled)
		<-s.done
		// The connection may be broken, and nobody has noticed since the last renewal.
		for range 2 {
			if s.conn == nil || s.conn.IsClosed() {
				if err = s.connect(ctx); err != nil {
					break
				}
			}
			if _, err = s.conn.Exec(ctx, leaveSQL, s.ID); err == nil {
				break
			}
			s.conn.Close(ctx)
		}
		if err != nil {
			err = fmt.Errorf("leave the workers: %w", err)
			return
		}
		s.conn.Close(ctx)
	})
	return err
}

// keep renews the lease until its context ends.
func (s *Lease) keep() {
	defer close(s.done)
	often, atOnce := s.length/5, s.length/15 // when the last one failed
	beat := time.NewTicker(often)
	defer beat.Stop()
	for {
		end := time.NewTimer(s.left()) // the next beat may come too late
		select {
		case <-s.ctx.Done():
		case <-beat.C:
		case <-end.C:
		}
		end.Stop()
		if s.ctx.Err() != nil {
			return
		}
		at := now()
		// A renewal that hangs must not outlive the lease it is to renew.
		left := s.left()
		if left <= 0 {
			s.lose("it could not be renewed in time")
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, min(left, s.length/5))
		ours, err := s.renew(ctx)
		cancel()
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil:
			s.unbroken = time.Time{}
			beat.Reset(atOnce)
			s.log.Warn("lease not renewed", "worker", s.ID, "left", left.Round(time.Millisecond), "error", err)
		case !ours:
			s.lose("another worker declared this one dead")
			return
		default:
			beat.Reset(often)
			gap := s.renewed.Load().since()
			s.renewed.Store(at)
			if s.unbroken.IsZero() || gap > s.length/2 {
				s.unbroken = time.Now() // and not when it was sent: the server was there by now at the latest
			}
			// After the database was away every lease has lapsed, and nobody is dead for that.
			// Who has itself renewed without a gap for one lease gave all others that time too.
			if time.Since(s.unbroken) > s.length {
				s.declare()
			}
		}
	}
}

func (s *Lease) renew(ctx context.Context) (ours bool, err error) {
	if s.conn == nil || s.conn.IsClosed() {
		if err := s.connect(ctx); err != nil {
			return false, err
		}
	}
	var tag pgconn.CommandTag
	if tag, err = s.conn.Exec(ctx, renewSQL, s.ID, s.length); err != nil {
		s.conn.Close(ctx)
		return false, err
	}
	return tag.RowsAffected() == 1, nil
}

func (s *Lease) connect(ctx context.Context) (err error) {
	s.conn, err = pgx.ConnectConfig(ctx, s.config.Copy())
	return err
}

func (s *Lease) lose(why string) {
	s.log.Error("lease lost: this worker stops what it does", "worker", s.ID, "why", why)
	s.cancel(fmt.Errorf("%w: %s", ErrLeaseLost, why))
	if s.conn != nil { // it is of no more use, and nobody may come to call Leave
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.conn.Close(ctx)
	}
}

// declare sets dead_at of every worker whose lease has expired.
func (s *Lease) declare() {
	ctx, cancel := context.WithTimeout(s.ctx, s.length/5)
	defer cancel()
	rows, err := s.conn.Query(ctx, declareSQL, s.ID, s.length*3/5)
	if err != nil {
		return
	}
	var id int64
	var name string
	_, err = pgx.ForEachRow(rows, []any{&id, &name}, func() error {
		s.log.Warn("worker declared dead: its claims may be taken over", "worker", id, "name", name)
		return nil
	})
	if err != nil && s.ctx.Err() == nil {
		s.log.Warn("looking for dead workers failed", "error", err)
	}
}
