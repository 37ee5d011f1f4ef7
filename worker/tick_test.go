package worker_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A round fans out to errands.
type round struct {
	Name string `json:"name"`
}

func (round) JobType() string  { return "round" }
func (r round) Entity() string { return r.Name }

// A clockwork is a database whose time is what a test says.
type clockwork struct {
	*testing.T
	pool   *pgxpool.Pool
	set    *jobs.Set
	worker *worker.Worker
	now    time.Time
}

// noon is when clockworks begin.
var noon = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func newClockwork(t *testing.T, ss ...worker.Schedule) *clockwork {
	t.Parallel()
	pool := pgtest.Pool(t)
	set, err := jobs.NewSet(
		jobs.Job[chime]{Effect: jobs.Repeatable, Do: func(context.Context, chime) error { return nil }},
		jobs.Job[errand]{Effect: jobs.Once, Source: jobs.SQL[errand](`SELECT 'milk' AS entity, 'milk' AS what`), Do: func(context.Context, errand) error { return nil }},
		jobs.Job[round]{FanOut: func(round) jobs.Source { return jobs.SQL[errand](`SELECT 'milk' AS entity, 'milk' AS what`) }},
	)
	if err != nil {
		t.Fatal(err)
	}
	c := &clockwork{T: t, pool: pool, set: set, worker: newWorker(t, pool, set, worker.Config{}), now: noon}
	putAt(t, pool, set, noon, ss...)
	return c
}

// at ticks what is due at noon and so much later, and returns the outcomes since then:
// "12:00 started, 13:00 missed".
func (c *clockwork) at(d time.Duration) string {
	c.Helper()
	before := c.now
	c.now = noon.Add(d)
	for {
		var ticked *worker.Ticked
		err := pgx.BeginFunc(c.Context(), c.pool, func(tx pgx.Tx) (err error) {
			ticked, err = c.worker.Tick(c.Context(), tx, c.now)
			return err
		})
		if err != nil {
			c.Fatal(err)
		}
		if ticked.Schedule == "" {
			break
		}
	}
	var told string
	if err := c.pool.QueryRow(c.Context(), `SELECT coalesce(string_agg(to_char(tick AT TIME ZONE 'UTC', 'HH24:MI') || ' ' || outcome, ', ' ORDER BY tick, schedule), '')
FROM oncemore.schedule_tick WHERE at > $1`, before).Scan(&told); err != nil {
		c.Fatal(err)
	}
	return told
}

func (c *clockwork) say(d time.Duration, want string) {
	c.Helper()
	if got := c.at(d); got != want {
		c.Errorf("%s after noon: %q, want %q", d, got, want)
	}
}

// works off what is in the queue, without a trace.
func (c *clockwork) works() { c.Helper(); mustExec(c, c.pool, `DELETE FROM oncemore.message`) }

func hourly(name string) worker.Schedule {
	return worker.Schedule{Name: name, Spec: "@hourly", Args: each(name)}
}

func TestWhatBecomesOfTicksThatWereMissedIsDeclared(t *testing.T) {
	for name, test := range map[string]struct {
		schedule worker.Schedule
		want     []string // at 12:30 to 17:30, working things off between
	}{
		"latest by default": {worker.Schedule{}, []string{"13:00 missed, 14:00 missed, 15:00 missed, 16:00 started", "", "17:00 started"}},
		"none":              {worker.Schedule{CatchUp: worker.CatchUpNone}, []string{"13:00 missed, 14:00 missed, 15:00 missed, 16:00 missed", "", "17:00 started"}},
		"all, one by one":   {worker.Schedule{CatchUp: worker.CatchUpAll}, []string{"13:00 started, 14:00 queued, 15:00 queued, 16:00 queued", "14:00 started", "15:00 started, 17:00 queued"}},
		"all, the newest":   {worker.Schedule{CatchUp: worker.CatchUpAll, CatchUpMost: 2}, []string{"13:00 missed, 14:00 missed, 15:00 started, 16:00 queued", "16:00 started", "17:00 started"}},
		"all, but not old":  {worker.Schedule{CatchUp: worker.CatchUpAll, MaxAge: 2 * time.Hour}, []string{"13:00 missed, 14:00 missed, 15:00 started, 16:00 queued", "16:00 started", "17:00 started"}},
		"latest, too old":   {worker.Schedule{MaxAge: 20 * time.Minute}, []string{"13:00 missed, 14:00 missed, 15:00 missed, 16:00 missed", "", "17:00 started"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := test.schedule
			s.Name, s.Spec, s.Args = "bell", "@hourly", each("bell")
			c := newClockwork(t, s)
			for i, d := range []time.Duration{4*time.Hour + 30*time.Minute, 4*time.Hour + 31*time.Minute, 5*time.Hour + 10*time.Second} {
				c.say(d, test.want[i])
				c.works()
			}
		})
	}
}

