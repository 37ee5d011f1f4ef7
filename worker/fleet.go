package worker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A grant is what a worker may do of a type that is limited across the fleet: so many
// bodies at once, and so many to be begun from a time on. It is owned by the mutex of the
// slots, and negotiated with the database by keepGrant.
//
// Permits for bodies are a row per worker. Whoever changes one has locked the turnstile of
// the type, so their sum never passes the limit. A crash leaves them with a dead worker:
// they count until it has been declared dead. Entities that may begin are given out by
// moving the turnstile's next start ahead; what a dead worker did not use of them is lost,
// and the rate is a little lower for it.
type grant struct {
	limit   jobs.Limit
	bodies  int           // permits that we hold
	starts  int           // entities that may still begin; below 0: a task was larger than what was left
	pace    pace          // of those
	refused bool          // we have work, and all permits are with others
	wake    chan struct{} // holds one sign: something is wanted
}

func newGrant(l jobs.Limit) *grant {
	return &grant{limit: l, pace: pace{rate: l.Rate}, wake: make(chan struct{}, 1)}
}

// may tells whether one more may begin while so many run, times left aside.
func (g *grant) may(running int) bool {
	return (g.limit.Running == 0 || running < g.bodies) && (g.limit.Rate == 0 || g.starts > 0)
}

func (g *grant) ask() { signal(g.wake) }

func (g *grant) take(now time.Time, n int) {
	if g.limit.Rate > 0 {
		g.starts -= n
		g.pace.take(now, n)
	}
}

const (
	grantEvery = 250 * time.Millisecond // permits are negotiated anew, so that everybody gets a share
	grantSoon  = 5 * time.Millisecond   // between two negotiations at least, whatever is wanted
	grantAhead = 4                      // starts are reserved for a fourth of a second
	patience   = time.Second            // with which tasks wait for a first permit
)

// A bid is what one negotiation is about.
type bid struct {
	running int // bodies that run now: they cannot be taken back
	bodies  int // to be allowed, those included
	starts  int // to be reserved
}

// keepGrant negotiates for the line of k while the worker lives. Who gets no permit at all
// gives back what it holds of the type: there are others who have permits, and messages
// must not wait with one that has none.
func (l *life) keepGrant(ctx context.Context, k *kind, ln *line) {
	held := false // there may be a row of permits that says more than 0
	refused := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ln.fleet.wake:
		case <-time.After(grantEvery/2 + rand.N(grantEvery)):
		}
		b := l.slots.bid(ln)
		if b == (bid{}) && !held {
			continue
		}
		held = true
		bodies, wait, err := l.negotiate(ctx, k, b)
		if err != nil {
			if ctx.Err() == nil {
				l.log.Warn("limit across the fleet not negotiated: nothing of the type begins", "type", k.name, "error", err)
			}
			pause(ctx, grantEvery)
			continue
		}
		held = b.bodies > 0
		switch {
		case l.slots.granted(ln, b, bodies, wait):
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case time.Since(refused) > patience:
			l.slots.shed(func(its []*item) { l.giveBack(its, errNoPermit) }, ln)
		}
		if bodies > b.running || b.starts > 0 {
			pause(ctx, grantSoon)
		} else {
			pause(ctx, grantEvery/2+rand.N(grantEvery)) // nothing is gained by asking again at once
		}
	}
}

var (
	errNoPermit     = errors.New("other workers have all permits of the type")
	errDeclaredDead = errors.New("this worker was declared dead")
)

// bid says what is wanted for ln. Until the answer is there no more begin than run: what
// was granted before may be cut.
func (s *slots) bid(ln *line) bid {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, b := ln.fleet, bid{running: ln.running}
	if g.limit.Running > 0 {
		b.bodies = ln.running
		for _, tasks := range ln.tasks {
			b.bodies += len(tasks)
		}
		if g.refused {
			b.bodies = max(1, b.bodies) // its messages are with others: they cannot be counted
		}
		g.bodies = min(g.bodies, ln.running)
	}
	if g.limit.Rate > 0 && g.starts <= 0 && ln.items > 0 {
		b.starts = min(ln.items, max(1, int(g.limit.Rate/grantAhead))) - g.starts
	}
	return b
}

