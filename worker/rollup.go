package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Statistics: quarters of an hour that are closed are summed once, those that are open are
// counted live by whoever looks. So no look reads the whole ledger, and completing work
// costs nothing for it.
//
// A quarter may be closed when nothing that belongs to it is still to come. A fact bears
// the time at which its transaction began, and is seen when that commits, perhaps hours
// later. So it is not enough that the quarter is over: each transaction that was open then
// must have ended. Every role can see which are open, by the locks that they hold on
// themselves, though not for how long. Therefore the question is asked in two steps: note
// which are open at some moment, and when the last of these is gone, everything before
// that moment is quiet.

// A Rollup is how far the statistics are.
type Rollup struct {
	Closed  time.Time // completions before are summed; zero: none yet
	Summed  int64     // completions that this call has added
	More    bool      // more could be summed at once: call it again
	Waiting int       // for so many transactions that began earlier, and are open
}

// RollUp sums the completions of quarters of an hour that are closed, in steps that commit
// one by one: for about two seconds, if it is far behind. Where nothing is to be done it
// reads one row. Any number of processes may call it: one does it, the others return at
// once. Workers call it every minute; a program without one can.
//
// Should a fact have come with a time of its own, or the server's clock have gone back for
// more than a minute, "TRUNCATE oncemore.completions_quarter; UPDATE
// oncemore.completions_watermark SET closed = NULL" has all of it summed anew.
func RollUp(ctx context.Context, pool *pgxpool.Pool) (Rollup, error) {
	var r Rollup
	size := 0 // of a step, in quarters; 0: up to how far behind it is
	for began := time.Now(); ; {
		s := rollupStep{size: size}
		due, err := rollupDue(ctx, pool, &r.Closed)
		if due && err == nil {
			err = inTx(ctx, pool, func(tx pgx.Tx) error { return s.take(ctx, tx) })
		}
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "57014" && s.size > 1 && ctx.Err() == nil {
			size = max(1, s.size/8) // it was too much at once
			continue
		}
		if err != nil {
			return r, fmt.Errorf("sum up what was completed: %w", err)
		}
		r.Waiting = len(s.running)
		if s.to.IsZero() { // nothing is due, or quiet, or another process has the turn
			r.More = false
			return r, nil
		}
		r.Closed, r.Summed, r.More = s.to, r.Summed+s.summed, s.to.Before(s.limit)
		if !r.More || time.Since(began) > rollupBudget {
			return r, nil
		}
		size = s.size
		if s.summed < rollupRows/2 {
			size *= 2
		} else if s.summed > rollupRows*2 {
			size = max(1, size/2)
		}
	}
}

const (
	quarter      = 15 * time.Minute // Postgres' date_bin, from origin, agrees
	rollupBudget = 2 * time.Second
	rollupRows   = 250_000 // about so many in a step: a fraction of a second

	// lateness is how long after its end a quarter is closed at the earliest. It covers a small
	// step back of the server's clock, and the moment between the time that a transaction
	// bears and its being seen.
	lateness = time.Minute
)

// rollupDue tells whether a quarter could be closed, and up to which they are.
func rollupDue(ctx context.Context, pool *pgxpool.Pool, closed *time.Time) (bool, error) {
	var now time.Time
	var at *time.Time
	err := pool.QueryRow(ctx, `SELECT now(), closed FROM oncemore.completions_watermark`).Scan(&now, &at)
	if errors.Is(err, pgx.ErrNoRows) { // somebody has deleted it: then nothing is summed
		_, err = pool.Exec(ctx, rollupBeginSQL)
		return true, err
	} else if err != nil {
		return false, err
	}
	*closed = orZero(at)
	return closed.Before(floorQuarter(now.Add(-lateness))), nil
}

// A rollupStep closes some quarters, or makes out whether any can be closed. It is one
// transaction, so that a crash leaves it undone or done.
type rollupStep struct {
	size    int       // in quarters: as wished, then as taken
	limit   time.Time // quarters that end by then can be closed
	to      time.Time // now they are, up to here; zero: none was
	summed  int64     // completions
	running []string  // transactions that it waits for
}

