package admin_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// stats reads them; the transaction's statements may take up to limit.
func (s *scene) stats(q admin.StatsQuery, limit time.Duration) *admin.Stats {
	s.Helper()
	var out *admin.Stats
	s.ok(admin.Read(s.Context(), s.pool, limit, func(tx pgx.Tx) (err error) {
		out, err = admin.ReadStats(s.Context(), tx, nil, q)
		return err
	}))
	sum := int64(0)
	for _, b := range out.Buckets {
		sum += b.Done
	}
	if sum != out.Done {
		s.Errorf("the buckets have %d of %d", sum, out.Done)
	}
	return out
}

// past adds n facts that were completed at a time.
func (s *scene) past(t *ledger.Type, n int, at time.Time) {
	s.Helper()
	s.exec(`INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity, completed_at)
		SELECT 1, $1, 1, 'r', $2::text || ' ' || n, $3 FROM generate_series(1, $4) n`, t.ID, at.Format(time.RFC3339Nano), at, n)
}

func (s *scene) rollUp() (r worker.Rollup) {
	s.Helper()
	for r.More = true; r.More || r.Waiting > 0; { // for sessions that end just then
		summed := r.Summed
		var err error
		r, err = worker.RollUp(s.Context(), s.pool)
		s.ok(err)
		r.Summed += summed
	}
	return r
}

func (s *scene) now() (now time.Time) {
	s.Helper()
	s.ok(s.pool.QueryRow(s.Context(), `SELECT now()`).Scan(&now))
	return now
}

// An office in Kathmandu, which is 5 hours and 45 minutes ahead, sends invitations for two
// weeks: a few every day, most on weekdays at nine in the morning.
func TestHowManyADayWhatAreThePeakHours(t *testing.T) {
	s := newScene(t)
	invitation, other := s.kind("invitation", ledger.Once), s.kind("other", ledger.Once)
	zone, err := time.LoadLocation("Asia/Kathmandu")
	s.ok(err)
	now := s.now().In(zone)
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, zone)
	s.exec(`UPDATE oncemore.completions_watermark SET closed = NULL`)
	perDay := func(day time.Time) int64 {
		if day.Weekday() == time.Saturday || day.Weekday() == time.Sunday {
			return 5
		}
		return 45
	}
	for d := 1; d <= 14; d++ {
		day := midnight.AddDate(0, 0, -d)
		s.past(invitation, 3, day.Add(20*time.Hour+59*time.Minute+59*time.Second))
		s.past(invitation, 2, day)
		if perDay(day) == 45 {
			s.past(invitation, 30, day.Add(9*time.Hour+5*time.Minute))
			s.past(invitation, 10, day.Add(9*time.Hour+55*time.Minute))
		}
		s.past(other, 7, day.Add(12*time.Hour))
	}
	s.past(invitation, 1, now.Add(-time.Second))

	check := func(when string) {
		t.Helper()
		window := admin.Window{Since: midnight.AddDate(0, 0, -14)}
		days := s.stats(admin.StatsQuery{Type: "invitation", By: admin.ByDay, Zone: "Asia/Kathmandu", Window: window}, time.Minute)
		if len(days.Buckets) != 15 || days.Type != "invitation" || days.Zone != "Asia/Kathmandu" || days.Counted != nil {
			t.Fatalf("%s: %+v", when, days)
		}
		for i, b := range days.Buckets {
			want, start := perDay(b.Start), midnight.AddDate(0, 0, i-14)
			if i == 14 {
				want = 1
			}
			if b.Done != want || !b.Start.Equal(start) || b.Open != (i == 14) {
				t.Errorf("%s: on %s %d are done (open: %v), want %d on %s", when, b.Start, b.Done, b.Open, want, start)
			}
		}
		week := s.stats(admin.StatsQuery{Type: "invitation", By: admin.ByWeekdayHour, Zone: "Asia/Kathmandu", Window: window}, time.Minute)
		if len(week.Buckets) != 7*24 {
			t.Fatalf("%s: %d hours in a week", when, len(week.Buckets))
		}
		for i, b := range week.Buckets {
			day, hour := time.Weekday((i/24+1)%7), i%24
			want := map[int]float64{0: 2, 20: 3}[hour]
			if hour == 9 && day != time.Saturday && day != time.Sunday {
				want = 40
			}
			if *b.Weekday != day || *b.Hour != hour || b.Hours < 2 || b.Hours > 3 {
				t.Errorf("%s: bucket %d is %s at %d, %d times", when, i, *b.Weekday, *b.Hour, b.Hours)
			}
			// Today's hours are there as well, and had none.
			if b.Done != int64(2*want) && (b.Hours == 2 || b.Done != int64(2*want)+1) {
				t.Errorf("%s: on %s at %d %d are done, want %v each time", when, day, hour, b.Done, want)
			}
		}
		all := s.stats(admin.StatsQuery{By: admin.ByHour, Window: window}, time.Minute)
		if all.Type != "" || all.Done != days.Done+14*7 {
			t.Errorf("%s: of all types %d, of this %d", when, all.Done, days.Done)
		}
	}
	check("before anything is summed")
	if r := s.rollUp(); r.Closed.IsZero() || r.Summed < 14*7 {
		t.Fatalf("%+v", r)
	}
	check("afterwards")
	// What was done then stays done then, also when it is done again.
	s.exec(`UPDATE oncemore.ledger SET epoch = 1, completed_at = $1 WHERE entity LIKE '% 2' AND job_type = $2`, midnight.AddDate(0, 0, -20), invitation.ID)
	check("and with facts replaced")
	// The sums are what is read: without a look into the ledger it goes as well.
	s.exec(`DELETE FROM oncemore.ledger_history`)
	s.exec(`DELETE FROM oncemore.ledger WHERE completed_at < (SELECT closed FROM oncemore.completions_watermark)`)
	check("and without the ledger's past")
}

