// Package queue moves work, at least once. It knows neither types nor outcomes.
//
// A [Message] is a pack: one or many items of one job type. A [Delivery] is one
// handing-over of a message. Between Receive and the end of its visibility
// timeout a delivery is held by who received it; then it is handed out again.
//
// What every backend promises, and [github.com/oncemore-jobs/oncemore/queue/queuetest] checks:
//
//   - A message whose Send returned nil is delivered, again and again, until one
//     of its deliveries is acknowledged. It is never dropped, also not for having
//     been received often.
//   - Whoever holds a delivery may extend, acknowledge or release it. Who lost it
//     to the visibility timeout may still try: a late Ack or Release of a message
//     that somebody else holds changes nothing and is no error.
//   - Order is a courtesy and duplicates are allowed. The ledger, not the queue,
//     makes work happen once, which is what lets a queue be coarse and fast.
//
// Nobody below this line retries: a backend returns the error of the one try
// it made, and the worker decides.
package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of what a Sender accepts. They keep one bad producer from filling the
// ledger's index or a worker's memory.
const (
	MaxEntity = 512       // bytes of an entity or of a job type
	MaxArgs   = 64 << 10  // bytes of one item's arguments
	MaxItems  = 1000      // items of one message
	MaxBytes  = 768 << 10 // bytes of all the arguments and entities of one message
	MaxTrace  = 512       // bytes of a traceparent
)

// ErrInvalid is wrapped by Send's errors for a message that no backend could
// carry: sending it again would fail again.
var ErrInvalid = errors.New("invalid message")

// An Item is the work on one entity.
type Item struct {
	Entity string
	Args   json.RawMessage // the arguments as JSON
}

// A Message is a pack: one or many items of one job type.
type Message struct {
	Type  string
	Items []Item

	Run   int64 // the run that sent it; 0: none
	Pack  int   // the number of this pack in its run's plan, not negative
	Epoch int64 // work forced under this epoch; 0: not forced

	Priority int           // higher is taken first; 0 is the default; -100 to 100
	Delay    time.Duration // not delivered before so much time has passed; in a Delivery always 0
	Deferred int           // how often the worker sent this work on for later because it was not ready
	Trace    string        // W3C traceparent of the sender, or empty
}

// A Delivery is one handing-over of a message.
type Delivery struct {
	Message
	Receipt  string // opaque; the queue's own fence of this delivery
	Received int    // how often the message was delivered, this one included, as far as the queue knows: never 0, but 1 may be said wrongly
	Bad      []byte // the raw body, when it could not be decoded; Message then holds what is known
}

// A Sender accepts messages. After an error of Send none of them are sent, or all (where
// only the answer was lost), or, where the backend has no transactions, as SQS, some: to
// send all of them again is right. It refuses messages that break the limits with an error
// that wraps [ErrInvalid], and then sends none.
type Sender interface {
	Send(ctx context.Context, ms ...Message) error
}

// A Queue is a Sender that also delivers. All methods may be called from many
// goroutines at once.
type Queue interface {
	Sender

	// Receive returns up to max deliveries. It may wait a while for the first one,
	// some twenty seconds at most, and returns none, without error, when there is
	// nothing. A canceled ctx ends the wait, with no deliveries and the error of
	// ctx. types, where not empty, are the job types that the caller knows; a
	// backend that can leaves other messages to others.
	Receive(ctx context.Context, max int, types []string) ([]Delivery, error)

	// Extend begins the visibility timeout anew for each delivery. It returns the
	// receipts that are no longer held: somebody else may have them, or the message
	// is gone. One whose time is over but that nobody else took may count as either.
	Extend(ctx context.Context, ds ...Delivery) (lost []string, err error)

	// Ack removes the messages for good. One that is no longer held is left
	// alone, and that is no error.
	Ack(ctx context.Context, ds ...Delivery) error

	// Release makes the messages visible again after a delay. One that is no longer held
	// is left alone, and that is no error.
	Release(ctx context.Context, after time.Duration, ds ...Delivery) error

	// Visibility is how long a delivery is held before it is handed out again.
	Visibility() time.Duration
}

// A FIFO is a Queue that may keep the order of message groups: the next message of a group
// is delivered when the one before is acknowledged, and after one that is released, not
// before it. A worker keeps a message of such a queue whose work failed, and releases it
// until the work is done or has failed for good, so that the group waits for it.
type FIFO interface {
	Queue
	FIFO() bool // whether it does
}

