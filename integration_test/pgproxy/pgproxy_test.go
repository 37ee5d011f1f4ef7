package pgproxy_test

import (
	"context"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// A bench is a table of letters, reached directly and through a proxy.
type bench struct {
	*testing.T
	proxy  *pgproxy.Proxy
	direct *pgxpool.Pool
}

func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	dsn := pgtest.EmptyDSN(t)
	proxy, err := pgproxy.Start(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	direct, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(direct.Close)
	if _, err := direct.Exec(t.Context(), `CREATE TABLE letter (text text)`); err != nil {
		t.Fatal(err)
	}
	return &bench{t, proxy, direct}
}

func (b *bench) connect() *pgx.Conn {
	b.Helper()
	conn, err := pgx.Connect(b.Context(), b.proxy.DSN())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

const write = `/* letter: write */ INSERT INTO letter VALUES ($1)`

func (b *bench) letters() int {
	b.Helper()
	var n int
	if err := b.direct.QueryRow(b.Context(), `SELECT count(*) FROM letter`).Scan(&n); err != nil {
		b.Fatal(err)
	}
	return n
}

func (b *bench) want(what string, got, want any) {
	b.Helper()
	if got != want {
		b.Errorf("%s: %v, want %v", what, got, want)
	}
}

// strike lets the fault befall the first batch that writes a letter, and no other.
func (b *bench) strike(f pgproxy.Fault) {
	var once sync.Once
	b.proxy.Decide(func(batch *pgproxy.Batch) pgproxy.Fault {
		got := pgproxy.Pass
		if batch.Has("letter: write") {
			once.Do(func() { got = f })
		}
		return got
	})
}

func TestALostWriteDoesNotHappenAndAWriteReportedLostDoes(t *testing.T) {
	for _, test := range []struct {
		fault   pgproxy.Fault
		letters int
	}{{pgproxy.Lost, 0}, {pgproxy.ReportedLost, 1}} {
		t.Run(test.fault.String(), func(t *testing.T) {
			b := newBench(t)
			conn := b.connect()
			b.strike(test.fault)
			if _, err := conn.Exec(t.Context(), write, "a"); err == nil || !conn.IsClosed() {
				t.Errorf("error %v and closed %v, want an error on a closed connection", err, conn.IsClosed())
			}
			b.want("letters", b.letters(), test.letters)
			if _, err := b.connect().Exec(t.Context(), write, "b"); err != nil {
				t.Error(err)
			}
			b.want("letters after another try", b.letters(), test.letters+1)
		})
	}
}

func TestAProcessIsKilledBeforeOrAfterTheWrite(t *testing.T) {
	for name, letters := range map[string]int{"before": 0, "after": 1} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			conn := b.connect()
			cmd := exec.Command("sleep", "60")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			fault := pgproxy.KillBefore
			if name == "after" {
				fault = pgproxy.KillAfter
			}
			b.strike(fault(cmd.Process.Pid))
			if _, err := conn.Exec(t.Context(), write, "a"); err == nil {
				t.Error("the client was answered")
			}
			b.want("letters", b.letters(), letters)
			cmd.Wait()
			b.want("signal", cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(), syscall.SIGKILL)
		})
	}
}

func TestASlowWriteIsDoneLateAndASlowReplyIsHeardLate(t *testing.T) {
	const d = 3 * time.Second
	for _, test := range []struct {
		fault   pgproxy.Fault
		letters int // meanwhile
	}{{pgproxy.Slow(d), 0}, {pgproxy.SlowReply(d), 1}} {
		t.Run(test.fault.String(), func(t *testing.T) {
			b := newBench(t)
			conn := b.connect()
			b.strike(test.fault)
			done := make(chan error)
			start := time.Now()
			go func() { _, err := conn.Exec(t.Context(), write, "a"); done <- err }()
			time.Sleep(d / 2)
			b.want("letters meanwhile", b.letters(), test.letters)
			if err := <-done; err != nil || time.Since(start) < d {
				t.Errorf("answered after %v with error %v, want after %v", time.Since(start), err, d)
			}
			b.want("letters", b.letters(), 1)
		})
	}
}

func TestATornBatchIsRolledBack(t *testing.T) {
	b := newBench(t)
	conn := b.connect()
	b.strike(pgproxy.Torn(3))
	batch := &pgx.Batch{}
	batch.Queue(`BEGIN`)
	batch.Queue(write, "a")
	batch.Queue(write, "b")
	batch.Queue(`COMMIT`)
	if err := conn.SendBatch(t.Context(), batch).Close(); err == nil {
		t.Error("the client was answered")
	}
	// The server's session is over when it has rolled back.
	for end := time.Now().Add(10 * time.Second); ; {
		var sessions int
		if err := b.direct.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%letter: write%' AND datname = current_database() AND pid <> pg_backend_pid()`).Scan(&sessions); err != nil {
			t.Fatal(err)
		}
		if sessions == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the session did not end")
		}
	}
	b.want("letters", b.letters(), 0)
}

