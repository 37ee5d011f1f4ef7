package admin_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A schedule that nobody ticks leaves no message and nothing that is missing: nobody would
// look for it.
func TestAScheduleThatStandsStillIsFoundByTheDoctor(t *testing.T) {
	y := newYard(t)
	check := func(name string) []admin.Check { t.Helper(); return examine(t, y.Pool, name, admin.Limits{}) }
	says(t, check("schedules"), admin.OK, "0 are there, and none stands still")
	healthy(t, check("workers"))
	y.put(nightly("report"))
	y.put(nightly("bill"))
	says(t, check("schedules"), admin.OK, "2 are there, and none stands still")
	says(t, check("workers"), admin.Bad, "a schedule that makes some")

	// No worker has run for days, and all messages are worked.
	y.exec(`UPDATE oncemore.schedule SET cursor = cursor - interval '3 days' WHERE name = 'report'`)
	if c := says(t, check("schedules"), admin.Bad, `"report" is overdue: no worker runs that has the job draw`); c.Do != "start a worker that has the job" {
		t.Errorf("%+v", c)
	}
	y.exec(`UPDATE oncemore.schedule SET error = 'the job draw has no such argument' WHERE name = 'bill'`)
	checks := check("schedules")
	says(t, checks, admin.Bad, `"bill" is in trouble: the job draw has no such argument`)
	says(t, checks, admin.Bad, `"report" is overdue`)

	// Somebody wants it so.
	for name, changed := range map[string]int{"report": 1, "bill": 1} {
		if r, err := y.by("bert").PauseSchedule(t.Context(), name, "the holidays"); err != nil || r.Changed != changed {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	checks = check("schedules")
	healthy(t, checks)
	says(t, checks, admin.OK, "2 are there; paused are: bill, report")
	healthy(t, check("workers"))

	y.exec(`UPDATE oncemore.schedule SET paused = NULL, error = NULL, from_code = true, declared_at = clock_timestamp() - interval '16 minutes' WHERE name = 'bill'`)
	checks = check("schedules")
	says(t, checks, admin.Warn, `"bill" is orphaned: no program declares it`)
	says(t, checks, admin.OK, "paused are: report")

	// The only program that has it is down, and the night has passed.
	y.exec(`UPDATE oncemore.schedule SET cursor = cursor - interval '3 days' WHERE name = 'bill'`)
	c := says(t, check("schedules"), admin.Bad, `"bill" is orphaned: no program declares it`)
	if !strings.Contains(c.Found, " is overdue") || c.Do != "start the program that declares it, or 'schedules rm' it" {
		t.Errorf("%+v", c)
	}
}

// A server that guards requests has a lease, as a worker has, and works no job.
func TestServersOfRequestsAreNotPassedOffAsWorkers(t *testing.T) {
	s := newScene(t)
	s.worker("anna")
	says(t, examine(t, s.pool, "workers", admin.Limits{}), admin.OK, "1 are alive")
	s.ok(s.Declare(t.Context(), &ledger.Type{Name: "PUT /cart", Effect: ledger.InTransaction, Requests: true}, "")) // needs no lease
	if c := says(t, examine(t, s.pool, "workers", admin.Limits{}), admin.OK, "1 are alive"); c.Found != "1 are alive" {
		t.Errorf("%+v", c)
	}
	s.ok(s.Declare(t.Context(), &ledger.Type{Name: "POST /orders", Effect: ledger.Once, Requests: true}, ""))
	says(t, examine(t, s.pool, "workers", admin.Limits{}), admin.OK, "1 are alive; servers that guard requests are counted as well, and work no job")
}

// The database's clock was ahead for a moment: what was decided then lies in the future, and
// nothing is overdue until it is there.
func TestAScheduleThatWasDecidedForTimesToComeIsFoundByTheDoctor(t *testing.T) {
	y := newYard(t)
	check := func() []admin.Check { t.Helper(); return examine(t, y.Pool, "schedules", admin.Limits{}) }
	y.put(nightly("report"))
	y.exec(`UPDATE oncemore.schedule SET cursor = clock_timestamp() + interval '30 seconds', next_at = clock_timestamp() + interval '30 seconds'`)
	healthy(t, check()) // clocks differ a little
	y.exec(`UPDATE oncemore.schedule SET cursor = clock_timestamp() + interval '30 days', next_at = clock_timestamp() + interval '30 days'`)
	s, _ := y.schedule("report")
	if !strings.HasPrefix(s.State, "ahead: it is decided until "+s.Cursor.UTC().Format(time.RFC3339)) || s.Next == nil || !s.Next.After(s.Cursor) {
		t.Errorf("state %q, next %v", s.State, s.Next)
	}
	if c := says(t, check(), admin.Bad, `"report" is ahead`); c.Do != "'schedules pause' and then 'schedules resume' it: it ticks again from then on" {
		t.Errorf("%+v", c)
	}

	// It does what the doctor says.
	for _, act := range []func(context.Context, string, string) (*admin.Result, error){y.by("bert").PauseSchedule, y.by("bert").ResumeSchedule} {
		if r, err := act(t.Context(), "report", "the clock was ahead"); err != nil || r.Changed != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	healthy(t, check())
	if s, _ = y.schedule("report"); s.State != "ok" || s.Next == nil || s.Next.After(s.Cursor.AddDate(0, 0, 2)) || s.Cursor.After(time.Now().Add(time.Minute)) {
		t.Errorf("state %q, cursor %v, next %v", s.State, s.Cursor, s.Next)
	}
}
