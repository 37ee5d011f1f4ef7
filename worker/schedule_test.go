package worker_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
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

// The same trouble again and again is told once.
func TestTheTroubleOfAScheduleIsToldOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := chimes(t)
	var log lockedBuffer
	putAt(t, pool, set, time.Now().Add(-time.Hour), hourly("bell"))
	mustExec(t, pool, `UPDATE oncemore.schedule SET spec = '* * 30 2 *'`)
	w := begin(t, pool, set, worker.Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	for range 3 {
		eventuallyRow(t, pool, "it was looked at", `SELECT error LIKE '%no such day%' AND next_at > clock_timestamp() FROM oncemore.schedule`)
		mustExec(t, pool, `UPDATE oncemore.schedule SET next_at = '-infinity'`)
	}
	eventuallyRow(t, pool, "it was looked at", `SELECT next_at > clock_timestamp() FROM oncemore.schedule`)
	mustStop(t, w)
	if n := strings.Count(log.String(), "schedule is disabled"); n != 1 || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("told %d times:\n%s", n, log.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}
func (l *lockedBuffer) String() string { l.mu.Lock(); defer l.mu.Unlock(); return l.b.String() }

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

// The nightly catch-up: what is missing by then is worked, by a run that names the tick.
func TestATickOpensARerunOfWhatIsSelected(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE shopping (what text); INSERT INTO shopping VALUES ('milk'), ('bread')`)
	ran := &tally{n: map[string]int{}}
	set, err := jobs.NewSet(jobs.Job[errand]{Effect: jobs.Repeatable, Source: jobs.SQL[errand](`SELECT what AS entity, what FROM shopping`),
		Do: func(_ context.Context, e errand) error {
			ran.mu.Lock()
			defer ran.mu.Unlock()
			ran.n[e.What]++
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	begin(t, pool, set, worker.Config{Schedules: []worker.Schedule{{Name: "catch up", Spec: "@every 1s", Rerun: &worker.Order{Type: "errand", Selection: plan.Selection{Prefix: ""}}}}})
	eventuallyRow(t, pool, "both are done", `SELECT count(*) = 2 FROM oncemore.ledger`)
	mustExec(t, pool, `INSERT INTO shopping VALUES ('tea')`)
	eventuallyRow(t, pool, "the third is done", `SELECT count(*) = 3 FROM oncemore.ledger`)
	if ran.sum() != 3 {
		t.Errorf("%v", ran.n)
	}
	if !ask(t, pool, `SELECT count(*) >= 2 FROM oncemore.run r JOIN oncemore.schedule_tick t ON t.run = r.id AND t.tick = r.tick AND t.schedule = r.schedule`) {
		t.Error("the runs do not name their ticks")
	}
}

// A fact is for ever, so a schedule on one entity would run once in its life. Each of its
// ticks asks anew; and a fan-out plans anew, while what it named and is done stays done.
func TestEachTickDoesItsWorkAgainAndAFanOutOnlyWhatIsNew(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, `CREATE TABLE shopping (what text); INSERT INTO shopping VALUES ('milk'), ('bread')`)
	ran := &tally{n: map[string]int{}}
	count1 := func(what string) { ran.mu.Lock(); defer ran.mu.Unlock(); ran.n[what]++ }
	set, err := jobs.NewSet(
		jobs.Job[chime]{Effect: jobs.Once, Do: func(_ context.Context, c chime) error { count1(c.Clock); return nil }},
		jobs.Job[errand]{Effect: jobs.Repeatable, Do: func(_ context.Context, e errand) error { count1(e.What); return nil }},
		jobs.Job[round]{FanOut: func(round) jobs.Source { return jobs.SQL[errand](`SELECT what AS entity, what FROM shopping`) }},
	)
	if err != nil {
		t.Fatal(err)
	}
	begin(t, pool, set, worker.Config{Schedules: []worker.Schedule{
		{Name: "cleanup", Spec: "@every 1s", Args: chime{Clock: "cleanup"}},
		{Name: "shopping", Spec: "@every 1s", Args: round{"all"}},
	}})
	eventuallyRow(t, pool, "two rounds have ended", `SELECT count(*) >= 2 AND bool_or(complete) FROM oncemore.run WHERE ended_at IS NOT NULL`)
	mustExec(t, pool, `INSERT INTO shopping VALUES ('tea')`)
	eventuallyRow(t, pool, "the third is done, and the cleanup thrice", `SELECT (SELECT count(*) FROM oncemore.ledger WHERE entity IN ('milk', 'bread', 'tea')) = 3
AND (SELECT count(*) FROM oncemore.ledger_history WHERE entity = 'cleanup ') >= 2`)
	mustExec(t, pool, `UPDATE oncemore.schedule SET paused = 'enough'`)
	eventuallyRow(t, pool, "all has ended", quiet)
	if ran.of("milk") != 1 || ran.of("bread") != 1 || ran.of("tea") != 1 {
		t.Errorf("the rounds did what was done: %v", ran.n)
	}
	started := count(t, pool, `SELECT count(*) FROM oncemore.schedule_tick WHERE schedule = 'cleanup' AND outcome = 'started'`)
	if int64(ran.of("cleanup")) != started {
		t.Errorf("%d ticks were started, and the cleanup ran %d times", started, ran.of("cleanup"))
	}
}

// A deploy changes a spec; the next one changes nothing; one takes the schedule out.
func TestWhatTheCodeDeclaresIsWhatTicks(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := chimes(t)
	deploy := func(ss ...worker.Schedule) {
		t.Helper()
		var now time.Time
		if err := pool.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now); err != nil {
			t.Fatal(err)
		}
		w := begin(t, pool, set, worker.Config{Schedules: ss})
		eventuallyRow(t, pool, "it is declared and ticked", `SELECT bool_and(next_at > '-infinity' AND (declared_at > $1 OR $2)) AND count(*) > 0 FROM oncemore.schedule`, now, len(ss) == 0)
		mustStop(t, w)
	}
	cursor := func() (at time.Time) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT cursor FROM oncemore.schedule WHERE name = 'bell'`).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	deploy(hourly("bell"))
	if age := time.Since(cursor()); age > time.Minute {
		t.Errorf("a new schedule counts from %s ago", age)
	}
	past := time.Now().Add(-30 * time.Minute).Truncate(time.Second)
	mustExec(t, pool, `UPDATE oncemore.schedule SET cursor = $1, paused = 'by hand'`, past)
	deploy(hourly("bell"))
	if !cursor().Equal(past) || !ask(t, pool, `SELECT paused IS NOT NULL FROM oncemore.schedule`) {
		t.Error("a deploy that changes nothing changed something")
	}
	changed := hourly("bell")
	changed.Spec = "5 * * * *"
	deploy(changed)
	if age := time.Since(cursor()); age > time.Minute {
		t.Errorf("a new spec counts from %s ago", age)
	}
	// Nobody declares it any more.
	mustExec(t, pool, `UPDATE oncemore.schedule SET paused = NULL`)
	mustExec(t, pool, `UPDATE oncemore.schedule SET declared_at = clock_timestamp() - interval '16 minutes', cursor = clock_timestamp() - interval '3 hours', next_at = '-infinity'`)
	deploy()
	if n := count(t, pool, `SELECT count(*) FROM oncemore.schedule_tick`); n != 0 {
		t.Errorf("an orphan ticked %d times", n)
	}
	// It is put back, and is caught up.
	deploy(changed)
	eventuallyRow(t, pool, "it ticks", `SELECT count(*) > 0 FROM oncemore.schedule_tick WHERE outcome = 'started'`)
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
	if outcomes != "missed 996, queued 3, started 1" {
		t.Error(outcomes)
	}
	if !ask(t, c.pool, `SELECT detail LIKE '%so were all before it, since 2025-06-01T12:00:00Z' FROM oncemore.schedule_tick ORDER BY tick LIMIT 1`) {
		t.Error("it is not said that there were more")
	}
}