func TestABatchIsKnownByItsStatements(t *testing.T) {
	b := newBench(t)
	conn := b.connect()
	var seen []string
	var mu sync.Mutex
	b.proxy.Decide(func(batch *pgproxy.Batch) pgproxy.Fault {
		mu.Lock()
		defer mu.Unlock()
		if len(batch.SQL) > 0 {
			seen = append(seen, strings.Join(append(batch.Tx, batch.String()), " > ")+map[bool]string{true: " !"}[batch.Writes])
		}
		return pgproxy.Pass
	})
	for range 2 { // the second time the statements are prepared already
		batch := &pgx.Batch{}
		batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
		batch.Queue(`/* letter: read */ SELECT count(*) FROM letter`)
		batch.Queue(write, "a")
		batch.Queue(`COMMIT`)
		if err := conn.SendBatch(t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
	}
	tx, err := conn.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), write, "b")
	}
	if err == nil {
		err = tx.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `SELECT 1`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"letter: read, letter: write !", "letter: read, letter: write !", "begin", "letter: write !", "letter: write > commit !", "begin", "", "commit"}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != len(want) {
		t.Fatalf("seen %q, want %q", seen, want)
	}
	for i := range want {
		b.want("batch", seen[i], want[i])
	}
}

func TestWritesAreToldFromReads(t *testing.T) {
	for sql, want := range map[string]bool{
		`SELECT updated_at, deleted FROM a FOR UPDATE SKIP LOCKED`:             false,
		`SELECT set_config('jit', 'off', true)`:                                false,
		"WITH w AS (SELECT 1)\nUPDATE oncemore.claim c\nSET fence = 1":         true,
		`UPDATE oncemore.worker SET expires = now()`:                           true,
		`UPDATE ONLY a AS b SET c = 1`:                                         true,
		`WITH gone AS (DELETE FROM oncemore.claim WHERE true) SELECT 1`:        true,
		"INSERT INTO oncemore.run AS r (a) VALUES (1)":                         true,
		`SELECT nextval('oncemore.epoch')`:                                     true,
		`SELECT lock FROM oncemore.message ORDER BY id FOR UPDATE`:             false,
		`SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN inserts'`: false,
	} {
		if pgproxy.Writes(sql) != want {
			t.Errorf("Writes(%q) is %v", sql, !want)
		}
	}
	for sql, want := range map[string]string{
		"\n/* claim: take over */\nWITH w": "claim: take over", "begin isolation level read committed": "begin", "COMMIT": "commit",
		"SELECT 1 /* not this */": "", "ROLLBACK": "rollback", "beginning": "",
	} {
		if got := pgproxy.Name(sql); got != want {
			t.Errorf("Name(%q) is %q, want %q", sql, got, want)
		}
	}
}

func TestAPauseDelaysAndBreaksNothing(t *testing.T) {
	b := newBench(t)
	conn := b.connect()
	b.proxy.Pause()
	b.proxy.Pause() // once more is once
	done := make(chan error, 2)
	go func() { _, err := conn.Exec(t.Context(), write, "a"); done <- err }()
	go func() {
		late, err := pgx.Connect(t.Context(), b.proxy.DSN())
		if err == nil {
			_, err = late.Exec(t.Context(), write, "b")
			late.Close(context.Background())
		}
		done <- err
	}()
	time.Sleep(200 * time.Millisecond)
	b.want("letters meanwhile", b.letters(), 0)
	b.proxy.Resume()
	b.proxy.Resume()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	b.want("letters", b.letters(), 2)
}

func TestCutAllCutsEverybody(t *testing.T) {
	b := newBench(t)
	one, two := b.connect(), b.connect()
	b.want("connections cut", b.proxy.CutAll(), 2)
	for _, conn := range []*pgx.Conn{one, two} {
		if err := conn.Ping(t.Context()); err == nil {
			t.Error("a connection was left")
		}
	}
	if err := b.connect().Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// A canceled statement reaches the server through the proxy as well.
func TestACancellationArrives(t *testing.T) {
	b := newBench(t)
	conn := b.connect()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := conn.Exec(ctx, `SELECT pg_sleep(60)`); err == nil {
		t.Error("no error")
	}
	for end := time.Now().Add(10 * time.Second); ; {
		var running bool
		if err := b.direct.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND datname = current_database())`).Scan(&running); err != nil {
			t.Fatal(err)
		}
		if !running {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the statement goes on")
		}
	}
}

func TestARandomCutLosesOrDoesEachWriteWhole(t *testing.T) {
	b := newBench(t)
	b.proxy.Decide(pgproxy.Random(0.2, 7))
	pool, err := pgxpool.New(t.Context(), b.proxy.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	answered, failed := 0, 0
	for range 200 {
		batch := &pgx.Batch{}
		batch.Queue(`BEGIN`)
		batch.Queue(write, "a")
		batch.Queue(write, "b")
		batch.Queue(`COMMIT`)
		if err := pool.SendBatch(t.Context(), batch).Close(); err == nil {
			answered++
		} else {
			failed++
		}
	}
	n := b.letters()
	if n%2 != 0 || n < 2*answered || failed == 0 || n == 2*answered {
		t.Errorf("%d letters, %d batches answered, %d failed: want pairs, all that was answered, and some that were reported lost", n, answered, failed)
	}
}
