package throttle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// What a role without pg_read_all_stats (or pg_monitor) may not see of other roles'
// sessions is NULL in the server's views. Each signal says what it makes of that: a value
// that can be seen and is over its bound is enough to wait, and hidden ones leave the rest
// unknown.
const grant = "grant pg_read_all_stats to this role to see them"

// ReplicaLag waits while a physical standby has not replayed what was written max ago, or
// is catching up. Standbys in their base backup, receivers that replay nothing and logical
// subscribers do not count. It must be asked on the primary; a standby that is not
// connected at all is not seen, and a service that replicates by its own means (Aurora)
// has none to show: that says go.
func ReplicaLag(max time.Duration) Signal {
	s := Signal{Name: "replica lag", Read: func(ctx context.Context, tx pgx.Tx) (Verdict, string, error) {
		var standbys, hidden int
		var name, state *string
		var lag *time.Duration
		var behind int64
		err := tx.QueryRow(ctx, replicaLagSQL).Scan(&standbys, &hidden, &name, &state, &lag, &behind)
		switch {
		case err != nil:
			return "", "", err
		case standbys == 0 && hidden == 0:
			return Go, "no standby is connected", nil
		case standbys > 0 && lag != nil && *lag > max:
			return Wait, fmt.Sprintf("standby %s is %s behind, more than %s (%s to replay)", *name, span(*lag), span(max), size(behind)), nil
		case standbys > 0 && lag == nil:
			return Wait, fmt.Sprintf("standby %s is %s, %s behind, and has not told yet for how long", *name, *state, size(behind)), nil
		case hidden > 0:
			return Unknown, fmt.Sprintf("the lag of %d standbys is hidden: %s", hidden, grant), nil
		}
		return Go, fmt.Sprintf("standby %s is %s behind, allowed are %s", *name, span(*lag), span(max)), nil
	}}
	if max <= 0 {
		s.wrong = errors.New("its bound must be more than 0")
	}
	return s
}

// The server measures a standby's lag from when it connected: of one that came back far
// behind, its measure means nothing until it has caught up once, and of one that has not
// answered yet there is none. Up to a segment of the log it is taken to keep up even so.
const replicaLagSQL = `
WITH standby AS (
    SELECT coalesce(nullif(r.application_name, ''), 'of pid ' || r.pid) AS name, r.state, r.state IS NULL AS hidden, b.behind,
        CASE WHEN b.behind <= 0 THEN interval '0'
            WHEN r.replay_lag IS NULL AND b.behind <= 16777216 THEN interval '0'
            WHEN r.state = 'catchup' AND b.behind > 16777216 THEN NULL
            ELSE r.replay_lag END AS lag
    FROM pg_catalog.pg_stat_replication r
    CROSS JOIN LATERAL (SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), r.replay_lsn), 0)::bigint AS behind) b
    WHERE (r.state IS NULL OR r.state IN ('streaming', 'catchup') AND r.replay_lsn IS NOT NULL)
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
)
SELECT count(*) FILTER (WHERE NOT hidden), count(*) FILTER (WHERE hidden),
    (array_agg(name ORDER BY lag DESC NULLS FIRST) FILTER (WHERE NOT hidden))[1],
    (array_agg(state ORDER BY lag DESC NULLS FIRST) FILTER (WHERE NOT hidden))[1],
    (array_agg(lag ORDER BY lag DESC NULLS FIRST) FILTER (WHERE NOT hidden))[1],
    coalesce((array_agg(behind ORDER BY lag DESC NULLS FIRST) FILTER (WHERE NOT hidden))[1], 0)
FROM standby`

// OldestTransaction waits while a transaction in this database is older than max, prepared
// ones included: rows that die while it is open cannot be cleaned up. Our own session,
// autovacuum and VACUUM do not count.
//
// Another role's transaction whose age is hidden makes it unknown, if it holds a snapshot
// or has written; one that did neither keeps nothing from being cleaned up.
func OldestTransaction(max time.Duration) Signal {
	s := Signal{Name: "oldest transaction", Read: func(ctx context.Context, tx pgx.Tx) (Verdict, string, error) {
		var hidden int
		var age *time.Duration
		var who *string
		err := tx.QueryRow(ctx, oldestTransactionSQL).Scan(&hidden, &age, &who)
		switch {
		case err != nil:
			return "", "", err
		case age != nil && *age > max:
			return Wait, fmt.Sprintf("the oldest transaction is %s old, more than %s (%s)", span(*age), span(max), *who), nil
		case hidden > 0:
			return Unknown, fmt.Sprintf("the age of %d transactions is hidden: %s", hidden, grant), nil
		case age == nil:
			return Go, "no other transaction is open", nil
		}
		return Go, fmt.Sprintf("the oldest transaction is %s old, allowed are %s (%s)", span(*age), span(max), *who), nil
	}}
	if max <= 0 {
		s.wrong = errors.New("its bound must be more than 0")
	}
	return s
}

