package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

// An Input is work that is to be enqueued.
type Input struct {
	Entity string          // "": made from Args, which the app's jobs are needed for
	Args   json.RawMessage // the arguments as JSON
	Where  string          // it comes from, for errors: "line 7"
	Err    error           // what is known to be wrong with it; nil: nothing
}

// A Batch is work that was looked through and can be enqueued.
type Batch struct {
	Type  string
	Items []queue.Item
	Twice int // inputs that said the same as one before, and are enqueued once

	packSize, priority int
}

// BadInputs is every mistake in a batch; nothing of it can be enqueued then.
type BadInputs []BadInput

// A BadInput is one mistake.
type BadInput struct {
	Where string
	Err   error
}

// Error names the first thousand.
func (bs BadInputs) Error() string {
	const most = 1000
	text := fmt.Sprintf("nothing was enqueued, since %d inputs are wrong:", len(bs))
	for _, b := range bs[:min(len(bs), most)] {
		text += fmt.Sprintf("\n  %s: %v", b.Where, b.Err)
	}
	if n := len(bs) - most; n > 0 {
		text += fmt.Sprintf("\n  and %d more", n)
	}
	return text
}

// Prepare looks through work for [Operator.Enqueue]. With the app's jobs the arguments
// must decode, without unknown fields, and they make the entities. Without them every
// input must name its entity, and only names and JSON are checked. The error is
// [BadInputs] where there are mistakes: all of them are looked at first.
func (op *Operator) Prepare(ctx context.Context, jobType string, inputs []Input) (*Batch, error) {
	b := &Batch{Type: jobType, packSize: 100}
	var job *jobs.Erased
	if op.Set != nil {
		var ok bool
		if job, ok = op.Set.Lookup(jobType); !ok {
			return nil, fmt.Errorf("this program has no job %q; it has: %s", jobType, strings.Join(op.Set.Types(), ", "))
		}
		b.Type, b.packSize, b.priority = job.Type, job.PackSize, job.Priority
	} else if err := op.registered(ctx, b); err != nil {
		return nil, err
	}
	var bad BadInputs
	type first struct {
		where string
		args  []byte
	}
	seen := make(map[string]first, len(inputs)) // by entity
	for n, in := range inputs {
		if in.Where == "" {
			in.Where = fmt.Sprintf("input %d", n+1)
		}
		it, err := item(job, in)
		if err == nil {
			m := queue.Message{Type: b.Type, Items: []queue.Item{it}}
			err = m.Check()
		}
		if before, twice := seen[it.Entity]; err == nil && twice {
			if bytes.Equal(before.args, it.Args) {
				b.Twice++
				continue
			}
			err = fmt.Errorf("entity %q is that of %s as well, with other arguments", it.Entity, before.where)
		}
		if err != nil {
			bad = append(bad, BadInput{in.Where, err})
			continue
		}
		seen[it.Entity] = first{in.Where, it.Args}
		b.Items = append(b.Items, it)
	}
	if len(bad) > 0 {
		return nil, bad
	}
	return b, nil
}

// registered looks for the type in the database. A misspelt one, or one of requests, would
// wait in the queue for ever, for a worker that knows it.
func (op *Operator) registered(ctx context.Context, b *Batch) error {
	return explain(pgx.BeginTxFunc(ctx, op.Pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		t, err := FindType(ctx, tx, nil, b.Type)
		if err != nil {
			return err
		}
		b.Type = t.Name
		return t.carriable()
	}))
}

var (
	errNotJSON  = errors.New("is not JSON in UTF-8")
	errNoEntity = errors.New("names no entity, and this program does not have the job that makes it of the arguments")
)

// item makes one item of one input, in one way of writing, so that two can be compared.
func item(job *jobs.Erased, in Input) (queue.Item, error) {
	if in.Err != nil {
		return queue.Item{}, in.Err
	}
	if !json.Valid(in.Args) || !utf8.Valid(in.Args) {
		return queue.Item{}, errNotJSON
	}
	if job == nil {
		var compact bytes.Buffer
		if err := json.Compact(&compact, in.Args); err != nil {
			return queue.Item{}, errNotJSON
		}
		if in.Entity == "" {
			return queue.Item{}, errNoEntity
		}
		return queue.Item{Entity: in.Entity, Args: compact.Bytes()}, nil
	}
	a, err := job.Parse(in.Args)
	if err != nil {
		return queue.Item{}, fmt.Errorf("does not decode as %T: %w", a, err)
	}
	it, err := jobs.NewItem(a)
	if err == nil && in.Entity != "" && in.Entity != it.Entity {
		return queue.Item{}, fmt.Errorf("is of entity %q, not %q", it.Entity, in.Entity)
	}
	return it, err
}

// Enqueue sends a batch, all of it or nothing. Work that is done is skipped by whoever
// receives it.
func (op *Operator) Enqueue(ctx context.Context, b *Batch, reason string) (*Result, error) {
	detail := fmt.Sprintf("%d named", len(b.Items)+b.Twice)
	return op.do(ctx, AuditEntry{Action: "enqueue", Type: b.Type, Reason: reason, Detail: detail}, func(a *act) error {
		to := op.sender(a)
		for rest := b.Items; len(rest) > 0; {
			n := pack(rest, b.packSize)
			if err := to.Send(ctx, queue.Message{Type: b.Type, Items: rest[:n], Priority: b.priority}); err != nil {
				return fmt.Errorf("enqueue %d entities of %s: %w", len(b.Items), b.Type, err)
			}
			for _, it := range rest[:n] {
				a.did(it.Entity)
			}
			rest = rest[n:]
		}
		return nil
	})
}

// pack is how many of the items go into one message.
func pack(items []queue.Item, most int) int {
	size := 0
	for n, it := range items {
		size += len(it.Entity) + len(it.Args)
		if n == most || n > 0 && size > queue.MaxBytes {
			return n
		}
	}
	return len(items)
}
