package worker_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker"
)

// In these stories a schema that comes before the server's own has another now(), so that
// hours pass when the test says so. Transactions write facts that bear the time at which
// they began, as the real ones do.

// withClock returns a pool to a database whose now() is what body says.
func withClock(t *testing.T, body string) *pgxpool.Pool {
	t.Helper()
	dsn := pgtest.DSN(t)
	plain, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	mustExec(t, plain, `
CREATE SCHEMA fake;
CREATE TABLE fake.clock (time timestamptz NOT NULL, began timestamptz NOT NULL);
INSERT INTO fake.clock VALUES (now(), clock_timestamp());
CREATE FUNCTION fake.now() RETURNS timestamptz STABLE LANGUAGE sql AS $$ `+body+` $$`)
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 20
	cfg.ConnConfig.RuntimeParams["search_path"] = "fake, pg_catalog"
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

const addFactSQL = `INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, completed_at) VALUES (1, $1, 1, 'r', $2, $3)`

// A fact that is replaced is waited for, as Hold does, but never for long here.
const replaceFactSQL = `UPDATE oncemore.ledger SET epoch = coalesce(epoch, 0) + 1, completed_at = $2 WHERE entity = $1`

// A teller is one story: some transactions that come and go while time passes.
type teller struct {
	pool    *pgxpool.Pool
	now     time.Time
	txs     [4]pgx.Tx
	began   [4]time.Time
	written [4][]string // entities that a transaction has written: nobody else may, or would wait
	seen    []string    // entities with a committed fact
	n       int
	waited  int // how often a roll-up had to wait, over all stories
	closed  int // and closed something
}

func TestTheSumsAreWhatTheLedgerSaysInAnyStory(t *testing.T) {
	t.Parallel()
	n, seed := 15, strconv.FormatUint(rand.Uint64()>>1, 10)
	if os.Getenv("ONCEMORE_FULL") == "1" {
		n = 500
	}
	if env := os.Getenv("ONCEMORE_SEED"); env != "" {
		seed = env
	}
	for name, value := range map[string]string{"rapid.checks": strconv.Itoa(n), "rapid.seed": seed, "rapid.steps": "60", "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("ONCEMORE_SEED=%s", seed)
	s := &teller{pool: withClock(t, `SELECT time FROM fake.clock`)}
	rapid.Check(t, func(r *rapid.T) {
		s.anew(t)
		defer s.end(t)
		r.Repeat(map[string]func(*rapid.T){"": func(r *rapid.T) { s.agree(r) },
			"begin": s.begin, "write": s.write, "replace": s.replace, "commit": func(r *rapid.T) { s.finish(r, pgx.Tx.Commit) },
			"roll back": func(r *rapid.T) { s.finish(r, pgx.Tx.Rollback) },
			"pass":      s.pass, "roll up": s.roll, "roll up once more": s.roll})
		// In the end everything is summed.
		s.end(t)
		s.advance(r, time.Hour)
		s.roll(r)
		// The answer to an earlier question closes what was over then; the next asks anew.
		for over := s.now.Add(-time.Minute).Truncate(15 * time.Minute); rollUp(t, s.pool, 0).Closed.Before(over); {
		}
		s.agree(r)
		if !ask(t, s.pool, `SELECT (SELECT count(*) FROM oncemore.ledger) + (SELECT count(*) FROM oncemore.ledger_history) = (SELECT coalesce(sum(n), 0) FROM oncemore.completions_quarter)`) {
			r.Fatal("not all is summed in the end")
		}
	})
	if t.Failed() {
		return
	}
	t.Logf("%d times it waited, %d times it closed something", s.waited, s.closed)
	if s.waited == 0 || s.closed == 0 {
		t.Error("the stories tell too little")
	}
}

func (s *teller) anew(t *testing.T) {
	mustExec(t, s.pool, `TRUNCATE oncemore.ledger, oncemore.ledger_history, oncemore.completions_quarter`)
	mustExec(t, s.pool, `UPDATE oncemore.completions_watermark SET closed = NULL, quiet = NULL, asked = NULL, running = '{}'`)
	if err := s.pool.QueryRow(t.Context(), `SELECT time FROM fake.clock`).Scan(&s.now); err != nil {
		t.Fatal(err)
	}
	s.seen = nil
}

func (s *teller) end(t *testing.T) {
	for i, tx := range s.txs {
		if tx != nil {
			_ = tx.Rollback(t.Context())
		}
		s.txs[i], s.written[i] = nil, nil
	}
}

func (s *teller) agree(r *rapid.T) {
	var wrong *string
	if err := s.pool.QueryRow(r.Context(), differenceSQL).Scan(&wrong); err != nil {
		r.Fatal(err)
	}
	if wrong != nil {
		r.Fatalf("the sums (first) are not what the ledger says (second): %s", *wrong)
	}
}

// one draws a transaction that is open, or that is not.
func (s *teller) one(r *rapid.T, open bool) int {
	var which []int
	for i, tx := range s.txs {
		if (tx != nil) == open {
			which = append(which, i)
		}
	}
	if len(which) == 0 {
		r.Skip()
	}
	return rapid.SampledFrom(which).Draw(r, "transaction")
}

func (s *teller) begin(r *rapid.T) {
	i := s.one(r, false)
	tx, err := s.pool.Begin(context.WithoutCancel(r.Context()))
	if err != nil {
		r.Fatal(err)
	}
	s.txs[i], s.began[i] = tx, s.now
}

func (s *teller) write(r *rapid.T) {
	i := s.one(r, true)
	s.n++
	entity := fmt.Sprint(s.n)
	if _, err := s.txs[i].Exec(r.Context(), addFactSQL, rapid.IntRange(1, 2).Draw(r, "type"), entity, s.began[i]); err != nil {
		r.Fatal(err)
	}
	s.written[i] = append(s.written[i], entity)
}

func (s *teller) replace(r *rapid.T) {
	i := s.one(r, true)
	if len(s.seen) == 0 {
		r.Skip()
	}
	k := rapid.IntRange(0, len(s.seen)-1).Draw(r, "fact")
	entity := s.seen[k]
	s.seen = append(s.seen[:k:k], s.seen[k+1:]...)
	if _, err := s.txs[i].Exec(r.Context(), replaceFactSQL, entity, s.began[i]); err != nil {
		r.Fatal(err)
	}
	s.written[i] = append(s.written[i], entity)
}

func (s *teller) finish(r *rapid.T, how func(pgx.Tx, context.Context) error) {
	i := s.one(r, true)
	if err := how(s.txs[i], r.Context()); err != nil {
		r.Fatal(err)
	}
	for _, entity := range s.written[i] {
		var is bool
		if err := s.pool.QueryRow(r.Context(), `SELECT EXISTS (SELECT FROM oncemore.ledger WHERE entity = $1)`, entity).Scan(&is); err != nil {
			r.Fatal(err)
		}
		if is {
			s.seen = append(s.seen, entity)
		}
	}
	s.txs[i], s.written[i] = nil, nil
}

func (s *teller) pass(r *rapid.T) {
	s.advance(r, time.Duration(rapid.IntRange(1, 40).Draw(r, "minutes"))*time.Minute)
}

func (s *teller) advance(r *rapid.T, d time.Duration) {
	s.now = s.now.Add(d)
	if _, err := s.pool.Exec(r.Context(), `UPDATE fake.clock SET time = $1`, s.now); err != nil {
		r.Fatal(err)
	}
}

func (s *teller) roll(r *rapid.T) {
	for more := true; more; {
		was, err := worker.RollUp(r.Context(), s.pool)
		if err != nil {
			r.Fatal(err)
		}
		if was.Closed.After(s.now.Add(-time.Minute)) {
			r.Fatalf("at %s it is closed up to %s", s.now, was.Closed)
		}
		if was.Summed > 0 {
			s.closed++
		}
		if was.Waiting > 0 {
			s.waited++
		}
		more = was.More
	}
}

// A quarter of an hour passes in a second, here, and everything goes on at once.
func TestTheSumsAreWhatTheLedgerSaysWhileEverythingGoesOn(t *testing.T) {
	t.Parallel()
	pool := withClock(t, `SELECT time + (pg_catalog.now() - began) * 900 FROM fake.clock`)
	mustExec(t, pool, `UPDATE oncemore.completions_watermark SET closed = NULL`)
	length := 5 * time.Second
	if os.Getenv("ONCEMORE_FULL") == "1" {
		length = time.Minute
	}
	ctx, stop := context.WithTimeout(t.Context(), length)
	defer stop()
	seed := rand.Uint64()
	if env := os.Getenv("ONCEMORE_SEED"); env != "" {
		seed, _ = strconv.ParseUint(env, 10, 64)
	}
	t.Logf("ONCEMORE_SEED=%d", seed)
	var all sync.WaitGroup
	for app := range 6 {
		random := rand.New(rand.NewPCG(seed, uint64(app)))
		all.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := someWork(pool, random, fmt.Sprintf("%d %d", app, n)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var mu sync.Mutex
	var summed, waited int64
	for range 2 {
		all.Go(func() {
			for ctx.Err() == nil {
				r, err := worker.RollUp(t.Context(), pool)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				summed, waited = summed+r.Summed, waited+int64(r.Waiting)
				mu.Unlock()
			}
		})
	}
	p := &past{TB: t, pool: pool}
	for ctx.Err() == nil && !t.Failed() {
		p.agree()
	}
	all.Wait()
	p.agree()
	t.Logf("%d summed while it went on, %d waited for", summed, waited)
	if summed == 0 || waited == 0 || !ask(t, pool, `SELECT count(*) > 0 FROM oncemore.ledger_history`) {
		t.Errorf("too little went on: %d summed, %d waited for", summed, waited)
	}
}

// someWork is one transaction of an app, perhaps a long one.
func someWork(pool *pgxpool.Pool, random *rand.Rand, entity string) error {
	ctx := context.Background()
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	var began time.Time
	if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&began); err != nil {
		return err
	}
	linger := time.Duration(0)
	if random.IntN(20) == 0 {
		linger = time.Duration(random.IntN(1500)) * time.Millisecond
	}
	before := time.Duration(random.Int64N(int64(linger) + 1))
	if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, before.Seconds()); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, addFactSQL, random.IntN(3), entity, began); err != nil {
		return err
	}
	if random.IntN(3) == 0 {
		// One of its own, so that no two wait for each other.
		replaced := `UPDATE oncemore.ledger SET epoch = coalesce(epoch, 0) + 1, completed_at = $1
			WHERE (job_type, entity) = (SELECT job_type, entity FROM oncemore.ledger WHERE entity LIKE $2 || '%' AND entity <> $3 ORDER BY random() LIMIT 1)`
		if _, err := tx.Exec(ctx, replaced, began, entity[:2], entity); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `SELECT pg_sleep($1)`, (linger - before).Seconds()); err != nil {
		return err
	}
	if random.IntN(10) == 0 {
		return nil
	}
	return tx.Commit(ctx)
}
