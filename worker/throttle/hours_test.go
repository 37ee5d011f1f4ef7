package throttle

import (
	"testing"
	"time"
)

func TestTheWindowOpensOnItsDaysByTheClockOnTheWall(t *testing.T) {
	nights, err := parseWindow("Europe/Berlin", "22:00-06:00", []time.Weekday{time.Friday, time.Saturday})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := parseWindow("", "00:00-24:00", nil)
	if err != nil {
		t.Fatal(err)
	}
	days, err := parseWindow("America/New_York", "09:00 - 17:30", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		w    dayWindow
		at   string // by the wall's clock in the zone of w; 2026-11-20 is a Friday
		open bool
	}{
		{nights, "2026-11-20 05:59", false}, // Thursday's night
		{nights, "2026-11-20 21:59", false},
		{nights, "2026-11-20 22:00", true},
		{nights, "2026-11-21 05:59", true},
		{nights, "2026-11-21 06:00", false},
		{nights, "2026-11-21 23:00", true},
		{nights, "2026-11-22 00:00", true},
		{nights, "2026-11-22 05:59", true}, // Saturday's
		{nights, "2026-11-22 22:00", false},
		{nights, "2026-11-23 00:30", false},
		{nights, "2026-03-28 23:30", true}, // the night in which the clocks go forward
		{nights, "2026-03-29 03:30", true},
		{nights, "2026-03-29 06:00", false},
		{whole, "2026-11-20 00:00", true},
		{whole, "2026-11-20 23:59", true},
		{days, "2026-11-20 09:00", true},
		{days, "2026-11-20 17:29", true},
		{days, "2026-11-20 17:30", false},
		{days, "2026-11-20 08:59", false},
	} {
		at, err := time.ParseInLocation("2006-01-02 15:04", test.at, test.w.zone)
		if err != nil {
			t.Fatal(err)
		}
		if got := test.w.open(at); got != test.open {
			t.Errorf("%s at %s in %s: open is %v", test.w, test.at, test.w.zone, got)
		}
	}
}

func TestAWindowThatDoesNotExistIsAnErrorAtOnce(t *testing.T) {
	for _, s := range []Signal{
		Hours("Europe/Belrin", "22:00-06:00"), Hours("", ""), Hours("", "22:00"), Hours("", "22-6"), Hours("", "22:00-25:00"),
		Hours("", "06:00-06:00"), Hours("", "24:00-06:00"), Hours("", "22:00-06:00", 7), Hours("", "22:00-06:00", -1),
		ReplicaLag(0), OldestTransaction(-1), Connections(0), Connections(80), LockWaits(-1), SQL("mine", ""), SQL("", "SELECT 1"),
		{Name: "empty"}, {Name: "hasty", Read: LockWaits(1).Read, Timeout: -1},
	} {
		if _, err := NewGauge(nil, 0, s); err == nil {
			t.Errorf("%+v is taken", s)
		}
	}
	if _, err := NewGauge(nil, 0, LockWaits(1), LockWaits(2)); err == nil {
		t.Error("two signals of one name are taken")
	}
	if _, err := NewGauge(nil, -1); err == nil {
		t.Error("a negative interval is taken")
	}
	if _, err := NewGauge(nil, 0, Defaults()...); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
}

func TestSpansReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ms", 312 * time.Millisecond: "312 ms", 1500 * time.Millisecond: "1.5 s", 312 * time.Second: "312 s", 2*time.Hour + 20*time.Second: "2h0m0s",
	} {
		if got := span(d); got != want {
			t.Errorf("%v is written %q, want %q", d, got, want)
		}
	}
}
