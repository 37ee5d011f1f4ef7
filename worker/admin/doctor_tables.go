package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A health record of a table.
type tableHealth struct {
	Name         string
	Options      []string
	Live, Dead   int64
	Inserted     int64 // since the last vacuum
	VacuumedAt   *time.Time
	AnalyzedAt   *time.Time
	EstimateRows float64
}

const tablesSQL = `
SELECT c.relname, coalesce(c.reloptions, '{}'), coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0), coalesce(s.n_ins_since_vacuum, 0),
       greatest(s.last_vacuum, s.last_autovacuum), greatest(s.last_analyze, s.last_autoanalyze), c.reltuples::float8
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = 'oncemore' AND c.relkind = 'r' ORDER BY c.relname`

// given are the settings without which the usual autovacuum comes too seldom: the schema
// makes the tables with them.
var given = map[string]string{
	"ledger":          "autovacuum_vacuum_insert_scale_factor",
	"claim":           "autovacuum_vacuum_threshold",
	"message":         "autovacuum_vacuum_threshold",
	"message_receive": "autovacuum_vacuum_threshold",
}

func checkAutovacuum(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	var on, tracks bool
	if err := tx.QueryRow(ctx, `SELECT current_setting('autovacuum')::bool, current_setting('track_counts')::bool`).Scan(&on, &tracks); err != nil {
		return nil, err
	}
	var found []Check
	if !on || !tracks {
		found = append(found, Check{State: Bad, Found: "autovacuum is off for the whole server: claims and messages slow down with every row that dies",
			Do: "set autovacuum = on and track_counts = on"})
	}
	tables, err := rowsOf[tableHealth](ctx, tx, tablesSQL)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if slices.ContainsFunc(t.Options, func(o string) bool {
			name, value, _ := strings.Cut(o, "=")
			return name == "autovacuum_enabled" && slices.Contains([]string{"false", "off", "no", "0", "f"}, strings.ToLower(value))
		}) {
			found = append(found, Check{State: Bad, Found: "autovacuum is off for oncemore." + t.Name, Do: fmt.Sprintf("ALTER TABLE oncemore.%s RESET (autovacuum_enabled)", t.Name)})
		}
		if option := given[t.Name]; option != "" && !slices.ContainsFunc(t.Options, func(o string) bool { return strings.HasPrefix(o, option+"=") }) {
			found = append(found, Check{State: Warn, Found: fmt.Sprintf("oncemore.%s has lost its setting %s", t.Name, option), Do: "give it again, as 'migrate sql' shows"})
		}
	}
	return orOK(found, "on, with the settings of the schema"), nil
}

// hot are the tables whose rows come and go.
var hot = []string{"claim", "message", "message_receive", "worker", "run"}

func checkDeadRows(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	tables, err := rowsOf[tableHealth](ctx, tx, tablesSQL)
	if err != nil {
		return nil, err
	}
	now, err := serverTime(ctx, tx)
	if err != nil {
		return nil, err
	}
	var found []Check
	var fine []string
	for _, t := range tables {
		switch last := "never"; {
		case t.Name == "ledger":
			if t.Inserted > 1_000_000 && t.Inserted > t.Live/5 {
				found = append(found, Check{State: Warn, Found: fmt.Sprintf("oncemore.ledger: %s facts came since it was vacuumed, so looking at what is done reads more than the index", thousands(t.Inserted)),
					Do: "VACUUM (ANALYZE) oncemore.ledger, and see what keeps autovacuum from it"})
			}
		case slices.Contains(hot, t.Name):
			if t.VacuumedAt != nil {
				last = rough(now.Sub(*t.VacuumedAt)) + " ago"
			}
			c := Check{State: OK, Found: fmt.Sprintf("%s %s live, %s dead, vacuumed %s", t.Name, thousands(t.Live), thousands(t.Dead), last)}
			if t.Dead > p.limits.DeadRows && t.Dead > 2*t.Live {
				c.State, c.Found, c.Do = Warn, "oncemore."+c.Found, "see 'transactions', 'prepared' and 'replication' for what keeps dead rows, then VACUUM oncemore."+t.Name
				if t.Dead > 10*p.limits.DeadRows {
					c.State = Bad
				}
				found = append(found, c)
				continue
			}
			fine = append(fine, c.Found)
		}
	}
	return orOK(found, "%s", strings.Join(fine, "; ")), nil
}

// enough transactions since the last freeze, and a stop of the server is near: at two
// billion it refuses to write.
const tooManyXIDs = 1_000_000_000

func checkWraparound(ctx context.Context, p *patient, tx pgx.Tx) ([]Check, error) {
	var xids, multis, allowed int64
	if err := tx.QueryRow(ctx, wraparoundSQL).Scan(&xids, &multis, &allowed); err != nil {
		return nil, err
	}
	limit := p.limits.XIDAge
	if limit == 0 {
		limit = min(allowed+allowed/2, tooManyXIDs*4/5)
	}
	c := Check{State: OK, Found: fmt.Sprintf("%s transactions and %s multixacts since the last freeze", thousands(xids), thousands(multis))}
	switch age := max(xids, multis); {
	case age > tooManyXIDs:
		c.State = Bad
	case age > limit:
		c.State = Warn
	}
	if c.State != OK {
		c.Do = "autovacuum does not get to freeze: see 'transactions', 'prepared' and 'replication' for what holds it, then VACUUM (FREEZE) the oldest tables"
	}
	return []Check{c}, nil
}

const wraparoundSQL = `
SELECT age(d.datfrozenxid)::bigint, mxid_age(d.datminmxid)::bigint, current_setting('autovacuum_freeze_max_age')::bigint
FROM pg_catalog.pg_database d WHERE d.datname = current_database()`
