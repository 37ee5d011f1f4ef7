package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/queue/sqsqueue/sqsfake"
)

// A proof is counted when all is over: in the database, and by the queue's own attributes.
type proof struct {
	*ordeal
	Entities int64
	Sent     int64 // messages
	Twice    int64 // of the entities, in two messages
	Tally    sqsfake.Tally

	SentAgain int64 // batches of messages, since some of them were refused

	Facts    int64
	Missing  int64 // entities without a fact
	Strange  int64 // facts of what is no entity
	Unproven int64 // facts without an effect, and effects without a fact
	Posted   int64 // entities whose effect in the transaction is there more than once
	Again    int64 // bodies that ran to their effect though another had
	Blind    int64 // entities of those: for no killed worker, or though it could be asked whether it had run
	Killed   int64
	Held     int64 // claims, by those that were killed
	Charged  int64 // of those: charges that had been made, which are to be made again, under their key
	Lapsed   int64 // leases of workers that lived: this machine is too slow, and others took their work over

	Left  int64 // messages, claims and parked input in the database
	Queue filling
	Grave filling
}

const (
	// What each entity is wanted as, by its number.
	wantedSQL = `(SELECT n::text COLLATE "C" AS entity, ($2::text[])[n % cardinality($2::text[]) + 1] AS type FROM generate_series(0, $1::int - 1) n) w`
	factSQL   = `(SELECT t.name AS type, l.entity FROM oncemore.ledger l JOIN oncemore.job_type t ON t.id = l.job_type) l`
	effectSQL = `(SELECT DISTINCT 'post' AS type, entity FROM proof.posting UNION ALL SELECT DISTINCT type, entity FROM proof.called) e`

	missingSQL  = `SELECT count(*) FROM ` + wantedSQL + ` LEFT JOIN ` + factSQL + ` USING (type, entity) WHERE l.entity IS NULL`
	strangeSQL  = `SELECT count(*) FROM ` + wantedSQL + ` RIGHT JOIN ` + factSQL + ` USING (type, entity) WHERE w.entity IS NULL`
	unprovenSQL = `SELECT count(*) FROM ` + factSQL + ` FULL JOIN ` + effectSQL + ` USING (type, entity) WHERE l.entity IS NULL OR e.entity IS NULL`
	postedSQL   = `SELECT count(*) FROM (SELECT FROM proof.posting GROUP BY entity HAVING count(*) > 1) p`
	againSQL    = `SELECT count(*) - count(DISTINCT (type, entity)) FROM proof.called`

	// Who begins a second life has lost the lease of the first.
	lapsedSQL = `SELECT count(*) - count(DISTINCT name) FROM oncemore.worker`

	// A charge may be made again for a worker that died over it, a shipping that has been made
	// never. Where a lease has lapsed nobody knows, here, for whom it was.
	blindSQL = `
SELECT count(*) FROM (SELECT FROM proof.called GROUP BY type, entity
HAVING count(*) FILTER (WHERE worker <> ALL ($1::text[])) > 1 OR count(*) > 1 + cardinality($1::text[]) OR type = 'ship' AND count(*) > 1) c
WHERE NOT EXISTS (SELECT FROM oncemore.worker GROUP BY name HAVING count(*) > 1)`

	leftSQL = `SELECT (SELECT count(*) FROM oncemore.message) + (SELECT count(*) FROM oncemore.claim) + (SELECT count(*) FROM oncemore.parked)`
)

func (t *tale) count(ctx context.Context) (err error) {
	p := &t.proof
	p.Entities, p.Killed, p.Tally = int64(t.entities), int64(len(t.killed)), t.sqs.tally()
	if p.Queue, err = t.sqs.filling(ctx, t.sqs.url); err != nil {
		return err
	}
	if p.Grave, err = t.sqs.filling(ctx, t.sqs.grave); err != nil {
		return err
	}
	err = t.Count(ctx, []stage.Number{
		stage.Into(&p.Facts, `SELECT count(*) FROM oncemore.ledger`),
		stage.Into(&p.Missing, missingSQL, t.entities, kinds),
		stage.Into(&p.Strange, strangeSQL, t.entities, kinds),
		stage.Into(&p.Unproven, unprovenSQL),
		stage.Into(&p.Posted, postedSQL),
		stage.Into(&p.Again, againSQL),
		stage.Into(&p.Blind, blindSQL, t.killed),
		stage.Into(&p.Lapsed, lapsedSQL),
		stage.Into(&p.Left, leftSQL),
	}, nil)
	p.Lapsed += t.lapsed
	return err
}

