package matrix_test

import (
	"slices"
	"strings"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A scenario is some work of one class in one shape, from the first send to its end.
type scenario struct {
	shape, class string
	over         carrier
	traits
	lease   time.Duration     // 0: the usual one
	slots   int               // of a worker
	prepare string            // SQL, before anything
	sends   []queue.Message   // at the beginning
	clocks  []worker.Schedule // that the workers declare
	things  int               // the entities are "1" to this number; each must end as a fact, or in doubt where that may be
	steps   []step            // what happens on the way
	done    string            // SQL: true at the end, beside what holds for all; empty: nothing more
	facts   int               // that an entity may have, one after the other; 0: 1
	parked  int               // inputs that must be kept aside
	starts  bool              // faults may also befall what a worker writes when it starts and stops
	lasts   bool              // and what it writes to keep its lease and its messages
}

// A step is taken when the query until is true.
type step struct {
	until string
	take  func(w *world)
}

func (s *scenario) String() string { return s.shape + "/" + s.class }

// define returns the jobs of its class, or of all.
func (s *scenario) define(o *outside) (all []jobs.Definition) {
	for name, kit := range kits {
		if name == s.class || s.class == "all" {
			all = append(all, kit.define(o)...)
		}
	}
	return all
}

// begun: a body has begun.
const begun = `SELECT EXISTS (SELECT FROM try)`

// failsOnce fails a first try after its effect, or before it where that is all that allows another.
func failsOnce(class, entity string, try int) failure {
	switch {
	case class == "doMany" && entity == "2" && try <= 3: // in its pack, in half of it, and alone
		return before
	case class == "doMany" || try > 1:
		return no
	case class == "once":
		return before
	}
	return after
}

func always(d time.Duration) func(int) time.Duration { return func(int) time.Duration { return d } }

// scenarios are all there are, by their names.
var scenarios, names = func() (map[string]*scenario, []string) {
	all := map[string]*scenario{}
	var names []string
	add := func(s scenario) {
		all[s.String()], names = &s, append(names, s.String())
	}
	one := func(class string) []queue.Message { return []queue.Message{message(kits[class].thing(1))} }
	pack := func(class string, n int) []queue.Message {
		var args []jobs.Args
		for i := range n {
			args = append(args, kits[class].thing(i+1))
		}
		return []queue.Message{message(args...)}
	}
	outsideClasses := []string{"repeatable", "keyed", "verifiable", "once"}
	everyClass := append(outsideClasses, "doTx", "doMany")

	for _, class := range everyClass {
		add(scenario{shape: "single", class: class, slots: 1, sends: one(class), things: 1, starts: class == "once"})
		add(scenario{shape: "pack", class: class, slots: 3, sends: pack(class, 3), things: 3})
		add(scenario{shape: "retry", class: class, slots: 3, sends: pack(class, 3), things: 3, traits: traits{fails: failsOnce}})
	}
	add(scenario{shape: "apart", class: "once", slots: 2, sends: append(one("once"), message(kits["once"].thing(2))), things: 2})
	for _, class := range []string{"keyed", "once", "doTx"} {
		// Longer than a visibility timeout and a lease.
		add(scenario{shape: "long", class: class, slots: 2, sends: pack(class, 2), things: 2,
			traits: traits{takes: always(1300 * time.Millisecond)}, lasts: true})
		// The worker is asked to stop while one runs and others wait.
		add(scenario{shape: "stop", class: class, slots: 1, sends: pack(class, 2), things: 2,
			traits: traits{takes: func(try int) time.Duration { return time.Second / time.Duration(try*try) }},
			steps:  []step{{begun, func(w *world) { w.victim.stop(); w.noteHeld(); w.startSecond() }}}})
		// Done once, then asked for anew.
		add(scenario{shape: "forced", class: class, slots: 2, sends: pack(class, 2), things: 2, facts: 2,
			steps: []step{{`SELECT (SELECT count(*) FROM oncemore.ledger) + (SELECT count(*) FROM oncemore.claim WHERE trouble = 'in_doubt') = 2`, func(w *world) {
				if class == "once" {
					w.resolve() // a doubt outranks what is forced
				}
				m := pack(class, 2)[0]
				m.Epoch = 7
				w.send(m)
			}}},
			done: `SELECT NOT EXISTS (SELECT FROM oncemore.ledger l WHERE l.epoch IS NULL AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.entity = l.entity))`})
	}
	for _, class := range []string{"doTx", "once", "repeatable"} {
		add(scenario{shape: "fan-out", class: class, slots: 3, things: 5, starts: class == "doTx",
			sends: []queue.Message{message(kits[class].call(5, class == "once"))}})
	}
	for _, class := range []string{"keyed", "once"} {
		// An outage outlasts all attempts of a fan-out's items. It is called again afterwards.
		add(scenario{shape: "call again", class: class, slots: 3, things: 3, prepare: `INSERT INTO outage VALUES (1)`,
			traits: traits{outage: true, policy: jobs.Policy{Attempts: 2}},
			sends:  []queue.Message{message(kits[class].call(3, class == "once"))},
			steps: []step{{`SELECT EXISTS (SELECT FROM oncemore.run WHERE ended_at IS NOT NULL)`, func(w *world) {
				w.exec(`DELETE FROM outage`)
				w.send(message(kits[class].call(3, class == "once")))
			}}}})
	}
	add(scenario{shape: "doubt", class: "verifiable", slots: 2, sends: pack("verifiable", 2), things: 2,
		traits: traits{silent: true, fails: func(_, _ string, try int) failure {
			if try == 1 {
				return before
			}
			return no
		}}, done: `SELECT NOT EXISTS (SELECT FROM oncemore.claim)`})
	// The worker is declared dead while a deaf body runs. Another takes over and completes
	// with the same source; the late success is disputed, and the work done once more.
	late := thing[repeatable]{N: 1, Revision: 1}
	add(scenario{shape: "late", class: "repeatable", slots: 1, sends: []queue.Message{message(late)}, things: 1, facts: 2,
		traits: traits{deaf: true, takes: func(try int) time.Duration {
			if try == 1 {
				return 2500 * time.Millisecond
			}
			return 5 * time.Millisecond
		}},
		steps: []step{{begun, func(w *world) {
			w.exec(`UPDATE oncemore.worker SET dead_at = clock_timestamp(), cause = 'lapsed' WHERE name = 'victim' AND dead_at IS NULL`)
			w.startSecond()
		}}}})
	// A fact, and beside it a claim that nobody holds: what a crash can leave.
	add(scenario{shape: "swept", class: "once", slots: 1, sends: one("once"), things: 1, prepare: `
INSERT INTO oncemore.job_type (name, effect) VALUES ('once', 'Once');
INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence) SELECT id, '1', 0, 1, 'a' FROM oncemore.job_type;
INSERT INTO oncemore.claim (fence, job_type, entity, trouble, fingerprint, epoch, source_version, run, attempts, args)
SELECT nextval('oncemore.fence'), id, '1', 'retrying', 0, 0, 0, 0, 1, '{"n":1}' FROM oncemore.job_type`,
		done: `SELECT NOT EXISTS (SELECT FROM oncemore.claim)`})
	// Input that cannot be worked, between input that can.
	odd := pack("once", 2)[0]
	odd.Items = append(odd.Items, queue.Item{Entity: "3", Args: []byte(`{"n":4}`)}, odd.Items[0], message(thing[once]{N: 2, Text: "other"}).Items[0])
	add(scenario{shape: "odd", class: "once", slots: 2, sends: []queue.Message{odd}, things: 2, parked: 2})
	add(scenario{shape: "limited", class: "keyed", slots: 3, sends: pack("keyed", 3), things: 3,
		traits: traits{policy: jobs.Policy{FleetLimit: jobs.Limit{Running: 1, Rate: 100}}}})
	add(scheduled)
	statistics.sends = one(statistics.class)
	add(statistics)
	for _, s := range withResults(pack) {
		add(s)
	}
	add(transitions)
	for _, s := range reruns() {
		add(s)
	}
	return all, names
}()

func shapes() (list []string) {
	for _, name := range names {
		shape, _, _ := strings.Cut(name, "/")
		if !slices.Contains(list, shape) {
			list = append(list, shape)
		}
	}
	return list
}

func classesOf(shape string) (list []string) {
	for _, name := range names {
		if s := scenarios[name]; s.shape == shape {
			list = append(list, s.class)
		}
	}
	return list
}
