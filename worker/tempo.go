package worker

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// A tempo is how long batches took. It is a hint, for tuning and for the eye: what a crash
// loses of it nobody misses.
type tempo struct {
	batches, items int64
	busy, slowest  time.Duration
}

func (p *tempo) mean() time.Duration {
	if p.batches == 0 {
		return 0
	}
	return p.busy / time.Duration(p.batches)
}

// tempos gathers the tempo of each run in this process.
type tempos struct {
	mu sync.Mutex
	of map[int64]*tempo
}

func (ps *tempos) add(run int64, items int, took time.Duration) {
	if run == 0 {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.of[run]
	if p == nil {
		if ps.of == nil {
			ps.of = map[int64]*tempo{}
		}
		p = &tempo{}
		ps.of[run] = p
	}
	p.batches++
	p.items += int64(items)
	p.busy += took
	p.slowest = max(p.slowest, took)
}

// keepTempo writes down the tempos every second in which there are any.
func (l *life) keepTempo(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.tempos.mu.Lock()
		gathered := l.tempos.of
		l.tempos.of = nil
		l.tempos.mu.Unlock()
		if len(gathered) == 0 {
			continue
		}
		b := &pgx.Batch{}
		for run, p := range gathered {
			b.Queue(addPaceSQL, run, l.lease.ID, p.batches, p.items, p.busy, p.slowest)
		}
		// In a transaction, so that nothing is prepared by name.
		err := inTx(ctx, l.pool, func(tx pgx.Tx) error { return tx.SendBatch(ctx, b).Close() })
		if err != nil && ctx.Err() == nil {
			l.log.Warn("the tempo of runs was not recorded", "error", err)
		}
	}
}

// Only of re-runs that go on: nobody reads the pace of others.
const addPaceSQL = `
/* run: pace */
INSERT INTO oncemore.run_pace AS p (run, worker, batches, items, busy, slowest)
SELECT $1, $2, $3, $4, $5, $6 WHERE EXISTS (SELECT FROM oncemore.run r WHERE r.id = $1 AND r.ended_at IS NULL AND r.selection IS NOT NULL)
ON CONFLICT (run, worker) DO UPDATE SET batches = p.batches + excluded.batches, items = p.items + excluded.items, busy = p.busy + excluded.busy,
    slowest = greatest(p.slowest, excluded.slowest), at = clock_timestamp()`
