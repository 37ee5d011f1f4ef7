package integration_test

import (
	"bytes"
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/cmd/oncemore/cli"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/ledger/ledgerhttp"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// sqlBlock returns the block of SQL in a document that has the given words.
func sqlBlock(t *testing.T, document, words string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../docs", document))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(block[1], words) {
			return block[1]
		}
	}
	t.Fatalf("%s has no block of SQL with %q", document, words)
	return ""
}

// A realm is a database whose roles have what docs/operations.md grants them. Roles belong to
// the whole server, so here their names end with the database's.
type realm struct {
	*testing.T
	dsn, suffix string
	owner       *pgxpool.Pool
}

func newRealm(t *testing.T) *realm {
	r := &realm{T: t, dsn: pgtest.DSN(t)}
	r.owner = r.open(r.dsn)
	if err := r.owner.QueryRow(t.Context(), `SELECT current_database()`).Scan(&r.suffix); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"worker", "operator", "reader", "sender"} {
		role := pgx.Identifier{r.role(kind)}.Sanitize()
		r.exec(`CREATE ROLE ` + role)
		t.Cleanup(func() {
			if _, err := r.owner.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
				t.Error(err)
			}
		})
	}
	r.exec(regexp.MustCompile(`\boncemore_(worker|operator|reader|sender)\b`).ReplaceAllString(sqlBlock(t, "operations.md", "GRANT"), "oncemore_${1}_"+r.suffix))
	return r
}

func (r *realm) role(kind string) string { return "oncemore_" + kind + "_" + r.suffix }

func (r *realm) open(dsn string) *pgxpool.Pool {
	r.Helper()
	pool, err := pgxpool.New(r.Context(), dsn)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(pool.Close)
	return pool
}

// as is the address of the database for one of the roles: all sessions have it, also those
// outside a pool.
func (r *realm) as(kind string) string {
	u, err := url.Parse(r.dsn)
	if err != nil {
		r.Fatal(err)
	}
	q := u.Query()
	q.Set("role", r.role(kind))
	u.RawQuery = q.Encode()
	return u.String()
}

func (r *realm) exec(sql string, args ...any) {
	r.Helper()
	if _, err := r.owner.Exec(r.Context(), sql, args...); err != nil {
		r.Fatalf("%v in %s", err, sql)
	}
}

// call runs a command of the program as one of the roles.
func (r *realm) call(kind string, code int, args ...string) string {
	r.Helper()
	var out bytes.Buffer
	root := cli.New(cli.Options{})
	root.SetArgs(append([]string{"--database-url", r.as(kind)}, args...))
	root.SetOut(&out)
	root.SetErr(&out)
	if got := cli.Execute(root); got != code {
		r.Errorf("%s as %s: exit code %d, want %d\n%s", args, kind, got, code, &out)
	}
	return out.String()
}

// Rights that are missing stop work in the middle; rights that nobody needs are risk. So the
// list in the document is held to the statements in the code, both ways.
func TestTheGrantsOfTheDocumentAreWhatTheStatementsNeed(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	workers, operators := map[string]string{"ledger_history INSERT": "the trigger archive_fact"}, map[string]string{}
	for _, folder := range []string{"ledger", "ledger/ledgerhttp", "queue/pgqueue", "worker", "worker/plan", "worker/admin"} {
		addRights(t, filepath.Join("..", folder), workers, operators)
	}
	for kind, needed := range map[string]map[string]string{"worker": workers, "operator": operators} {
		if len(needed) < 10 {
			t.Errorf("only %d rights of a %s were found: the search is broken", len(needed), kind)
		}
		for right, where := range needed {
			if !r.has(kind, right) {
				t.Errorf("the %s needs %s, which is not granted: %s", kind, right, where)
			}
		}
	}
	rows, _ := r.owner.Query(t.Context(), `SELECT relname::text FROM pg_class WHERE relnamespace = 'oncemore'::regnamespace AND relkind = 'r'`)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) < 20 {
		t.Fatal(tables, err)
	}
	for _, table := range tables {
		for _, verb := range []string{"INSERT", "UPDATE", "DELETE", "TRUNCATE"} {
			right := table + " " + verb
			if r.has("worker", right) && workers[right] == "" {
				t.Errorf("workers have %s, and no statement of theirs needs it", right)
			}
			if r.has("operator", right) && workers[right] == "" && operators[right] == "" {
				t.Errorf("operators have %s, and no statement of theirs needs it", right)
			}
			if r.has("reader", right) || r.has("sender", right) && right != "message INSERT" {
				t.Errorf("readers or senders have %s", right)
			}
		}
	}
}

func (r *realm) has(kind, right string) (has bool) {
	table, verb, _ := strings.Cut(right, " ")
	if err := r.owner.QueryRow(r.Context(), `SELECT has_table_privilege($1, 'oncemore.' || $2, $3)`, r.role(kind), table, verb).Scan(&has); err != nil {
		r.Fatal(err)
	}
	return has
}

