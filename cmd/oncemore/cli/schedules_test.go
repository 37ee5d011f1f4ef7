package cli

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// scheduled returns the address of a database with a schedule that has ticked.
func scheduled(t *testing.T) string {
	t.Helper()
	dsn := worked(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := worker.PutSchedule(t.Context(), tx, nil, worker.Schedule{Name: "nightly", Spec: "30 2 * * *", Zone: "Europe/Berlin", Args: mailing{1}, CatchUp: worker.CatchUpAll})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	do(t, pool, `INSERT INTO oncemore.schedule_tick (schedule, tick, at, outcome, job_type, entity, detail) VALUES
('nightly', '2026-03-28T01:30:00Z', '2026-03-28T01:30:01Z', 'started', 'mailing', '1', ''), ('nightly', '2026-03-29T01:00:00Z', '2026-03-29T01:00:01Z', 'skipped', NULL, NULL, 'the tick before goes on')`)
	return dsn
}

func TestSchedulesAreListedAndShown(t *testing.T) {
	t.Parallel()
	dsn := scheduled(t)
	ls := call(t, Options{}, "schedules", "ls", "--database-url", dsn)
	for _, want := range []string{"NAME", "nightly", "30 2 * * *", "Europe/Berlin", "mailing 1", "in ", "skipped ", "ok"} {
		if ls.code != 0 || !strings.Contains(ls.out, want) {
			t.Errorf("no %q: %+v", want, ls)
		}
	}
	if list := decodeJSON[admin.List[admin.Schedule]](t, call(t, Options{}, "schedules", "ls", "-o", "json", "--database-url", dsn).out); len(list.Rows) != 1 || list.Rows[0].Next == nil {
		t.Errorf("%+v", list)
	}
	show := call(t, Options{}, "schedules", "show", "nightly", "--next", "2", "--database-url", dsn)
	for _, want := range []string{"all, at most 100", "queue", "2026-03-29 01:00:00Z", "the tick before goes on", "mailing 1", " 02:30:00 +0"} {
		if show.code != 0 || !strings.Contains(show.out, want) {
			t.Errorf("no %q: %+v", want, show)
		}
	}
	if s := decodeJSON[shownSchedule](t, call(t, Options{}, "schedules", "show", "nightly", "-o", "json", "--ticks", "1", "--database-url", dsn).out); len(s.Ticks) != 1 || len(s.Upcoming) != 5 || s.Ticks[0].Outcome != "skipped" {
		t.Errorf("%+v", s)
	}
	if a := call(t, Options{}, "schedules", "show", "weekly", "--database-url", dsn); a.code != 1 || !strings.Contains(a.err, "there are: nightly") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "__complete", "schedules", "pause", "--database-url", dsn, ""); a.code != 0 || !strings.Contains(a.out, "nightly") {
		t.Errorf("%+v", a)
	}
}

func TestASpecIsPreviewedWithoutADatabase(t *testing.T) {
	noDatabase(t)
	a := call(t, Options{}, "schedules", "next", "--spec", "30 2 * * *", "--zone", "Europe/Berlin", "--from", "2027-03-27T12:00", "-n", "2")
	if a.code != 0 || !strings.Contains(a.out, "Sun 2027-03-28 03:00:00 +02:00 CEST  2027-03-28 01:00:00Z") || !strings.Contains(a.out, "Mon 2027-03-29 02:30:00") {
		t.Errorf("%+v", a)
	}
	if times := decodeJSON[[]string](t, call(t, Options{}, "schedules", "next", "--spec", "@daily", "--from", "2027-01-01", "-n", "1", "-o", "json").out); len(times) != 1 || times[0] != "2027-01-02T00:00:00Z" {
		t.Errorf("%q", times)
	}
	for _, test := range []struct{ args, says string }{
		{"schedules next", "one of the two"},
		{"schedules next a --spec @daily", "one of the two"},
		{"schedules next a --zone UTC", "--zone is for --spec"},
		{"schedules next --spec TZ=0", "apart from the spec"},
		{"schedules next --spec @daily --zone Mars", "IANA"},
		{"schedules next --spec @daily -n 0", "-n is from 1"},
		{"schedules next --spec @daily --from soon", "--from"},
		{"schedules show", "accepts 1 arg"},
		{"schedules show a --ticks -1", "--ticks"},
		{"schedules run-now", "accepts 1 arg"},
		{"schedules rm a --yes", "--reason"},
		{"schedules stop a", "unknown command"},
	} {
		if a := call(t, Options{}, strings.Fields(test.args)...); a.code != 2 || !strings.Contains(a.err, test.says) {
			t.Errorf("%s: %+v; want code 2 and %q", test.args, a, test.says)
		}
	}
}

func TestSchedulesArePausedResumedRunAndRemoved(t *testing.T) {
	t.Parallel()
	dsn := scheduled(t)
	act := func(code int, args ...string) answer {
		t.Helper()
		a := call(t, Options{}, append(append([]string{"schedules"}, args...), "nightly", "--reason", "the moon is full", "--database-url", dsn)...)
		if a.code != code {
			t.Errorf("%q: %+v", args, a)
		}
		return a
	}
	if a := call(t, Options{}, "__complete", "schedules", "show", "--database-url", dsn, ""); !strings.Contains(a.out, "nightly\t") {
		t.Errorf("completion: %+v", a)
	}
	if a := act(0, "pause", "--dry-run"); !strings.Contains(a.err, "it would pause the schedule nightly") || row[bool](t, dsn, `SELECT paused IS NOT NULL FROM oncemore.schedule`) {
		t.Errorf("%+v", a)
	}
	act(2, "pause") // nobody can be asked
	act(0, "pause", "--yes")
	if !row[bool](t, dsn, `SELECT paused LIKE 'the moon is full%' FROM oncemore.schedule`) {
		t.Error("it is not paused, or not for that")
	}
	if a := act(3, "pause", "--yes"); !strings.Contains(a.err, "is paused: the moon is full") {
		t.Errorf("%+v", a)
	}
	if a := act(0, "pause", "--dry-run", "-o", "json"); decodeJSON[proposal](t, a.out).Matched != 0 {
		t.Errorf("it would pause what is paused: %+v", a)
	}
	act(0, "run-now", "--yes")
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.schedule_tick WHERE outcome = 'queued' AND by_hand`); n != 1 {
		t.Errorf("%d runs are asked for", n)
	}
	act(0, "resume", "--yes")
	if a := act(0, "rm", "--yes", "-o", "json"); decodeJSON[proposal](t, a.out).Changed != 1 {
		t.Errorf("%+v", a)
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.audit WHERE action LIKE 'schedule-%' AND reason = 'the moon is full'`); n != 4 {
		t.Errorf("%d acts are in the audit", n)
	}
}
