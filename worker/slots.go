package worker

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// slots start work as they free, first come first served. A slot is a goroutine that
// takes one task after the other and ends when there is none: a pack of a hundred quick
// items costs no hundred goroutines, and one slow item holds up no other slot.
type slots struct {
	run      func([]*item) // works one task to its end; a task is one item, or many for DoMany
	max      int
	reopened func() // there is more room: in a line that was found full, or beside it

	mu       sync.Mutex
	lines    []*line         // the first is for all types without a limit
	limited  map[*kind]*line // of the types with one
	turn     int             // the line that was last taken from
	active   map[*slot]struct{}
	working  int  // of those that have a task which counts
	starting bool // a slot has been started and has not taken its first task
	closed   bool
	empty    sync.Cond // active became empty
}

// A slot is one running goroutine.
type slot struct {
	line  *line // of its task, which counts there as running; owned by the mutex of slots
	task  atomic.Pointer[[]*item]
	since atomic.Int64 // when the body started, in Unix nanoseconds; 0: it is not in a body
}

func newSlots(max int, run func([]*item), reopened func()) *slots {
	s := &slots{run: run, max: max, reopened: reopened, lines: []*line{{}}, limited: map[*kind]*line{}, active: map[*slot]struct{}{}}
	s.empty.L = &s.mu
	return s
}

// limit gives k a line of its own. Call it before the first add.
func (s *slots) limit(k *kind) *line {
	ln := newLine(k.Limit, k.FleetLimit)
	s.lines, s.limited[k] = append(s.lines, ln), ln
	ln.timer = time.AfterFunc(time.Hour, s.look)
	return ln
}

// beside gives k a line of its own whose tasks take none of the slots that there are: a
// run must be looked after, paused and cancelled while long work has them all. Call it
// before the first add.
func (s *slots) beside(k *kind) {
	ln := newLine(jobs.Limit{Running: 1}, jobs.Limit{})
	ln.beside = true
	s.lines, s.limited[k] = append(s.lines, ln), ln
	ln.timer = time.AfterFunc(time.Hour, s.look)
}

// add hands tasks of one kind over.
func (s *slots) add(k *kind, tasks [][]*item) {
	if len(tasks) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ln := s.limited[k]; ln != nil {
		ln.push(tasks)
		s.reopened() // they take no room from other types any more
	} else {
		s.lines[0].push(tasks)
	}
	s.start()
}

// look starts what may start by now.
func (s *slots) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.start()
}

// start starts a slot, if there is work and one is free. Each slot starts the next when
// it has taken its first task; so slow work fills all slots at once, and work that is
// done in a microsecond does not pay for goroutines that find nothing left.
func (s *slots) start() {
	if s.starting || s.closed || s.first() == nil {
		return
	}
	s.starting = true
	sl := &slot{}
	s.active[sl] = struct{}{}
	go s.loop(sl)
}

// first is the line whose turn it is, of those whose first task may start now. A line
// where only time is in the way has its timer set.
func (s *slots) first() *line {
	for i := range s.lines {
		n := (s.turn + 1 + i) % len(s.lines)
		ln := s.lines[n]
		if s.working >= s.max && !ln.beside {
			continue
		}
		ok, wait := ln.may()
		if ok {
			s.turn = n
			return ln
		}
		if wait > 0 {
			ln.timer.Reset(wait)
		}
	}
	return nil
}

func (s *slots) loop(sl *slot) {
	defer s.leave(sl) // also when a body ends the goroutine
	for first := true; ; first = false {
		task := s.next(sl, first)
		if task == nil {
			break
		}
		for _, it := range task {
			it.slot = sl
		}
		sl.task.Store(&task)
		s.run(task)
		sl.task.Store(nil)
	}
}

func (s *slots) leave(sl *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, sl)
	s.leaveLine(sl)
	s.start() // a task may have come between the last look and now
	if len(s.active) == 0 {
		s.empty.Broadcast()
	}
}

func (s *slots) next(sl *slot, first bool) []*item {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first {
		s.starting = false
	}
	s.leaveLine(sl)
	if s.closed {
		return nil
	}
	ln := s.first()
	if ln == nil {
		return nil
	}
	sl.line = ln
	if !ln.beside {
		s.working++
	}
	task := ln.pop()
	s.open(ln)
	s.start()
	return task
}

// leaveLine says that its task has ended.
func (s *slots) leaveLine(sl *slot) {
	if sl.line != nil {
		if !sl.line.beside {
			s.working--
		}
		sl.line.running--
		sl.line = nil
	}
}

// hungry tells whether a task without a limit that came now would start at once.
func (s *slots) hungry() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines[0].items == 0 && s.working < s.max
}

// full are the kinds of which no more should be received for now, with how many of their
// items wait; where the fleet has no permit for us, as if they were without number, for
// they do not wait here. lined is how many items of limited kinds wait.
func (s *slots) full() (kinds map[*kind]int, lined int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, ln := range s.limited {
		lined += ln.items
		if ln.found = ln.full(s.max); ln.found {
			if kinds == nil {
				kinds = map[*kind]int{}
			}
			kinds[k] = ln.items
			if ln.fleet != nil && ln.fleet.refused {
				kinds[k] = math.MaxInt32
			}
		}
	}
	return kinds, lined
}

// open says so when there is room again in a line that was found full.
func (s *slots) open(ln *line) {
	if ln.found && !ln.full(s.max) {
		ln.found = false
		s.reopened()
	}
}

// drain starts nothing any more, and hands back what has not started.
func (s *slots) drain(giveBack func([]*item)) {
	s.mu.Lock()
	s.closed = true
	for _, ln := range s.limited {
		ln.timer.Stop()
	}
	s.mu.Unlock()
	s.shed(giveBack)
}

// shed hands back what has not started: of all lines, or of those given.
func (s *slots) shed(giveBack func([]*item), of ...*line) {
	if len(of) == 0 {
		of = s.lines
	}
	var waiting [][][]*item
	s.mu.Lock()
	for _, ln := range of {
		waiting = append(waiting, ln.tasks...)
		ln.tasks, ln.items = nil, 0
	}
	s.mu.Unlock()
	for _, tasks := range waiting {
		for _, task := range tasks {
			giveBack(task)
		}
	}
}

// wait tells whether all slots have ended within d.
func (s *slots) wait(d time.Duration) bool {
	expired := false
	timer := time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		expired = true
		s.empty.Broadcast()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.active) > 0 && !expired {
		s.empty.Wait()
	}
	return len(s.active) == 0
}

func (s *slots) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.active)
}

// running calls f with the items of all tasks that have a slot.
func (s *slots) running(f func(*item)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sl := range s.active {
		if task := sl.task.Load(); task != nil {
			for _, it := range *task {
				f(it)
			}
		}
	}
}

// overdue returns the tasks whose body has run for grace longer than its timeout, of those
// that take a slot from others.
func (s *slots) overdue(now time.Time, grace time.Duration) (tasks [][]*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sl := range s.active {
		since, task := sl.since.Load(), sl.task.Load()
		if since == 0 || task == nil || sl.line != nil && sl.line.beside {
			continue
		}
		if limit := (*task)[0].kind.Erased.Timeout + grace; now.Sub(time.Unix(0, since)) > limit {
			tasks = append(tasks, *task)
		}
	}
	return tasks
}

// stuck names the bodies that ignore the end of their context.
func (s *slots) stuck(grace time.Duration) (names []string) {
	for _, task := range s.overdue(time.Now(), grace) {
		names = append(names, fmt.Sprintf("%s %q", task[0].kind.name, task[0].Entity))
	}
	return names
}