var (
	writes = regexp.MustCompile(`(INSERT INTO|UPDATE|DELETE FROM)\s+oncemore\.(\w+)`)
	locks  = regexp.MustCompile(`\bFOR (UPDATE|SHARE)\b`)
	reads  = regexp.MustCompile(`(?:FROM|JOIN)\s+oncemore\.(\w+)`)
)

// addRights notes what the statements in the files of a folder need, as "claim UPDATE", and where.
func addRights(t *testing.T, folder string, workers, operators map[string]string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(folder, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		to := workers
		if strings.Contains(name, "/admin/") || strings.HasSuffix(name, "/worker/control.go") {
			to = operators // what is done to the work of workers
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			e, is := n.(ast.Expr)
			if !is {
				return true
			}
			text, where := literals(e), set.Position(e.Pos()).String()
			for _, m := range writes.FindAllStringSubmatch(text, -1) {
				to[m[2]+" "+strings.Fields(m[1])[0]] = where
				if m[1] == "INSERT INTO" && strings.Contains(text, "DO UPDATE") {
					to[m[2]+" UPDATE"] = where
				}
			}
			if locks.MatchString(text) {
				for _, m := range reads.FindAllStringSubmatch(text, -1) {
					to[m[1]+" UPDATE"] = where
				}
			}
			return text == ""
		})
	}
}

// literals is the text of a string, or of a sum of strings without what is not literal.
func literals(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, _ := strconv.Unquote(e.Value)
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return literals(e.X) + literals(e.Y)
		}
	}
	return ""
}

// The jobs of the story below.
type (
	enter  struct{ N, Way int } // in a transaction
	notify struct{ N int }      // outside; succeeds at the second attempt
	hush   struct{ N int }      // outside, and nobody can tell
	flop   struct{ N int }      // fails for good
	every  struct{ N int }      // enters all
)

func (enter) JobType() string   { return "enter" }
func (notify) JobType() string  { return "notify" }
func (hush) JobType() string    { return "hush" }
func (flop) JobType() string    { return "flop" }
func (every) JobType() string   { return "every" }
func (a enter) Entity() string  { return jobs.Key(a.N) }
func (a notify) Entity() string { return jobs.Key(a.N) }
func (a hush) Entity() string   { return jobs.Key(a.N) }
func (a flop) Entity() string   { return jobs.Key(a.N) }
func (a every) Entity() string  { return jobs.Key(a.N) }

func storySet(t *testing.T) *jobs.Set {
	t.Helper()
	toEnter := jobs.SQL[enter](`SELECT n::text AS entity, n AS "N", 0 AS "Way" FROM generate_series(1, 20) n`)
	set, err := jobs.NewSet(
		jobs.Job[enter]{Source: toEnter, Policy: jobs.Policy{FleetLimit: jobs.Limit{Running: 4, Rate: 1000}},
			DoTx: func(ctx context.Context, tx pgx.Tx, a enter) error {
				_, err := tx.Exec(ctx, `INSERT INTO did (entity) VALUES ($1)`, a.Entity())
				return err
			}},
		jobs.Job[notify]{Effect: jobs.Keyed(time.Hour), Policy: jobs.Policy{Backoff: func(int) time.Duration { return time.Millisecond }},
			Do: func(ctx context.Context, a notify) error {
				if jobs.Current(ctx).Number == 1 {
					return errors.New("not this time")
				}
				return jobs.Current(ctx).Return("told")
			}},
		jobs.Job[hush]{Effect: jobs.Once, Do: func(context.Context, hush) error { return errors.New("no answer") }},
		jobs.Job[flop]{Effect: jobs.Repeatable, Do: func(context.Context, flop) error { return jobs.Permanent(errors.New("never")) }},
		jobs.Job[every]{FanOut: func(every) jobs.Source { return toEnter }},
	)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// until waits for a condition in the database.
func (r *realm) until(what, sql string) {
	r.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var is bool
		if err := r.owner.QueryRow(r.Context(), sql).Scan(&is); err != nil {
			r.Fatal(err)
		}
		if is {
			return
		}
		if time.Since(began) > 30*time.Second {
			r.Fatalf("after 30 s it is not so: %s", what)
		}
	}
}

