package admin_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func nightly(name string) worker.Schedule {
	return worker.Schedule{Name: name, Spec: "30 2 * * *", Zone: "Europe/Berlin", Args: draw{Page: name + " {date}"}}
}

func (y *yard) schedule(name string) (s *admin.Schedule, ticks []admin.Tick) {
	y.t.Helper()
	err := admin.Read(y.t.Context(), y.Pool, 10*time.Second, func(tx pgx.Tx) (err error) {
		if s, err = admin.FindSchedule(y.t.Context(), tx, name); err == nil {
			ticks, err = admin.Ticks(y.t.Context(), tx, name, 10)
		}
		return err
	})
	if err != nil {
		y.t.Fatal(err)
	}
	return s, ticks
}

func (y *yard) put(s worker.Schedule) {
	y.t.Helper()
	if r, err := y.by("anna").PutSchedule(y.t.Context(), s, "it was wished for"); err != nil || r.Changed != 1 {
		y.t.Fatalf("%+v, %v", r, err)
	}
}

// A worker runs until the condition holds.
func (y *yard) until(what, query string, c worker.Config) {
	y.t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	w, err := worker.New(y.t.Context(), y.Pool, y.set, c)
	if err != nil {
		y.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(y.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var is bool
		if err := y.QueryRow(y.t.Context(), query).Scan(&is); err != nil || time.Now().After(limit) {
			y.t.Fatalf("not yet: %s, error %v", what, err)
		}
		if is {
			break
		}
	}
	stop()
	if err := <-ended; err != nil {
		y.t.Fatal(err)
	}
}

func TestAScheduleOfTheDatabaseIsPutPausedResumedRunAndDeletedAndTheAuditHasItAll(t *testing.T) {
	y := newYard(t)
	y.put(nightly("report"))
	s, _ := y.schedule("report")
	if s.State != "ok" || s.Next == nil || time.Until(*s.Next) > 26*time.Hour || s.FromCode || s.Zone != "Europe/Berlin" || s.CatchUp != "latest" || s.Overlap != "skip" {
		t.Errorf("%+v", s)
	}
	ctx := t.Context()
	act := func(f func(*admin.Operator, context.Context, string, string) (*admin.Result, error), changed int) {
		t.Helper()
		if r, err := f(y.by("bert"), ctx, "report", "because"); err != nil || r.Changed != changed || len(r.Left) != 1-changed || (r.Audit != 0) != (changed == 1) {
			t.Errorf("%+v, %v", r, err)
		}
	}
	act((*admin.Operator).ResumeSchedule, 0)
	act((*admin.Operator).PauseSchedule, 1)
	act((*admin.Operator).PauseSchedule, 0)
	if s, _ := y.schedule("report"); s.State != "paused: because (bert)" || s.Next != nil {
		t.Errorf("%+v", s)
	}
	act((*admin.Operator).RunSchedule, 1)
	act((*admin.Operator).RunSchedule, 0)
	y.until("it is run, although it is paused", `SELECT count(*) = 1 FROM oncemore.ledger`, worker.Config{})
	if _, ticks := y.schedule("report"); len(ticks) != 1 || ticks[0].Outcome != "started" || !ticks[0].ByHand || ticks[0].Type != "draw" || !strings.HasPrefix(ticks[0].Entity, "report 20") {
		t.Errorf("%+v", ticks)
	}
	y.exec(`UPDATE oncemore.schedule SET cursor = clock_timestamp() - interval '3 days'`)
	act((*admin.Operator).ResumeSchedule, 1)
	if s, _ := y.schedule("report"); s.State != "ok" || time.Since(s.Cursor) > time.Minute {
		t.Errorf("it catches up what passed in the pause: %+v", s)
	}
	act((*admin.Operator).DeleteSchedule, 1)
	if _, err := y.by("bert").DeleteSchedule(ctx, "report", ""); !errors.Is(err, admin.ErrNoSchedule) {
		t.Error(err)
	}
	all, err := admin.Audit(ctx, y.Pool, admin.AuditFilter{Type: "draw"})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range all {
		told = append(told, e.Actor+" "+e.Action+" "+e.Sample[0]+" "+e.Reason)
	}
	same(t, "the audit", strings.Join(told, ", "), "bert schedule-delete report because, bert schedule-resume report because, bert schedule-run report because, bert schedule-pause report because, anna schedule-put report it was wished for")
}

func TestWhatProgramsDeclareIsNotChangedByHand(t *testing.T) {
	y := newYard(t)
	y.put(nightly("taken over"))
	code := nightly("taken over")
	code.Spec = "0 4 * * *"
	y.until("it is declared", `SELECT from_code FROM oncemore.schedule`, worker.Config{Schedules: []worker.Schedule{code}})
	op := y.by("anna")
	if r, err := op.PutSchedule(t.Context(), nightly("taken over"), ""); err != nil || r.Changed != 0 || len(r.Left) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := op.DeleteSchedule(t.Context(), "taken over", ""); err != nil || r.Changed != 0 || len(r.Left) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if s, _ := y.schedule("taken over"); s.Spec != "0 4 * * *" {
		t.Errorf("%+v", s)
	}
	y.exec(`UPDATE oncemore.schedule SET declared_at = clock_timestamp() - interval '16 minutes'`)
	if s, _ := y.schedule("taken over"); !strings.HasPrefix(s.State, "orphaned") || s.Next != nil {
		t.Errorf("%+v", s)
	}
	if r, err := op.DeleteSchedule(t.Context(), "taken over", ""); err != nil || r.Changed != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestASchedulesStateSaysWhatIsTheMatter(t *testing.T) {
	y := newYard(t)
	y.put(nightly("report"))
	y.exec(`UPDATE oncemore.schedule SET cursor = cursor - interval '3 days'`)
	if s, _ := y.schedule("report"); !strings.HasPrefix(s.State, "overdue: no worker runs") {
		t.Errorf("%+v", s)
	}
	y.exec(`UPDATE oncemore.schedule SET spec = 'whenever'`)
	if s, _ := y.schedule("report"); !strings.HasPrefix(s.State, "in trouble: cron spec") {
		t.Errorf("%+v", s)
	}
	bad := nightly("bad")
	bad.Spec = "whenever"
	if _, err := y.by("anna").PutSchedule(t.Context(), bad, ""); err == nil || !strings.Contains(err.Error(), "five fields") {
		t.Error(err)
	}
	if _, err := admin.NextTimes("whenever", "UTC", time.Now(), 3); err == nil {
		t.Error("no error")
	}
}
