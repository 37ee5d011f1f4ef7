package matrix_test

import (
	"fmt"
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
	proxy  *pgproxy.Proxy
	gate   *gate // nil on Postgres
	hit    strike
	pid    chan int      // takes the process to kill
	struck chan struct{} // closed when the fault has befallen its write

	mu     sync.Mutex
	seen   map[string]int
	writes []write
}

func (w *world) newTap(hit strike) *tap {
	w.Helper()
	proxy, err := pgproxy.Start(w.dsn)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(proxy.Close)
	tap := &tap{TB: w, proxy: proxy, hit: hit, pid: make(chan int, 1), struck: make(chan struct{}), seen: map[string]int{}}
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
func (t *tap) meets(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen[name]++
	n := t.seen[name]
	t.writes = append(t.writes, write{name: name, n: n})
	return name == t.hit.target.name && n == t.hit.target.n
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
	if !b.Writes {
		return pgproxy.Pass
	}
	for _, name := range b.Names {
		seen.Store(name, true)
	}
	if !t.meets(nameOf(b)) {
		return pgproxy.Pass
	}
	defer close(t.struck)
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

// hasStruck tells whether the fault has befallen its write.
func (t *tap) hasStruck() bool {
	select {
	case <-t.struck:
		return true
	default:
		return false
	}
}

// list is what was written so far.
func (t *tap) list() []write {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.writes)
}
