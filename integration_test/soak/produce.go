package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
)

// A demand is all that was asked for, as who asked remembers it. It is outside the
// database, and what the count at the end starts from.
type demand struct {
	newest  map[string]int64           // the entities of a type are 1 to this
	epochs  map[Entity]int64           // the highest that an entity was asked for under
	parents map[string]map[int64]int64 // the calls of each fan-out's parent
}

// A producer asks for work. It keeps the backlog bounded, and it insists: what it does
// not know to be sent it sends again, so that all it remembers was asked for.
type producer struct {
	w       *world
	queue   *pgqueue.Queue
	rand    *rand.Rand
	backlog int64
	demand
	asked  atomic.Int64 // entities, for the eye
	gaveUp error        // why it has stopped asking; owned by run
}

func newProducer(w *world, seed uint64, backlog int64) *producer {
	p := &producer{w: w, queue: pgqueue.New(w.db, ""), rand: rand.New(rand.NewPCG(seed, 2)), backlog: backlog}
	p.newest, p.epochs, p.parents = map[string]int64{}, map[Entity]int64{}, map[string]map[int64]int64{}
	return p
}

// run asks until ctx ends; what it began then it still brings to its end.
func (p *producer) run(ctx context.Context) {
	for ctx.Err() == nil && p.gaveUp == nil {
		if p.full(ctx) {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		for range 10 {
			p.ask()
		}
	}
}

// full tells whether enough waits. What is delayed does not count.
func (p *producer) full(ctx context.Context) bool {
	var n int64
	err := p.w.db.QueryRow(ctx, `SELECT coalesce(sum(cardinality(entities)), 0) FROM oncemore.message WHERE lock IS DISTINCT FROM 0`).Scan(&n)
	return err != nil || n > p.backlog
}

// ask sends one batch of a type drawn by weight.
func (p *producer) ask() {
	t := &jobTypes[0]
	n := p.rand.IntN(100)
	for i := range jobTypes {
		t = &jobTypes[i]
		if n -= t.weight; n < 0 {
			break
		}
	}
	switch {
	case t.parent != "":
		p.call(t)
	case t.sourced:
		p.change(t)
	default:
		p.create(t)
		if t.forced && p.rand.IntN(4) == 0 {
			p.force(t)
		}
	}
}

func item(id, version int64) queue.Item {
	args := struct {
		ID      int64 `json:"id"`
		Version int64 `json:"source_version,omitempty"`
	}{id, version}
	raw, err := json.Marshal(args)
	if err != nil {
		panic(err) // two numbers
	}
	return queue.Item{Entity: jobs.Key(id), Args: raw}
}

// create asks for new entities: singly or in one message, each of them one to three times,
// at once or later.
func (p *producer) create(t *jobType) {
	var items []queue.Item
	for range 1 + p.rand.IntN(60) {
		p.newest[t.name]++
		items = append(items, item(p.newest[t.name], 0))
	}
	p.send(p.messages(t, items)...)
	p.asked.Add(int64(len(items)))
}

// messages are those that ask for items, duplicates included.
func (p *producer) messages(t *jobType, items []queue.Item) (ms []queue.Message) {
	if p.rand.IntN(2) == 0 {
		ms = append(ms, queue.Message{Type: t.name, Items: items, Delay: p.later()})
	} else {
		for _, it := range items {
			ms = append(ms, queue.Message{Type: t.name, Items: []queue.Item{it}, Delay: p.later(), Priority: p.rand.IntN(2)})
		}
	}
	for _, it := range items {
		for copies := p.rand.IntN(10); copies >= 7; copies -= 2 { // none, one or two
			ms = append(ms, queue.Message{Type: t.name, Items: []queue.Item{it}, Delay: p.later()})
		}
	}
	p.rand.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
	return ms
}

func (p *producer) later() time.Duration {
	if p.rand.IntN(5) > 0 {
		return 0
	}
	return time.Duration(p.rand.Int64N(int64(8 * time.Second)))
}

// force asks for an entity once more, done or not, under a new epoch.
func (p *producer) force(t *jobType) {
	e := Entity{t.name, 1 + p.rand.Int64N(p.newest[t.name])}
	var epoch int64
	p.insist(func(ctx context.Context) error {
		return p.w.db.QueryRow(ctx, `SELECT nextval('oncemore.epoch')`).Scan(&epoch)
	})
	m := queue.Message{Type: t.name, Items: []queue.Item{item(e.ID, 0)}, Epoch: epoch, Delay: p.later()}
	p.send(m)
	if p.rand.IntN(3) == 0 {
		p.send(m)
	}
	p.epochs[e] = max(p.epochs[e], epoch)
}

// change raises versions of sources, new ones and known ones, and asks for what is made of
// them. The same entity may be in one message with several versions.
func (p *producer) change(t *jobType) {
	var items []queue.Item
	for range 1 + p.rand.IntN(30) {
		id := p.newest[t.name] + 1
		if p.rand.IntN(3) > 0 && id > 1 {
			id = max(1, p.newest[t.name]-p.rand.Int64N(300))
		} else {
			p.newest[t.name]++
		}
		items = append(items, item(id, p.w.provider.raise(Entity{t.name, id})))
	}
	p.send(p.messages(t, items)...)
	p.asked.Add(int64(len(items)))
}

// call makes a parent with children, or gives one of the last parents more, and calls its
// fan-out once to three times, in the same transaction.
func (p *producer) call(t *jobType) {
	if p.parents[t.parent] == nil {
		p.parents[t.parent] = map[int64]int64{}
	}
	calls := p.parents[t.parent]
	parent := int64(len(calls)) + 1
	n := 20 + p.rand.IntN(300)
	if parent > 3 && p.rand.IntN(3) == 0 {
		parent -= 1 + p.rand.Int64N(3) // late members
		n = p.rand.IntN(30)
	}
	var ids []int64
	for range n {
		if p.newest[t.name] > 100 && p.rand.IntN(20) == 0 {
			ids = append(ids, 1+p.rand.Int64N(p.newest[t.name])) // it has two parents
			continue
		}
		p.newest[t.name]++
		ids = append(ids, p.newest[t.name])
	}
	times := 1 + p.rand.IntN(3)
	p.insist(func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, p.w.db, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, membersSQL, t.name, parent, ids); err != nil {
				return err
			}
			for range times {
				m := queue.Message{Type: t.parent, Items: []queue.Item{item(parent, 0)}, Delay: p.later()}
				if err := p.queue.Tx(tx).Send(ctx, m); err != nil {
					return err
				}
			}
			return nil
		})
	})
	calls[parent] += int64(times)
	p.asked.Add(int64(n))
}

