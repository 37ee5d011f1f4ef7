package admin

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A rule judges the value of one setting. Times are in milliseconds, 0 being no limit.
type rule struct {
	setting string
	judge   func(value string) (Health, string) // and why
	do      string
}

func mustBe(want string, state Health, why string) func(string) (Health, string) {
	return func(value string) (Health, string) {
		if value == want {
			return OK, ""
		}
		return state, why
	}
}

// atLeast wants a limit in time to be none, or not shorter than d.
func atLeast(d time.Duration, why string) func(string) (Health, string) {
	return func(value string) (Health, string) {
		ms, err := milliseconds(value)
		if err != nil || ms == 0 || ms >= d.Milliseconds() {
			return OK, ""
		}
		return Warn, why
	}
}

var rules = []rule{
	{"fsync", mustBe("on", Bad, "a crash of the machine may lose or spoil the whole database"), "set fsync = on"},
	{"full_page_writes", mustBe("on", Bad, "a crash of the machine may leave half-written pages"), "set full_page_writes = on, unless the file system writes pages whole"},
	{"synchronous_commit", func(value string) (Health, string) {
		if value == "off" {
			return Bad, "a crash of the server forgets claims and completions of the last moment, and their effects may be had twice"
		}
		return OK, ""
	}, "set synchronous_commit = on, for the workers' role at least"},
	{"default_transaction_isolation", mustBe("read committed", Warn, "workers say READ COMMITTED themselves, but an app's own transactions that send or record may fail to serialize"),
		"set default_transaction_isolation = 'read committed', or say it in those transactions"},
	{"idle_in_transaction_session_timeout", atLeast(time.Minute, "it ends bodies inside a transaction that compute, or wait for somebody, for so long"), "make it longer than the longest timeout of a job"},
	{"transaction_timeout", atLeast(time.Minute, "it ends bodies inside a transaction that take so long"), "make it longer than the longest timeout of a job"},
	{"statement_timeout", atLeast(30*time.Second, "planning a large run, and looking for what is missing, may take longer"), "make it 30s or more for the workers' role"},
	{"lock_timeout", atLeast(5*time.Second, "workers that wait for each other's facts for a moment fail instead"), "make it 5s or more for the workers' role"},
}

// checkSettings judges what a session of this role begins with, and what the database
// gives to other roles.
func checkSettings(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	names := make([]string, len(rules))
	byName := map[string]rule{}
	for i, r := range rules {
		names[i], byName[r.setting] = r.setting, r
	}
	rows, err := tx.Query(ctx, settingsSQL, names)
	if err != nil {
		return nil, err
	}
	var found []Check
	var who, name, value string
	var fine []string
	_, err = pgx.ForEachRow(rows, []any{&who, &name, &value}, func() error {
		r := byName[name]
		state, why := r.judge(value)
		if state != OK {
			found = append(found, Check{State: state, Found: fmt.Sprintf("%s = %s%s: %s", name, value, who, why), Do: r.do})
		} else if who == "" {
			fine = append(fine, name+" = "+value)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return append(found, Check{State: OK, Found: strings.Join(fine, ", ")}), nil
}

// reset_val is what a session begins with: our own transaction has set some for itself.
const settingsSQL = `
SELECT '', s.name, s.reset_val FROM pg_catalog.pg_settings s WHERE s.name = ANY ($1)
UNION ALL
SELECT ' for ' || coalesce('the role ' || r.rolname, 'all roles'), split_part(v.setting, '=', 1), substr(v.setting, strpos(v.setting, '=') + 1)
FROM pg_catalog.pg_db_role_setting d LEFT JOIN pg_catalog.pg_roles r ON r.oid = d.setrole CROSS JOIN LATERAL unnest(d.setconfig) AS v(setting)
WHERE d.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
AND split_part(v.setting, '=', 1) = ANY ($1) AND r.rolname IS DISTINCT FROM current_user
ORDER BY 1, 2`

// milliseconds reads a time as PostgreSQL writes it: a number of milliseconds, or one with
// a unit.
func milliseconds(value string) (int64, error) {
	value = strings.TrimSpace(value)
	digits := strings.TrimRight(value, "abcdefghijklmnopqrstuvwxyz ")
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no time: %w", value, err)
	}
	unit := map[string]float64{"": 1, "ms": 1, "us": 0.001, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
	factor, known := unit[strings.TrimSpace(value[len(digits):])]
	if !known {
		return 0, fmt.Errorf("%q is no time", value)
	}
	return int64(n * factor), nil
}

func checkConnections(ctx context.Context, _ *patient, tx pgx.Tx) ([]Check, error) {
	var used, most int64
	if err := tx.QueryRow(ctx, connectionsSQL).Scan(&used, &most); err != nil {
		return nil, err
	}
	c := Check{State: OK, Found: fmt.Sprintf("%d of %d are used", used, most)}
	if share := 100 * used / max(1, most); share >= 80 {
		c.State, c.Do = Warn, "make pools smaller or max_connections larger: a worker without a connection for its lease is declared dead"
		if share >= 95 {
			c.State = Bad
		}
	}
	return []Check{c}, nil
}

// Of sessions that one may not see, it is not said what they are.
const connectionsSQL = `
SELECT count(*) FILTER (WHERE backend_type = 'client backend' OR backend_type IS NULL AND datid IS NOT NULL),
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
FROM pg_catalog.pg_stat_activity`
