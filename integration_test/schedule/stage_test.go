package schedule_test

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/integration_test/schedule"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A world is one database, where orders are played side by side, each on entities of its own.
type world struct {
	dsn   string
	types map[string]*ledger.Type // by effect class
	scene atomic.Int64            // the number of the last one

	deadlocks atomic.Int64 // that the database broke; steps that are calls do not show them
}

// The job types: one for each effect class.
var classes = map[string]ledger.Effect{
	"once": ledger.Once, "repeatable": ledger.Repeatable, "keyed": ledger.Keyed(time.Hour),
	"verifiable": ledger.Verifiable(0), "tx": ledger.InTransaction,
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{dsn: pgtest.DSN(t), types: map[string]*ledger.Type{}}
	conn := connect(t, w.dsn, nil)
	l := ledger.New(conn)
	for name, effect := range classes {
		w.types[name] = &ledger.Type{Name: name, Effect: effect, Timeout: time.Minute, Checked: name == "verifiable"}
		if err := l.Register(t.Context(), w.types[name]); err != nil {
			t.Fatal(err)
		}
	}
	for _, sql := range []string{
		// The effects of jobs that are in the transaction. No two of these rows are in each other's way.
		`CREATE TABLE effect (entity text, run bigint, epoch bigint); CREATE INDEX ON effect (entity)`,
		// Who is in a deadlock shall not wait for a second to hear of it. (Where only a superuser may say that, he does.)
		`DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''20ms''', current_database());
		 EXCEPTION WHEN insufficient_privilege THEN NULL; END $$`,
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// connect returns a pool of a single connection, so that all that an actor does is done by one backend.
func connect(t testing.TB, dsn string, each func(*pgx.Conn)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 1
	cfg.MaxConnLifetime, cfg.MaxConnIdleTime = 24*time.Hour, 24*time.Hour
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // a step that nobody asked for
	cfg.AfterConnect = func(_ context.Context, c *pgx.Conn) error {
		if each != nil {
			each(c)
		}
		return nil
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// A stage plays one order at a time: a seat for each actor, and connections to set scenes
// and to look on.
type stage struct {
	*world
	fine  bool // a step is a statement; else it is a call
	seats []*seat
	ctl   *pgxpool.Pool
	props *ledger.Ledger // what was before the actors came

	workers []int64 // that have not played yet: who is dead once stays dead
}

// A seat is where one actor sits: its connection, through a proxy where steps are fine.
type seat struct {
	pool   *pgxpool.Pool
	ledger *ledger.Ledger
	queue  *pgqueue.Queue
	pid    atomic.Int32
	player atomic.Pointer[player] // who sits there; nil: nobody
	holds  atomic.Bool            // a transaction in which something may be locked

	// Owned by the proxy's goroutine that reads the client.
	inTx, wrote bool
}

const maxActors = 3

func newStage(t testing.TB, w *world, fine bool) *stage {
	t.Helper()
	s := &stage{world: w, fine: fine, ctl: connect(t, w.dsn, nil)}
	s.props = ledger.New(s.ctl)
	for range maxActors {
		at := &seat{}
		dsn := w.dsn
		if fine {
			proxy, err := pgproxy.Start(w.dsn)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(proxy.Close)
			dsn = proxy.DSN()
			proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
				if len(b.SQL) == 0 || at.player.Load() == nil {
					return pgproxy.Pass
				}
				return pgproxy.Stepwise(at)
			})
		}
		at.pool = connect(t, dsn, func(c *pgx.Conn) { at.pid.Store(int32(c.PgConn().PID())) })
		at.ledger, at.queue = ledger.New(at.pool), pgqueue.New(at.pool, "")
		s.seats = append(s.seats, at)
	}
	return s
}

// waits tells which of these actors wait for a lock that another one has.
func (s *stage) waits(actors []int) (out []bool, err error) {
	if !slices.ContainsFunc(s.seats, func(at *seat) bool { return at.holds.Load() }) {
		return make([]bool, len(actors)), nil
	}
	ask, all := make([]int32, len(actors)), make([]int32, len(s.seats))
	for i, at := range s.seats {
		all[i] = at.pid.Load()
	}
	for i, a := range actors {
		ask[i] = all[a]
	}
	err = s.ctl.QueryRow(context.Background(), waitsSQL, ask, all).Scan(&out)
	for i, a := range actors {
		if p := s.seats[a].player.Load(); p != nil && p.impatient {
			out[i] = false // what it waits for ends by its own patience, and at once
		}
	}
	return out, err
}

const waitsSQL = `SELECT array_agg(pg_blocking_pids(a.pid) && $2::int[] ORDER BY a.n) FROM unnest($1::int[]) WITH ORDINALITY AS a(pid, n)`

// Before lets the actor wait for its turn, unless nobody can notice the statement.
func (at *seat) Before(b *pgproxy.Batch, i int) {
	p := at.player.Load()
	if p == nil {
		return
	}
	if i == len(b.SQL) { // the end of the batch, a commit where no transaction was begun
		if !at.inTx && at.wrote {
			at.wrote = false
			p.Park(schedule.Step{What: p.step("commit"), Kind: schedule.Commit})
			at.holds.Store(false)
		}
		return
	}
	switch name := b.Names[i]; name {
	case "begin":
		at.inTx, at.wrote = true, false
		return
	case "commit", "rollback":
		wrote := at.wrote
		at.inTx, at.wrote = false, false
		if wrote { // else it ends nothing that anybody could see or wait for
			p.Park(schedule.Step{What: p.step(name), Kind: schedule.Commit})
		}
		at.holds.Store(false)
		return
	}
	switch kind := kindOf(b.SQL[i]); kind {
	case unnoticed:
	case schedule.Write:
		at.wrote = true
		fallthrough
	default:
		name := nameOf(b.SQL[i])
		p.Park(schedule.Step{What: p.step(name), Kind: kind})
		if p.known == nil {
			p.begin()
		}
		at.holds.Store(at.holds.Load() || kind != schedule.Read)
	}
}

// step names a statement of the call that p makes.
func (p *player) step(statement string) string {
	if strings.HasPrefix(statement, p.label) {
		return statement
	}
	return p.label + ": " + statement
}

// After notes the answer.
func (at *seat) After(b *pgproxy.Batch, i int, answer string) {
	failed := strings.HasPrefix(answer, "ERROR")
	if failed {
		at.holds.Store(false)
	}
	p := at.player.Load()
	if p == nil || strings.HasPrefix(answer, "COMMIT") || i < len(b.SQL) && kindOf(b.SQL[i]) == unnoticed && !failed {
		return
	}
	if strings.HasPrefix(answer, "ERROR 40P01") {
		p.world.deadlocks.Add(1)
	}
	p.Answer("%s", answer)
}

// unnoticed is the kind of statements that touch nothing that an actor reads or waits for.
// They go with the next step, or with the one before.
const unnoticed schedule.Kind = 255

var (
	silent = regexp.MustCompile(`(?i)^(begin\b|set |select set_config|select nextval|select pg_notify|insert into (oncemore\.attempt|oncemore\.message|effect)\b)`)
	note   = regexp.MustCompile(`(?s)^\s*/\*.*?\*/\s*`)
	table  = regexp.MustCompile(`(?i)from (oncemore\.)?(claim|ledger)\b`)
)

func kindOf(sql string) schedule.Kind {
	sql = strings.TrimSpace(note.ReplaceAllString(sql, ""))
	switch {
	case silent.MatchString(sql):
		return unnoticed
	case pgproxy.Writes(sql) || strings.Contains(strings.ToUpper(sql), "FOR UPDATE"):
		return schedule.Write
	case strings.HasPrefix(strings.ToUpper(sql), "SELECT"):
		return schedule.Read
	}
	return schedule.Any
}

func nameOf(sql string) string {
	if name := pgproxy.Name(sql); name != "" {
		return name
	}
	if m := table.FindStringSubmatch(sql); m != nil && kindOf(sql) == schedule.Read {
		return "read " + m[2]
	}
	words := strings.Fields(sql)
	return strings.Join(words[:min(5, len(words))], " ")
}

// The statements of the code are what the scheduler takes them for.
func TestTheKindsOfStatements(t *testing.T) {
	for sql, want := range map[string]schedule.Kind{
		"BEGIN ISOLATION LEVEL READ COMMITTED":                                           unnoticed,
		"SELECT set_config('a', 'b', true)":                                              unnoticed,
		"/* fact: hold */ SELECT set_config('lock_timeout', $1, true)":                   unnoticed,
		"\n/* attempt: insert */\nINSERT INTO oncemore.attempt (a) VALUES (1)":           unnoticed,
		"\n/* message: send */\nINSERT INTO oncemore.message (a) VALUES (1)":             unnoticed,
		"INSERT INTO effect VALUES (1)":                                                  unnoticed,
		"\nSELECT entity FROM oncemore.ledger WHERE job_type = $1":                       schedule.Read,
		"SELECT c.entity FROM oncemore.claim c LEFT JOIN oncemore.worker w ON true":      schedule.Read,
		"SELECT 1 FROM oncemore.claim FOR UPDATE":                                        schedule.Write,
		"\n/* claim: insert */\nINSERT INTO oncemore.claim (fence) SELECT nextval('f')":  schedule.Write,
		"\n/* fact: complete */\nWITH w AS (SELECT 1), gone AS (DELETE FROM c) SELECT 1": schedule.Write,
		"UPDATE oncemore.claim SET first_claimed_at = NULL":                              schedule.Write,
		"LOCK TABLE x": schedule.Any,
	} {
		if got := kindOf(sql); got != want {
			t.Errorf("%q is %d, want %d", sql, got, want)
		}
	}
}

// stagesFor makes as many stages as there are to be orders at once.
func stagesFor(t testing.TB, w *world, fine bool, n int) (ss []*stage) {
	for range n {
		ss = append(ss, newStage(t, w, fine))
	}
	return ss
}

// on returns the stages, set for a scenario.
func on(ss []*stage, sc *scenario) (out []schedule.Stage) {
	for _, s := range ss {
		out = append(out, func() (*schedule.Scene, error) { return s.set(sc) })
	}
	return out
}

// set makes a scene: workers and entities of its own, and what was before.
func (s *stage) set(sc *scenario) (*schedule.Scene, error) {
	n := s.scene.Add(1)
	ta := &tale{stage: s, scenario: sc, kind: s.types[sc.effect], first: n * 8,
		claims: map[int64]int{}, fences: map[string]int64{}}
	for i := range max(1, sc.entities) {
		ta.entities = append(ta.entities, fmt.Sprintf("%08d/%d", n, i))
	}
	if len(s.workers) < maxActors {
		rows, err := s.ctl.Query(context.Background(), `
			INSERT INTO oncemore.worker (name, expires) SELECT 'w', clock_timestamp() + interval '1 day' FROM generate_series(1, 100 * $1) RETURNING id`, maxActors)
		if err != nil {
			return nil, err
		}
		if s.workers, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return nil, err
		}
	}
	ta.workers, s.workers = s.workers[:maxActors], s.workers[maxActors:]
	for i, at := range s.seats {
		p := &player{tale: ta, seat: at, worker: ta.workers[i], n: i}
		ta.players = append(ta.players, p)
		at.player.Store(nil)
		at.holds.Store(false)
	}
	programs, err := sc.set(ta)
	if err != nil {
		return nil, err
	}
	if ta.last, err = ta.look(); err != nil {
		return nil, err
	}
	scene := &schedule.Scene{Waits: s.waits, After: ta.after, Check: ta.check}
	for i, program := range programs {
		p := ta.players[i]
		scene.Actors = append(scene.Actors, func(a *schedule.Actor) error {
			p.Actor = a
			p.seat.player.Store(p)
			defer p.seat.player.Store(nil)
			return program(p)
		})
	}
	if len(programs) > maxActors || slices.Contains(ta.entities, "") {
		return nil, fmt.Errorf("a scene of %d actors", len(programs))
	}
	return scene, nil
}