func TestATickThatIsAMinuteLateIsOnTime(t *testing.T) {
	s := hourly("bell")
	s.CatchUp = worker.CatchUpNone
	c := newClockwork(t, s)
	c.say(time.Hour+59*time.Second, "13:00 started")
	c.works()
	c.say(2*time.Hour+61*time.Second, "14:00 missed")
}

func TestWhatTheLastTickStartedIsNotOvertaken(t *testing.T) {
	skip, queue := hourly("skip"), hourly("queue")
	queue.Overlap = worker.OverlapQueue
	c := newClockwork(t, skip, queue)
	c.say(time.Hour, "13:00 started, 13:00 started")
	c.say(2*time.Hour, "14:00 queued, 14:00 skipped")
	c.say(3*time.Hour, "15:00 queued, 15:00 skipped")
	c.works()
	c.say(3*time.Hour+time.Second, "14:00 started")
	c.works()
	c.say(3*time.Hour+2*time.Second, "15:00 started")
	c.works()
	c.say(4*time.Hour, "16:00 started, 16:00 started")
	if !ask(t, c.pool, `SELECT count(*) = 2 FROM oncemore.schedule_tick WHERE outcome = 'skipped' AND detail LIKE 'the tick of 2026-06-01T13:00:00Z waits in the queue%'`) {
		t.Error("it is not said why ticks were skipped")
	}
}

// What stands in the way of the next tick is what may still happen by itself.
func TestWhatHasFailedHasEndedAndADoubtIsInTheWayOfItsOwnEntity(t *testing.T) {
	for _, test := range []struct {
		what, trouble string
		args          jobs.Args
		claimed       string
		want          string
	}{
		{"it failed", "failed", errand{"milk"}, "milk", "14:00 started"},
		{"it waits for its next attempt", "retrying", errand{"milk"}, "milk", "14:00 skipped"},
		{"it is in doubt", "in_doubt", errand{"milk"}, "milk", "14:00 skipped"},
		{"another entity is in doubt", "in_doubt", errand{"milk of {tick}"}, "milk of 2026-06-01T13:00:00Z", "14:00 started"},
		{"another entity waits for its next attempt", "retrying", errand{"milk of {tick}"}, "milk of 2026-06-01T13:00:00Z", "14:00 skipped"},
	} {
		t.Run(test.what, func(t *testing.T) {
			c := newClockwork(t, worker.Schedule{Name: "milk", Spec: "@hourly", Args: test.args})
			c.say(time.Hour, "13:00 started")
			mustExec(t, c.pool, `INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, trouble, entity, args)
SELECT 1, 0, (m.epoch), 0, 0, (SELECT id FROM oncemore.job_type WHERE name = 'errand'), 1, $1, $2, '{}' FROM oncemore.message m`, test.trouble, test.claimed)
			c.works()
			c.say(2*time.Hour, test.want)
		})
	}
}

func TestARunGoesOnUntilItHasEndedOrItsVisitsFailForGood(t *testing.T) {
	c := newClockwork(t, worker.Schedule{Name: "again", Spec: "@hourly", Rerun: &worker.Order{Type: "errand"}})
	c.say(time.Hour, "13:00 started")
	c.works()
	c.say(2*time.Hour, "14:00 skipped")
	mustExec(t, c.pool, `UPDATE oncemore.run SET ended_at = clock_timestamp()`)
	c.say(3*time.Hour, "15:00 started")
	c.works()
	mustExec(t, c.pool, `INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, trouble, entity, args)
SELECT 1, 1, 0, 0, 0, r.parent_type, 10, 'failed', r.parent_entity, '{}' FROM oncemore.run r WHERE r.ended_at IS NULL`)
	c.say(4*time.Hour, "16:00 started")
}

