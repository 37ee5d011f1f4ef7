package worker_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// chimeProcess is a worker that declares a schedule of one tick a second.
func chimeProcess(ctx context.Context, pool *pgxpool.Pool) error {
	set, err := jobs.NewSet(jobs.Job[chime]{DoTx: func(ctx context.Context, tx pgx.Tx, c chime) error {
		_, err := tx.Exec(ctx, `INSERT INTO outside (entity, worker) VALUES ($1, $2)`, c.At, strconv.Itoa(os.Getpid()))
		return err
	}})
	if err != nil {
		return err
	}
	w, err := worker.New(ctx, pool, set, worker.Config{Slots: 2, Name: strconv.Itoa(os.Getpid()), Lease: 3 * time.Second,
		Queues:    map[string]queue.Queue{"": pgqueue.New(pool, "").WithVisibility(2 * time.Second)},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Schedules: []worker.Schedule{{Name: "seconds", Spec: "@every 1s", Args: each("seconds"), CatchUp: worker.CatchUpAll}}})
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

// Sixteen processes know of the same schedule, and nobody has told them which of them is to
// see to it; now and then one is killed, and another begins.
func TestI7OneTickOneRunOfSixteenProcesses(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(seed(t), 16))
	pool := pgtest.Pool(t)
	mustExec(t, pool, outside)
	ticks, kills := int64(8), int64(2)
	if os.Getenv("ONCEMORE_FULL") != "" {
		ticks, kills = 60, 10
	}
	dsn := pool.Config().ConnString()
	processes := make([]*process, 16)
	for i := range processes {
		processes[i] = start(t, "Chime", dsn)
	}
	// All of them are there before it counts.
	await(t, func() bool { return count(t, pool, `SELECT count(*) FROM oncemore.worker WHERE dead_at IS NULL`) == 16 })
	decided := func() int64 {
		return count(t, pool, `SELECT count(*) FROM oncemore.schedule_tick WHERE schedule = 'seconds'`)
	}
	for begun, killed := decided(), int64(0); decided() < begun+ticks; {
		if at := begun + ticks*(killed+1)/(kills+1); decided() >= at && killed < kills {
			i := random.IntN(16)
			processes[i].kill()
			processes[i] = start(t, "Chime", dsn)
			killed++
		}
		time.Sleep(10 * time.Millisecond)
	}
	// No more of them; those that wait are left to be worked.
	mustExec(t, pool, `UPDATE oncemore.schedule SET cursor = clock_timestamp() + interval '1 day'`)
	eventuallyRow(t, pool, "all is started and done",
		`SELECT NOT EXISTS (SELECT FROM oncemore.schedule_tick WHERE outcome = 'queued') AND NOT EXISTS (SELECT FROM oncemore.message)`)

	var n, span, started, once, facts int64
	err := pool.QueryRow(t.Context(), `
SELECT count(*), extract(epoch FROM max(tick) - min(tick))::bigint + 1, count(*) FILTER (WHERE outcome = 'started'),
       count(*) FILTER (WHERE (SELECT count(*) FROM outside o WHERE o.entity = to_char(t.tick AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')) = 1),
       (SELECT count(*) FROM oncemore.ledger)
FROM oncemore.schedule_tick t`).Scan(&n, &span, &started, &once, &facts)
	if err != nil {
		t.Fatal(err)
	}
	effects := count(t, pool, `SELECT count(*) FROM outside`)
	if n < ticks || n != span || started != n || once != n || facts != n || effects != n {
		t.Errorf("in %d seconds %d ticks are recorded, %d started, %d of them done once; %d facts, %d effects", span, n, started, once, facts, effects)
	}
	t.Logf("%d ticks, worked by %d processes", n, count(t, pool, `SELECT count(DISTINCT worker) FROM outside`))
}
