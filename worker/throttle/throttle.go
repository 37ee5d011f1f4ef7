// Package throttle asks a database whether it can bear more work.
//
// A [Signal] is one question, a [Reading] its answer: go, wait, or unknown, with a reason
// in words that are shown to people. A [Gauge] asks a set of signals, each at most once
// in an interval, and finds the first that says wait. None outvotes another: one that
// says wait is enough. One that cannot be read says unknown, with why, and never holds
// anything up by itself: a missing privilege must not stop work for ever.
//
// (There is no score that is made of many signals: nobody could say what to do about a
// load of 0.7, but everybody can about "the oldest transaction is 312 s old".)
package throttle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// A Verdict is what a signal says about more work.
type Verdict string

// The verdicts. The empty one stands for none of them.
const (
	Go      Verdict = "go"
	Wait    Verdict = "wait"
	Unknown Verdict = "unknown" // it could not be read; holds up nothing by itself
)

// A Reading is the answer of one signal.
type Reading struct {
	Signal  string    `json:"signal"` // its name
	Verdict Verdict   `json:"verdict"`
	Reason  string    `json:"reason"` // for people: the value that was measured, and its bound
	At      time.Time `json:"at"`     // by the database's clock, or by ours where it could not be asked
}

// A Signal is one question to the database, or to anything else.
type Signal struct {
	// Name is what people know it by, unique in its gauge. Required.
	Name string

	// Read answers, with a reason that names the value measured and its bound. Required.
	//
	// tx is a read-only transaction of its own that is rolled back afterwards, whose
	// statement_timeout and lock_timeout are Timeout; ctx ends soon after. An error is the
	// verdict [Unknown] with the error as its reason. A panic is one too.
	Read func(ctx context.Context, tx pgx.Tx) (v Verdict, reason string, err error)

	// Timeout bounds one reading, the wait for a connection included. 0: 2 s.
	Timeout time.Duration

	wrong error // what is wrong with the bounds it was made with
}

// check says why s cannot be asked.
func (s Signal) check() error {
	switch {
	case s.Name == "":
		return errors.New("a signal has no name")
	case s.wrong != nil:
		return fmt.Errorf("signal %q: %w", s.Name, s.wrong)
	case s.Read == nil:
		return fmt.Errorf("signal %q has no Read", s.Name)
	case s.Timeout < 0:
		return fmt.Errorf("signal %q: its Timeout is negative", s.Name)
	}
	return nil
}

// defaultTimeout is far more than any of our own queries takes on a database that is well.
const defaultTimeout = 2 * time.Second

func (s Signal) timeout() time.Duration {
	if s.Timeout == 0 {
		return defaultTimeout
	}
	return s.Timeout
}

// Defaults are signals that any Postgres can answer, with bounds that a database in normal
// use stays within: a standby replays within 10 s, no transaction is older than 5 minutes,
// at most 80 % of the connections are taken, and at most 5 sessions wait for a lock.
func Defaults() []Signal {
	return []Signal{
		ReplicaLag(10 * time.Second),
		OldestTransaction(5 * time.Minute),
		Connections(0.8),
		LockWaits(5),
	}
}

// span writes a duration as people read it: coarse when it is long.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 10*time.Second:
		return fmt.Sprintf("%.3g s", d.Seconds())
	case d < 10*time.Minute:
		return fmt.Sprintf("%d s", int64(d.Seconds()))
	}
	return d.Round(time.Minute).String()
}
