package main

import (
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

// A narrator writes one line at a time, with the time since the beginning.
type narrator struct {
	mu     sync.Mutex
	w      io.Writer
	began  time.Time
	quiet  bool // events are only counted
	events map[string]int
}

func (n *narrator) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(n.w, "%7.1fs  %s\n", time.Since(n.began).Seconds(), fmt.Sprintf(format, args...))
}

// event tells of something that went wrong on purpose.
func (n *narrator) event(format string, args ...any) {
	if !n.quiet {
		n.say("    "+format, args...)
	}
}

// count counts a torment by its name.
func (n *narrator) count(torment string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events[torment]++
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
