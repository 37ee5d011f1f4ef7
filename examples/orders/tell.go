package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A play is one telling of the story.
type play struct {
	*stage.Stage
	id       string
	provider *provider
	paying   string // the provider's URL
	clients  []*client
	shops    atomic.Pointer[[]string] // the URLs of the servers that are there

	mu       sync.Mutex
	receipts map[string][]string // by order, of all clients
	proof
}

const (
	racers = 4  // clients
	beside = 10 // orders on their way at once
)

// tell tells the story of so many orders.
func tell(ctx context.Context, o stage.Options, orders int) (pr *proof, err error) {
	s, err := stage.Open(ctx, "orders", o)
	defer func() { s.Close(err != nil) }()
	if err != nil {
		return nil, err
	}
	p := &play{Stage: s, id: rand.Text(), provider: newProvider(), receipts: map[string][]string{}}
	for i := range racers {
		p.clients = append(p.clients, newClient(fmt.Sprint("client ", i+1), func() []string { return *p.shops.Load() }))
	}
	var stop func()
	if p.paying, stop, err = stage.Serve(p.provider); err != nil {
		return nil, err
	}
	defer stop()
	if err := p.tell(ctx, orders); err != nil {
		return nil, err
	}
	return &p.proof, nil
}

func (p *play) tell(ctx context.Context, orders int) error {
	if _, err := p.DB.Exec(ctx, schema); err != nil {
		return fmt.Errorf("make the shop's tables: %w", err)
	}
	for range 2 {
		if err := p.openShop(ctx); err != nil {
			return err
		}
	}
	p.Say("Two servers are open. %d clients race for each step of %d orders; all send everything twice, and lose each fifth answer.", racers, orders)
	rows, err := p.DB.Query(ctx, `/* shop: fill carts */ INSERT INTO shop.orders (play) SELECT $1 FROM generate_series(1, $2::int) RETURNING id`, p.id, orders)
	if err != nil {
		return err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("fill carts: %w", err)
	}
	p.Orders = int64(len(ids))
	selling, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	places := make(chan struct{}, beside)
	all.Go(func() {
		for i, id := range ids {
			select {
			case places <- struct{}{}:
			case <-selling.Done():
				return
			}
			all.Go(func() {
				defer func() { <-places }()
				if err := p.sell(selling, strconv.FormatInt(id, 10), i%10 == 3); err != nil {
					cancel(err)
				}
			})
		}
	})
	for third := range int64(2) {
		err = p.Await(selling, "some orders are shipped", `SELECT count(*) >= $2 FROM shop.orders WHERE play = $1 AND state = 'shipped'`, p.id, third*p.Orders/3)
		if err == nil {
			err = p.lose(selling)
		}
		if err != nil {
			cancel(err)
		}
	}
	all.Wait()
	if err := context.Cause(selling); err != nil {
		return err
	}
	p.Say("All orders are shipped.")
	return p.count(ctx)
}

