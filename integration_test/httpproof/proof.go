package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// A proof is counted from the tables when all is over.
type proof struct {
	*ordeal
	Requests int // that have a final answer
	Keys     int // different ones
	Refused  int // of those, whose operation answers 402: their effect is rolled back

	Once     int // keys with one effect
	Twice    int // keys with more than one
	Strange  int // effects that should not be: of what was refused, or of no key
	Facts    int
	Answers  int // that are stored
	Left     int // claims, but those that a fact outranks
	Disputed int // attempts, whose effect may have happened twice

	Replayed  int // replies that were marked as shown again
	Originals int // replies that were not
	SecondOri int // of those, the second of a key
	Unlike    int // replies that are not what is stored for their key
	Wrong     int // replies with another status than the operation has

	Killed  int   // servers, with -9
	Broken  int64 // connections
	Retries int64 // requests that were sent again by themselves
}

const (
	effectsSQL = `SELECT key, count(*) FROM (SELECT key FROM shop.effect UNION ALL SELECT key FROM shop.charge) e GROUP BY key`

	// A server that is killed just when it finds out that a twin was faster leaves a claim beside
	// the fact, which outranks it. The others sweep it once a minute.
	leftSQL = `
SELECT count(*) FROM oncemore.claim c
WHERE NOT EXISTS (SELECT FROM oncemore.ledger l WHERE (l.job_type, l.entity) = (c.job_type, c.entity) AND coalesce(l.epoch, 0) >= c.epoch)`

	storedSQL = `
SELECT t.name, r.entity, r.status, r.headers, r.body FROM oncemore.response r JOIN oncemore.job_type t ON t.id = r.job_type
JOIN oncemore.ledger l ON (l.job_type, l.entity, coalesce(l.epoch, 0)) = (r.job_type, r.entity, r.epoch)`
)

func (t *tale) count(ctx context.Context) error {
	p := &t.proof
	p.Broken, p.Retries = t.network.broken.Load(), t.crowd.retries.Load()
	err := pgx.BeginTxFunc(ctx, t.DB, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for query, into := range map[string]*int{
			`SELECT count(*) FROM oncemore.ledger`:   &p.Facts,
			`SELECT count(*) FROM oncemore.response`: &p.Answers,
			leftSQL:                                  &p.Left,
			`SELECT count(*) FROM oncemore.attempt WHERE outcome = 'disputed'`: &p.Disputed,
		} {
			if err := tx.QueryRow(ctx, query).Scan(into); err != nil {
				return err
			}
		}
		if err := t.countEffects(ctx, tx); err != nil {
			return err
		}
		stored, err := readStored(ctx, tx)
		if err != nil {
			return err
		}
		t.compare(stored)
		return nil
	})
	if err != nil {
		return fmt.Errorf("count what came of it: %w", err)
	}
	return nil
}

// countEffects counts them by key.
func (t *tale) countEffects(ctx context.Context, tx pgx.Tx) error {
	p := &t.proof
	wanted := map[string]bool{}
	for _, a := range t.asks {
		wanted[a.key] = a.operation != refuse
	}
	for _, is := range wanted {
		if !is {
			p.Refused++
		}
	}
	rows, err := tx.Query(ctx, effectsSQL)
	if err != nil {
		return err
	}
	var key string
	var n int
	_, err = pgx.ForEachRow(rows, []any{&key, &n}, func() error {
		switch {
		case !wanted[key]:
			p.Strange++
		case n > 1:
			p.Twice++
		default:
			p.Once++
		}
		return nil
	})
	return err
}

// readStored reads the answers that belong to a fact, by what was asked.
func readStored(ctx context.Context, tx pgx.Tx) (map[ask]string, error) {
	stored := map[ask]string{}
	rows, err := tx.Query(ctx, storedSQL)
	if err != nil {
		return nil, err
	}
	var operation, entity string
	var status int
	var headers [][]byte
	var body []byte
	_, err = pgx.ForEachRow(rows, []any{&operation, &entity, &status, &headers, &body}, func() error {
		r := reply{ask: ask{operation, entity[strings.LastIndex(entity, " ")+1:]}, status: status, header: http.Header{}, body: string(body)}
		for i := 0; i+1 < len(headers); i += 2 {
			r.header.Add(string(headers[i]), string(headers[i+1]))
		}
		stored[r.ask] = r.text()
		return nil
	})
	return stored, err
}

