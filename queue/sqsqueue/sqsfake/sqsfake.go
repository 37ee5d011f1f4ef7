// Package sqsfake is Amazon SQS in memory, for tests: an [http.Handler] that speaks the
// JSON protocol of the AWS SDKs and keeps the laws of SQS more strictly than SQS does.
// Whatever SQS only may do, it does:
//
//   - A receipt handle is good until its visibility ends or the message is received again.
//     Afterwards a delete with it succeeds and deletes nothing.
//   - A poll whose client has hung up still takes messages.
//   - One receive of a FIFO queue brings several messages of a group, and brings no other
//     of the group while one is in flight.
//   - Every limit is enforced: sizes, counts, characters, delays, twelve hours.
//
// What only goes wrong now and then is switched on by [Faults].
//
// It takes its time from package time and so works in a [testing/synctest] bubble, with the
// client of [Fake.Client], which opens no connection. Outside of one [Fake.Advance] makes
// time pass.
package sqsfake

import (
	"net/http"
	"sync"
	"time"
)

// A Fake is one SQS. It is safe for concurrent use.
type Fake struct {
	mu      sync.Mutex
	ahead   time.Duration // of the clock; see Advance
	queues  map[string]*fakeQueue
	faults  faults
	changed chan struct{} // closed, and replaced, when something may have become visible
	closed  bool
	calls   map[string]int
	tally   Tally
	next    int64 // numbers of messages, and of their sequence
}

var _ http.Handler = (*Fake)(nil)

// New returns an SQS without queues.
func New() *Fake {
	return &Fake{queues: map[string]*fakeQueue{}, changed: make(chan struct{}), calls: map[string]int{}}
}

// CreateQueue makes a queue with such attributes (see the API of SQS) and returns its URL.
// A name that ends with .fifo makes a FIFO queue.
func (f *Fake) CreateQueue(name string, attributes map[string]string) (url string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q, fail := f.create(name, attributes)
	if fail != nil {
		return "", fail
	}
	return q.url(), nil
}

// Advance lets the clock jump: as much time passes for delays, visibility and retention.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead += d
	f.wake()
}

// Close ends all polls that wait, with nothing. The fake may be used further.
func (f *Fake) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.wake()
}

// Calls is how often an action was called, by its name in SQS's API.
func (f *Fake) Calls(action string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[action]
}

// Count says how many messages a queue has: visible, held, and delayed. It counts a message
// that several hold once.
func (f *Fake) Count(url string) (visible, held, delayed int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q, fail := f.find(url)
	if fail != nil {
		return 0, 0, 0
	}
	return q.count(f.now())
}

// now is owned by the mutex.
func (f *Fake) now() time.Time { return time.Now().Add(f.ahead) }

func (f *Fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}
