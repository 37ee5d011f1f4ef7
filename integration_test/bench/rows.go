package main

import (
	"fmt"
	"slices"
)

// A row is one comparison. Several may have the id of one target. Its peer is mostly
// River, at times ourselves in better days, and where its kind is empty nobody.
type row struct {
	id, work, unit string
	ours, peer     measurement
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

func fractionOf(x float64, what string) target {
	return target{fmt.Sprintf("≥ %g of %s", x, what), func(o, p float64) bool { return o >= x*p }}
}

func atMost(x float64, unit string) target {
	return target{fmt.Sprintf("≤ %g %s", x, unit), func(o, _ float64) bool { return o <= x }}
}

func atLeast(x float64, unit string) target {
	return target{fmt.Sprintf("≥ %s %s", number(x), unit), func(o, _ float64) bool { return o >= x }}
}

func timesPlain(x float64) target {
	return target{fmt.Sprintf("≤ %g × the plain handler", x), func(o, p float64) bool { return o <= x*p }}
}

func timesByHand(x float64) target {
	return target{fmt.Sprintf("≤ %g × keys kept by hand", x), func(o, p float64) bool { return o <= x*p }}
}

func timesSQS(x float64) target {
	return target{fmt.Sprintf("≥ %g × SQS alone", x), func(o, p float64) bool { return o >= x*p }}
}

var atMostRiver = target{"≤ River", func(o, p float64) bool { return o <= p }}

func rate(s sample) float64   { return s.rate }
func memory(s sample) float64 { return s.rss }
func disk(s sample) float64   { return s.disk }
func wal(s sample) float64    { return s.wal }
func p50(s sample) float64    { return 1e3 * s.p50.Seconds() }
func p99(s sample) float64    { return 1e3 * s.p99.Seconds() }
func took(s sample) float64   { return s.took.Seconds() }
func micros(s sample) float64 { return 1e6 * s.took.Seconds() }

func us(k kind) measurement     { return measurement{ours, k} }
func theirs(k kind) measurement { return measurement{peer, k} }

var nobody measurement

var rows = []row{
	{
		id: "T1", work: "work single jobs", unit: "jobs/s",
		ours: us(burnSingles), peer: theirs(burnSingles), value: rate, target: timesRiver(2),
		note: func(o options) string {
			return fmt.Sprintf("%s no-op jobs, each its own message, stored before; one worker process a side, %s slots, %d connections; River with the settings of its own benchmark; from the start of the worker until the database counts every fact (River: every completed row)",
				count(o.n), count(slots), poolSize)
		},
	},
	{
		id: "T2", work: "work one fan-out", unit: "jobs/s",
		ours: us(burnFanOut), peer: theirs(burnSingles), value: rate, target: timesRiver(5),
		note: func(o options) string {
			return fmt.Sprintf("%s no-op jobs from one fan-out over an SQL source; ours includes reading the source, planning and sending, River's figure is that of T1 and leaves its inserts out",
				count(o.n))
		},
	},
	{
		id: "T3", work: "one-row effects, with their facts", unit: "jobs/s",
		ours: us(burnEffects), peer: theirs(burnEffects), value: rate, target: timesRiver(30),
		note: func(o options) string {
			return fmt.Sprintf("%s jobs from one fan-out that insert a row each, by DoMany, %d of them and their facts in a transaction; River: %s jobs, stored before, that insert the row and complete themselves by JobCompleteTx in a transaction each; its settings for throughput",
				count(o.n), effectsAtOnce, count(o.jobs(theirs(burnEffects))))
		},
	},
	{
		id: "T4", work: "work verifiable jobs", unit: "jobs/s",
		ours: us(burnVerified), peer: theirs(burnSingles), value: rate, target: timesRiver(1.5),
		note: func(o options) string {
			return fmt.Sprintf("as T2, but each of the %s jobs is Verifiable(0) with a done-check that says no: a claim is committed before the body runs, and gives way to the fact after it",
				count(o.n))
		},
	},
	{
		id: "T5", work: "re-run of what is nearly done, entities/s", unit: "entities/s",
		ours: us(rerunDone), peer: nobody, value: rate, target: atLeast(500_000, "entities/s"),
		note: func(o options) string {
			return fmt.Sprintf("a re-run over an SQL source that names %s entities, of which %s are missing among %s facts; from the start of the worker until the missing have their facts; fails if anything was written to the ledger or the claims but for those",
				count(o.facts/10), count(o.jobs(us(rerunDone))), count(o.facts))
		},
	},
	{
		id: "T6", work: "enqueue one by one", unit: "jobs/s",
		ours: us(insertOne), peer: theirs(insertOne), value: rate, target: timesRiver(0.9),
		note: func(o options) string {
			return fmt.Sprintf("%s jobs, each enqueued in a transaction of its own by one of %d goroutines", count(o.jobs(us(insertOne))), inserters)
		},
	},
	{
		id: "T6", work: "enqueue in bulk", unit: "jobs/s",
		ours: us(insertMany), peer: theirs(insertMany), value: rate, target: timesRiver(10),
		note: func(o options) string {
			return fmt.Sprintf("ours: one fan-out of %s from an SQL source, from the start of the worker until the plan is sealed and every message stored; River: InsertMany of %s in batches of %s by one goroutine",
				count(o.jobs(us(insertMany))), count(o.jobs(theirs(insertMany))), count(batch))
		},
	},
	{
		id: "T7", work: "pick-up, half of the jobs", unit: "ms",
		ours: us(pickUp), peer: theirs(pickUp), value: p50, target: atMost(5, "ms"),
		note: func(options) string {
			return fmt.Sprintf("%d jobs/s at random moments for %s, each enqueued in a transaction of its own; from just before its commit to the first line of the job's body, in one process that does nothing else; defaults (ours: 16 slots; River: MaxWorkers %d)",
				pickUpRate, pickUpLength, riverWorkers)
		},
	},
	{
		id: "T7", work: "pick-up, 99 of 100 jobs", unit: "ms",
		ours: us(pickUp), peer: theirs(pickUp), value: p99, target: atMost(25, "ms"),
		note: func(options) string { return "the 99th percentile of the same jobs" },
	},
	{
		id: "T8", work: "enqueue and work under an old snapshot", unit: "jobs/s",
		ours: us(loopHeld), peer: us(loopClean), value: rate, target: fractionOf(0.7, "the clean rate"),
		note: func(o options) string {
			return fmt.Sprintf("one process enqueues packs of %d, at most %s jobs ahead, and works them, while another session holds a snapshot from before; the rate is that of the last half of %s; beside it the same without that session; facts counted by their time",
				packSize, count(backlog), o.hold)
		},
	},
	{
		id: "T9", work: "work behind many facts", unit: "jobs/s",
		ours: us(burnSequential), peer: us(burnFanOut), value: rate, target: fractionOf(0.75, "T2"),
		note: func(o options) string {
			return fmt.Sprintf("T2 with %s facts of the same job type in the ledger, whose keys are all lower than the new ones; beside it T2 on an empty ledger",
				count(o.facts))
		},
	},
	{
		id: "T9", work: "work among many facts", unit: "jobs/s",
		ours: us(burnRandom), peer: us(burnFanOut), value: rate, target: fractionOf(0.3, "T2"),
		note: func(options) string { return "the same with random keys, old and new, come in random order" },
	},
	{
		id: "T10", work: "worker memory", unit: "MiB",
		ours: us(burnFanOut), peer: theirs(burnSingles), value: memory, target: atMostRiver,
		note: func(options) string {
			return "the most resident memory (VmHWM) of the worker process during the burn-downs of T2 and, for River, T1"
		},
	},
	{
		id: "T10", work: "disk per job", unit: "B",
		ours: us(burnFanOut), peer: theirs(burnSingles), value: disk, target: atMost(170, "B"),
		note: func(options) string {
			return "table and indexes of the ledger per fact, entities of 24 bytes, right after T2; River: river_job per completed row, which its cleaner deletes after a day"
		},
	},
	{
		id: "T10", work: "WAL per job", unit: "B",
		ours: us(burnFanOut), peer: theirs(burnSingles), value: wal, target: atMost(400, "B"),
		note: func(options) string {
			return "WAL written per job from before the enqueueing until all are done, that of vacuum between the two left out"
		},
	},
	{
		id: "T11", work: "work single jobs from SQS", unit: "jobs/s",
		ours: us(sqsSingles), peer: us(sqsAlone), value: rate, target: fractionOf(0.5, "SQS alone"),
		note: func(o options) string {
			return fmt.Sprintf("%s messages of one job are sent to fauxqs, received, worked, recorded and deleted, ten at a time; from the first send until the database counts every fact and SQS nothing; beside it as many messages sent, received and deleted with the SDK alone, %d batches on their way at once",
				count(o.jobs(us(sqsSingles))), sqsClients)
		},
	},
	{
		id: "T11", work: "work packs from SQS", unit: "jobs/s",
		ours: us(sqsPacks), peer: us(sqsAlone), value: rate, target: timesSQS(10),
		note: func(o options) string {
			return fmt.Sprintf("the same with %s jobs in packs of %d", count(o.jobs(us(sqsPacks))), packSize)
		},
	},
	{
		id: "T12", work: "take over from a killed worker", unit: "s",
		ours: us(takeover), peer: nobody, value: took, target: atMost(20, "s"),
		note: func(options) string {
			return fmt.Sprintf("a worker is killed with -9 while it runs %s Verifiable(0) jobs, whose messages and claims it holds; until %d others, idle so far and with defaults, have recorded a fact for each. River's default for a lost job (RescueStuckJobsAfter) is an hour, and not measured",
				count(heldJobs), survivors)
		},
	},
	{
		id: "T13", work: "work 1 ms jobs in 16 slots", unit: "jobs/s",
		ours: us(burnBusy), peer: theirs(burnBusy), value: rate, target: atLeast(8000, "jobs/s"),
		note: func(o options) string {
			return fmt.Sprintf("%s jobs that sleep for a millisecond by the runtime's timer, each its own message, stored before; one process with defaults (16 slots), %d connections; River with defaults and MaxWorkers 16 on %s jobs",
				count(o.jobs(us(burnBusy))), poolSize, count(o.jobs(theirs(burnBusy))))
		},
	},
	{
		id: "H1", work: "answer a request that inserts a row", unit: "µs",
		ours: us(doorGuarded), peer: us(doorPlain), value: micros, target: timesPlain(1.6),
		note: func(o options) string {
			return fmt.Sprintf("%s POSTs with a key each, %d at a time over HTTP on this machine, behind ledgerhttp: row, fact and answer in one transaction; beside it the same handler without a key, its row in a transaction of its own; mean time of a request, %d connections to the database",
				count(o.jobs(us(doorGuarded))), doorClients, doorClients)
		},
	},
	{
		id: "H1", work: "the same beside keys kept by hand", unit: "µs",
		ours: us(doorGuarded), peer: us(doorByHand), value: micros, target: timesByHand(1.25),
		note: func(options) string {
			return "beside it the same handler as it is written without a library: in its transaction it inserts the key into a table of its own, and at the end its status, headers and body beside the key; no caller, no limit of time, no fact for ever, no cleaning up"
		},
	},
}

// needed lists what the rows measure, each once, the sides in turn.
func needed(chosen []row, only string) []measurement {
	var out []measurement
	add := func(m measurement) {
		if m != nobody && (only == "" || only == m.side) && !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	for _, r := range chosen {
		add(r.peer)
		add(r.ours)
	}
	return out
}

func (r row) sumUp(samples map[measurement][]sample, o options) result {
	pick := func(m measurement) spread {
		var values []float64
		for _, s := range samples[m] {
			values = append(values, r.value(s))
		}
		return spreadOf(values)
	}
	a, b := pick(r.ours), pick(r.peer)
	res := result{
		ID: r.id, Work: r.work, Unit: r.unit,
		Ours: a.median, OursMin: a.min, OursMax: a.max,
		Peer: b.median, PeerMin: b.min, PeerMax: b.max,
		Target: r.target.text, Runs: o.runs, Note: r.note(o),
	}
	if b.median > 0 {
		res.Ratio = a.median / b.median
	}
	res.judged = a.median > 0 && (b.median > 0 || r.peer == nobody)
	res.Met = res.judged && r.target.met(a.median, b.median)
	return res
}
