package main

import (
	"fmt"
	"slices"
)

// The two sides.
const (
	ours = "ours"
	peer = "river"
)

// A kind of measurement; what it does is in measure.
type kind string

const (
	burnSingles kind = "burn-down of single jobs"
	burnFanOut  kind = "burn-down of one fan-out"
	insertOne   kind = "enqueue one by one"
	insertMany  kind = "enqueue in bulk"
)

type measurement struct {
	side string
	kind kind
}

// A sample is what one measurement found; what a kind does not measure is 0.
type sample struct {
	rate float64 // jobs per second
	rss  float64 // MiB: the most the worker process ever held (VmHWM)
	wal  float64 // bytes per job, enqueueing included
	disk float64 // bytes of table and indexes per outcome
}

func (s sample) String() string {
	out := fmt.Sprintf("%s jobs/s", number(s.rate))
	if s.rss > 0 {
		out += fmt.Sprintf(", %.0f MiB, %.0f B of WAL and %.0f B of disk a job", s.rss, s.wal, s.disk)
	}
	return out
}

// A row is one comparison. Several may have the id of one target.
type row struct {
	id, work, unit string
	ours, peer     kind
	value          func(sample) float64
	target         target
	note           func(o options) string
}

type target struct {
	text string
	met  func(ours, peer float64) bool
}

func timesRiver(x float64) target {
	return target{fmt.Sprintf("≥ %g × River", x), func(o, p float64) bool { return o >= x*p }}
}

func atMost(x float64, unit string) target {
	return target{fmt.Sprintf("≤ %g %s", x, unit), func(o, _ float64) bool { return o <= x }}
}

var atMostRiver = target{"≤ River", func(o, p float64) bool { return o <= p }}

func rate(s sample) float64 { return s.rate }

var rows = []row{
	{
		id: "T1", work: "work single jobs", unit: "jobs/s",
		ours: burnSingles, peer: burnSingles, value: rate, target: timesRiver(2),
		note: func(o options) string {
			return fmt.Sprintf("%s no-op jobs, each its own message, stored before; one worker process a side, %s slots, %d connections; River with the settings of its own benchmark; from the start of the worker until the database counts every fact (River: every completed row)",
				number(float64(o.n)), number(slots), poolSize)
		},
	},
	{
		id: "T2", work: "work one fan-out", unit: "jobs/s",
		ours: burnFanOut, peer: burnSingles, value: rate, target: timesRiver(5),
		note: func(o options) string {
			return fmt.Sprintf("%s no-op jobs from one fan-out over an SQL source; ours includes reading the source, planning and sending, River's figure is that of T1 and leaves its inserts out",
				number(float64(o.n)))
		},
	},
	{
		id: "T6", work: "enqueue one by one", unit: "jobs/s",
		ours: insertOne, peer: insertOne, value: rate, target: timesRiver(0.9),
		note: func(o options) string {
			return fmt.Sprintf("%s jobs, each enqueued in a transaction of its own by one of %d goroutines", number(float64(o.singly())), inserters)
		},
	},
	{
		id: "T6", work: "enqueue in bulk", unit: "jobs/s",
		ours: insertMany, peer: insertMany, value: rate, target: timesRiver(10),
		note: func(o options) string {
			return fmt.Sprintf("ours: one fan-out of %s from an SQL source, from the start of the worker until the plan is sealed and every message stored; River: InsertMany of %s in batches of %s by one goroutine",
				number(float64(o.bulk(ours))), number(float64(o.bulk(peer))), number(batch))
		},
	},
	{
		id: "T10", work: "worker memory", unit: "MiB",
		ours: burnFanOut, peer: burnSingles, value: func(s sample) float64 { return s.rss }, target: atMostRiver,
		note: func(options) string {
			return "the most resident memory (VmHWM) of the worker process during the burn-downs of T2 and, for River, T1"
		},
	},
	{
		id: "T10", work: "disk per job", unit: "B",
		ours: burnFanOut, peer: burnSingles, value: func(s sample) float64 { return s.disk }, target: atMost(170, "B"),
		note: func(options) string {
			return "table and indexes of the ledger per fact, entities of 24 bytes, right after T2; River: river_job per completed row, which its cleaner deletes after a day"
		},
	},
	{
		id: "T10", work: "WAL per job", unit: "B",
		ours: burnFanOut, peer: burnSingles, value: func(s sample) float64 { return s.wal }, target: atMost(400, "B"),
		note: func(options) string {
			return "WAL written per job from before the enqueueing until all are done, that of vacuum between the two left out"
		},
	},
}

// singly is how many jobs are enqueued one by one, bulk how many in bulk by a side.
func (o options) singly() int { return max(o.n/10, 1) }
func (o options) bulk(side string) int {
	if side == ours {
		return 5 * o.n
	}
	return o.n
}

// needed lists what the rows measure, each once, the sides in turn.
func needed(chosen []row, only string) []measurement {
	var out []measurement
	add := func(m measurement) {
		if (only == "" || only == m.side) && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	for _, r := range chosen {
		add(measurement{peer, r.peer})
		add(measurement{ours, r.ours})
	}
	return out
}

func (r row) sumUp(samples map[measurement][]sample, o options) result {
	pick := func(side string, k kind) spread {
		var values []float64
		for _, s := range samples[measurement{side, k}] {
			values = append(values, r.value(s))
		}
		return spreadOf(values)
	}
	a, b := pick(ours, r.ours), pick(peer, r.peer)
	res := result{
		ID: r.id, Work: r.work, Unit: r.unit,
		Ours: a.median, OursMin: a.min, OursMax: a.max,
		Peer: b.median, PeerMin: b.min, PeerMax: b.max,
		Target: r.target.text, Runs: o.runs, Note: r.note(o),
	}
	if a.median > 0 && b.median > 0 {
		res.Ratio = a.median / b.median
		res.Met = r.target.met(a.median, b.median)
	}
	return res
}