// Check says which lines are wrong.
func (p *proof) Check() error {
	o := p.ordeal
	var c stage.Check
	c.Is(p.Sent == p.Entities+p.Twice && p.Twice == int64(o.twice*float64(o.entities)), "%d messages were sent, of which %d for the second time, for %d entities", p.Sent, p.Twice, p.Entities)
	c.Is(p.Facts == p.Entities, "%d entities have %d facts", p.Entities, p.Facts)
	c.Is(p.Missing == 0, "%d are lost", p.Missing)
	c.Is(p.Strange == 0, "%d facts are of what nobody has sent", p.Strange)
	c.Is(p.Unproven == 0, "%d facts and effects have no counterpart", p.Unproven)
	c.Is(p.Posted == 0, "%d effects of transactions are there more than once", p.Posted)
	c.Is(p.Blind == 0, "%d bodies ran again though no killed worker is the reason, or though it could be known that they had run", p.Blind)
	c.Is(p.Again == p.Charged || p.Lapsed > 0 && p.Again > p.Charged, "%d bodies ran again, but killed workers had made %d charges without recording them", p.Again, p.Charged)
	c.Is(p.Killed == int64(o.kills) && (p.Charged > 0 || o.kills == 0), "%d workers were killed, over %d charges, not %d", p.Killed, p.Charged, o.kills)
	c.Is(near(p.Tally.Duplicates, p.Tally.HandedOut, o.twice), "of %d messages that were handed out %d were doubled, not %.0f %%", p.Tally.HandedOut, p.Tally.Duplicates, 100*o.twice)
	c.Is(near(p.Tally.Refused, p.Tally.Entries, o.refused), "of %d entries of batches %d were refused, not %.0f %%", p.Tally.Entries, p.Tally.Refused, 100*o.refused)
	c.Is(p.Left == 0, "%d messages, claims and parked are left in the database", p.Left)
	c.Is(p.Queue == filling{}, "the queue has %v", p.Queue)
	c.Is(p.Grave == filling{}, "the dead-letter queue has %v", p.Grave)
	return c.Err()
}

// near tells whether n is about that share of all.
func near(n, all int, share float64) bool {
	want := share * float64(all)
	return all > 0 && float64(n) > 0.6*want && float64(n) < 1.4*want
}

func (p *proof) Write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	slow := ""
	if p.Lapsed > 0 {
		slow = fmt.Sprintf(", or for workers on this slow machine, where %d leases have lapsed", p.Lapsed)
	}
	fmt.Fprintf(t, "\n  entities\t%d\n  messages sent\t%d\t%d of the entities in two\n", p.Entities, p.Sent, p.Twice)
	fmt.Fprintf(t, "  messages handed out\t%d\t%d of them to two at once\n", p.Tally.HandedOut, p.Tally.Duplicates)
	fmt.Fprintf(t, "  entries of batches\t%d\t%d of them refused, half of which took effect; %d times a Send was made again\n", p.Tally.Entries, p.Tally.Refused, p.SentAgain)
	fmt.Fprintf(t, "  workers killed\t%d\tover %d claims; %d charges were made and not recorded\n", p.Killed, p.Held, p.Charged)
	fmt.Fprintf(t, "  facts\t%d\n  lost\t%d\n  of nothing\t%d\n  facts or effects alone\t%d\n", p.Facts, p.Missing, p.Strange, p.Unproven)
	fmt.Fprintf(t, "  twice in the database\t%d\n  bodies that ran again\t%d\tthose charges, under the same key%s\n  that ran again blindly\t%d\n", p.Posted, p.Again, slow, p.Blind)
	fmt.Fprintf(t, "  left in the database\t%d\tmessages, claims, parked\n  left in SQS\t%v\n  dead letters\t%v\n  seed\t%d\n", p.Left, p.Queue, p.Grave, p.seed)
}
