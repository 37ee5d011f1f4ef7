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
)

var faults = []fault{lost, reportedLost, slow, cutOff, killedBefore, killedAfter}

func (f fault) kills() bool { return f == killedBefore || f == killedAfter }

// A write is the nth batch of this name (nameOf) in one of the two processes.
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

// A tap is the proxy of one process. It lists what the process writes, and strikes.
type tap struct {
	testing.TB
	proxy  *pgproxy.Proxy
	hit    strike
	pid    chan int      // takes the process to kill
	struck chan struct{} // closed when the fault has befallen its write

	mu     sync.Mutex
	seen   map[string]int
	writes []write
}

func newTap(t testing.TB, dsn string, hit strike) *tap {
	t.Helper()
	proxy, err := pgproxy.Start(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(proxy.Close)
	tap := &tap{TB: t, proxy: proxy, hit: hit, pid: make(chan int, 1), struck: make(chan struct{}), seen: map[string]int{}}
	proxy.Decide(tap.decide)
	return tap
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
	name := nameOf(b)
	t.mu.Lock()
	t.seen[name]++
	n := t.seen[name]
	t.writes = append(t.writes, write{name: name, n: n})
	t.mu.Unlock()
	if name != t.hit.target.name || n != t.hit.target.n {
		return pgproxy.Pass
	}
	defer close(t.struck)
	switch t.hit.fault {
	case lost:
		return pgproxy.Lost
	case reportedLost:
		return pgproxy.ReportedLost
	case slow:
		return pgproxy.Slow(3 * max(lease, visibility) / 2)
	case cutOff:
		t.proxy.Pause()
		time.AfterFunc(5*lease/2, t.proxy.Resume)
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