func (s *rollupStep) take(ctx context.Context, tx pgx.Tx) error {
	var now time.Time
	var closed, quietAt, askedAt *time.Time
	err := tx.QueryRow(ctx, rollupTurnSQL).Scan(&now, &closed, &quietAt, &askedAt, &s.running)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // another process has the turn
	} else if err != nil {
		return err
	}
	from, quiet, asked := orZero(closed), orZero(quietAt), orZero(askedAt)
	if !from.Before(floorQuarter(now.Add(-lateness))) {
		return nil // another process did it between our look and our turn
	}
	for s.limit = floorQuarter(quiet.Add(-lateness)); !from.Before(s.limit); s.limit = floorQuarter(quiet.Add(-lateness)) {
		// When an answer is not new enough, the next question is asked at once.
		if quiet, asked, err = s.ask(ctx, tx, now, quiet, asked); err != nil || len(s.running) > 0 {
			return err
		}
	}
	if s.to, err = s.bound(ctx, tx, from); err != nil {
		return err
	}
	timeout := time.Minute
	if s.size <= 1 {
		timeout = 10 * time.Minute // there is no smaller step
	}
	if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true), set_config('jit', 'off', true)`, strconv.FormatInt(timeout.Milliseconds(), 10)); err != nil {
		return err
	}
	// The snapshot of this statement is newer than the end of all those transactions. A fact
	// that is replaced meanwhile is in one of its two places for every snapshot.
	if err := tx.QueryRow(ctx, rollupSumSQL, closed, s.to).Scan(&s.summed); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, rollupCloseSQL, s.to)
	return err
}

// bound returns where the step ends that begins at from.
func (s *rollupStep) bound(ctx context.Context, tx pgx.Tx, from time.Time) (to time.Time, err error) {
	if from.IsZero() {
		// No fact is older than the schema, so next to nothing is read up to there. (To search
		// the oldest one would be to read the whole ledger.)
		err = tx.QueryRow(ctx, schemaBeginSQL).Scan(&to)
		if to = floorQuarter(to); to.After(s.limit) {
			to = s.limit
		}
		return to, err
	}
	behind := int(s.limit.Sub(from) / quarter)
	if s.size == 0 {
		s.size = max(96, behind/256)
	}
	s.size = min(s.size, behind)
	return from.Add(time.Duration(s.size) * quarter), nil
}

// ask moves quiet up to asked, if all transactions that were open at asked have ended. Else
// s.running says which have not. Without a question it asks one, at now.
//
// A transaction that is prepared gives up the lock on itself and lives on under another
// name. So when the locks are gone, those that are prepared by then take their place.
func (s *rollupStep) ask(ctx context.Context, tx pgx.Tx, now, quiet, asked time.Time) (newQuiet, newAsked time.Time, err error) {
	parked := len(s.running) > 0 && strings.HasPrefix(s.running[0], "prepared ")
	query := openTransactionsSQL
	if parked {
		query = preparedTransactionsSQL
	}
	open, err := texts(ctx, tx, query)
	if err != nil {
		return quiet, asked, err
	}
	if asked.IsZero() {
		asked, s.running = now, open
	} else {
		s.running = slices.DeleteFunc(s.running, func(t string) bool { return !slices.Contains(open, t) })
	}
	if len(s.running) == 0 && !parked {
		if s.running, err = texts(ctx, tx, preparedTransactionsSQL); err != nil {
			return quiet, asked, err
		}
	}
	if len(s.running) == 0 {
		quiet, asked = asked, time.Time{}
	}
	_, err = tx.Exec(ctx, rollupAskSQL, orNil(quiet), orNil(asked), s.running)
	return quiet, asked, err
}

const (
	rollupTurnSQL = `/* stats: turn */ SELECT now(), closed, quiet, asked, running FROM oncemore.completions_watermark FOR UPDATE SKIP LOCKED`

	rollupAskSQL = `/* stats: ask */ UPDATE oncemore.completions_watermark SET quiet = $1, asked = $2, running = coalesce($3::text[], '{}')`

	rollupCloseSQL = `/* stats: close */ UPDATE oncemore.completions_watermark SET closed = $1`

	rollupBeginSQL = `/* stats: begin */ INSERT INTO oncemore.completions_watermark DEFAULT VALUES ON CONFLICT DO NOTHING`

	// The zone of that column is not known, hence two days.
	schemaBeginSQL = `SELECT coalesce(min(tstamp) AT TIME ZONE 'UTC', now()) - interval '2 days' FROM oncemore.migration`

	rollupSumSQL = `
/* stats: sum */
WITH fact AS (
    SELECT job_type, completed_at FROM oncemore.ledger
    WHERE completed_at >= coalesce($1::timestamptz, '-infinity') AND completed_at < $2
    UNION ALL
    SELECT job_type, completed_at FROM oncemore.ledger_history
    WHERE completed_at >= coalesce($1::timestamptz, '-infinity') AND completed_at < $2
), sums AS (
    INSERT INTO oncemore.completions_quarter (job_type, quarter, n)
    SELECT job_type, date_bin('15 minutes', completed_at, timestamptz '2000-01-01 00:00Z'), count(*) FROM fact GROUP BY 1, 2
    ON CONFLICT (job_type, quarter) DO UPDATE SET n = excluded.n
    RETURNING n
)
SELECT coalesce(sum(n), 0)::bigint FROM sums`

	// The server's own processes complete nothing. A session that the second view does not
	// know yet is taken for one of this database.
	openTransactionsSQL = `
SELECT l.virtualxid FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid()
AND (a.pid IS NULL OR a.datname = current_database() AND a.usesysid IS NOT NULL)`

	preparedTransactionsSQL = `SELECT 'prepared ' || transaction FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()`
)

func texts(ctx context.Context, tx pgx.Tx, query string) ([]string, error) {
	rows, err := tx.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// floorQuarter is the beginning of the quarter that t is in.
func floorQuarter(t time.Time) time.Time { return t.Truncate(quarter) }

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}

func orNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// keepStatistics has the closed quarters summed, as long as the worker lives.
func (l *life) keepStatistics(ctx context.Context) {
	for wait := l.rollEvery; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait + rand.N(wait/4)): // not all of a fleet at once
		}
		wait = l.rollEvery
		r, err := RollUp(ctx, l.pool)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			l.log.Warn("the statistics stand still", "closed", r.Closed, "error", err)
			wait *= 10
		case r.More:
			wait = l.rollEvery / 60
		}
	}
}