const membersSQL = `INSERT INTO soak.member (type, parent, id) SELECT $1, $2, m.id FROM unnest($3::bigint[]) AS m(id) ON CONFLICT DO NOTHING`

func (p *producer) send(ms ...queue.Message) {
	p.insist(func(ctx context.Context) error { return p.queue.Send(ctx, ms...) })
}

// insist tries until it succeeds: the database comes back. When it does not for minutes,
// that is the end of the soak.
func (p *producer) insist(f func(ctx context.Context) error) {
	for began := time.Now(); p.gaveUp == nil; {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Since(began) > 5*time.Minute {
			p.gaveUp = fmt.Errorf("the database does not take work for 5 minutes: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// callAgain asks for everything that was ever asked for.
func (p *producer) callAgain(ctx context.Context) error {
	for i := range jobTypes {
		t := &jobTypes[i]
		if t.parent != "" {
			continue
		}
		var items []queue.Item
		for id := int64(1); id <= p.newest[t.name]; id++ {
			items = append(items, item(id, p.w.provider.version(Entity{t.name, id})))
			if len(items) == 500 || id == p.newest[t.name] {
				if err := p.queue.Send(ctx, queue.Message{Type: t.name, Items: items}); err != nil {
					return fmt.Errorf("call everything again: %w", err)
				}
				items = nil
			}
		}
	}
	for name, calls := range p.parents {
		for parent := range calls {
			if err := p.queue.Send(ctx, queue.Message{Type: name, Items: []queue.Item{item(parent, 0)}}); err != nil {
				return fmt.Errorf("call everything again: %w", err)
			}
		}
	}
	return nil
}