// A Drainer is a Queue of a service that goes on handing out messages for a while after the
// Receive that asked has ended. Drain returns when it does no more, and what came is released;
// at once when there is a Receive again. A worker calls it before its Run returns.
type Drainer interface {
	Queue
	Drain(ctx context.Context) error
}

// Check returns an error that wraps [ErrInvalid] and says which limit a message
// breaks. Backends call it in Send.
func (m *Message) Check() error {
	if err := m.CheckHead(); err != nil {
		return err
	}
	total := 0
	for i := range m.Items {
		it := &m.Items[i]
		if err := it.Check(); err != nil {
			return fmt.Errorf("%s: %w", m.Type, err)
		}
		total += len(it.Entity) + len(it.Args)
	}
	if total > MaxBytes {
		return fmt.Errorf("%w: a message of %s takes %d bytes, allowed are %d; send fewer items in it", ErrInvalid, m.Type, total, MaxBytes)
	}
	return nil
}

// CheckHead is the part of Check that is not about any one item. A backend whose messages
// others write calls it for what it received: a bad item is the worker's to set aside, by
// [Item.Check], and takes nothing from its neighbours.
func (m *Message) CheckHead() error {
	if err := CheckName("job type", m.Type); err != nil {
		return err
	}
	if len(m.Items) == 0 || len(m.Items) > MaxItems {
		return fmt.Errorf("%w: %s has %d items, allowed are 1 to %d", ErrInvalid, m.Type, len(m.Items), MaxItems)
	}
	if m.Priority < -100 || m.Priority > 100 {
		return fmt.Errorf("%w: %s has priority %d, allowed are -100 to 100", ErrInvalid, m.Type, m.Priority)
	}
	if m.Pack < 0 || m.Pack > math.MaxInt32 || m.Deferred < 0 {
		return fmt.Errorf("%w: %s has pack %d, deferred %d", ErrInvalid, m.Type, m.Pack, m.Deferred)
	}
	if len(m.Trace) > MaxTrace || !storable(m.Trace) {
		return fmt.Errorf("%w: %s has the traceparent %.40q", ErrInvalid, m.Type, m.Trace)
	}
	return nil
}

// Check returns an error that wraps [ErrInvalid] and says which limit an item breaks.
func (it *Item) Check() error {
	if err := CheckName("entity", it.Entity); err != nil {
		return err
	}
	if len(it.Args) > MaxArgs {
		return fmt.Errorf("%w: the arguments of %q take %d bytes, allowed are %d; send an id and keep the rest in the database",
			ErrInvalid, it.Entity, len(it.Args), MaxArgs)
	}
	// json.Valid lets through bytes that are not UTF-8.
	if !json.Valid(it.Args) || !utf8.Valid(it.Args) {
		return fmt.Errorf("%w: the arguments of %q are not JSON in UTF-8", ErrInvalid, it.Entity)
	}
	return nil
}

// CheckName tells whether s can name a job type or an entity: not empty, at most
// [MaxEntity] bytes, valid UTF-8, and without the NUL that Postgres cannot store.
// kind is used in the error, which wraps [ErrInvalid].
func CheckName(kind, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: empty %s", ErrInvalid, kind)
	case len(s) > MaxEntity:
		return fmt.Errorf("%w: %s of %d bytes, allowed are %d: %.40q…", ErrInvalid, kind, len(s), MaxEntity, s)
	case !utf8.ValidString(s):
		return fmt.Errorf("%w: %s is not valid UTF-8: %.40q", ErrInvalid, kind, s)
	case strings.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%w: %s contains a NUL byte: %.40q", ErrInvalid, kind, s)
	}
	return nil
}

// storable tells whether PostgreSQL can store s as text.
func storable(s string) bool { return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 }

// SenderFunc is a function that is a [Sender].
type SenderFunc func(ctx context.Context, ms ...Message) error

// Send calls f.
func (f SenderFunc) Send(ctx context.Context, ms ...Message) error { return f(ctx, ms...) }

// After is a Sender to s whose messages become visible d later.
func After(s Sender, d time.Duration) Sender {
	return each(s, func(m *Message) { m.Delay += d })
}

// Priority is a Sender to s whose messages have priority p.
func Priority(s Sender, p int) Sender {
	return each(s, func(m *Message) { m.Priority = p })
}

// each changes copies: the caller's messages stay as they were.
func each(s Sender, change func(*Message)) Sender {
	return SenderFunc(func(ctx context.Context, ms ...Message) error {
		out := make([]Message, len(ms))
		for i, m := range ms {
			change(&m)
			out[i] = m
		}
		return s.Send(ctx, out...)
	})
}
