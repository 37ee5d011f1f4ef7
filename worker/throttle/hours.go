package throttle

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Hours goes only within a daily time window, such as "22:00-06:00", in a zone of the IANA
// database ("" is UTC) and by the clock of the database. Days, if any are named, are those
// on which the window opens: with Friday, the one above ends on Saturday at six. "00:00-24:00"
// is the whole day. The beginning belongs to the window, the end does not. Where clocks are
// set, it goes by what they show.
//
// A zone or a window that does not exist is an error of [NewGauge].
func Hours(zone, window string, days ...time.Weekday) Signal {
	w, err := parseWindow(zone, window, days)
	return Signal{Name: "hours", wrong: err, Read: func(ctx context.Context, tx pgx.Tx) (Verdict, string, error) {
		var now time.Time
		if err := tx.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
			return "", "", err
		}
		now = now.In(w.zone)
		if w.open(now) {
			return Go, fmt.Sprintf("it is %s in %s, within %s", now.Format("Mon 15:04"), w.zone, w), nil
		}
		return Wait, fmt.Sprintf("it is %s in %s, outside %s", now.Format("Mon 15:04"), w.zone, w), nil
	}}
}

// A dayWindow opens on its days at from and closes at to, in minutes since midnight; to is
// the next day's if it is not after from.
type dayWindow struct {
	zone     *time.Location
	from, to int
	days     [7]bool // on which it opens
	text     string
}

func (w dayWindow) String() string { return w.text }

func parseWindow(zone, window string, days []time.Weekday) (w dayWindow, err error) {
	if w.zone, err = time.LoadLocation(zone); err != nil {
		return w, err
	}
	from, to, found := strings.Cut(window, "-")
	if !found {
		return w, fmt.Errorf(`%q is no time window such as "22:00-06:00"`, window)
	}
	if w.from, err = minutes(from); err != nil {
		return w, err
	}
	if w.to, err = minutes(to); err != nil {
		return w, err
	}
	if w.from == 24*60 || w.from == w.to {
		return w, fmt.Errorf(`%q is no time window: it ends where it begins ("00:00-24:00" is the whole day)`, window)
	}
	w.text = window
	for _, d := range days {
		if d < time.Sunday || d > time.Saturday {
			return w, fmt.Errorf("%v is no day of the week", d)
		}
		w.days[d] = true
		w.text += " " + d.String()[:3]
	}
	if len(days) == 0 {
		w.days = [7]bool{true, true, true, true, true, true, true}
	}
	return w, nil
}

func minutes(text string) (int, error) {
	if text = strings.TrimSpace(text); text == "24:00" {
		return 24 * 60, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of day such as 22:00", text)
	}
	return 60*t.Hour() + t.Minute(), nil
}

// open goes by what a clock on the wall shows at now, which is in the window's zone.
func (w dayWindow) open(now time.Time) bool {
	minute, today := 60*now.Hour()+now.Minute(), now.Weekday()
	yesterday := (today + 6) % 7
	if w.from < w.to {
		return w.days[today] && w.from <= minute && minute < w.to
	}
	return w.days[today] && w.from <= minute || w.days[yesterday] && minute < w.to
}