// granted takes what was negotiated, and starts what may start now. It returns false where
// the bid was for bodies, and there is none.
func (s *slots) granted(ln *line, b bid, bodies int, wait time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := ln.fleet
	g.bodies, g.refused = bodies, b.bodies > 0 && bodies == 0 && b.running == 0
	if b.starts > 0 {
		g.pace.next = time.Now().Add(wait + g.pace.of(-g.starts))
		g.starts += b.starts
	}
	s.open(ln)
	s.start()
	return !g.refused
}

// negotiate makes a bid. It returns how many bodies are allowed, which may be fewer than
// run, and how long until the first of the reserved entities may begin. After an error
// some of it may be recorded, never more than was allowed.
func (l *life) negotiate(ctx context.Context, k *kind, b bid) (bodies int, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	limit := k.FleetLimit
	err = l.ledger.RunBatch(ctx, func(batch *pgx.Batch) {
		// Alone, since a statement that has waited for a lock reads the rest as it was before.
		batch.Queue(turnstileSQL, k.ID)
		switch {
		case limit.Running > 0 && b.bodies > 0:
			batch.Queue(permitSQL, k.ID, l.lease.ID, b.running, b.bodies, limit.Running).QueryRow(func(r pgx.Row) error {
				err := r.Scan(&bodies)
				if errors.Is(err, pgx.ErrNoRows) {
					return errDeclaredDead
				}
				return err
			})
		case limit.Running > 0:
			batch.Queue(noPermitSQL, k.ID, l.lease.ID)
		}
		if b.starts > 0 {
			batch.Queue(startsSQL, k.ID, pace{rate: limit.Rate}.of(b.starts), burst).QueryRow(func(r pgx.Row) error { return r.Scan(&wait) })
		}
	})
	return bodies, max(0, wait), err
}

const (
	newTurnstileSQL = `/* limit: open turnstile */ INSERT INTO oncemore.fleet_limit (job_type) VALUES ($1) ON CONFLICT (job_type) DO NOTHING`

	turnstileSQL = `/* limit: lock */ SELECT f.job_type FROM oncemore.fleet_limit f WHERE f.job_type = $1 FOR UPDATE`

	// Everybody who has a row has a share, those with nothing so far included. Rows of the
	// dead are no more than dust, and swept up here. Who was declared dead has no share, and
	// gets no row: the condition is on the group, since a sum over nothing is a row as well.
	permitSQL = `/* limit: permit */
WITH others AS MATERIALIZED (
    SELECT p.worker, p.bodies, w.dead_at IS NOT NULL AS dead FROM oncemore.permit p JOIN oncemore.worker w ON w.id = p.worker
    WHERE p.job_type = $1 AND p.worker <> $2
), gone AS (
    DELETE FROM oncemore.permit p WHERE p.job_type = $1 AND p.worker IN (SELECT o.worker FROM others o WHERE o.dead)
), mine AS (
    SELECT greatest(0, least($4::int, $5::int - coalesce(sum(o.bodies), 0)::int, ceil($5::float8 / (1 + count(*)))::int)) AS bodies
    FROM others o WHERE NOT o.dead HAVING EXISTS (SELECT FROM oncemore.worker w WHERE w.id = $2 AND w.dead_at IS NULL)
), kept AS (
    INSERT INTO oncemore.permit AS p (job_type, worker, bodies) SELECT $1, $2, greatest($3::int, m.bodies) FROM mine m
    ON CONFLICT (job_type, worker) DO UPDATE SET bodies = excluded.bodies WHERE p.bodies <> excluded.bodies
)
SELECT m.bodies FROM mine m`

	noPermitSQL = `/* limit: permit back */ DELETE FROM oncemore.permit WHERE job_type = $1 AND worker = $2`

	startsSQL = `/* limit: starts */
UPDATE oncemore.fleet_limit f SET next_start = greatest(f.next_start, clock_timestamp() - $3::interval) + $2::interval
WHERE f.job_type = $1
RETURNING f.next_start - $2::interval - clock_timestamp()`
)

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
