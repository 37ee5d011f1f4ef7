package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/oncemore-jobs/oncemore/queue"
)

// Args name a piece of work: one job type on one entity. They are plain values (a
// struct, not a pointer) that encode as JSON, so that a producer links no job body.
//
// JobType is for ever, must not depend on the value, and must work on the zero value.
// Entity is made from the value's fields alone; (JobType, Entity) is the identity of
// the work, and the rest of the fields say how to do it. See [Key].
//
// Work that is open or done has the fingerprint of its arguments, and the same work with another
// one is a conflict. The fingerprint is of the JSON, with the members in the order of their names:
// moving fields, or giving them other names in Go where their JSON names stay, changes nothing. A
// new field needs omitempty or omitzero in its JSON tag: else all that is open or done was asked
// for with other arguments.
type Args interface {
	JobType() string
	Entity() string
}

// Sourced args are made from something that changes. SourceVersion is an ordered number
// of it (a revision, a time in µs) as it was when the args were made; work whose number
// is greater than the fact's is done again. It must travel in the JSON field
// source_version, which is not part of the fingerprint. What was done before its args were
// Sourced has no number: any that is greater than 0 has it done again.
type Sourced interface {
	Args
	SourceVersion() int64
}

// Enqueue sends one message per args. With a queue's Tx it is part of the caller's
// transaction: no commit, no job. In Postgres it is all or nothing; in SQS an error may leave
// some of them sent, and calling it again is harmless. It refuses all, with an error that
// wraps [queue.ErrInvalid], where one of them is what no worker could do.
func Enqueue[A Args](ctx context.Context, to queue.Sender, args ...A) error {
	ms := make([]queue.Message, len(args))
	for i, a := range args {
		it, err := NewItem(a)
		if err != nil {
			return err
		}
		ms[i] = queue.Message{Type: a.JobType(), Items: []queue.Item{it}}
	}
	return to.Send(ctx, ms...)
}

// NewItem encodes args as an item of a message. A panic of their own code (Entity, say, of a
// field that was left out) is an error that wraps [queue.ErrInvalid], and so is a key of what
// can be no part of one.
func NewItem(a Args) (it queue.Item, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: encode %T: %w", queue.ErrInvalid, a, panicked(v))
		}
	}()
	raw, err := json.Marshal(a)
	if err != nil {
		return queue.Item{}, fmt.Errorf("%w: encode %s %q: %w", queue.ErrInvalid, a.JobType(), a.Entity(), err)
	}
	it = queue.Item{Entity: a.Entity(), Args: raw}
	if strings.Contains(it.Entity, noPart) {
		return queue.Item{}, fmt.Errorf("encode %s: %w", a.JobType(), queue.CheckName("entity", it.Entity))
	}
	return it, nil
}

// Input is one decoded item.
type Input struct {
	Args          Args
	Fingerprint   int64 // of everything but the source version; see [Args]
	SourceVersion int64
}

// panicked is the panic of code that args bring along. What a message says must not end the
// process that reads it: nothing is claimed by then, so nobody would count how many died of it.
func panicked(v any) error { return fmt.Errorf("the code of the arguments: panic: %v", v) }

// decode reads raw as an A and binds it to the entity that the message names: the ledger
// would otherwise complete one entity for work on another.
func decode[A Args](jobType, entity string, raw []byte) (in Input, err error) {
	defer func() {
		if v := recover(); v != nil {
			in, err = Input{}, panicked(v)
		}
	}()
	var a A
	if err := json.Unmarshal(raw, &a); err != nil {
		return Input{}, fmt.Errorf("the arguments do not decode as %T: %w", a, err)
	}
	if got := a.Entity(); got != entity {
		return Input{}, fmt.Errorf("the arguments are of entity %q, the message is of %q", got, entity)
	}
	in = Input{Args: a}
	// Encoded anew, so that spaces and fields that A does not know make no difference: a query,
	// a Go producer and one in another language agree. And in an order that is not that of the
	// Go code, so that the programs before and behind a deploy agree as well.
	encoded, err := json.Marshal(a)
	if err != nil {
		return Input{}, fmt.Errorf("the arguments of %s do not encode again: %w", jobType, err)
	}
	leave := ""
	if s, ok := any(a).(Sourced); ok {
		in.SourceVersion, leave = s.SourceVersion(), sourceVersion
	}
	if in.Fingerprint, err = fingerprint(encoded, leave); err != nil {
		return Input{}, fmt.Errorf("the arguments of %s: %w", jobType, err)
	}
	return in, nil
}

const sourceVersion = "source_version"

// AtSource is encoded arguments as they are when the source has the given version; all
// else in them stays.
func AtSource(args []byte, version int64) ([]byte, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(args, &fields); err != nil {
		return nil, fmt.Errorf("the arguments are not a JSON object: %w", err)
	}
	fields[sourceVersion] = strconv.AppendInt(nil, version, 10)
	// Not longer than they were: \u003c for every < would lead past what a message may carry.
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(fields); err != nil {
		return nil, fmt.Errorf("encode the arguments anew: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}
