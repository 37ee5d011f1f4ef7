package main

import (
	"slices"
	"testing"
	"time"
)

func TestArrivalsComeAtTheRateAtIrregularMomentsAndTheSameEachTime(t *testing.T) {
	const length = 100 * time.Second
	due := arrivals(pickUpRate, length)
	if n := len(due); n < 9_700 || n > 10_300 {
		t.Errorf("%d arrivals in %s, want about 10,000", n, length)
	}
	if !slices.IsSorted(due) || due[len(due)-1] >= length {
		t.Error("the arrivals are not in order, or come too late")
	}
	short := 0
	for i := range due[1:] {
		if due[i+1]-due[i] < time.Millisecond {
			short++
		}
	}
	if short < len(due)/20 || short > len(due)/5 { // 1 - exp(-0.1)
		t.Errorf("%d of %d gaps are shorter than a tenth of the mean", short, len(due))
	}
	if !slices.Equal(due, arrivals(pickUpRate, length)) {
		t.Error("the two sides would get different arrivals")
	}
}

func TestAPercentileIsAValueThatWasMeasured(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		of   []time.Duration
		p    float64
		want time.Duration
	}{{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred[:1], 99, 1}, {hundred[:3], 50, 2}, {nil, 50, 0}} {
		if got := percentile(c.of, c.p); got != c.want {
			t.Errorf("percentile %v of %d values = %d, want %d", c.p, len(c.of), got, c.want)
		}
	}
}

func TestTheLoopSendsEachJobOnceInPacksThatAQueueAccepts(t *testing.T) {
	next := int64(0)
	for range 2 {
		for _, m := range packs(next) {
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			if len(m.Items) != packSize {
				t.Errorf("a pack of %d", len(m.Items))
			}
			for _, it := range m.Items {
				if want := (job{next}).Entity(); it.Entity != want {
					t.Fatalf("sent %s, want %s", it.Entity, want)
				}
				next++
			}
		}
	}
	if next != 2*sendSize*packSize {
		t.Errorf("two sends have %d jobs", next)
	}
}
