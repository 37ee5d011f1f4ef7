package throttle

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Gauge asks a set of signals and remembers their answers for an interval, so that any
// number of runs in a process ask the database no more often than one. It is safe for use
// by many goroutines.
type Gauge struct {
	pool     *pgxpool.Pool
	interval time.Duration
	signals  []Signal

	turn     chan struct{} // holds one token: who has it reads, and owns what follows
	readings []Reading
	read     time.Time // when they were, by the monotonic clock; zero: never
}

// NewGauge returns a gauge that asks the signals, in their order, at most once in interval
// (0: 5 s). An error says which signal cannot be asked, or has the name of another.
func NewGauge(pool *pgxpool.Pool, interval time.Duration, signals ...Signal) (*Gauge, error) {
	if interval == 0 {
		interval = 5 * time.Second
	}
	if interval < 0 {
		return nil, errors.New("throttle: the interval is negative")
	}
	names := map[string]bool{}
	for _, s := range signals {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("throttle: %w", err)
		}
		if names[s.Name] {
			return nil, fmt.Errorf("throttle: two signals are named %q", s.Name)
		}
		names[s.Name] = true
	}
	g := &Gauge{pool: pool, interval: interval, signals: signals, turn: make(chan struct{}, 1)}
	g.turn <- struct{}{}
	return g, nil
}

// Read returns a reading of each signal, in their order, none older than the interval, and
// the first that says wait: nil when none does. Who asks while another is reading waits
// for that answer. It takes at most the sum of the signals' timeouts, and when ctx ends
// earlier, what was not asked any more is unknown. The caller may keep and change what
// it gets.
func (g *Gauge) Read(ctx context.Context) (readings []Reading, wait *Reading) {
	select {
	case <-g.turn:
		readings = g.fresh(ctx)
		g.turn <- struct{}{}
	case <-ctx.Done():
		readings = g.unasked(ctx)
	}
	for i := range readings {
		if readings[i].Verdict == Wait {
			return readings, &readings[i]
		}
	}
	return readings, nil
}

// fresh is called by who has the turn.
func (g *Gauge) fresh(ctx context.Context) []Reading {
	if g.read.IsZero() || time.Since(g.read) >= g.interval {
		if ctx.Err() != nil {
			return g.unasked(ctx)
		}
		readings := make([]Reading, len(g.signals))
		for i, s := range g.signals {
			readings[i] = g.ask(ctx, s)
		}
		if ctx.Err() != nil {
			return readings // one caller's hurry is nothing that others should hear for an interval
		}
		g.readings, g.read = readings, time.Now()
	}
	return append([]Reading(nil), g.readings...)
}

func (g *Gauge) unasked(ctx context.Context) []Reading {
	readings := make([]Reading, len(g.signals))
	for i, s := range g.signals {
		readings[i] = Reading{Signal: s.Name, Verdict: Unknown, Reason: "not asked: " + context.Cause(ctx).Error(), At: time.Now()}
	}
	return readings
}

// ask reads one signal, and never fails.
func (g *Gauge) ask(ctx context.Context, s Signal) (r Reading) {
	r = Reading{Signal: s.Name, At: time.Now()}
	var err error
	r.Verdict, r.Reason, err = g.inTransaction(ctx, s, &r.At)
	var refused *pgconn.PgError
	switch {
	case err == nil:
		return r
	case errors.As(err, &refused) && refused.Code == "53300":
		// The one failure that is an answer: a server without a connection to spare can
		// bear nothing more, whatever was asked.
		r.Verdict, r.Reason = Wait, "the server accepts no more connections: "+refused.Message
	case ctx.Err() != nil:
		r.Verdict, r.Reason = Unknown, "not read to the end: "+context.Cause(ctx).Error()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &refused) && (refused.Code == "57014" || refused.Code == "55P03"):
		r.Verdict, r.Reason = Unknown, "no answer within "+span(s.timeout())
	default:
		r.Verdict, r.Reason = Unknown, "cannot be read: "+err.Error()
	}
	return r
}

// inTransaction leaves no transaction and no setting behind. The limits are the
// transaction's own, so they hold behind a pooler too.
func (g *Gauge) inTransaction(ctx context.Context, s Signal, at *time.Time) (v Verdict, reason string, err error) {
	// The server's own limit comes first, where the query is what takes long: a context
	// that ends costs the connection.
	ctx, cancel := context.WithTimeout(ctx, s.timeout()+s.timeout()/4)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v", p)
		}
	}()
	tx, err := g.pool.BeginTx(ctx, pgx.TxOptions{AccessMode: pgx.ReadOnly})
	if err != nil {
		return "", "", err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	limit := strconv.FormatInt(max(1, s.timeout().Milliseconds()), 10)
	if err := tx.QueryRow(ctx, limitsSQL, limit).Scan(at, nil, nil, nil); err != nil {
		return "", "", err
	}
	v, reason, err = s.Read(ctx, tx)
	if err == nil && v != Go && v != Wait && v != Unknown {
		err = fmt.Errorf("it said %q, which is none of %s, %s and %s", v, Go, Wait, Unknown)
	}
	return v, reason, err
}

const limitsSQL = `SELECT clock_timestamp(), set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true),
    set_config('idle_in_transaction_session_timeout', ($1::text::bigint + 60000)::text, true)` // far behind the context's end