func TestHoursAreThoseOfTheZoneAlsoWhenClocksAreSet(t *testing.T) {
	s := newScene(t)
	k := s.kind("letter", ledger.Once)
	utc := func(text string) time.Time {
		at, err := time.Parse("2006-01-02 15:04", text)
		s.ok(err)
		return at
	}
	// Berlin's clocks went back on 26 October 2025 at three, São Paulo's forward on 4 November 2018 at midnight.
	s.past(k, 1, utc("2025-10-26 00:30"))
	s.past(k, 10, utc("2025-10-26 01:30"))
	s.past(k, 100, utc("2018-11-04 03:15"))
	s.past(k, 1000, utc("2018-11-04 02:45"))
	for _, test := range []struct {
		by                 admin.By
		zone, since, until string
		want               map[string]int64
	}{
		{admin.ByHour, "Europe/Berlin", "2025-10-26 00:00", "2025-10-26 03:00", map[string]int64{"2025-10-26 02:00 +0200": 1, "2025-10-26 02:00 +0100": 10, "2025-10-26 03:00 +0100": 0}},
		{admin.ByDay, "Europe/Berlin", "2025-10-25 22:00", "2025-10-26 23:00", map[string]int64{"2025-10-26 00:00 +0200": 11}},
		{admin.ByDay, "America/Sao_Paulo", "2018-11-03 12:00", "2018-11-05 12:00", map[string]int64{"2018-11-03 00:00 -0300": 1000, "2018-11-04 01:00 -0200": 100, "2018-11-05 00:00 -0200": 0}},
		{admin.ByHour, "Australia/Lord_Howe", "2018-11-04 02:00", "2018-11-04 04:00", map[string]int64{"2018-11-04 13:00 +1100": 1000, "2018-11-04 14:00 +1100": 100}},
	} {
		for _, summed := range []bool{false, true} {
			if summed {
				s.exec(`UPDATE oncemore.completions_watermark SET closed = NULL`)
				s.rollUp()
			} else {
				s.exec(`UPDATE oncemore.completions_watermark SET closed = '2000-01-01'`)
			}
			got := s.stats(admin.StatsQuery{By: test.by, Zone: test.zone, Window: admin.Window{Since: utc(test.since), Until: utc(test.until)}}, time.Minute)
			for _, b := range got.Buckets {
				name := b.Start.Format("2006-01-02 15:04 -0700")
				if want := test.want[name]; b.Done != want {
					t.Errorf("%s in %s, summed %v: %s has %d, want %d", test.by, test.zone, summed, name, b.Done, want)
				}
				delete(test.want, name)
			}
			for name := range test.want {
				if summed == false {
					t.Errorf("%s in %s: there is no %s", test.by, test.zone, name)
				}
			}
			if !summed {
				for _, b := range got.Buckets {
					test.want[b.Start.Format("2006-01-02 15:04 -0700")] = b.Done
				}
			}
		}
	}
}