const oldestTransactionSQL = `
WITH other AS (
    SELECT clock_timestamp() - a.xact_start AS age, a.backend_type IS NULL AS hidden,
        'pid ' || a.pid || coalesce(', ' || a.state, '') || coalesce(', ' || nullif(a.application_name, ''), '') AS who
    FROM pg_catalog.pg_stat_activity a
    WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
    AND (a.backend_type = 'client backend' AND a.xact_start IS NOT NULL
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_vacuum v WHERE v.pid = a.pid)
        OR a.backend_type IS NULL AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL))
    UNION ALL
    SELECT clock_timestamp() - p.prepared, false, 'prepared as ' || quote_literal(p.gid)
    FROM pg_catalog.pg_prepared_xacts p WHERE p.database = current_database()
)
SELECT count(*) FILTER (WHERE hidden), max(age), (array_agg(who ORDER BY age DESC NULLS LAST))[1] FROM other`

// Connections waits while more than a share (0.8: 80 %) of the connections that the server
// gives to normal roles are taken, in all databases. Every role can see that. A server that
// refuses a connection makes every signal of a [Gauge] wait.
func Connections(share float64) Signal {
	s := Signal{Name: "connections", Read: func(ctx context.Context, tx pgx.Tx) (Verdict, string, error) {
		var taken, limit int
		if err := tx.QueryRow(ctx, connectionsSQL).Scan(&taken, &limit); err != nil {
			return "", "", err
		}
		if float64(taken) > share*float64(limit) {
			return Wait, fmt.Sprintf("%d of %d connections are taken, more than %.0f %%", taken, limit, 100*share), nil
		}
		return Go, fmt.Sprintf("%d of %d connections are taken, allowed are %.0f %%", taken, limit, 100*share), nil
	}}
	if share <= 0 || share > 1 {
		s.wrong = errors.New("its share must be more than 0 and at most 1")
	}
	return s
}

// Autovacuum, walsenders and parallel workers have slots of their own. A hidden session's
// kind is NULL, and it is a client's: servers' own are shown.
const connectionsSQL = `
SELECT (SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'),
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true)::int, 0)`

// LockWaits waits while more than max sessions in this database have waited for a lock for
// longer than a second. Shorter waits are what locks are for, and advisory locks are the
// application's own queueing: neither counts. Every role can see that.
func LockWaits(max int) Signal {
	s := Signal{Name: "lock waits", Read: func(ctx context.Context, tx pgx.Tx) (Verdict, string, error) {
		var waiting int
		var longest *time.Duration
		var who *string
		err := tx.QueryRow(ctx, lockWaitsSQL).Scan(&waiting, &longest, &who)
		switch {
		case err != nil:
			return "", "", err
		case waiting == 0:
			return Go, "no session has waited for a lock for longer than 1 s", nil
		case waiting > max:
			return Wait, fmt.Sprintf("%d sessions have waited for a lock for longer than 1 s, more than %d (the longest %s, %s)", waiting, max, span(*longest), *who), nil
		}
		return Go, fmt.Sprintf("%d sessions have waited for a lock for longer than 1 s, allowed are %d (the longest %s, %s)", waiting, max, span(*longest), *who), nil
	}}
	if max < 0 {
		s.wrong = errors.New("its bound must not be negative")
	}
	return s
}

const lockWaitsSQL = `
WITH waiting AS (
    SELECT a.pid, clock_timestamp() - min(l.waitstart) AS time
    FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE NOT l.granted AND l.locktype <> 'advisory' AND l.waitstart < clock_timestamp() - interval '1 s'
    AND a.datname = current_database()
    GROUP BY a.pid
), longest AS (SELECT pid, time FROM waiting ORDER BY time DESC LIMIT 1)
SELECT (SELECT count(*) FROM waiting), (SELECT time FROM longest),
    (SELECT 'pid ' || pid || coalesce(' behind ' || array_to_string(pg_blocking_pids(pid), ', '), '') FROM longest)`

func size(bytes int64) string {
	switch {
	case bytes < 1<<20:
		return fmt.Sprintf("%d kB", bytes>>10)
	case bytes < 10<<30:
		return fmt.Sprintf("%d MB", bytes>>20)
	}
	return fmt.Sprintf("%d GB", bytes>>30)
}
