package admin

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// checkTransactions looks for old snapshots: vacuum cannot remove what died after the
// oldest of them began.
func checkTransactions(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	var found []Check
	var oldest time.Duration
	rows, err := tx.Query(ctx, transactionsSQL)
	if err != nil {
		return nil, err
	}
	var pid int
	var who, state string
	var age time.Duration
	_, err = pgx.ForEachRow(rows, []any{&pid, &who, &state, &age}, func() error {
		oldest = max(oldest, age)
		if s := aged(age, p.limits.OldTransaction); s != OK {
			found = append(found, Check{State: s,
				Found: fmt.Sprintf("%s (pid %d, %s) has been in a transaction for %s: no row that died since goes away", who, pid, state, rough(age)),
				Do:    fmt.Sprintf("find out what it waits for; SELECT pg_terminate_backend(%d) ends it", pid)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	found = orOK(found, "the oldest began %s ago", rough(oldest))
	var hidden int64
	if err := tx.QueryRow(ctx, hiddenSQL).Scan(&hidden); err != nil {
		return nil, err
	}
	if hidden > 0 {
		found = append(found, Check{State: Unseen, Found: fmt.Sprintf("%d sessions of other roles", hidden), Do: "GRANT pg_read_all_stats to this role"})
	}
	return found, nil
}

// Senders of a replica's snapshot have no database. Vacuum ignores its own snapshots.
const transactionsSQL = `
SELECT a.pid, coalesce(a.usename::text, 'a replica') || coalesce(nullif(' ' || a.application_name, ' '), ''), coalesce(a.state, a.backend_type), clock_timestamp() - a.xact_start
FROM pg_catalog.pg_stat_activity a
WHERE (a.datname = current_database() OR a.datname IS NULL) AND a.pid <> pg_backend_pid() AND a.xact_start IS NOT NULL AND a.backend_type <> 'autovacuum worker'
ORDER BY a.xact_start LIMIT 5`

// Of sessions that one may not see, most is NULL, also what they are.
const hiddenSQL = `SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datname = current_database() AND a.backend_type IS NULL`

func checkPrepared(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	rows, err := tx.Query(ctx, preparedSQL)
	if err != nil {
		return nil, err
	}
	var found []Check
	var name, owner string
	var age time.Duration
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&name, &owner, &age}, func() error {
		n++
		if s := aged(age, p.limits.OldTransaction); s != OK {
			found = append(found, Check{State: s, Found: fmt.Sprintf("%q of %s has been prepared for %s: it keeps its locks, and every row that died since", name, owner, rough(age)),
				Do: "COMMIT PREPARED or ROLLBACK PREPARED it, as its coordinator decides"})
		}
		return nil
	})
	return orOK(found, "%d prepared transactions", n), err
}

const preparedSQL = `
SELECT x.gid, x.owner::text, clock_timestamp() - x.prepared FROM pg_catalog.pg_prepared_xacts x
WHERE x.database = current_database() ORDER BY x.prepared LIMIT 5`

func checkReplication(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	rows, err := tx.Query(ctx, replicasSQL)
	if err != nil {
		return nil, err
	}
	var found []Check
	var name string
	var lag *time.Duration
	var hidden bool
	n, unseen := 0, 0
	_, err = pgx.ForEachRow(rows, []any{&name, &lag, &hidden}, func() error {
		n++
		switch {
		case hidden:
			unseen++
		case lag != nil && *lag > p.limits.Lag:
			found = append(found, Check{State: Warn, Found: fmt.Sprintf("the replica %s is %s behind", name, rough(*lag)), Do: "see what holds it; slow down large runs until it has caught up"})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if rows, err = tx.Query(ctx, slotsSQL); err != nil {
		return nil, err
	}
	var held string
	_, err = pgx.ForEachRow(rows, []any{&name, &held}, func() error {
		found = append(found, Check{State: Warn, Found: fmt.Sprintf("nobody reads the replication slot %s, and it keeps %s", name, held),
			Do: fmt.Sprintf("let its reader come back, or SELECT pg_drop_replication_slot('%s')", name)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	found = orOK(found, "%d replicas, none far behind; no slot without a reader", n)
	if unseen > 0 {
		found = append(found, Check{State: Unseen, Found: fmt.Sprintf("how far %d replicas are behind", unseen), Do: "GRANT pg_read_all_stats to this role"})
	}
	return found, nil
}

// replay_lag is that of what was sent: it is NULL for a replica that is up to date and idle.
const (
	replicasSQL = `
SELECT coalesce(nullif(r.application_name, ''), r.pid::text), r.replay_lag, r.state IS NULL FROM pg_catalog.pg_stat_replication r LIMIT 50`

	slotsSQL = `
SELECT s.slot_name::text,
       coalesce(pg_size_pretty(CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) END) || ' of WAL', 'WAL')
       || CASE WHEN s.xmin IS NOT NULL OR s.catalog_xmin IS NOT NULL THEN ' and dead rows' ELSE '' END
FROM pg_catalog.pg_replication_slots s WHERE NOT s.active AND s.restart_lsn IS NOT NULL LIMIT 20`
)
