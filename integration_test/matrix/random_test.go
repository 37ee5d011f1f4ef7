package matrix_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// Two workers and a producer, all classes and shapes side by side, over connections that
// are cut at random: before a batch, after it, between any two of its statements, and all
// of a process at once.
func TestI1NoLossWhenConnectionsAreCutAtRandom(t *testing.T) {
	t.Parallel()
	cutAtRandom(t, postgres)
}

// The same over an SQS that doubles, refuses and loses now and then.
func TestI1NoLossOverSQSWhenConnectionsAreCutAtRandom(t *testing.T) {
	t.Parallel()
	cutAtRandom(t, amazon)
}

// Attempts follow each other in 50 ms, so the cuts can take ten from one item: it would
// rightly have failed then, and this is about what nobody has to call again.
func cutAtRandom(t *testing.T, over carrier) {
	t.Logf("ONCEMORE_SEED=%d", seed())
	things, pause := 40, 4*time.Second
	if full() {
		things, pause = 300, 30*time.Second
	}
	s := &scenario{shape: "random", class: "all", over: over, slots: 8, lease: 5 * time.Second, traits: traits{policy: jobs.Policy{Attempts: 100}, fails: func(class, entity string, try int) failure {
		if strings.HasSuffix(entity, "3") {
			return failsOnce(class, entity, try)
		}
		return no
	}}}
	w := newWorld(t, newDatabase(t), s, strike{})
	// What the fake does at random may spare any call. So the first call of each kind, whoever
	// makes it, is struck for certain: there is no work without these three.
	certain := map[string]fault{"sqs: send": reportedLost, "sqs: receive": reportedLost, "sqs: delete": lost}
	doubled, first := 0, &firsts{faults: maps.Clone(certain)}
	if w.sqs != nil {
		w.sqs.SetFaults(sqsfake.Faults{Duplicates: 0.1, PartialFailures: 0.05, Throttled: 0.02, LostAnswers: 0.02, LostReceives: 0.02, LostAcks: 0.05, ExpiredHandles: 0.02, Seed: seed()})
	}
	taps := []*tap{w.producing, w.working, w.newTap(strike{})}
	var mu sync.Mutex
	cuts := 0
	for i, tap := range taps {
		tap.strikesFirst(first)
		random := pgproxy.Random(0.04, seed()+uint64(i))
		tap.proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
			tap.decide(b)
			f := random(b)
			if f != pgproxy.Pass {
				mu.Lock()
				defer mu.Unlock()
				cuts++
			}
			return f
		})
	}
	workers := []*run{w.inProcess("one", taps[1].proxy.DSN(), taps[1].address()), w.inProcess("two", taps[2].proxy.DSN(), taps[2].address())}

	random := rand.New(rand.NewPCG(seed(), 1))
	messages := allKinds(random, things)
	for _, m := range messages {
		w.send(m)
		if random.IntN(10) == 0 {
			w.send(messages[random.IntN(len(messages))]) // calling it once more is allowed
		}
		if random.IntN(8) == 0 {
			n := taps[random.IntN(len(taps))].proxy.CutAll()
			mu.Lock()
			cuts += n
			mu.Unlock()
		}
		time.Sleep(time.Duration(random.Int64N(2 * int64(pause) / int64(len(messages)))))
	}
	// Under cuts that go on it would end too; but not in a time that a test has.
	for _, tap := range taps {
		tap.proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault { tap.decide(b); return pgproxy.Pass })
	}
	if w.sqs != nil {
		doubled = len(messages) + w.sqs.Tally().HandedOut
		w.sqs.SetFaults(sqsfake.Faults{})
	}
	w.settle()
	for _, r := range workers {
		r.stop()
	}
	lives := ask[int](w, `SELECT count(*) FROM oncemore.worker`) - len(workers)
	left := ask[int](w, `SELECT count(*) FROM oncemore.claim c WHERE `+outranked)
	t.Logf("%d messages, %d cuts, %d leases lost or joined twice, %d claims left beside their facts", len(messages), cuts, lives, left)
	if cuts < 10 {
		t.Errorf("only %d connections were cut", cuts)
	}
	if w.sqs != nil {
		tally := w.sqs.Tally()
		t.Logf("of %d messages %d were doubled, of %d entries %d were refused", tally.HandedOut, tally.Duplicates, tally.Entries, tally.Refused)
		for name, f := range certain {
			if !slices.ContainsFunc(taps, func(tap *tap) bool { return slices.Contains(tap.hits(), point{name, f}) }) {
				t.Errorf("no %s was %s", name, f)
			}
		}
	}
	var broken []string
	for what, sql := range ofTheWhole {
		for _, found := range list(t, w.pool, sql) {
			broken = append(broken, what+": "+found)
		}
	}
	all := fates(t, w.pool)
	for class := range kits {
		for n := range things {
			f, is := all[class][fmt.Sprint(n+1)]
			if !is {
				broken = append(broken, fmt.Sprintf("I1: %s %d: lost", class, n+1))
				continue
			}
			b := bound{facts: 1, repeats: cuts + len(certain), begun: doubled, mayDoubt: lives > 0}
			if class == "repeatable" {
				b.repeats += doubled // two first deliveries at once may both have its effect
			}
			broken = append(broken, f.broken(b)...)
		}
	}
	if n := ask[int](w, `SELECT count(*) FROM oncemore.parked`); n > 0 {
		broken = append(broken, fmt.Sprintf("%d inputs are parked", n))
	}
	if len(broken) > 0 {
		t.Errorf("%s\n%s", strings.Join(broken, "\n"), w.story())
	}
}

// allKinds are messages that name the things from 1 to n of every class, alone, in packs
// and by calls, in random order.
func allKinds(random *rand.Rand, n int) (ms []queue.Message) {
	for _, class := range slices.Sorted(maps.Keys(kits)) {
		kit := kits[class]
		for from := 1; from <= n; {
			var pack []jobs.Args
			for size := 1 + random.IntN(5); size > 0 && from <= n; size-- {
				pack = append(pack, kit.thing(from))
				from++
			}
			ms = append(ms, message(pack...))
		}
		ms = append(ms, message(kit.call(7, true)), message(kit.call(n, false)), message(kit.call(n/2, false)))
	}
	random.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	return ms
}