func TestAWorkerNeedsNoMoreThanTheGrantsOfTheDocument(t *testing.T) {
	t.Parallel()
	r := newRealm(t)
	r.exec(`CREATE TABLE did (entity text)`)
	r.exec(`GRANT INSERT ON did TO ` + pgx.Identifier{r.role("worker")}.Sanitize())
	pool := r.open(r.as("worker"))
	var log syncBuffer
	w, err := worker.New(t.Context(), pool, storySet(t), worker.Config{Lease: time.Second, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Schedules: []worker.Schedule{{Name: "nightly", Spec: "30 2 1 1 *", Rerun: &worker.Order{Type: "enter", Reason: "nightly"}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if strings.Contains(log.String(), "permission denied") {
			t.Errorf("the worker was refused something:\n%s", log.String())
		}
	}()

	sender := r.open(r.as("sender"))
	send := func(as ...jobs.Args) {
		t.Helper()
		err := pgx.BeginFunc(t.Context(), sender, func(tx pgx.Tx) error { return jobs.Enqueue(t.Context(), pgqueue.New(sender, "").Tx(tx), as...) })
		if err != nil {
			t.Fatal(err)
		}
	}
	send(every{1}, notify{1}, hush{1}, flop{1})
	r.until("all were entered", `SELECT count(*) = 20 FROM did`)
	r.until("the run has ended", `SELECT count(*) = 1 FROM oncemore.run WHERE complete`)
	r.until("a result is kept", `SELECT count(*) = 1 FROM oncemore.result`)
	r.until("one is in doubt, one has failed", `SELECT count(*) = 2 FROM oncemore.claim WHERE trouble IN ('in_doubt', 'failed')`)
	send(enter{1, 9})
	r.until("other arguments are parked", `SELECT count(*) = 1 FROM oncemore.parked`)

	r.call("operator", 0, "runs", "stop-all", "--reason", "a look first", "--yes")
	r.call("operator", 0, "rerun", "enter", "--force", "--reason", "again", "--yes")
	r.until("it is planned", `SELECT planned_at IS NOT NULL FROM oncemore.run WHERE id = (SELECT max(id) FROM oncemore.run)`)
	var id string
	if err := r.owner.QueryRow(t.Context(), `SELECT max(id)::text FROM oncemore.run`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	r.call("operator", 0, "runs", "pause", id, "--reason", "lunch", "--yes")
	r.call("operator", 0, "runs", "rate", id, "100", "--yes")
	r.call("operator", 0, "runs", "release", "--yes")
	r.call("operator", 0, "runs", "resume", id, "--yes")
	r.until("all were entered twice", `SELECT count(*) = 40 FROM did`)
	r.until("the old facts are archived", `SELECT count(*) = 20 FROM oncemore.ledger_history`)
	r.call("operator", 0, "doubt", "resolve", "hush", "1", "--as", "done", "--reason", "somebody heard it", "--yes")
	r.call("operator", 0, "retry", "flop", "1", "--yes")
	r.until("it was tried again", `SELECT count(*) = 2 FROM oncemore.attempt a JOIN oncemore.job_type t ON t.id = a.job_type WHERE t.name = 'flop'`)
	r.call("operator", 0, "parked", "resend", "1", "--yes")
	r.until("it came back", `SELECT count(*) = 1 FROM oncemore.parked WHERE id > 1`)
	r.call("operator", 0, "parked", "drop", "2", "--reason", "a mistake", "--yes")
	r.call("operator", 0, "enqueue", "notify", `{"N": 2}`, "--entity", "2", "--yes")
	r.until("that was told too", `SELECT count(*) = 2 FROM oncemore.result`)
	r.call("operator", 0, "schedules", "pause", "nightly", "--reason", "not now", "--yes")
	r.call("operator", 0, "schedules", "resume", "nightly", "--yes")
	r.call("operator", 0, "schedules", "run-now", "nightly", "--yes")
	r.call("operator", 0, "stats", "--roll-up")

	// What a worker does only now and then.
	if _, err := ledger.New(pool).ExpireResults(t.Context(), 10); err != nil {
		t.Error(err)
	}
	r.door(pool)

	for _, look := range []string{"status", "missing enter", "failures", "failures --list", "doubt ls", "stranded", "parked", "disputed",
		"ledger show flop 1", "stats", "runs ls", "runs show 1", "schedules ls", "audit", "migrate status", "rerun enter --dry-run"} {
		r.call("reader", 0, strings.Fields(look)...)
	}
	if said := r.call("reader", 1, "retry", "flop", "1", "--yes"); !strings.Contains(said, "permission denied") {
		t.Errorf("a reader was refused with %q", said)
	}
}

// door has requests with a key worked, in transaction and outside.
func (r *realm) door(pool *pgxpool.Pool) {
	keys, err := ledgerhttp.New(pool, ledgerhttp.Config{Scope: func(*http.Request) (string, error) { return "7", nil }})
	if err != nil {
		r.Fatal(err)
	}
	defer keys.Close(context.WithoutCancel(r.Context()))
	for name, effect := range map[string]ledger.Effect{"POST /entries": {}, "POST /charges": ledger.Once} {
		h, err := keys.Guard(r.Context(), ledgerhttp.Operation{Name: name, Effect: effect}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusCreated)
		}))
		if err != nil {
			r.Fatal(err)
		}
		for range 2 {
			q := httptest.NewRequest("POST", strings.Fields(name)[1], strings.NewReader("x"))
			q.Header.Set("Idempotency-Key", `"8e03978e-40d5-43e8"`)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, q)
			if rec.Code != http.StatusCreated {
				r.Errorf("%s is answered %d %s", name, rec.Code, rec.Body)
			}
		}
	}
}

// A syncBuffer is a log that many write.
type syncBuffer struct {
	sync.Mutex
	bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.Lock()
	defer b.Unlock()
	return b.Buffer.Write(p)
}

func (b *syncBuffer) String() string {
	b.Lock()
	defer b.Unlock()
	return b.Buffer.String()
}
