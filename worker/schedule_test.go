package worker_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/plan"
)

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
