package main

import (
	"fmt"
	"strings"
	"time"
)

// The two sides.
const (
	ours = "ours"
	peer = "river"
)

// A kind of measurement; what it does is in measure.
type kind string

const (
	burnSingles    kind = "burn-down of single jobs"
	burnFanOut     kind = "burn-down of one fan-out"
	burnVerified   kind = "burn-down of verifiable jobs"
	burnSequential kind = "burn-down behind many facts"
	burnRandom     kind = "burn-down among many facts"
	burnEffects    kind = "burn-down of one-row effects"
	rerunDone      kind = "re-run of what is nearly done"
	burnBusy       kind = "burn-down of 1 ms jobs"
	insertOne      kind = "enqueue one by one"
	insertMany     kind = "enqueue in bulk"
	pickUp         kind = "pick-up"
	loopClean      kind = "enqueue-and-work loop"
	loopHeld       kind = "enqueue-and-work loop under an old snapshot"
	takeover       kind = "takeover from a killed worker"
	doorGuarded    kind = "requests behind the middleware"
	doorByHand     kind = "requests that keep their keys by hand"
	doorPlain      kind = "requests in a transaction"
	sqsSingles     kind = "single jobs over SQS"
	sqsPacks       kind = "packs of jobs over SQS"
	sqsAlone       kind = "messages of SQS alone"
	holding        kind = "hold jobs until killed" // what the worker to be killed does, and no measurement
)

// grown tells whether the ledger holds many facts already.
func (k kind) grown() bool { return k == burnSequential || k == burnRandom || k == rerunDone }

// planned tells whether the jobs come from a fan-out over an SQL source.
func (k kind) planned() bool {
	return k == burnFanOut || k == burnVerified || k == burnEffects || k == insertMany || k.grown()
}

// defaults tells whether the workers run as they come.
func (k kind) defaults() bool { return k == burnBusy || k == pickUp || k == takeover }

type measurement struct {
	side string
	kind kind
}

// A sample is what one measurement found; what a kind does not measure is 0.
type sample struct {
	rate     float64 // jobs per second
	rss      float64 // MiB: the most the worker process ever held (VmHWM)
	wal      float64 // bytes per job, enqueueing included
	disk     float64 // bytes of table and indexes per outcome
	p50, p99 time.Duration
	took     time.Duration
}

func (s sample) String() string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	if s.rate > 0 {
		add("%s jobs/s", number(s.rate))
	}
	if s.rss > 0 {
		add("%.0f MiB, %.0f B of WAL and %.0f B of disk a job", s.rss, s.wal, s.disk)
	}
	if s.p50 > 0 {
		add("p50 %s, p99 %s", s.p50.Round(time.Microsecond), s.p99.Round(time.Microsecond))
	}
	if s.took > 0 {
		add("%s", s.took.Round(time.Millisecond))
	}
	return strings.Join(parts, ", ")
}

// from is the number of the first job: those before it are done already.
func (o *options) from(k kind) int {
	if k.grown() {
		return o.facts
	}
	return 0
}

// jobs is how many a measurement has.
func (o *options) jobs(m measurement) int {
	switch m.kind {
	case insertOne, doorGuarded, doorByHand, doorPlain, sqsSingles, sqsAlone:
		return max(o.n/10, 1)
	case burnEffects:
		if m.side == peer {
			return max(o.n/20, 1) // at its rate
		}
	case rerunDone:
		return max(o.facts/10/donePerMissing, 1)
	case insertMany:
		if m.side == ours {
			return 5 * o.n
		}
	case burnBusy:
		if m.side == ours {
			return max(o.n/4, 1)
		}
		return max(o.n/100, 1) // at its rate that takes longer still
	}
	return o.n
}
