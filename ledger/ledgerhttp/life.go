package ledgerhttp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A hand is an entity that a request of this process is claiming, working on or recording.
type hand struct {
	kind   int32
	entity string
}

func (k *Keys) take(h hand) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.hands[h] {
		return false
	}
	k.hands[h] = true
	return true
}

func (k *Keys) drop(h hand) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.hands, h)
}

func (k *Keys) holds(h hand) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.hands[h]
}

// living returns a lease that is not lost, a new one if need be. A lost one is left to lapse:
// requests that were claimed by it may still be ending. One takes it for all, who wait no longer
// than their ctx.
func (k *Keys) living(ctx context.Context) (*ledger.Lease, error) {
	select {
	case k.joining <- struct{}{}:
		defer func() { <-k.joining }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a lease: %w", context.Cause(ctx))
	}
	k.mu.Lock()
	lease, closing := k.lease, k.closing
	k.mu.Unlock()
	switch {
	case lease != nil && lease.Context().Err() == nil:
		return lease, nil
	case closing:
		return nil, errClosing
	}
	lease, err := k.ledger.Join(context.WithoutCancel(ctx), k.config.Name, k.config.Lease, k.log)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	if closing = k.closing; !closing {
		k.lease = lease
	}
	k.mu.Unlock()
	if closing { // meanwhile, and Close has not seen this one
		return nil, errors.Join(errClosing, leave(ctx, lease))
	}
	return lease, nil
}

// leave ends a lease. It is bounded by itself: a context that has ended must not keep others from
// what we held.
func leave(ctx context.Context, lease *ledger.Lease) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return lease.Leave(ctx)
}

// persist tries to record the end of an attempt until it is recorded or the lease is lost.
// While we live nobody else can take the claim, so nobody else could say how it ended. The
// client is not kept waiting for that.
func (at *attempt) persist(record func(context.Context) error) error {
	recorded := make(chan error, 1)
	at.running.Add(1) // this request is counted still, so nobody has done waiting
	go func() {
		defer at.running.Done()
		err := at.untilRecorded(record)
		at.drop(at.hand) // first: whoever is answered may ask again at once, and must not meet itself
		recorded <- err
	}()
	patience := time.NewTimer(recordTime)
	defer patience.Stop()
	select {
	case err := <-recorded:
		return err
	case <-patience.C:
		return errors.New("the end of the request is not recorded yet: the database does not answer")
	}
}

func (at *attempt) untilRecorded(record func(context.Context) error) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), recordTime)
		err := record(ctx)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-at.lease.Context().Done():
			return fmt.Errorf("record the end of the request: %w", err)
		case <-time.After(pause):
		}
	}
}
