package worker

import (
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A line is where tasks wait for a slot, first come first served. What has no limit waits
// in one line, and every job type with a limit in a line of its own, so that it holds up
// nothing else: slots take from the lines in turn, and pass by those whose limit is
// reached. It is owned by the mutex of its slots.
type line struct {
	tasks [][][]*item // in the order they came, by the parcel they came in
	items int         // in tasks

	limit   jobs.Limit // of this worker
	running int        // tasks that have a slot
	pace    pace
	fleet   *grant // what the fleet lets us do; nil: there is no such limit
	timer   *time.Timer
	found   bool // full, when it was last asked
	beside  bool // its tasks take none of the slots
}

func newLine(own, fleet jobs.Limit) *line {
	ln := &line{limit: own, pace: pace{rate: own.Rate}}
	if fleet != (jobs.Limit{}) {
		ln.fleet = newGrant(fleet)
	}
	return ln
}

func (ln *line) push(tasks [][]*item) {
	ln.tasks = append(ln.tasks, tasks)
	for _, task := range tasks {
		ln.items += len(task)
	}
}

// may tells whether the first task may start now. Where only time is in the way, wait
// says how much of it.
func (ln *line) may() (ok bool, wait time.Duration) {
	if len(ln.tasks) == 0 || ln.limit.Running > 0 && ln.running >= ln.limit.Running {
		return false, 0
	}
	if ln.fleet == nil && ln.limit.Rate == 0 {
		return true, 0
	}
	now := time.Now()
	wait = ln.pace.wait(now)
	if ln.fleet != nil {
		if !ln.fleet.may(ln.running) {
			ln.fleet.ask()
			return false, 0
		}
		wait = max(wait, ln.fleet.pace.wait(now))
	}
	return wait <= 0, wait
}

// pop takes the first task, which may start.
func (ln *line) pop() []*item {
	tasks := ln.tasks[0]
	task := tasks[0]
	if len(tasks) > 1 {
		ln.tasks[0] = tasks[1:]
	} else {
		ln.tasks[0] = nil
		ln.tasks = ln.tasks[1:]
	}
	ln.items -= len(task)
	ln.running++
	if ln.limit.Rate > 0 {
		ln.pace.take(time.Now(), len(task))
	}
	if ln.fleet != nil {
		ln.fleet.take(time.Now(), len(task))
	}
	return task
}

// full tells whether enough of the type waits: a few times what may run at once, and not
// more than two seconds' worth of its rate.
func (ln *line) full(slots int) bool {
	running, rate := slots, ln.limit.Rate
	if n := ln.limit.Running; n > 0 {
		running = min(running, n)
	}
	if f := ln.fleet; f != nil {
		if f.limit.Running > 0 {
			running = min(running, f.bodies)
		}
		if r := f.limit.Rate; r > 0 && (rate == 0 || r < rate) {
			rate = r
		}
	}
	most := held(running)
	if f := ln.fleet; f != nil && f.limit.Running > 0 && f.bodies == 0 {
		if f.refused {
			return true
		}
		most = 1 // to ask for permits, one must know that there is work
	}
	if rate > 0 {
		most = min(most, max(1, int(2*rate)))
	}
	return ln.items >= most
}

// A pace spreads what begins evenly over time. It is the generic cell rate algorithm, which
// ATM networks police their cells with (ITU-T I.371): one time says all.
type pace struct {
	rate float64 // in a second; 0: as fast as it comes
	next time.Time
}

// burst is how far the pace may lag behind and then catch up at once, since timers are
// late. In any second no more begins than the rate and a tenth of it, and one.
const burst = 100 * time.Millisecond

// wait is how long until the next may begin.
func (p pace) wait(now time.Time) time.Duration {
	if p.rate == 0 {
		return 0
	}
	return p.next.Sub(now)
}

// take counts n that begin now, or are allowed to by then.
func (p *pace) take(now time.Time, n int) {
	if p.rate == 0 {
		return
	}
	if earliest := now.Add(-burst); p.next.Before(earliest) {
		p.next = earliest
	}
	p.next = p.next.Add(p.of(n))
}

// of is the time that n take.
func (p pace) of(n int) time.Duration {
	return time.Duration(float64(n) / p.rate * float64(time.Second))
}