func TestMistakesInSchedulesAreSaidWhenTheWorkerIsMade(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := chimes(t)
	bell := func(change func(*worker.Schedule)) worker.Schedule {
		s := hourly("bell")
		change(&s)
		return s
	}
	for _, test := range []struct {
		schedule worker.Schedule
		says     string
	}{
		{bell(func(s *worker.Schedule) { s.Name = "" }), "empty name of a schedule"},
		{bell(func(s *worker.Schedule) { s.Spec = "@sometimes" }), "@hourly"},
		{bell(func(s *worker.Schedule) { s.Zone = "Local" }), "each machine"},
		{bell(func(s *worker.Schedule) { s.Args = nil }), "one of Args and Rerun"},
		{bell(func(s *worker.Schedule) { s.Rerun = &worker.Order{Type: "chime"} }), "one of Args and Rerun"},
		{bell(func(s *worker.Schedule) { s.Args = errand{"milk"} }), `no job "errand" is registered`},
		{bell(func(s *worker.Schedule) { s.Args, s.Rerun = nil, &worker.Order{Type: "errand"} }), `no job "errand" is registered`},
		{bell(func(s *worker.Schedule) { s.Args, s.Rerun = nil, &worker.Order{Type: "chime", Rate: -1} }), "must not be negative"},
		{bell(func(s *worker.Schedule) { s.CatchUp = "some" }), "none, latest or all"},
		{bell(func(s *worker.Schedule) { s.Overlap = "maybe" }), "skip or queue"},
		{bell(func(s *worker.Schedule) { s.CatchUp, s.Overlap = worker.CatchUpAll, worker.OverlapSkip }), "must be queue"},
		{bell(func(s *worker.Schedule) { s.CatchUpMost = 1001 }), "1 to 1000"},
		{bell(func(s *worker.Schedule) { s.Jitter = -1 }), "must not be negative"},
	} {
		_, err := worker.New(t.Context(), pool, set, worker.Config{Schedules: []worker.Schedule{test.schedule}})
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%+v: %v, want it to say %q", test.schedule, err, test.says)
		}
	}
	_, err := worker.New(t.Context(), pool, set, worker.Config{Schedules: []worker.Schedule{hourly("bell"), hourly("bell")}})
	if err == nil || !strings.Contains(err.Error(), "declared twice") {
		t.Error(err)
	}
	if n := count(t, pool, `SELECT count(*) FROM oncemore.schedule`); n != 0 {
		t.Errorf("New has written %d schedules", n)
	}
}

// The loop has no more than the database's word that something is due, and goes on when
// that was away.
func TestSchedulesAreTickedAgainWhenTheDatabaseIsBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := chimes(t)
	mustExec(t, pool, `ALTER TABLE oncemore.schedule RENAME TO elsewhere`)
	var log lockedBuffer
	w := begin(t, pool, set, worker.Config{Log: slog.New(slog.NewTextHandler(&log, nil)), Schedules: []worker.Schedule{{Name: "bell", Spec: "@every 1s", Args: each("bell")}}})
	eventually(t, "it complains", func() bool { return strings.Contains(log.String(), "schedules not declared") })
	mustExec(t, pool, `ALTER TABLE oncemore.elsewhere RENAME TO schedule`)
	eventuallyRow(t, pool, "it ticks", `SELECT count(*) > 0 FROM oncemore.schedule_tick`)
	mustStop(t, w)
	if strings.Contains(log.String(), "level=ERROR") {
		t.Error(log.String())
	}
}
