package pgproxy

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// A Fault is what befalls one batch. The zero value is [Pass].
type Fault struct {
	kind  kind
	delay time.Duration // slow, slowReply
	pid   int           // killBefore, killAfter
	part  int           // torn: how many statements arrive
	steps *stepping     // stepwise
}

type kind int

const (
	pass kind = iota
	lost
	reportedLost
	slow
	slowReply
	torn
	killBefore
	killAfter
	stepwise
)

var (
	// Pass is no fault.
	Pass = Fault{}
	// Lost cuts the connection before anything of the batch is forwarded.
	Lost = Fault{kind: lost}
	// ReportedLost forwards the batch, waits until the server is through with it, and then
	// cuts the connection. The client hears nothing of the reply.
	ReportedLost = Fault{kind: reportedLost}
)

// Slow forwards the batch after d.
func Slow(d time.Duration) Fault { return Fault{kind: slow, delay: d} }

// SlowReply forwards the batch at once, and delivers the reply d after the server was
// through with it.
func SlowReply(d time.Duration) Fault { return Fault{kind: slowReply, delay: d} }

// Torn forwards the first n statements of the batch without its end, and cuts the
// connection. The server runs them and, finding the connection closed, rolls back, unless
// one of them was the COMMIT.
func Torn(n int) Fault { return Fault{kind: torn, part: n} }

// KillBefore sends the process SIGKILL before anything of the batch is forwarded, and cuts
// the connection.
func KillBefore(pid int) Fault { return Fault{kind: killBefore, pid: pid} }

// KillAfter forwards the batch, waits until the server is through with it, and then sends
// the process SIGKILL, before it hears anything of the reply.
func KillAfter(pid int) Fault { return Fault{kind: killAfter, pid: pid} }

// String names the fault, as in "reported lost".
func (f Fault) String() string {
	switch f.kind {
	case lost:
		return "lost"
	case reportedLost:
		return "reported lost"
	case slow:
		return fmt.Sprintf("slow by %v", f.delay)
	case slowReply:
		return fmt.Sprintf("reply slow by %v", f.delay)
	case torn:
		return fmt.Sprintf("torn after %d statements", f.part)
	case killBefore:
		return "killed before"
	case killAfter:
		return "killed after"
	case stepwise:
		return "stepwise"
	}
	return "pass"
}

// afterReply tells whether the fault needs the whole reply, undelivered.
func (f Fault) afterReply() bool {
	return f.kind == reportedLost || f.kind == slowReply || f.kind == killAfter
}

// Random returns a function for [Proxy.Decide] that cuts the connection at one batch in so
// many, on average: before it, after it, or between any two of its statements. The same
// seed gives the same sequence of choices; which batch meets which choice is up to the
// order in which they come.
func Random(rate float64, seed uint64) func(*Batch) Fault {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, seed))
	return func(b *Batch) Fault {
		mu.Lock()
		defer mu.Unlock()
		if random.Float64() >= rate {
			return Pass
		}
		switch random.IntN(3) {
		case 0:
			return Lost
		case 1:
			return ReportedLost
		default:
			return Torn(random.IntN(len(b.SQL) + 1))
		}
	}
}