// A message whose work is not ready is sent on for later, as another message. It is the same
// tick's work all the same.
func TestWorkThatWasSentOnForLaterHasNotEnded(t *testing.T) {
	c := newClockwork(t, hourly("bell"))
	c.say(time.Hour, "13:00 started")
	mustExec(t, c.pool, `INSERT INTO oncemore.message (queue, type, entities, args, epoch, lock, visible_at) SELECT queue, type, entities, args, epoch, 0, clock_timestamp() + interval '1 hour' FROM oncemore.message`)
	mustExec(t, c.pool, `DELETE FROM oncemore.message WHERE lock IS NULL`)
	c.say(2*time.Hour, "14:00 skipped")
}

// Jitter is for the load, and nothing else: the tick is that of the spec, and the delay is
// the same whoever ticks it.
func TestJitterDelaysTheStartAndNeverTheTick(t *testing.T) {
	s := worker.Schedule{Name: "bell", Spec: "@every 10m", Args: each("bell"), Jitter: 8 * time.Minute, CatchUp: worker.CatchUpAll}
	c := newClockwork(t, s)
	delays := map[time.Duration]bool{}
	for n := 1; n <= 12; n++ {
		tick := time.Duration(n) * 10 * time.Minute
		c.say(tick, noon.Add(tick).Format("15:04")+" started")
		var delay time.Duration
		if err := c.pool.QueryRow(t.Context(), `SELECT visible_at - clock_timestamp() FROM oncemore.message`).Scan(&delay); err != nil {
			t.Fatal(err)
		}
		if delay < -time.Minute || delay > s.Jitter {
			t.Errorf("the message of the tick after %s comes in %s", tick, delay)
		}
		delays[delay.Round(time.Minute)] = true
		c.works()
	}
	if len(delays) < 4 {
		t.Errorf("the delays are too much alike: %v", delays)
	}
}