// sell takes one order all the way. changed: its owner adds to it when all clients have looked.
func (p *play) sell(ctx context.Context, id string, changed bool) error {
	for _, step := range []struct{ verb, from string }{{"order", "cart"}, {"ship", "paid"}} {
		err := p.all(func(c *client) error {
			if step.verb == "order" {
				return nil
			}
			var r Receipt
			if err := c.get(ctx, "/orders/"+id+"/receipt", &r); err != nil {
				return err
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.receipts[id] = append(p.receipts[id], r.Charge)
			return nil
		})
		if err != nil {
			return err
		}
		var seen Order
		if err := p.clients[0].get(ctx, "/orders/"+id, &seen); err != nil {
			return err
		}
		if changed && step.verb == "order" {
			if _, err := p.DB.Exec(ctx, `/* shop: add to cart */ UPDATE shop.orders SET pieces = pieces + 1, version = version + 1 WHERE id = $1::text::bigint`, id); err != nil {
				return err
			}
		}
		if err := p.all(func(c *client) error { return c.move(ctx, id, step.verb, step.from, seen) }); err != nil {
			return err
		}
	}
	return nil
}

// all has all clients do something at once.
func (p *play) all(do func(c *client) error) error {
	errs := make([]error, len(p.clients))
	var wg sync.WaitGroup
	for i, c := range p.clients {
		wg.Go(func() { errs[i] = do(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// openShop starts a server.
func (p *play) openShop(ctx context.Context) error {
	before, err := p.Int(ctx, `SELECT count(*) FROM shop.server`)
	if err != nil {
		return err
	}
	if _, err := p.StartWorker(ctx, p.paying); err != nil {
		return err
	}
	if err := p.Await(ctx, "another shop is open", `SELECT count(*) > $1 FROM shop.server`, before); err != nil {
		return err
	}
	return p.see(ctx)
}

// see looks which servers are there.
func (p *play) see(ctx context.Context) error {
	var names []string
	for _, w := range p.Living() {
		names = append(names, w.Name)
	}
	rows, err := p.DB.Query(ctx, `SELECT DISTINCT ON (name) url FROM shop.server WHERE name = ANY ($1) ORDER BY name, at DESC`, names)
	if err != nil {
		return err
	}
	urls, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look which shops are open: %w", err)
	}
	p.shops.Store(&urls)
	return nil
}

// lose kills a server that has moved an order, and not yet recorded that it did.
func (p *play) lose(ctx context.Context) error {
	killed, err := p.KillBusy(ctx, "order: move", `SELECT (SELECT count(*) FROM shop.orders WHERE play = $1 AND state <> 'shipped') = 0`, p.id)
	if err != nil || killed == nil {
		return err
	}
	p.Killed++
	return p.openShop(ctx)
}

// A proof is counted from the tables and by the provider, but for what the clients saw.
type proof struct {
	Orders, Shipped         int64
	Moves, Twice            int64 // of orders' rows; those that are there twice
	Facts                   int64 // that an order went a way
	Applied, Before         int64 // wishes: fulfilled by the request itself, or by somebody else's
	Conflicts               int64 // answers that the order is at another version
	Replayed, Lost, Tries   int64 // answers shown again; answers lost; requests without an answer to keep
	Killed                  int64 // servers
	Charges, Keys, Asked    int64 // at the provider, with how many keys it was asked, how often
	ChargedTwice            int64 // orders
	Receipts, WrongReceipts int64 // that clients got; those that are not of the order's one charge
	Open                    int64 // work that did not end
}

func (p *play) count(ctx context.Context) error {
	pr := &p.proof
	for _, c := range p.clients {
		pr.Applied += c.applied.Load()
		pr.Before += c.before.Load()
		pr.Conflicts += c.conflicts.Load()
		pr.Replayed += c.replayed.Load()
		pr.Lost += c.net.Lost.Load()
		pr.Tries += c.tries.Load()
	}
	p.provider.mu.Lock()
	pr.Asked, pr.Keys = p.provider.asked, int64(len(p.provider.charges))
	for _, n := range p.provider.orders {
		pr.Charges += n
		if n > 1 {
			pr.ChargedTwice++
		}
	}
	p.provider.mu.Unlock()
	for _, rs := range p.receipts {
		pr.Receipts += int64(len(rs))
		for _, r := range rs {
			if r != rs[0] || !slices.Contains(p.provider.given(), r) {
				pr.WrongReceipts++
			}
		}
	}
	return p.Count(ctx, []stage.Number{
		stage.Into(&pr.Shipped, `SELECT count(*) FROM shop.orders WHERE play = $1 AND state = 'shipped'`, p.id),
		stage.Into(&pr.Moves, `SELECT count(*) FROM shop.moved m JOIN shop.orders o ON o.id = m.order_id WHERE o.play = $1`, p.id),
		stage.Into(&pr.Twice, `SELECT count(*) FROM (SELECT FROM shop.moved m JOIN shop.orders o ON o.id = m.order_id WHERE o.play = $1 GROUP BY m.order_id, m.was, m.became HAVING count(*) > 1) t`, p.id),
		stage.Into(&pr.Facts, factsSQL, p.id),
		stage.Into(&pr.Open, `SELECT count(*) FROM oncemore.claim`),
	}, nil)
}

const factsSQL = `
SELECT count(*) FROM shop.orders o CROSS JOIN unnest('{cart/ordered,ordered/paid,paid/shipped}'::text[]) AS way
JOIN oncemore.ledger l ON l.entity = o.id || '/' || way AND l.job_type = (SELECT t.id FROM oncemore.job_type t WHERE t.name = 'move_order')
WHERE o.play = $1`

// given are the receipts that the provider gave.
func (p *provider) given() (all []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.charges {
		all = append(all, r.Charge)
	}
	return all
}

// Check says which lines are wrong.
func (pr *proof) Check() error {
	var c stage.Check
	c.Is(pr.Orders > 0 && pr.Shipped == pr.Orders, "%d of %d orders are shipped", pr.Shipped, pr.Orders)
	c.Is(pr.Moves == 3*pr.Orders && pr.Twice == 0, "%d orders were moved %d times, and %d moves were made twice", pr.Orders, pr.Moves, pr.Twice)
	c.Is(pr.Facts == 3*pr.Orders, "there are %d facts of %d moves", pr.Facts, 3*pr.Orders)
	c.Is(pr.Applied == 2*pr.Orders && pr.Before > pr.Applied, "%d wishes were fulfilled by their own request, %d by another's", pr.Applied, pr.Before)
	c.Is(pr.Conflicts > 0, "nobody met a conflict")
	c.Is(pr.Replayed > 0 && pr.Lost > 0 && pr.Tries > 0, "%d answers were shown again, %d were lost, %d requests had none", pr.Replayed, pr.Lost, pr.Tries)
	c.Is(pr.Killed > 0, "no server was killed in the middle of a move")
	c.Is(pr.Charges == pr.Orders && pr.Keys == pr.Orders && pr.ChargedTwice == 0, "%d orders were charged %d times, under %d keys, %d of them twice", pr.Orders, pr.Charges, pr.Keys, pr.ChargedTwice)
	c.Is(pr.Asked > pr.Charges, "the provider was never asked again")
	c.Is(pr.Receipts == racers*pr.Orders && pr.WrongReceipts == 0, "%d receipts were given for %d orders, %d of them wrong", pr.Receipts, pr.Orders, pr.WrongReceipts)
	c.Is(pr.Open == 0, "%d entities are still open", pr.Open)
	return c.Err()
}

func (pr *proof) Write(w io.Writer) {
	fmt.Fprintf(w, "\n  %d wishes of %d clients for each step of %d orders: %d fulfilled by their own request, %d by another's, %d conflicts\n",
		2*racers*pr.Orders, racers, pr.Orders, pr.Applied, pr.Before, pr.Conflicts)
	fmt.Fprintf(w, "  %d requests without an answer, %d answers lost, %d shown again, %d servers killed over a move\n", pr.Tries, pr.Lost, pr.Replayed, pr.Killed)
	fmt.Fprintf(w, "  the provider was asked %d times for %d charges; %d receipts were awaited, %d of them wrong\n", pr.Asked, pr.Charges, pr.Receipts, pr.WrongReceipts)
	fmt.Fprintf(w, "proof: %d orders went cart → ordered → paid → shipped: %d moves, %d of them twice; %d charges, %d orders charged twice\n",
		pr.Shipped, pr.Moves, pr.Twice, pr.Charges, pr.ChargedTwice)
}
