package ledgerhttp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

func (k *Keys) keepTidy(ctx context.Context) {
	defer close(k.stopped)
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		limit, cancel := context.WithTimeout(ctx, time.Minute) // a connection may have been cut off without a word
		err := k.tidy(limit)
		cancel()
		if err != nil && ctx.Err() == nil {
			k.log.Warn("what is over was not deleted", "error", err)
		}
	}
}

// tidy deletes what has expired, and the claims that dead processes left beside facts: there may
// be no worker that would.
func (k *Keys) tidy(ctx context.Context) error {
	k.mu.Lock()
	var kinds []*ledger.Type
	for _, g := range k.operations {
		if g.op.Effect != ledger.InTransaction {
			kinds = append(kinds, &g.kind)
		}
	}
	k.mu.Unlock()
	err := k.expireNext(ctx)
	if len(kinds) > 0 {
		err = errors.Join(err, k.ledger.SweepMoot(ctx, kinds))
	}
	return err
}

// Answers have no index by the time at which they expire: every request would pay for that, and all
// it would be good for is to delete them soon, which nobody waits for. So their table is read, from
// its beginning to its end and again, a stretch at a time: 32 MB a minute, which is some 30 ms of
// the server's time, and all of it within an hour, however much comes in. Processes that do not live
// that long begin somewhere.
const (
	stretchPages  = 128 // of 8 kB, that one statement reads
	stretchesEach = 32  // minute, at least
)

// expireNext deletes what has expired in the next stretches, and notes how far it came.
func (k *Keys) expireNext(ctx context.Context) error {
	first := k.stretch
	for i, most := int64(0), int64(stretchesEach); i < most; i++ {
		_, stretches, err := k.expireIn(ctx, k.stretch)
		if err != nil {
			return err
		}
		most = max(stretchesEach, stretches/60)
		if k.stretch = (k.stretch + 1) % stretches; k.stretch == first {
			return nil // that was all of it
		}
	}
	return nil
}

// Expire deletes the answers that have expired, and tells how many. It reads all of their table. They
// are not shown any more in any case, and are deleted in time without it (see [New]); the facts stay.
func (k *Keys) Expire(ctx context.Context) (n int64, err error) {
	for i, stretches := int64(0), int64(1); i < stretches; i++ {
		var deleted int64
		if deleted, stretches, err = k.expireIn(ctx, i); err != nil {
			return n, err
		}
		n += deleted
	}
	return n, nil
}

// expireIn deletes what has expired in one stretch, and tells how many stretches there are, at
// least one. It may be one beyond those. What others are deleting is left to them.
func (k *Keys) expireIn(ctx context.Context, stretch int64) (n, stretches int64, err error) {
	tid := func(page int64) string { return fmt.Sprintf("(%d,0)", page) }
	err = k.pool.QueryRow(ctx, expireSQL, tid(stretch*stretchPages), tid((stretch+1)*stretchPages), stretchPages).Scan(&n, &stretches)
	if err != nil {
		err = fmt.Errorf("delete expired responses: %w", err)
	}
	return n, stretches, err
}

const expireSQL = `
/* response: expire */
WITH gone AS (
  DELETE FROM oncemore.response
  WHERE ctid = ANY (ARRAY(SELECT r.ctid FROM oncemore.response r
                          WHERE r.ctid >= $1::text::tid AND r.ctid < $2::text::tid AND r.expires_at < now() FOR UPDATE SKIP LOCKED))
  RETURNING 1)
SELECT (SELECT count(*) FROM gone), pg_relation_size('oncemore.response') / (current_setting('block_size')::bigint * $3::bigint) + 1`
