package worker_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A chime is what the schedules of these tests start: an entity for each tick.
type chime struct {
	Clock string `json:"clock"`
	At    string `json:"at"`
}

func (chime) JobType() string  { return "chime" }
func (c chime) Entity() string { return c.Clock + " " + c.At }

// each is the chime of every tick of a schedule.
func each(name string) chime { return chime{name, "{tick}"} }

func chimes(t testing.TB) *jobs.Set {
	t.Helper()
	set, err := jobs.NewSet(jobs.Job[chime]{Effect: jobs.Repeatable, Do: func(context.Context, chime) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// putAt writes a schedule whose ticks count from a time on.
func putAt(t testing.TB, pool *pgxpool.Pool, set *jobs.Set, from time.Time, ss ...worker.Schedule) {
	t.Helper()
	for _, s := range ss {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if put, err := worker.PutSchedule(t.Context(), tx, set, s); err != nil || !put {
				return fmt.Errorf("%v, %w", put, err)
			}
			_, err := tx.Exec(t.Context(), `UPDATE oncemore.schedule SET cursor = $2 WHERE name = $1`, s.Name, from)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func seed(t testing.TB) uint64 {
	t.Helper()
	s := rand.Uint64() >> 1
	if env := os.Getenv("ONCEMORE_SEED"); env != "" {
		var err error
		if s, err = strconv.ParseUint(env, 10, 64); err != nil {
			t.Fatalf("ONCEMORE_SEED: %v", err)
		}
	}
	t.Logf("ONCEMORE_SEED=%d", s)
	return s
}

// A wallClock says of a zone's clock which of a list of times it has come to, as somebody
// does who looks at it once a minute and has never heard of UTC.
type wallClock struct {
	loc     *time.Location
	minutes []int                // of the hour
	hours   []int                // of the day; nil: any
	day     func(time.Time) bool // nil: any
	repeats bool                 // within the day: then the times follow the clock however it is set
	high    time.Time
}

func (c *wallClock) reading(t time.Time) time.Time {
	l := t.In(c.loc)
	return time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), 0, 0, time.UTC)
}

func (c *wallClock) names(r time.Time) bool {
	return slices.Contains(c.minutes, r.Minute()) && (c.hours == nil || slices.Contains(c.hours, r.Hour())) && (c.day == nil || c.day(r))
}

// due are the minutes, the last of them to, at which a time has come.
func (c *wallClock) due(from, to time.Time) (ticks []time.Time) {
	c.high = c.reading(from)
	for t := from.Add(time.Minute); !t.After(to); t = t.Add(time.Minute) {
		now := c.reading(t)
		come := c.repeats && c.names(now)
		for ; !c.repeats && c.high.Before(now); c.high = c.high.Add(time.Minute) {
			come = come || c.names(c.high.Add(time.Minute))
		}
		if come {
			ticks = append(ticks, t)
		}
	}
	return ticks
}

// A declaredClock is a schedule, and what is to come of it.
type declaredClock struct {
	worker.Schedule
	wallClock
	all     []time.Time // that are due in these months
	seen    int         // of them: decided
	waiting []time.Time
	busy    bool                 // what was started last goes on
	outcome map[time.Time]string // of each tick
	overlap int                  // times that a tick found something started going on
}

// decide is what the schedule declares, played with what the clock on the wall says: at
// now somebody looks, who has not looked since the tick before seen.
func (c *declaredClock) decide(now time.Time) {
	var ticks, starts []time.Time
	for c.seen < len(c.all) && !c.all[c.seen].After(now) {
		ticks = append(ticks, c.all[c.seen])
		c.seen++
	}
	old := func(tick time.Time) bool { return c.MaxAge > 0 && now.Sub(tick) > c.MaxAge }
	for i, tick := range ticks {
		newest := i == len(ticks)-1
		switch late := now.Sub(tick) > time.Minute; {
		case old(tick),
			late && c.CatchUp == worker.CatchUpNone,
			late && c.CatchUp == worker.CatchUpLatest && !newest,
			late && c.CatchUp == worker.CatchUpAll && len(ticks)-i > c.CatchUpMost:
			c.outcome[tick] = "missed"
		default:
			starts = append(starts, tick)
		}
	}
	begin := func(tick time.Time) { c.outcome[tick], c.busy = "started", true }
	if c.Overlap == worker.OverlapQueue {
		var line []time.Time
		for _, tick := range append(c.waiting, starts...) {
			if old(tick) {
				c.outcome[tick] = "missed"
			} else {
				line = append(line, tick)
			}
		}
		if len(line) > 0 && !c.busy {
			begin(line[0])
			line = line[1:]
		}
		for i, tick := range line {
			c.overlap++
			c.outcome[tick] = "queued"
			if i >= c.CatchUpMost {
				c.outcome[tick] = "missed"
			}
		}
		c.waiting = line[:min(len(line), c.CatchUpMost)]
		return
	}
	for _, tick := range starts {
		if c.busy {
			c.overlap++
			c.outcome[tick] = "skipped"
		} else {
			begin(tick)
		}
	}
}

// Three months of four zones in which clocks are set both ways, once at midnight, are
// ticked by sixteen schedulers that meet in random order, stop in the middle, and are all
// away for days at times. What was started is what somebody would have started who had
// looked at the clocks on the wall, and at what was declared.
func TestI7OneTickOneRunOverThreeMonthsOfSixteenSchedulers(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(seed(t), 7))
	pool := pgtest.Pool(t)
	set := chimes(t)
	start, end := time.Date(2018, 9, 20, 0, 0, 0, 0, time.UTC), time.Date(2018, 12, 20, 0, 0, 0, 0, time.UTC)
	clocks := map[string]*declaredClock{}
	full := os.Getenv("ONCEMORE_FULL") != ""
	for i, zone := range []string{"America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo"} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		kinds := []struct {
			name, spec string
			wallClock
			worker.Schedule
		}{
			{"midnight", "0 0 * * *", wallClock{minutes: []int{0}, hours: []int{0}},
				worker.Schedule{CatchUp: worker.CatchUpLatest, Overlap: worker.OverlapSkip}},
			{"night", "30 2 * * *", wallClock{minutes: []int{30}, hours: []int{2}},
				worker.Schedule{CatchUp: worker.CatchUpAll, CatchUpMost: 2, Overlap: worker.OverlapQueue}},
			{"half days", "10 */12 * * *", wallClock{minutes: []int{10}, hours: []int{0, 12}, repeats: true},
				worker.Schedule{CatchUp: worker.CatchUpNone, Overlap: worker.OverlapSkip}},
			{"weekend", "15,45 1,2,3 * * 0", wallClock{minutes: []int{15, 45}, hours: []int{1, 2, 3}, day: func(r time.Time) bool { return r.Weekday() == time.Sunday }},
				worker.Schedule{CatchUp: worker.CatchUpAll, CatchUpMost: 100, Overlap: worker.OverlapQueue, MaxAge: 36 * time.Hour}},
			{"hour", "20 * * * *", wallClock{minutes: []int{20}, repeats: true},
				worker.Schedule{CatchUp: worker.CatchUpLatest, Overlap: worker.OverlapSkip}},
			{"often", "*/15 * * * *", wallClock{minutes: []int{0, 15, 30, 45}, repeats: true},
				worker.Schedule{CatchUp: worker.CatchUpAll, CatchUpMost: 50, Overlap: worker.OverlapQueue}},
		}
		for n, k := range kinds {
			if !full && (n > 3 || n%2 == i%2) {
				continue // each zone has two of them
			}
			if k.name == "often" && zone != "Australia/Lord_Howe" {
				continue // whose clock is set by half an hour
			}
			s, c := k.Schedule, k.wallClock
			s.Name, s.Spec, s.Zone, s.Args = zone+" "+k.name, k.spec, zone, each(zone+" "+k.name)
			c.loc = loc
			clocks[s.Name] = &declaredClock{Schedule: s, wallClock: c, all: c.due(start, end.AddDate(0, 0, 6)), outcome: map[time.Time]string{}}
		}
	}
	names := slices.Sorted(maps.Keys(clocks))
	var coming []time.Time
	for _, name := range names {
		putAt(t, pool, set, start, clocks[name].Schedule)
		coming = append(coming, clocks[name].all...)
	}
	slices.SortFunc(coming, time.Time.Compare)
	var schedulers []*worker.Worker
	for range 16 {
		schedulers = append(schedulers, newWorker(t, pool, set, worker.Config{}))
	}

	stops := 0
	worked := map[string]int{} // entities
	for now := start; now.Before(end); {
		// Mostly somebody looks when something is due, or a little later; at times nobody does
		// for hours, or for days.
		next, _ := slices.BinarySearchFunc(coming, now, func(a, b time.Time) int {
			if a.After(b) {
				return 1
			}
			return -1
		})
		at := now.Add(time.Duration(1+random.IntN(7200)) * time.Second)
		switch n := random.IntN(100); {
		case n < 2:
			at = now.Add(time.Duration(random.IntN(4*24*60)) * time.Minute)
		case n < 93 && next < len(coming):
			at = coming[next].Add(time.Duration(random.IntN(80)) * time.Second)
		}
		now = slices.MaxFunc([]time.Time{at, now.Add(time.Second)}, time.Time.Compare)

		var meet sync.WaitGroup
		for range 1 + random.IntN(2) {
			w, r := schedulers[random.IntN(16)], rand.New(rand.NewPCG(random.Uint64(), 0))
			quits := r.IntN(3)
			stops += min(1, quits)
			meet.Go(func() { tickAs(t, pool, w, now, r, quits > 0) })
		}
		meet.Wait()
		// The server may take a moment to see that a connection was cut, and its rows are locked
		// until then.
		eventually(t, "all is ticked", func() bool {
			tickAs(t, pool, schedulers[random.IntN(16)], now, random, false)
			return ask(t, pool, `SELECT NOT EXISTS (SELECT FROM oncemore.schedule WHERE next_at <= $1)`, now)
		})
		for _, c := range clocks {
			c.decide(now)
		}

		// Some of what was started is done before anybody looks again.
		var ending []string
		for _, name := range names {
			if clocks[name].busy && random.IntN(3) > 0 {
				ending = append(ending, name)
				clocks[name].busy = false
			}
		}
		rows, err := pool.Query(t.Context(), `DELETE FROM oncemore.message m USING unnest($1::text[]) e WHERE starts_with(m.entities[1], e || ' 2') RETURNING m.entities[1]`, ending)
		if err != nil {
			t.Fatal(err)
		}
		done, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(done) != len(ending) {
			t.Fatalf("at %s, of %q these go on: %q, error %v", now, ending, done, err)
		}
		for _, entity := range done {
			worked[entity]++
		}
	}
	rows, err := pool.Query(t.Context(), `SELECT entities[1] FROM oncemore.message`)
	if err != nil {
		t.Fatal(err)
	}
	left, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		worked[e]++
	}

	told, overlaps := map[string]int{}, 0
	for _, name := range names {
		c := clocks[name]
		overlaps += c.overlap
		recorded := map[time.Time]string{}
		rows, err := pool.Query(t.Context(), `SELECT tick, outcome FROM oncemore.schedule_tick WHERE schedule = $1`, name)
		if err != nil {
			t.Fatal(err)
		}
		var tick time.Time
		var outcome string
		if _, err := pgx.ForEachRow(rows, []any{&tick, &outcome}, func() error { recorded[tick.UTC()] = outcome; return nil }); err != nil {
			t.Fatal(err)
		}
		for tick, want := range c.outcome {
			if recorded[tick] != want {
				t.Errorf("%s: the tick of %s is %q, want %q", name, tick.In(c.loc), recorded[tick], want)
			}
			delete(recorded, tick)
			told[want]++
			runs := 0
			if want == "started" {
				runs = 1
			}
			if entity := each(name).Clock + " " + tick.Format(time.RFC3339); worked[entity] != runs {
				t.Errorf("%s: the tick of %s was run %d times, want %d", name, tick.In(c.loc), worked[entity], runs)
			} else {
				delete(worked, entity)
			}
		}
		for tick, outcome := range recorded {
			t.Errorf("%s: %s is %s, and is no tick", name, tick.In(c.loc), outcome)
		}
	}
	for entity := range worked {
		t.Errorf("%s was run, and is no tick", entity)
	}
	t.Logf("%d clocks, ticks %v, %d times skipped or queued, %d schedulers stopped in the middle", len(names), told, overlaps, stops)
	for what, n := range map[string]int{"started": told["started"], "missed": told["missed"], "skipped or queued": overlaps} {
		if n == 0 {
			t.Errorf("nothing was %s: the test shows less than it should", what)
		}
	}
}

// tickAs has a scheduler tick what is due. One that quits does so at a random moment: its
// transaction is rolled back, or its connection is cut before the commit.
func tickAs(t testing.TB, pool *pgxpool.Pool, w *worker.Worker, now time.Time, r *rand.Rand, quits bool) {
	for {
		tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
		if err != nil {
			t.Error(err)
			return
		}
		ticked, err := w.Tick(t.Context(), tx, now)
		if err == nil {
			err = ticked.Trouble
		}
		if err != nil {
			t.Errorf("tick at %s: %v", now, err)
			_ = tx.Rollback(t.Context())
			return
		}
		if quits && r.IntN(3) == 0 {
			if r.IntN(4) == 0 {
				_ = tx.Conn().PgConn().Conn().Close()
			}
			_ = tx.Rollback(t.Context())
			return
		}
		if err := tx.Commit(t.Context()); err != nil {
			t.Error(err)
			return
		}
		if ticked.Schedule == "" {
			return
		}
	}
}
