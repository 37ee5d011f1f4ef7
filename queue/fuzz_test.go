package queue_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/memqueue"
)

// storable is what any backend can keep as text.
func storable(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

func nameable(s string) bool { return s != "" && len(s) <= queue.MaxEntity && storable(s) }

func FuzzCheckNameTakesExactlyWhatCanBeAKey(f *testing.F) {
	for _, s := range []string{"", "e", "234/17", "\x00", "a\x00b", "\xff", "é", "\u2028", strings.Repeat("e", 512), strings.Repeat("é", 257)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := queue.CheckName("entity", s)
		if (err == nil) != nameable(s) {
			t.Errorf("%q: %v", s, err)
		}
		if err != nil && (!errors.Is(err, queue.ErrInvalid) || len(err.Error()) > 1000) {
			t.Errorf("%q: the error is %.2000q", s, err)
		}
	})
}

// What Check takes is within all limits, and what it refuses is not; and a queue asks it.
func FuzzCheckTakesExactlyWhatIsWithinTheLimits(f *testing.F) {
	f.Add("send", "e", []byte(`{}`), 1, 0, 0, 0, "")
	f.Add("send", "e", []byte(`{"a":1,"a":[true,null]} `), 1000, -100, 1<<30, 3, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("\xff", "", []byte("\"\xff\""), 1001, 101, -1, -1, "\x00")
	f.Add("send", "e", []byte(`"\u0000\ud800"`), 0, 0, 0, 0, strings.Repeat("t", 513))
	f.Add("send", strings.Repeat("e", 500), []byte(`"`+strings.Repeat("x", 900)+`"`), 900, 0, 0, 0, "")
	f.Fuzz(func(t *testing.T, jobType, entity string, args []byte, items, priority, pack, deferred int, trace string) {
		items = min(max(items, 0), 1002)
		m := queue.Message{Type: jobType, Priority: priority, Pack: pack, Deferred: deferred, Trace: trace}
		for range items {
			m.Items = append(m.Items, queue.Item{Entity: entity, Args: args})
		}
		within := nameable(jobType) && nameable(entity) && len(args) <= queue.MaxArgs && json.Valid(args) && utf8.Valid(args) &&
			items >= 1 && items <= queue.MaxItems && items*(len(entity)+len(args)) <= queue.MaxBytes &&
			priority >= -100 && priority <= 100 && pack >= 0 && pack <= math.MaxInt32 && deferred >= 0 && len(trace) <= queue.MaxTrace && storable(trace)
		err := m.Check()
		if (err == nil) != within {
			t.Errorf("%d items of %q %q with %q, priority %d, pack %d, deferred %d, trace %q: %v", items, jobType, entity, args, priority, pack, deferred, trace, err)
		}
		if err != nil && (!errors.Is(err, queue.ErrInvalid) || len(err.Error()) > 3000) {
			t.Errorf("the error is %.4000q", err)
		}
		q := memqueue.New()
		if sent := q.Send(t.Context(), m); (sent == nil) != within || q.Len() != min(q.Len(), 1) {
			t.Errorf("Send says %v", sent)
		}
	})
}
