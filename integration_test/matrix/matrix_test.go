package matrix_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

// The cases wait for leases and timeouts much more than they compute.
const beside = "14"

func TestMain(m *testing.M) {
	if name := os.Getenv(workerEnv); name != "" {
		if err := workerProcess(name); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = parallel.Value.Set(beside)
	}
	code := pgtest.Main(m)
	count.print()
	os.Exit(code)
}

// count is of the cases of this process.
var count counter

type counter struct {
	mu     sync.Mutex
	cases  map[fault]int
	missed []string // cases whose write did not come
}

func (c *counter) add(name string, f fault, struck bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cases == nil {
		c.cases = map[fault]int{}
	}
	if struck {
		c.cases[f]++
	} else {
		c.missed = append(c.missed, name)
	}
}

func (c *counter) struck() (n int) {
	for _, cases := range c.cases {
		n += cases
	}
	return n
}

func (c *counter) print() {
	var parts []string
	for _, f := range faults {
		parts = append(parts, fmt.Sprintf("%d %s", c.cases[f], f))
	}
	if total := c.struck(); total+len(c.missed) > 0 {
		fmt.Printf("matrix: %d cases: %s; in %d more the write did not come\n", total, strings.Join(parts, ", "), len(c.missed))
	}
}

// full tells whether everything is to be run rather than a sample.
func full() bool {
	pattern := flag.Lookup("test.run").Value.String()
	return os.Getenv("ONCEMORE_FULL") == "1" || strings.Contains(pattern, "TestMatrix/")
}

// seed is printed where it is used.
var seed = sync.OnceValue(func() uint64 {
	if s, err := strconv.ParseUint(os.Getenv("ONCEMORE_SEED"), 10, 64); err == nil {
		return s
	}
	return uint64(time.Now().UnixNano()) % 1_000_000
})

func TestMatrix(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(seed(), 0))
	if !full() {
		t.Logf("a sample: ONCEMORE_SEED=%d replays it, ONCEMORE_FULL=1 runs everything", seed())
	}
	databases.of(t)
	t.Cleanup(func() {
		// Which statements come is up to how work falls together, so a few may not; many would
		// mean that the matrix tests less than it says.
		if cases := count.struck(); !t.Failed() && (cases == 0 || len(count.missed) > 2+cases/10) {
			t.Errorf("in %d cases the write did not come, in %d it did: %q", len(count.missed), cases, count.missed)
		}
		if os.Getenv("ONCEMORE_FULL") == "1" && len(unseen(t)) > 0 {
			t.Errorf("no scenario sends these: %q", unseen(t))
		}
	})
	order := random.Perm(len(faults))
	for i, shape := range shapes() {
		classes := classesOf(shape)
		var only []fault
		if !full() {
			// In a sample every shape meets two faults, in one class, and every fault several shapes.
			classes = []string{classes[random.IntN(len(classes))]}
			only = []fault{faults[order[2*i%len(order)]], faults[order[(2*i+1)%len(order)]]}
		}
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			for j, class := range classes {
				random := rand.New(rand.NewPCG(seed(), uint64(100*i+j+1)))
				t.Run(class, func(t *testing.T) {
					t.Parallel()
					strikeAll(t, scenarios[shape+"/"+class], only, random)
				})
			}
		})
	}
}

// strikeAll records a scenario, then runs it for each write and each fault; in a sample,
// where only some faults are given, for one write each.
func strikeAll(t *testing.T, s *scenario, only []fault, random *rand.Rand) {
	writes := record(t, s)
	if t.Failed() {
		return
	}
	hits := map[write][]fault{}
	for _, f := range only {
		able := slices.DeleteFunc(slices.Clone(writes), func(w write) bool { return !f.befalls(w) })
		target := able[random.IntN(len(able))]
		hits[target] = append(hits[target], f)
	}
	if only == nil {
		for _, target := range writes {
			hits[target] = slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !f.befalls(target) })
		}
	}
	for target, fs := range hits {
		t.Run(target.String(), func(t *testing.T) {
			t.Parallel()
			for _, f := range fs {
				t.Run(string(f), func(t *testing.T) {
					t.Parallel()
					hit := strike{target, f}
					w := newWorld(t, databases.take(t), s, hit)
					w.play(hit)
					w.check(hit)
					count.add(t.Name(), f, w.struck)
				})
			}
		})
	}
}

// befalls tells whether the fault can befall the write: the producer is the test itself,
// which must not be killed.
func (f fault) befalls(w write) bool { return w.role == victim || !f.kills() }

// record runs a scenario undisturbed and returns what can be struck: each write at the
// first two times that it comes. (It is no subtest: a -run that names a case leaves out
// other subtests.)
func record(t *testing.T, s *scenario) (writes []write) {
	inner := &scope{TB: t}
	defer inner.end()
	w := newWorld(inner, databases.take(inner), s, strike{})
	w.play(strike{})
	w.check(strike{})
	for _, x := range w.producing.list() {
		writes = append(writes, write{producer, x.name, x.n})
	}
	for _, x := range w.working.list() {
		if x.n <= s.times(x.name) {
			writes = append(writes, write{victim, x.name, x.n})
		}
	}
	t.Logf("can be struck: %v", writes)
	return writes
}

// times is how often a write of this name is struck. What is the same in every scenario
// is struck in some of them; and receiving when nothing is there, not at all.
func (s *scenario) times(name string) int {
	switch name {
	case "job type: register", "lease: join", "lease: leave":
		if !s.starts {
			return 0
		}
	case "lease: renew", "lease: declare dead", "message: extend":
		if !s.lasts {
			return 0
		}
	case "message: receive":
		return 1
	case "message: wake delayed":
		if s.fails == nil && s.shape != "fan-out" {
			return 0
		}
	}
	return 2
}

// A scope is a part of a test: its cleanups run when it ends.
type scope struct {
	testing.TB
	cleanups []func()
}

// Cleanup has f called at the end.
func (s *scope) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *scope) end() {
	for _, f := range slices.Backward(s.cleanups) {
		f()
	}
}
