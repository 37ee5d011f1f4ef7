package matrix_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
)

// A fault is what befalls a write; doc_test.go says what each means.
type fault string

const (
	lost         fault = "lost"
	reportedLost fault = "reported lost"
	slow         fault = "slow"
	cutOff       fault = "cut off"
	killedBefore fault = "killed before"
	killedAfter  fault = "killed after"

	// Of calls of SQS alone.
	refused fault = "refused in part"
	twice   fault = "handed out twice"
)

var faults = []fault{lost, reportedLost, slow, cutOff, killedBefore, killedAfter}

// slowness is longer than a lease and a visibility timeout.
const slowness = 3 * max(lease, visibility) / 2

func (f fault) kills() bool { return f == killedBefore || f == killedAfter }

// A write is the nth batch of this name (nameOf), or call (callName), in one of the two
// processes.
type write struct {
	role role
	name string
	n    int

	brings bool // a receive: it brought something when it was recorded
}

type role int

const (
	nobody role = iota
	producer
	victim
)

func (w write) String() string {
	by := ""
	if w.role == producer {
		by = "producer: "
	}
	return fmt.Sprintf("%s%s #%d", by, w.name, w.n)
}

// A strike is a fault that befalls one write. The zero strike is none.
type strike struct {
	target write
	fault  fault
}

func (s strike) when(is bool) strike {
	if is {
		return s
	}
	return strike{}
}

// A tap is the ways of one process, to the database and to SQS. It lists what the process
// writes, and strikes.
type tap struct {
	testing.TB
	proxy *pgproxy.Proxy
	gate  *gate // nil on Postgres
	hit   strike
	pid   chan int      // takes the process to kill
	came  chan struct{} // closed when the write to strike at has come: the fault begins

	mu     sync.Mutex
	seen   map[string]int
	writes []write
	firsts *firsts        // nil: none
	names  []string       // of all that is in the batch or call that is struck
	conn   int            // that it came over
	at     time.Time      // when
	struck map[point]bool // what has really befallen what
}

// A point is where a fault can befall the project: a statement or a call of SQS, and the fault.
type point struct {
	name  string
	fault fault
}

func (p point) String() string { return p.name + "/" + string(p.fault) }

func (w *world) newTap(hit strike) *tap {
	w.Helper()
	proxy, err := pgproxy.Start(w.dsn)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(proxy.Close)
	tap := &tap{TB: w, proxy: proxy, hit: hit, pid: make(chan int, 1), came: make(chan struct{}), seen: map[string]int{}, struck: map[point]bool{}}
	proxy.Decide(tap.decide)
	if w.sqs != nil {
		tap.gate = newGate(w, tap, w.sqs, w.over.queue())
	}
	return tap
}

// address is that of the queue, for openQueue.
func (t *tap) address() string {
	if t.gate == nil {
		return ""
	}
	return t.gate.address()
}

// meets notes one more write of that name, and tells whether it is the one to strike at.
func (t *tap) meets(name string) (which int, is bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen[name]++
	n := t.seen[name]
	t.writes = append(t.writes, write{name: name, n: n})
	return len(t.writes) - 1, name == t.hit.target.name && n == t.hit.target.n
}

// begins notes that the write to strike at has come, with all the names that are in it.
func (t *tap) begins(conn int, names ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names, t.conn, t.at = names, conn, time.Now()
	close(t.came)
}

func (t *tap) hasCome() bool {
	select {
	case <-t.came:
		return true
	default:
		return false
	}
}

// strikes notes that the fault has befallen all that came. That it came is not enough: a
// process may not die, and a receive may bring nothing that could be handed out twice.
func (t *tap) strikes() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range t.names {
		t.struck[point{name, t.hit.fault}] = true
	}
}

// hits are the points that were struck.
func (t *tap) hits() (all []point) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.struck))
}

// follows sees what comes over the connection of the struck write after it: so a fault that
// the proxy was told of, and did not do, is found.
func (t *tap) follows(b *pgproxy.Batch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == 0 || b.Conn != t.conn {
		return
	}
	switch after := time.Since(t.at); {
	case t.hit.fault == slow && after < slowness:
		t.Errorf("%v was to be slow, and %v later its connection goes on", t.hit.target, after)
	case t.hit.fault != slow && t.hit.fault != cutOff:
		t.Errorf("%v was to be %s, and its connection goes on", t.hit.target, t.hit.fault)
	}
}

// cut lets nothing of the process through for longer than a lease.
func (t *tap) cut() {
	const long = 5 * lease / 2
	t.proxy.Pause()
	time.AfterFunc(long, t.proxy.Resume)
	if t.gate != nil {
		t.gate.pause(long)
	}
}

func (t *tap) decide(b *pgproxy.Batch) pgproxy.Fault {
	for i, sql := range b.SQL {
		if b.Names[i] == "" && pgproxy.Writes(sql) && strings.Contains(sql, "oncemore.") {
			t.Errorf("a statement writes and has no name: %s", sql)
		}
	}
	t.follows(b)
	if !b.Writes {
		return pgproxy.Pass
	}
	for _, name := range b.Names {
		seen.Store(name, true)
	}
	if _, is := t.meets(nameOf(b)); !is {
		return pgproxy.Pass
	}
	t.begins(b.Conn, append(slices.Clone(b.Names), nameOf(b))...)
	if !t.hit.fault.kills() { // whether it was killed is known when it has ended
		defer t.strikes()
	}
	switch t.hit.fault {
	case lost:
		return pgproxy.Lost
	case reportedLost:
		return pgproxy.ReportedLost
	case slow:
		return pgproxy.Slow(slowness)
	case cutOff:
		t.cut()
		return pgproxy.Pass
	case killedBefore:
		return pgproxy.KillBefore(<-t.pid)
	case killedAfter:
		return pgproxy.KillAfter(<-t.pid)
	}
	return pgproxy.Pass
}

// nameOf is the name of its first statement, or of what it commits.
func nameOf(b *pgproxy.Batch) string {
	name, _, _ := strings.Cut(b.String(), ",")
	if n := len(b.Tx); name == "commit" && n > 0 {
		name += " of " + b.Tx[n-1]
	}
	return name
}

// list is what was written so far.
func (t *tap) list() []write {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.writes)
}

// brought notes that a receive has brought something.
func (t *tap) brought(which int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writes[which].brings = true
}

// firsts strike at the first call of each name, whichever tap meets it.
type firsts struct {
	mu     sync.Mutex
	faults map[string]fault
}

func (f *firsts) take(name string) fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	befalls := f.faults[name]
	delete(f.faults, name)
	return befalls
}

// strikesFirst has firsts strike beside the fault of the tap.
func (t *tap) strikesFirst(f *firsts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.firsts = f
}

// first is the fault of firsts, once for each name.
func (t *tap) first(name string) fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.firsts == nil {
		return ""
	}
	return t.firsts.take(name)
}

// strikesAt notes that a fault beside the tap's own has befallen a call.
func (t *tap) strikesAt(name string, f fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.struck[point{name, f}] = true
}
