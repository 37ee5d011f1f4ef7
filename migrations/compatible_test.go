package migrations_test

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/migrations"
)

// While a fleet is being replaced old code runs on the new schema. So a migration adds: all
// that was there is there, as it was, and no column is added that an old insert would have
// to name. Only an index that keeps nothing apart may go: old code does without it, slowly.
func TestEveryMigrationOnlyAdds(t *testing.T) {
	paths, err := fs.Glob(os.DirFS("."), "*.sql")
	if err != nil || len(paths) < 2 {
		t.Fatal(paths, err)
	}
	pool := pgtest.EmptyPool(t)
	some := fstest.MapFS{}
	var before []string
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bounds := "-- +goose Up\nSET LOCAL idle_in_transaction_session_timeout = '1min';\nSET LOCAL lock_timeout = '3s';\n"; !strings.HasPrefix(string(text), bounds) {
			t.Errorf("%s does not bound how long its locks are waited for, and how long they stay when its process is frozen: it begins with\n%s", path, bounds)
		}
		some[path] = &fstest.MapFile{Data: text}
		if _, err := migrations.UpFrom(t.Context(), pool, some); err != nil {
			t.Fatal(err)
		}
		after := strings.Split(schema(t, pool), "\n")
		for _, line := range before {
			if !slices.Contains(after, line) && !strings.HasPrefix(line, "CREATE INDEX ") && !strings.HasPrefix(line, "i ") {
				t.Errorf("%s takes away, or changes: %s", path, line)
			}
		}
		for _, line := range after {
			column, ok := strings.CutPrefix(line, "column ")
			table, _, _ := strings.Cut(column, ".")
			old := slices.ContainsFunc(before, func(l string) bool { return strings.HasPrefix(l, "column "+table+".") })
			if ok && old && !slices.Contains(before, line) && strings.HasSuffix(line, " not null ") {
				t.Errorf("%s adds a column that an old insert does not name, and needs: %s", path, line)
			}
		}
		before = after
	}
}

// Who looks into what was done must be able to rely on it.
func TestTheAuditIsAppendOnly(t *testing.T) {
	pool := pgtest.Pool(t)
	exec(t, pool, `INSERT INTO oncemore.audit (actor, action, entities) VALUES ('anna', 'drop', 7)`)
	for _, statement := range []string{
		`UPDATE oncemore.audit SET actor = 'bert'`,
		`UPDATE oncemore.audit SET entities = 0 WHERE false`,
		`DELETE FROM oncemore.audit`,
		`TRUNCATE oncemore.audit`,
		`INSERT INTO oncemore.audit (id, actor, action, entities) OVERRIDING SYSTEM VALUE VALUES (1, 'bert', 'drop', 7) ON CONFLICT (id) DO UPDATE SET actor = 'bert'`,
	} {
		if _, err := pool.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	rows, _ := pool.Query(t.Context(), `SELECT actor || ' ' || action || ' ' || entities FROM oncemore.audit`)
	if all, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(all, []string{"anna drop 7"}) {
		t.Errorf("%q, %v", all, err)
	}
}