// One bad row must not stop the others, nor be bad in silence; and a mended one goes on by
// itself, also when it was mended by hand.
func TestABadScheduleDisablesItselfLoudly(t *testing.T) {
	good := hourly("good")
	c := newClockwork(t, good, hourly("spec"), hourly("zone"), hourly("args"), hourly("policy"))
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET spec = CASE name WHEN 'spec' THEN 'TZ=0' ELSE spec END, zone = CASE name WHEN 'zone' THEN 'Moon/Base' ELSE zone END,
args = CASE name WHEN 'args' THEN '{"clock":5}' ELSE args END, overlap = CASE name WHEN 'policy' THEN 'maybe' ELSE overlap END`)
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET cursor = $1`, noon)
	var log bytes.Buffer
	c.worker = newWorker(t, c.pool, c.set, worker.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	c.say(time.Hour, "13:00 started")
	c.works()
	for _, name := range []string{"spec", "zone", "args", "policy"} {
		if !ask(t, c.pool, `SELECT error IS NOT NULL AND cursor = $2 FROM oncemore.schedule WHERE name = $1`, name, noon) {
			t.Errorf("%s does not say what is wrong, or its cursor moved", name)
		}
	}
	c.say(2*time.Hour, "14:00 started")
	c.works()
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET args = $1 WHERE name = 'args'`, `{"clock":"args","at":"{tick}"}`)
	c.say(2*time.Hour+2*time.Minute, "13:00 missed, 14:00 started")
	if !ask(t, c.pool, `SELECT error IS NULL FROM oncemore.schedule WHERE name = 'args'`) {
		t.Error("it is mended and complains")
	}
}

// What the selection of a re-run costs, or that its table is not there any more, is the
// schedule's own trouble too: nothing of its tick is left.
func TestATickThatCannotStartLeavesNothingAndIsTriedAgain(t *testing.T) {
	c := newClockwork(t, worker.Schedule{Name: "again", Spec: "@hourly", Rerun: &worker.Order{Type: "errand"}}, hourly("good"))
	c.worker.SetOpenRerun(func(ctx context.Context, tx pgx.Tx, o worker.Order) (worker.Opened, error) {
		_, err := tx.Exec(ctx, `SELECT 1 FROM not_there`)
		return worker.Opened{}, err
	})
	c.say(time.Hour, "13:00 started")
	if !ask(t, c.pool, `SELECT error LIKE '%not_there%' FROM oncemore.schedule WHERE name = 'again'`) {
		t.Error("it does not say why")
	}
	var orders []worker.Order
	c.worker.SetOpenRerun(func(_ context.Context, _ pgx.Tx, o worker.Order) (worker.Opened, error) {
		orders = append(orders, o)
		return worker.Opened{Run: 77}, nil
	})
	c.say(time.Hour+2*time.Minute, "13:00 started")
	if len(orders) != 1 || orders[0].Type != "errand" || orders[0].Schedule != "again" || !orders[0].Tick.Equal(noon.Add(time.Hour)) || orders[0].By == "" {
		t.Errorf("%+v", orders)
	}
	if !ask(t, c.pool, `SELECT run = 77 AND entity IS NULL AND epoch IS NULL FROM oncemore.schedule_tick WHERE schedule = 'again'`) {
		t.Error("the tick does not name its run")
	}
}

func TestASchedulePausedMissesNothingAndARunByHandIsItsOwnTick(t *testing.T) {
	c := newClockwork(t, hourly("bell"))
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET paused = 'the bell is cracked'`)
	c.say(3*time.Hour, "")
	mustExec(t, c.pool, `INSERT INTO oncemore.schedule_tick (schedule, tick, at, outcome, by_hand) VALUES ('bell', $1, $1, 'queued', true)`, noon.Add(3*time.Hour+time.Minute))
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET next_at = '-infinity'`)
	c.say(3*time.Hour+2*time.Minute, "15:01 started")
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET paused = NULL`)
	if !ask(t, c.pool, `SELECT cursor > clock_timestamp() - interval '1 minute' FROM oncemore.schedule`) {
		t.Error("what passed in the pause would be caught up")
	}
}

