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
	if class := os.Getenv(doorEnv); class != "" {
		if err := doorProcess(class); err != nil {
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
	for over := range counts {
		counts[over].print(carrier(over))
	}
	os.Exit(code)
}

// counts are of the cases of this process, by carrier.
var counts [carriers]counter

type counter struct {
	mu     sync.Mutex
	cases  map[fault]int
	points map[point]bool // that were struck
	missed []string       // cases whose write was not struck
	took   time.Duration  // all of it
}

// add counts a case by the points that it struck.
func (c *counter) add(name string, f fault, struck []point) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cases == nil {
		c.cases, c.points = map[fault]int{}, map[point]bool{}
	}
	for _, p := range struck {
		c.points[p] = true
	}
	if len(struck) > 0 {
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

func (c *counter) print(over carrier) {
	var parts []string
	for _, f := range over.faults() {
		parts = append(parts, fmt.Sprintf("%d %s", c.cases[f], f))
	}
	if total := c.struck(); total+len(c.missed) > 0 {
		fmt.Printf("matrix over %v: %d cases in %v: %s; in %d more the write was not struck\n",
			over, total, c.took.Round(time.Second), strings.Join(parts, ", "), len(c.missed))
	}
}

// full tells whether everything is to be run rather than a sample.
func full() bool { return os.Getenv("ONCEMORE_FULL") == "1" || chosen() }

// chosen tells whether -run names some of the cases.
func chosen() bool {
	pattern := flag.Lookup("test.run").Value.String()
	return strings.HasPrefix(strings.TrimPrefix(pattern, "^"), "TestMatrix") && strings.Contains(pattern, "/")
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
	t.Run("door", playTheDoor)
	playAll(t, postgres)
}

// The same work and the same faults with the messages in SQS, and its calls struck too.
func TestMatrixOverSQS(t *testing.T) {
	t.Parallel()
	playAll(t, amazon)
}

// And with a FIFO queue, where a retry is the same message once more.
func TestMatrixOverFIFO(t *testing.T) {
	t.Parallel()
	playAll(t, fifo)
}

// playAll plays all scenarios that a carrier carries anything of, or a sample: one class of
// a shape meets two faults, and every fault several shapes. Over SQS that is a few shapes,
// struck at calls of SQS, for the rest has been struck without.
func playAll(t *testing.T, over carrier) {
	random := rand.New(rand.NewPCG(seed(), uint64(over)))
	if !full() {
		t.Logf("a sample: ONCEMORE_SEED=%d replays it, ONCEMORE_FULL=1 runs everything", seed())
	}
	began, count := time.Now(), &counts[over]
	m := &matrix{over: over}
	m.of(t)
	t.Cleanup(func() {
		count.took = time.Since(began)
		// Which statements come is up to how work falls together, so a few may not; many would
		// mean that the matrix tests less than it says.
		if cases := count.struck(); !t.Failed() && (cases == 0 && !chosen() || len(count.missed) > 2+cases/10) {
			t.Errorf("in %d cases the write was not struck, in %d it was: %q", len(count.missed), cases, count.missed)
		}
		if !t.Failed() && !chosen() && over == postgres { // a sample has more cases of each than may miss
			for _, f := range over.faults() {
				if count.cases[f] == 0 {
					t.Errorf("%s has befallen nothing", f)
				}
			}
		}
		if os.Getenv("ONCEMORE_FULL") != "1" || chosen() {
			return
		}
		if over == postgres && len(unseen(t)) > 0 {
			t.Errorf("no scenario sends these: %q", unseen(t))
		}
		// As above: some statements come in one scenario alone, and not each time.
		all, missing, spared := over.unstruck(t, count.points)
		if len(spared) > 2 || len(missing) > all/50 {
			t.Errorf("of %d points that can be struck %d were not: %q; most faults have not befallen %q", all, len(missing), missing, spared)
		} else if len(missing) > 0 {
			t.Logf("of %d points that can be struck %d were not: %q", all, len(missing), missing)
		}
	})
	of := m.shapes()
	if !full() && over != postgres {
		random.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		of = of[:sampledOverSQS[over]]
	}
	all := over.faults()
	order := random.Perm(len(all))
	for i, shape := range of {
		classes := m.classes(shape)
		var only []fault
		if !full() {
			classes = []string{classes[random.IntN(len(classes))]}
			only = []fault{all[order[2*i%len(order)]], all[order[(2*i+1)%len(order)]]}
		}
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			for j, class := range classes {
				random := rand.New(rand.NewPCG(seed(), uint64(100*i+j+1)))
				t.Run(class, func(t *testing.T) {
					t.Parallel()
					m.strikeAll(t, scenarios[shape+"/"+class], only, random)
				})
			}
		})
	}
}