// compare holds every reply against what is stored for its key.
func (t *tale) compare(stored map[ask]string) {
	p := &t.proof
	first := map[ask]bool{}
	for _, r := range t.crowd.replies {
		p.Requests++
		if r.text() != stored[r.ask] {
			p.Unlike++
		}
		if want := map[string]int{order: http.StatusCreated, charge: http.StatusCreated, refuse: http.StatusPaymentRequired}[r.operation]; r.status != want {
			p.Wrong++
		}
		switch {
		case r.replayed:
			p.Replayed++
		case first[r.ask]:
			p.SecondOri++
			fallthrough
		default:
			p.Originals++
			first[r.ask] = true
		}
	}
}

// Check says which lines are wrong.
func (p *proof) Check() error {
	o := p.ordeal
	var c stage.Check
	c.Is(p.Requests == o.requests, "%d requests have an answer, of %d", p.Requests, o.requests)
	c.Is(p.Keys > 0 && p.Keys < p.Requests && p.Refused > 0, "%d keys, of which %d are refused, are no test for %d requests", p.Keys, p.Refused, p.Requests)
	c.Is(p.Once == p.Keys-p.Refused, "of %d keys %d have one effect", p.Keys-p.Refused, p.Once)
	c.Is(p.Twice == 0, "%d have more than one", p.Twice)
	c.Is(p.Strange == 0, "%d effects should not be", p.Strange)
	c.Is(p.Facts == p.Keys && p.Answers == p.Keys, "there are %d facts and %d stored answers for %d keys", p.Facts, p.Answers, p.Keys)
	c.Is(p.Left == 0, "%d claims are left over", p.Left)
	c.Is(p.Disputed == 0, "%d attempts are disputed", p.Disputed)
	c.Is(p.Unlike == 0, "%d replies differ from what is stored", p.Unlike)
	c.Is(p.Wrong == 0, "%d replies have another status than the operation's", p.Wrong)
	c.Is(p.SecondOri == 0, "%d replies are the second of their key that is not marked as shown again", p.SecondOri)
	c.Is(p.Replayed+p.Originals == p.Requests && p.Replayed >= p.Requests-p.Keys, "%d replies were shown again, and %d were not", p.Replayed, p.Originals)
	c.Is(p.Killed == o.kills, "%d servers were killed, not %d", p.Killed, o.kills)
	c.Is(p.Broken > 0 && p.Retries > 0, "%d connections broke, and %d requests were sent again by themselves", p.Broken, p.Retries)
	return c.Err()
}

func (p *proof) Write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	fmt.Fprintf(t, "\n  requests\t%d\tall with a final answer\n  keys\t%d\tof which %d are refused with a stored 402\n", p.Requests, p.Keys, p.Refused)
	fmt.Fprintf(t, "  with one effect\t%d\n  with more than one\t%d\n  effects that should not be\t%d\n", p.Once, p.Twice, p.Strange)
	fmt.Fprintf(t, "  facts\t%d\n  stored answers\t%d\n  claims left over\t%d\n  disputed\t%d\n", p.Facts, p.Answers, p.Left, p.Disputed)
	fmt.Fprintf(t, "  replies marked as shown again\t%d\n  replies that are not\t%d\tat most one for a key\n", p.Replayed, p.Originals)
	fmt.Fprintf(t, "  replies unlike what is stored\t%d\tin status, kept headers or body\n", p.Unlike)
	fmt.Fprintf(t, "  servers killed\t%d\n  connections broken\t%d\n  sent again by the client\t%d\n  seed\t%d\n", p.Killed, p.Broken, p.Retries, p.seed)
}