// A schedule of seconds, and a year without a worker: nobody shall walk over thirty million
// ticks, or write them down.
func TestAYearOfMissedSecondsIsNotWalkedOver(t *testing.T) {
	s := worker.Schedule{Name: "bell", Spec: "@every 1s", Args: each("bell"), CatchUp: worker.CatchUpAll, CatchUpMost: 3}
	c := newClockwork(t, s)
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET cursor = $1`, noon.AddDate(-1, 0, 0))
	began := time.Now()
	c.at(2 * time.Second)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	var outcomes string
	if err := c.pool.QueryRow(t.Context(), `SELECT string_agg(outcome || ' ' || n, ', ' ORDER BY outcome) FROM (SELECT outcome, count(*) AS n FROM oncemore.schedule_tick GROUP BY 1) x`).Scan(&outcomes); err != nil {
		t.Fatal(err)
	}
	if outcomes != "missed 997, queued 3, started 1" {
		t.Error(outcomes)
	}
	if !ask(t, c.pool, `SELECT detail LIKE '%so were all before it, since 2025-06-01T12:00:00Z' FROM oncemore.schedule_tick ORDER BY tick LIMIT 1`) {
		t.Error("it is not said that there were more")
	}
}

// The record is swept at times. The row of the tick whose work goes on is left: without it
// nobody could tell that it does.
func TestATickThatRunsIsNotForgottenHoweverManyAreSkipped(t *testing.T) {
	c := newClockwork(t, hourly("bell"))
	c.say(time.Hour, "13:00 started")
	mustExec(t, c.pool, `INSERT INTO oncemore.schedule_tick (schedule, tick, outcome, at) SELECT 'bell', $1::timestamptz + n * interval '1 millisecond', 'skipped', $1 FROM generate_series(1, 10001) n`, noon.Add(time.Hour))
	c.say(2*time.Hour, "14:00 skipped")
	c.say(3*time.Hour, "15:00 skipped")
	if n := count(t, c.pool, `SELECT count(*) FROM oncemore.schedule_tick`); n > 10_002 {
		t.Errorf("%d ticks are recorded, want the newest 10,000 or so and the one that runs", n)
	}
	c.works()
	c.say(4*time.Hour, "16:00 started")
	c.say(5*time.Hour, "17:00 skipped")
	if ask(t, c.pool, `SELECT EXISTS (SELECT FROM oncemore.schedule_tick WHERE tick = $1)`, noon.Add(time.Hour)) {
		t.Error("the tick that has ended is still recorded, behind 10,000 others")
	}
}

// It is asked once a tick, while the queue may be long.
func TestWhetherATickHasEndedIsAskedOfIndexes(t *testing.T) {
	c := newClockwork(t, hourly("bell"))
	c.say(time.Hour, "13:00 started")
	mustExec(t, c.pool, `INSERT INTO oncemore.message (queue, type, entities, args, epoch) SELECT '', 'chime', ARRAY[n::text], ARRAY['{}'], CASE WHEN n % 10 = 0 THEN n END FROM generate_series(1, 20000) n`)
	mustExec(t, c.pool, `ANALYZE oncemore.message`)
	rows, err := c.pool.Query(t.Context(), `EXPLAIN `+worker.BusySQL, "bell", noon.Add(time.Hour), "")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	plan := strings.Join(lines, "\n")
	if err != nil || strings.Contains(plan, "Seq Scan on message") || !strings.Contains(plan, "message_forced") {
		t.Errorf("%v\n%s", err, plan)
	}
}

// The database's clock was ten hours ahead for a moment. What was given up then, for later ticks that
// made up for it, is due when its time comes; what started then has started.
func TestWhatWasGivenUpByAClockThatWasAheadStartsWhenItIsDue(t *testing.T) {
	c := newClockwork(t, hourly("bell"))
	c.at(10*time.Hour + time.Minute)
	if !ask(t, c.pool, `SELECT count(*) FILTER (WHERE outcome = 'missed') = 9 AND count(*) FILTER (WHERE outcome = 'started') = 1 FROM oncemore.schedule_tick`) {
		t.Error("the clock that was ahead did not decide")
	}
	c.works()
	c.now = noon
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET cursor = $1, next_at = $2`, noon.Add(time.Minute), noon.Add(time.Hour)) // as pausing and resuming does
	for h := 1; h <= 10; h++ {
		c.at(time.Duration(h) * time.Hour)
		c.works()
	}
	var told string
	if err := c.pool.QueryRow(t.Context(), `SELECT string_agg(outcome || ' ' || n, ', ' ORDER BY outcome) FROM (SELECT outcome, count(*) AS n FROM oncemore.schedule_tick GROUP BY 1) x`).Scan(&told); err != nil {
		t.Fatal(err)
	}
	if told != "started 10" {
		t.Error(told)
	}
}

// The same of one that must wait: it is queued when it is due, though it was given up before.
func TestWhatWasGivenUpByAClockThatWasAheadIsQueuedWhenItIsDue(t *testing.T) {
	s := hourly("bell")
	s.Overlap = worker.OverlapQueue
	c := newClockwork(t, s)
	c.at(10*time.Hour + time.Minute)
	c.works()
	c.now = noon
	mustExec(t, c.pool, `UPDATE oncemore.schedule SET cursor = $1, next_at = $2`, noon.Add(time.Minute), noon.Add(time.Hour))
	c.at(time.Hour)
	c.at(2 * time.Hour)
	told := func() string {
		return text(t, c.pool, `SELECT string_agg(outcome, ' ' ORDER BY tick) FROM (SELECT outcome, tick FROM oncemore.schedule_tick ORDER BY tick LIMIT 2) x`)
	}
	if got := told(); got != "started queued" {
		t.Error(got)
	}
	c.works()
	c.at(2*time.Hour + time.Minute)
	if got := told(); got != "started started" {
		t.Error(got)
	}
}