// sampledOverSQS is how many shapes a sample has there: enough for each fault once, and a
// few of the FIFO queue.
var sampledOverSQS = [carriers]int{amazon: 4, fifo: 1}

// A matrix is all the work that one carrier carries, and the databases that it is lent.
type matrix struct {
	over carrier
	lender
}

// shapes are those of which it carries anything.
func (m *matrix) shapes() []string {
	return slices.DeleteFunc(shapes(), func(shape string) bool {
		return len(m.classes(shape)) == 0
	})
}

// classes are those of a shape of which it carries anything.
func (m *matrix) classes(shape string) []string {
	return slices.DeleteFunc(classesOf(shape), func(class string) bool { return !m.over.carries(scenarios[shape+"/"+class]) })
}

// strikeAll records a scenario, then runs it for each write and each fault; in a sample,
// where only some faults are given, for one write each.
func (m *matrix) strikeAll(t *testing.T, s *scenario, only []fault, random *rand.Rand) {
	copied := *s
	s = &copied
	s.over = m.over
	writes := m.record(t, s)
	if t.Failed() {
		return
	}
	hits := map[write][]fault{}
	for _, f := range only {
		able := slices.DeleteFunc(slices.Clone(writes), func(w write) bool { return !f.befalls(w) || m.over != postgres && !w.call() })
		if len(able) == 0 {
			continue // no receive has brought anything among the first, say
		}
		target := able[random.IntN(len(able))]
		hits[target] = append(hits[target], f)
	}
	if only == nil {
		for _, target := range writes {
			hits[target] = slices.DeleteFunc(m.over.faults(), func(f fault) bool { return !f.befalls(target) })
		}
	}
	for target, fs := range hits {
		t.Run(target.String(), func(t *testing.T) {
			t.Parallel()
			for _, f := range fs {
				t.Run(string(f), func(t *testing.T) {
					t.Parallel()
					var struck []point
					for tries := 3; len(struck) == 0 && tries > 0 && !t.Failed(); tries-- {
						struck = m.strike(t, s, strike{target, f})
					}
					counts[m.over].add(t.Name(), f, struck)
				})
			}
		})
	}
}

// strike runs a scenario with one fault and returns what that has struck: nothing, where the
// work fell together so that the write did not come.
func (m *matrix) strike(t *testing.T, s *scenario, hit strike) []point {
	inner := &scope{TB: t}
	defer inner.end()
	w := newWorld(inner, m.take(inner), s, hit)
	w.play(hit)
	w.check(hit)
	return w.struck
}

// call tells whether it is one of SQS.
func (w write) call() bool { return strings.HasPrefix(w.name, "sqs: ") }

// befalls tells whether the fault can befall the write: the producer is the test itself,
// which must not be killed.
func (f fault) befalls(w write) bool {
	switch f {
	case refused:
		return w.call() && w.name != "sqs: receive" // a batch
	case twice:
		return w.brings
	}
	return w.role == victim || !f.kills()
}

// record runs a scenario undisturbed and returns what can be struck: each write at the
// first two times that it comes. (It is no subtest: a -run that names a case leaves out
// other subtests.)
func (m *matrix) record(t *testing.T, s *scenario) (writes []write) {
	inner := &scope{TB: t}
	defer inner.end()
	w := newWorld(inner, m.take(inner), s, strike{})
	w.play(strike{})
	w.check(strike{})
	for _, x := range w.producing.list() {
		writes = append(writes, write{producer, x.name, x.n, false})
	}
	for _, x := range w.working.list() {
		if x.n <= s.times(x.name) {
			writes = append(writes, write{victim, x.name, x.n, x.brings})
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
	case "lease: renew", "lease: declare dead", "message: extend", "sqs: extend":
		if !s.lasts {
			return 0
		}
	case "result: expire":
		if !s.returns {
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
