package worker

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// An attemptContext is the context of one body: it ends at the deadline or with its
// parent, and answers jobs.Current. The timer and the place among the parent's children
// are had only when somebody asks for Done, because most of the quickest bodies, which
// are run a hundred thousand times a second, never do.
type attemptContext struct {
	context.Context // the parent
	attempt         jobs.Attempt
	timeout         time.Duration
	deadline        time.Time
	timed           atomic.Pointer[timed]
}

type timed struct {
	context.Context
	cancel context.CancelFunc
	lose   context.CancelCauseFunc // ends it earlier, for that cause
}

func (c *attemptContext) Deadline() (time.Time, bool) {
	if d, ok := c.Context.Deadline(); ok && d.Before(c.deadline) {
		return d, true
	}
	return c.deadline, true
}

func (c *attemptContext) Done() <-chan struct{} { return c.real().Done() }

func (c *attemptContext) Err() error {
	if t := c.timed.Load(); t != nil {
		return t.Err()
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	if !time.Now().Before(c.deadline) {
		return c.real().Err()
	}
	return nil
}

// Value lets the standard library find the real context where there is one, so that
// children and context.Cause work as with any other.
func (c *attemptContext) Value(key any) any {
	if key == jobs.AttemptKey {
		return &c.attempt
	}
	if t := c.timed.Load(); t != nil {
		return t.Value(key)
	}
	return c.Context.Value(key)
}

func (c *attemptContext) real() context.Context {
	if t := c.timed.Load(); t != nil {
		return t
	}
	cause := fmt.Errorf("%w: the attempt took longer than its timeout of %s", context.DeadlineExceeded, c.timeout)
	losing, lose := context.WithCancelCause(c.Context)
	inner, end := context.WithDeadlineCause(losing, c.deadline, cause)
	cancel := func() { end(); lose(nil) }
	if !c.timed.CompareAndSwap(nil, &timed{inner, cancel, lose}) {
		cancel()
	}
	return c.timed.Load()
}

// lose ends it with a cause.
func (c *attemptContext) lose(cause error) {
	c.real()
	c.timed.Load().lose(cause)
}

// end frees what the context holds.
func (c *attemptContext) end() {
	if t := c.timed.Load(); t != nil {
		t.cancel()
	}
}
