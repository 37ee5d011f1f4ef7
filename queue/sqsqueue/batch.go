package sqsqueue

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

// A refusal is SQS's answer to one entry of a batch that it did not take.
type refusal struct {
	code, message string
	ours          bool // SQS says that it is the sender's fault: trying again changes nothing
}

// refusals reads the failed entries of a batch, whose ids are their indexes.
func refusals(failed []types.BatchResultErrorEntry) map[int]refusal {
	if len(failed) == 0 {
		return nil
	}
	out := make(map[int]refusal, len(failed))
	for _, f := range failed {
		if f.Id == nil {
			continue
		}
		i, err := strconv.Atoi(*f.Id)
		if err != nil {
			continue
		}
		r := refusal{ours: f.SenderFault}
		if f.Code != nil {
			r.code = *f.Code
		}
		if f.Message != nil {
			r.message = *f.Message
		}
		out[i] = r
	}
	return out
}

// lost tells whether a receipt is no longer good: somebody else has the message, or nobody.
func (r refusal) lost() bool {
	switch r.code {
	case "ReceiptHandleIsInvalid", "MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "InvalidParameterValue":
		return true
	}
	return false
}

func (r refusal) Error() string {
	if r.message == "" {
		return r.code
	}
	return r.code + ": " + r.message
}

// tens calls f with xs in batches, side by side, or one after the other where serial. It
// returns the first error.
func tens[T any](ctx context.Context, serial bool, batches [][]T, f func(context.Context, []T) error) error {
	if serial || len(batches) == 1 {
		for _, b := range batches {
			if err := f(ctx, b); err != nil {
				return err
			}
		}
		return nil
	}
	var mu sync.Mutex
	var first error
	var running sync.WaitGroup
	free := make(chan struct{}, sideBySide)
	for _, b := range batches {
		free <- struct{}{}
		running.Go(func() {
			defer func() { <-free }()
			if err := f(ctx, b); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
			}
		})
	}
	running.Wait()
	return first
}

// inTens cuts xs into batches of ten.
func inTens[T any](xs []T) (batches [][]T) {
	for len(xs) > 0 {
		n := min(mostEntries, len(xs))
		batches = append(batches, xs[:n:n])
		xs = xs[n:]
	}
	return batches
}

// tries is how often an entry is tried that SQS refuses by its own fault. The SDK tries as
// often when a whole call fails, and cannot do it for an entry. Nobody else tries again.
const tries = 3

// batch makes one batch call of xs, and others of those that SQS refused by its own fault.
// done is called with each that was taken; what is left comes back with SQS's reasons.
func batch[T any](ctx context.Context, xs []T, call func(context.Context, []T) ([]types.BatchResultErrorEntry, error), done func(T)) (left []T, why []refusal, err error) {
	for try := 1; ; try++ {
		failed, err := bounded(ctx, xs, call)
		if err != nil {
			return xs, nil, err
		}
		refused := refusals(failed)
		var again []T
		var reasons []refusal
		for i, x := range xs {
			switch r, is := refused[i]; {
			case !is:
				if done != nil {
					done(x)
				}
			case r.ours:
				left, why = append(left, x), append(why, r)
			default:
				again, reasons = append(again, x), append(reasons, r)
			}
		}
		if len(again) == 0 {
			return left, why, nil
		}
		if try == tries || pause(ctx, try) != nil {
			return append(left, again...), append(why, reasons...), nil
		}
		xs = again
	}
}

func bounded[T any](ctx context.Context, xs []T, call func(context.Context, []T) ([]types.BatchResultErrorEntry, error)) ([]types.BatchResultErrorEntry, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	return call(ctx, xs)
}

// pause waits before the next try.
func pause(ctx context.Context, try int) error {
	d := 50 * time.Millisecond << try
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// firstOf says in one error what was refused.
func firstOf(what string, why []refusal, of int) error {
	if len(why) == 0 {
		return nil
	}
	return fmt.Errorf("%s: SQS refused %d of %d, first with %w", what, len(why), of, why[0])
}
