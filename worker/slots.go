package worker

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// slots start work as they free, first come first served. A slot is a goroutine that
// takes one task after the other and ends when there is none: a pack of a hundred quick
// items costs no hundred goroutines, and one slow item holds up no other slot.
type slots struct {
	run func([]*item) // works one task to its end; a task is one item, or many for DoMany
	max int

	mu       sync.Mutex
	waiting  [][][]*item // tasks in the order they came, by the parcel they came in
	active   map[*slot]struct{}
	starting bool // a slot has been started and has not taken its first task
	closed   bool
	empty    sync.Cond // active became empty
}

// A slot is one running goroutine.
type slot struct {
	task  atomic.Pointer[[]*item]
	since atomic.Int64 // when the body started, in Unix nanoseconds; 0: it is not in a body
}

func newSlots(max int, run func([]*item)) *slots {
	s := &slots{run: run, max: max, active: map[*slot]struct{}{}}
	s.empty.L = &s.mu
	return s
}

// add hands tasks over.
func (s *slots) add(tasks [][]*item) {
	if len(tasks) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = append(s.waiting, tasks)
	s.start()
}

// start starts a slot, if there is work and one is free. Each slot starts the next when
// it has taken its first task; so slow work fills all slots at once, and work that is
// done in a microsecond does not pay for goroutines that find nothing left.
func (s *slots) start() {
	if s.starting || s.closed || len(s.waiting) == 0 || len(s.active) >= s.max {
		return
	}
	s.starting = true
	sl := &slot{}
	s.active[sl] = struct{}{}
	go s.loop(sl)
}

func (s *slots) loop(sl *slot) {
	defer s.leave(sl) // also when a body ends the goroutine
	for first := true; ; first = false {
		task := s.next(first)
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
	s.start() // a task may have come between the last look and now
	if len(s.active) == 0 {
		s.empty.Broadcast()
	}
}

func (s *slots) next(first bool) []*item {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first {
		s.starting = false
	}
	if s.closed || len(s.waiting) == 0 {
		return nil
	}
	tasks := s.waiting[0]
	task := tasks[0]
	if len(tasks) > 1 {
		s.waiting[0] = tasks[1:]
	} else {
		s.waiting[0] = nil
		s.waiting = s.waiting[1:]
	}
	s.start()
	return task
}

// hungry tells whether a task that came now would start at once.
func (s *slots) hungry() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) == 0 && len(s.active) < s.max
}

// drain starts nothing any more, and hands back what has not started.
func (s *slots) drain(giveBack func([]*item)) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.shed(giveBack)
}

// shed hands back what has not started.
func (s *slots) shed(giveBack func([]*item)) {
	s.mu.Lock()
	waiting := s.waiting
	s.waiting = nil
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

// overdue returns the tasks whose body has run for grace longer than its timeout.
func (s *slots) overdue(now time.Time, grace time.Duration) (tasks [][]*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sl := range s.active {
		since, task := sl.since.Load(), sl.task.Load()
		if since == 0 || task == nil {
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
