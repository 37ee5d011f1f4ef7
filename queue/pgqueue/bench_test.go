package pgqueue

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/queue"
)

// The figures mean something on a server with fsync on (TEST_DATABASE_URL), and with
// a fixed number of items: go test -run - -bench Queue -benchtime 200000x.

// burn has four receivers receive everything, and acknowledge it, with or without a
// fact for each item in the same transaction. b.N counts items.
func burn(b *testing.B, pack, receive int, facts bool) {
	pool := pgtest.Pool(b)
	q := New(pool, "")
	fill(b, q, b.N, pack)
	mustExec(b, pool, `VACUUM ANALYZE oncemore.message`)
	mustExec(b, pool, `CHECKPOINT`)
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	start := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for left.Load() > 0 {
				ds, err := q.receiveNow(b.Context(), receive, []string{"invite"})
				if err != nil {
					b.Error(err)
					return
				}
				items := 0
				var entities []string
				for i := range ds {
					items += len(ds[i].Items)
					for _, it := range ds[i].Items {
						entities = append(entities, it.Entity)
					}
				}
				err = run(b.Context(), pool, func(batch *pgx.Batch) {
					if facts {
						batch.Queue(`INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity)
							SELECT 1, 1, 1, 'r', unnest($1::text[]) ON CONFLICT DO NOTHING`, entities)
					}
					q.AckBatch(batch, ds...)
				})
				if err != nil {
					b.Error(err)
					return
				}
				left.Add(-int64(items))
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "items/s")
}

func fill(b *testing.B, q *Queue, items, pack int) {
	var ms []queue.Message
	for i := 0; i < items; {
		m := queue.Message{Type: "invite"}
		for len(m.Items) < pack && i < items {
			m.Items = append(m.Items, queue.Item{
				Entity: fmt.Sprintf("event/%d/invitee/%08d", i/1000, i),
				Args:   json.RawMessage(fmt.Sprintf(`{"event_id":%d,"invitee_id":%d}`, i/1000, i)),
			})
			i++
		}
		if ms = append(ms, m); len(ms) == max(5000/pack, 1) || i == items {
			if err := q.Send(context.Background(), ms...); err != nil {
				b.Fatal(err)
			}
			ms = ms[:0]
		}
	}
}

func mustExec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func BenchmarkQueueSingles(b *testing.B)          { burn(b, 1, 200, false) }
func BenchmarkQueueSinglesWithFacts(b *testing.B) { burn(b, 1, 200, true) }
func BenchmarkQueuePacks(b *testing.B)            { burn(b, 100, 10, false) }
func BenchmarkQueuePacksWithFacts(b *testing.B)   { burn(b, 100, 10, true) }

func BenchmarkQueueSend(b *testing.B) {
	for _, pack := range []int{1, 100} {
		b.Run(fmt.Sprint("pack=", pack), func(b *testing.B) {
			q := New(pgtest.Pool(b), "")
			start := time.Now()
			fill(b, q, b.N, pack)
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "items/s")
		})
	}
	b.Run("one by one", func(b *testing.B) {
		q := New(pgtest.Pool(b), "")
		b.SetParallelism(4)
		m := queue.Message{Type: "invite", Items: []queue.Item{{Entity: "e", Args: json.RawMessage(`{"event_id":1}`)}}}
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := q.Send(b.Context(), m); err != nil {
					b.Error(err)
				}
			}
		})
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "items/s")
	})
}

func BenchmarkDecode(b *testing.B) {
	entities, args := textArray("event/1/invitee/00000001"), textArray(`{"event_id":1,"invitee_id":1}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeItems(entities, args); err != nil {
			b.Fatal(err)
		}
	}
}

// A session that holds an old snapshot keeps all that died since. b.N counts
// messages that were sent, received and acknowledged while it did, a hundred at a time.
func BenchmarkQueueOldSnapshot(b *testing.B) {
	for _, held := range []bool{false, true} {
		b.Run(fmt.Sprint("held=", held), func(b *testing.B) {
			pool := pgtest.Pool(b)
			if held {
				tx, err := pool.BeginTx(b.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
				if err != nil {
					b.Fatal(err)
				}
				defer tx.Rollback(context.Background())
				if _, err := tx.Exec(b.Context(), `SELECT count(*) FROM oncemore.message`); err != nil {
					b.Fatal(err)
				}
			}
			q := New(pool, "")
			var sent atomic.Int64
			start := time.Now()
			var wg sync.WaitGroup
			var half, last time.Duration // when half and all were done
			for range 4 {
				wg.Go(func() {
					for n := sent.Add(100); n <= int64(b.N); n = sent.Add(100) {
						fill(b, q, 100, 1)
						ds, err := q.receiveNow(b.Context(), 100, nil)
						if err == nil {
							err = q.Ack(b.Context(), ds...)
						}
						if err != nil {
							b.Error(err)
							return
						}
						if n == int64(b.N)/200*100 {
							half = time.Since(start)
						}
					}
				})
			}
			wg.Wait()
			last = time.Since(start)
			b.ReportMetric(float64(b.N)/2/(last-half).Seconds(), "items/s-in-the-second-half")
		})
	}
}

// Looking through receives of which nothing is held costs a little for each message
// they took, a visibility timeout later: what the burn-downs, which are shorter, do
// not show. b.N counts messages.
func BenchmarkQueueForgetting(b *testing.B) {
	pool := pgtest.Pool(b)
	q := New(pool, "")
	fill(b, q, b.N, 1)
	for done := 0; done < b.N; {
		ds := receive(b, q, 200)
		if err := q.Ack(b.Context(), ds...); err != nil {
			b.Fatal(err)
		}
		done += len(ds)
	}
	mustExec(b, pool, `UPDATE oncemore.message_receive SET check_at = now() - interval '1 second'`)
	b.ResetTimer()
	start := time.Now()
	for full := true; full; {
		w, err := q.wake(b.Context(), pool, bounds{})
		if err != nil {
			b.Fatal(err)
		}
		full = w.full
	}
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "items/s")
}
