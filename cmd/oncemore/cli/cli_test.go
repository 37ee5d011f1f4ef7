package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"iter"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func TestMain(m *testing.M) {
	if dsn := os.Getenv(outageWorkerEnv); dsn != "" {
		outageWorker(dsn) // in a process of its own, which can be killed
	}
	completeTime = 30 * time.Second // a test is more patient than a person
	os.Exit(pgtest.Main(m))
}

// An answer is what a call of the program came to.
type answer struct {
	code     int
	out, err string
}

func call(t testing.TB, o Options, args ...string) answer {
	t.Helper()
	var out, err bytes.Buffer
	root := New(o)
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&err)
	code := Execute(root)
	return answer{code, out.String(), err.String()}
}

func decodeJSON[T any](t testing.TB, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// A letter is work on one entity.
type letter struct {
	N int `json:"n"`
}

func (letter) JobType() string  { return "letter" }
func (l letter) Entity() string { return jobs.Key(l.N) }

// A parcel's source is in Go.
type parcel struct {
	N int `json:"n"`
}

func (parcel) JobType() string  { return "parcel" }
func (p parcel) Entity() string { return jobs.Key(p.N) }

type mailing struct {
	ID int `json:"id"`
}

func (mailing) JobType() string  { return "mailing" }
func (m mailing) Entity() string { return jobs.Key(m.ID) }

const letters = `SELECT n::text AS entity, n FROM generate_series(1, 25) n`

func testSet(context.Context, *pgxpool.Pool) (*jobs.Set, error) {
	return jobs.NewSet(
		jobs.Job[letter]{Do: func(_ context.Context, l letter) error {
			if l.N == 3 {
				return jobs.Permanent(jobs.NotApplied(os.ErrPermission))
			}
			return nil
		}, Effect: jobs.Once, Source: jobs.SQL[letter](letters)},
		jobs.Job[mailing]{FanOut: func(mailing) jobs.Source { return jobs.SQL[letter](letters+` WHERE n <= $1`, 10) }},
		jobs.Job[parcel]{Do: func(context.Context, parcel) error { return nil }, Effect: jobs.Repeatable,
			Source: jobs.Seq(func(_ context.Context, after string) iter.Seq2[parcel, error] {
				return func(yield func(parcel, error) bool) {
					for n := 10; n < 20; n++ {
						if jobs.Key(n) > after && !yield(parcel{n}, nil) {
							return
						}
					}
				}
			})},
	)
}

// worked returns the address of a database in which a worker has done what 10 letters, of
// which one fails, and one parcel need.
func worked(t *testing.T) string {
	t.Helper()
	dsn := pgtest.DSN(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	set, err := testSet(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), pool, set, worker.Config{Name: "anna", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	q := pgqueue.New(pool, "")
	if err := jobs.Enqueue(t.Context(), q, mailing{1}); err != nil {
		t.Fatal(err)
	}
	if err := jobs.Enqueue(t.Context(), q, parcel{11}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- w.Run(ctx) }()
	for limit := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var over bool
		err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM oncemore.ledger) = 10 AND EXISTS (SELECT FROM oncemore.run WHERE ended_at IS NOT NULL)`).Scan(&over)
		if err != nil {
			t.Fatal(err)
		}
		if over {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("the worker has not done its work in 30 s")
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return dsn
}

func TestStatusTellsWhatIsDoneOpenAndMissing(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	a := call(t, Options{}, "status", "-o", "json", "--database-url", dsn)
	if a.code != 0 || a.err != "" {
		t.Fatalf("%+v", a)
	}
	s := decodeJSON[admin.Status](t, a.out)
	byName := map[string]admin.TypeStatus{}
	for _, ty := range s.Types {
		byName[ty.Type] = ty
	}
	l := byName["letter"]
	if l.Done != (admin.Count{N: 9, Is: admin.Exact}) || l.Open != (admin.Openings{Failed: 1}) || l.Missing == nil || *l.Missing != (admin.Count{N: 15, Is: admin.Exact}) || l.Effect != "Once" {
		t.Errorf("letters: %+v", l)
	}
	if p := byName["parcel"]; p.Done.N != 1 || p.Missing != nil || p.Unknown == "" {
		t.Errorf("parcels, whose source nobody here knows: %+v", p)
	}
	if len(s.Runs) != 1 || s.Runs[0].ParentType != "mailing" || s.Runs[0].Items != 10 || s.Runs[0].Done != 9 || s.Runs[0].Failed != 1 || s.Runs[0].State != admin.Ended || s.Runs[0].EndedAt == nil {
		t.Errorf("runs: %+v", s.Runs)
	}
	if len(s.Workers) != 1 || s.Workers[0].Name != "anna" || s.Workers[0].DeadAt == nil || s.Workers[0].Cause == nil || *s.Workers[0].Cause != "stopped" {
		t.Errorf("workers: %+v", s.Workers)
	}
	if len(s.Queues) != 0 || len(s.Parked) != 0 {
		t.Errorf("queues %+v, parked %+v; want none", s.Queues, s.Parked)
	}

	a = call(t, Options{}, "status", "--database-url", dsn)
	for _, want := range []string{"JOB TYPE", "letter", "9 of 10", "ended", "stopped"} {
		if !strings.Contains(a.out, want) {
			t.Errorf("the table has no %q:\n%s", want, a.out)
		}
	}
}

func TestStatusShowsQueuesAndWhatIsParked(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := jobs.Enqueue(t.Context(), pgqueue.New(pool, "slow"), letter{1}, letter{2}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `
INSERT INTO oncemore.parked (reason, type, entity, body, error, digest) VALUES ('undecodable', 'letter', 'x', '{', 'unexpected end', 'd');
UPDATE oncemore.message SET visible_at = clock_timestamp() - interval '90 seconds'`); err != nil {
		t.Fatal(err)
	}
	s := decodeJSON[admin.Status](t, call(t, Options{}, "status", "-o", "json", "--database-url", dsn).out)
	if len(s.Queues) != 1 || s.Queues[0].Queue != "slow" || s.Queues[0].Ready != 2 || s.Queues[0].Entities != 2 ||
		s.Queues[0].Oldest == nil || *s.Queues[0].Oldest < 90 || *s.Queues[0].Oldest > 600 || s.Queues[0].Is != "exact" {
		t.Errorf("queues: %+v", s.Queues)
	}
	if len(s.Parked) != 1 || s.Parked[0].Reason != "undecodable" || s.Parked[0].Inputs != 1 {
		t.Errorf("parked: %+v", s.Parked)
	}
	out := call(t, Options{}, "status", "--database-url", dsn).out
	for _, want := range []string{"no worker has registered", "slow", "90s", "undecodable"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table has no %q:\n%s", want, out)
		}
	}
}

func TestMissingListsWhatTheSourceNamesAndNobodyHas(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	a := call(t, Options{}, "missing", "letter", "--limit", "4", "-o", "json", "--database-url", dsn)
	m := decodeJSON[admin.MissingList](t, a.out)
	if a.code != 0 || m.Missing == nil || *m.Missing != (admin.Count{N: 15, Is: admin.Exact}) || len(m.Entities) != 4 {
		t.Fatalf("%+v", a)
	}
	for _, e := range m.Entities {
		if e.Reason != "missing" || len(e.Entity) != 2 || e.Entity == "10" {
			t.Errorf("%+v is not missing: 1 to 10 are done, or open", e)
		}
	}
	a = call(t, Options{}, "missing", "letter", "-o", "jsonl", "--database-url", dsn)
	if n := strings.Count(a.out, "\n"); n != 15 {
		t.Errorf("%d lines, want 15: %s", n, a.out)
	}
	for line := range strings.Lines(a.out) {
		decodeJSON[admin.MissingEntity](t, line)
	}
	a = call(t, Options{}, "missing", "letter", "--database-url", dsn)
	if !strings.HasPrefix(a.out, "ENTITY") || strings.Count(a.out, "\n") != 16 || !strings.Contains(a.err, "15 of letter missing") {
		t.Errorf("%+v", a)
	}
}

func TestMissingWalksASourceInGoWhereTheJobsAreAtHand(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	a := call(t, Options{}, "missing", "parcel", "--database-url", dsn)
	if a.code != 1 || !strings.Contains(a.err, "source is not known here") {
		t.Errorf("without the jobs: %+v", a)
	}
	a = call(t, Options{Set: testSet}, "missing", "parcel", "-o", "json", "--limit", "3", "--database-url", dsn)
	m := decodeJSON[admin.MissingList](t, a.out)
	if m.Missing == nil || *m.Missing != (admin.Count{N: 9, Is: admin.Exact}) || len(m.Entities) != 3 || m.Entities[0].Entity != "10" || m.Entities[1].Entity != "12" {
		t.Errorf("%+v", m)
	}
}

func TestMissingCountsStaleWorkAndSaysWhenItStopsCounting(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(t.Context(), `
INSERT INTO oncemore.job_type (name, id, effect, source) VALUES
    ('page', 7, 'Repeatable', 'SELECT n::text AS entity, n AS source_version FROM generate_series(1, 4) n -- a comment'),
    ('many', 8, 'Repeatable', 'SELECT n::text AS entity FROM generate_series(1, 30000) n');
INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, source_version) VALUES
    (1, 7, 1, 'r', '1', 1), (1, 7, 1, 'r', '2', 1), (1, 7, 1, 'r', '3', 5)`); err != nil {
		t.Fatal(err)
	}
	m := decodeJSON[admin.MissingList](t, call(t, Options{}, "missing", "page", "-o", "json", "--database-url", dsn).out)
	want := []admin.MissingEntity{{Entity: "2", Reason: "stale_source"}, {Entity: "4", Reason: "missing"}}
	if m.Missing.N != 2 || len(m.Entities) != 2 || m.Entities[0] != want[0] || m.Entities[1] != want[1] {
		t.Errorf("%+v, want %+v", m, want)
	}
	a := call(t, Options{}, "missing", "many", "--database-url", dsn)
	if !strings.Contains(a.err, "more than 10,000 of many missing, 50 listed") {
		t.Errorf("%+v", a.err)
	}
}

// A source is somebody's SQL: looking at it must not change anything.
func TestMissingOnlyReads(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(t.Context(), `
CREATE FUNCTION grab() RETURNS text LANGUAGE sql AS $$ DELETE FROM oncemore.ledger RETURNING entity $$;
INSERT INTO oncemore.job_type (name, source) VALUES ('grabber', 'SELECT grab() AS entity')`); err != nil {
		t.Fatal(err)
	}
	a := call(t, Options{}, "missing", "grabber", "--database-url", dsn)
	if a.code != 1 || !strings.Contains(a.err, "read-only transaction") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "status", "--database-url", dsn); a.code != 0 || !strings.Contains(a.out, "?") {
		t.Errorf("one source that fails must leave the rest of the status as it is: %+v", a)
	}
}

func TestMigrateBringsADatabaseUpAndSaysWhereItIs(t *testing.T) {
	t.Parallel()
	dsn := pgtest.EmptyDSN(t)
	if a := call(t, Options{}, "status", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "migrate up") {
		t.Errorf("without the schema: %+v", a)
	}
	if a := call(t, Options{}, "migrate", "status", "--database-url", dsn); a.code != 0 || !strings.Contains(a.out, "no") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "migrate", "up", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "applied 1 core") || a.out != "" {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "migrate", "up", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "current") {
		t.Errorf("%+v", a)
	}
	a := call(t, Options{}, "migrate", "status", "-o", "json", "--database-url", dsn)
	if rows := decodeJSON[[]map[string]any](t, a.out); len(rows) == 0 || rows[0]["applied_at"] == nil {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "migrate", "sql"); a.code != 0 || !strings.Contains(a.out, "CREATE TABLE oncemore.ledger") {
		t.Errorf("%+v", a)
	}
}