func TestStatisticsThatMakeNoSenseAreRefused(t *testing.T) {
	s := newScene(t)
	s.kind("letter", ledger.Once)
	for _, q := range []admin.StatsQuery{
		{}, {By: "month"}, {By: admin.ByDay, Zone: "Europe/Belrin"}, {By: admin.ByHour, Window: admin.Window{Since: time.Unix(0, 0)}},
		{By: admin.ByDay, Window: admin.Window{Since: time.Now().Add(48 * time.Hour)}}, {By: admin.ByDay, Window: admin.Window{Since: time.Unix(1e9, 0), Until: time.Unix(9e8, 0)}},
	} {
		err := admin.Read(s.Context(), s.pool, time.Minute, func(tx pgx.Tx) error {
			_, err := admin.ReadStats(context.Background(), tx, nil, q)
			return err
		})
		if !errors.Is(err, admin.ErrStats) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	err := admin.Read(s.Context(), s.pool, time.Minute, func(tx pgx.Tx) error {
		_, err := admin.ReadStats(s.Context(), tx, nil, admin.StatsQuery{By: admin.ByDay, Type: "parcel"})
		return err
	})
	if !errors.Is(err, admin.ErrNoType) {
		t.Errorf("of a type that there is not: %v", err)
	}
}

// What is too much to be counted now is said, and what is summed is shown.
func TestWhatTakesTooLongToCountIsLeftOutAndSaid(t *testing.T) {
	s := newScene(t)
	k := s.kind("letter", ledger.Once)
	now := s.now()
	s.exec(`UPDATE oncemore.completions_watermark SET closed = NULL`)
	s.past(k, 5, now.Add(-30*time.Hour))
	s.rollUp()
	s.exec(`UPDATE oncemore.completions_watermark SET closed = $1`, now.Add(-24*time.Hour).Truncate(15*time.Minute))
	s.past(k, 7, now.Add(-2*time.Hour))
	// A table that somebody has locked takes as long as one that is large.
	tx, err := s.pool.Begin(t.Context())
	s.ok(err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE oncemore.ledger_history`)
	s.ok(err)
	got := s.stats(admin.StatsQuery{By: admin.ByDay}, 2*time.Second)
	if got.Done != 5 || got.Counted == nil || !got.Counted.Equal(now.Add(-24*time.Hour).Truncate(15*time.Minute)) {
		t.Errorf("%+v", got)
	}
	s.ok(tx.Rollback(t.Context()))
	if got := s.stats(admin.StatsQuery{By: admin.ByDay}, time.Minute); got.Done != 12 || got.Counted != nil {
		t.Errorf("%+v", got)
	}
}

// A look at the last hours must not read all that a type ever did.
func TestWhatIsNotSummedIsFoundByItsTimeAlone(t *testing.T) {
	s := newScene(t)
	k := s.kind("letter", ledger.Once)
	now := s.now()
	for h := range 48 {
		s.past(k, 500, now.Add(-time.Duration(h)*time.Hour))
	}
	s.exec(`INSERT INTO oncemore.ledger_history (fingerprint, completed_at, job_type, attempts, evidence, entity) SELECT fingerprint, completed_at, job_type, attempts, evidence, entity FROM oncemore.ledger`)
	s.exec(`VACUUM ANALYZE oncemore.ledger, oncemore.ledger_history`)
	conn, err := s.pool.Acquire(t.Context())
	s.ok(err)
	defer conn.Release()
	_, err = conn.Exec(t.Context(), `SET enable_seqscan = off`)
	s.ok(err)
	rows, err := conn.Query(t.Context(), `EXPLAIN `+admin.LiveSQL, []int32{k.ID}, now.Add(-time.Hour), now)
	s.ok(err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	s.ok(err)
	plan := strings.Join(lines, "\n")
	if !strings.Contains(plan, "ledger_completed_at") || !strings.Contains(plan, "ledger_history_completed_at") || strings.Contains(plan, "pkey") || strings.Contains(plan, "Seq Scan") {
		t.Errorf("the plan is\n%s", plan)
	}
}
