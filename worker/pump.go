package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// How a re-run is sent.
const (
	pumpEvery   = 100 * time.Millisecond // between visits while there is something to send
	heldEvery   = time.Second            // while it must wait
	pausedEvery = 10 * time.Second       // while it is paused; resuming it does not wait for that
	firstAhead  = 32                     // messages on their way at first: enough for some workers, few enough to stop soon
	mostAhead   = 4096

	targetBatch = 500 * time.Millisecond // of a DoMany transaction, which the number of its items is tuned to
	leastBatch  = 10
	slowBatch   = 5 * targetBatch // the least batch takes longer: the database is in trouble
	tryAfter    = 10 * time.Second
)

// pump sends the next part of a sealed plan, as far as everything that has a say lets it,
// and looks for the end when all is sent. All of it is in the transaction of the visit:
// what is sent and what the run's row says about that are committed together.
func (l *life) pump(ctx context.Context, tx pgx.Tx, r *rerun, child *kind, hold string) error {
	b := &pgx.Batch{}
	if err := r.measure(ctx, tx); err != nil {
		return err
	}
	r.tune(b, child)
	onTheWay, err := inFlight(ctx, tx, r, child)
	if err != nil {
		return err
	}
	before := r.waits
	switch {
	case r.sent == r.items:
		r.waits = ""
		if err := l.finishRerun(ctx, tx, b, r, child, onTheWay > 0); err != nil {
			return err
		}
	case r.paused != nil:
		r.waits, r.wait = "paused: "+*r.paused, pausedEvery
	case r.brake != nil:
		r.waits, r.wait = "all runs are stopped: "+*r.brake, heldEvery
	case hold != "":
		r.waits, r.wait = hold, heldEvery
	case r.slow(child):
		r.waits, r.wait = fmt.Sprintf("%s: a batch of %d takes %s", itIsSlow, r.batch, r.took.mean().Round(time.Millisecond)), heldEvery
	default:
		r.waits, r.wait = "", pumpEvery
		if err := l.push(ctx, tx, b, r, child, onTheWay); err != nil {
			return err
		}
	}
	if cause(r.waits) != cause(before) { // the history need not have each second of an old transaction
		if r.waits != "" {
			tell(b, r.id, "waiting", r.waits)
		} else {
			tell(b, r.id, "going", "")
		}
	}
	return tx.SendBatch(ctx, b).Close()
}

const itIsSlow = "the database is slow"

// cause is the beginning of why a run waits: what follows has the numbers of the moment.
func cause(waits string) string {
	what, _, _ := strings.Cut(waits, ":")
	return what
}

// push sends as much as may be on its way now.
func (l *life) push(ctx context.Context, tx pgx.Tx, b *pgx.Batch, r *rerun, child *kind, onTheWay int) error {
	items := r.items - r.sent
	if r.canary > 0 && r.items > r.canary {
		if r.sent >= r.canary {
			return l.judgeCanary(ctx, tx, b, r, child, onTheWay > 0)
		}
		items = min(items, r.canary-r.sent)
	}
	credit := r.credit // as the last visit that sent left it: what came since counts once
	if r.rate > 0 {
		// Unused rate is kept for a second at most, so that a pause is not made up for.
		credit = min(credit+r.rate*r.idle.Seconds(), max(r.rate, 1))
		items = min(items, int64(credit))
	}
	switch {
	case r.ahead == 0:
		r.ahead = firstAhead
	case onTheWay == 0 && r.sent > 0:
		r.ahead = min(2*r.ahead, mostAhead) // the workers were waiting for us
	}
	size := r.batch
	if r.rate > 0 {
		size = min(size, max(1, int(r.rate))) // a second's worth at once
	}
	messages, n, err := l.cut(ctx, tx, r, child, size, r.ahead-onTheWay, items)
	if err != nil || n == 0 {
		return err
	}
	r.credit = max(0, credit-float64(n))
	r.sent += n
	r.idle = 0
	l.carrier(child).SendBatch(b, messages...)
	return nil
}

// cut takes the next items of the plan out of its packs, into at most so many messages.
func (l *life) cut(ctx context.Context, tx pgx.Tx, r *rerun, child *kind, size, most int, items int64) (ms []queue.Message, n int64, err error) {
	if most <= 0 || items <= 0 {
		return nil, 0, nil
	}
	packs := (min(items, int64(most)*int64(size))+int64(r.nextItem))/queue.MaxItems + 2
	rows, err := tx.Query(ctx, `SELECT pack, entities, args, reasons FROM oncemore.run_pack WHERE run = $1 AND pack >= $2 AND pack < $2 + $3 ORDER BY pack`,
		r.id, r.nextPack, packs)
	if err != nil {
		return nil, 0, err
	}
	var failed, doubted, open []string
	var pack int
	var entities, args, reasons []string
	_, err = pgx.ForEachRow(rows, []any{&pack, &entities, &args, &reasons}, func() error {
		if len(ms) == most || items == 0 {
			return nil // the rest of the pack before comes first
		}
		if pack > r.nextPack {
			r.nextPack, r.nextItem = pack, 0
		}
		for r.nextItem < len(entities) && len(ms) < most && items > 0 {
			m := queue.Message{Type: child.name, Run: r.id, Pack: pack, Epoch: r.epoch, Priority: child.Priority}
			bytes := 0
			for i := r.nextItem; i < len(entities) && len(m.Items) < size && items > 0; i++ {
				bytes += len(entities[i]) + len(args[i])
				if len(m.Items) > 0 && bytes > queue.MaxBytes {
					break
				}
				m.Items = append(m.Items, queue.Item{Entity: entities[i], Args: json.RawMessage(args[i])})
				switch ledger.Reason(reasons[i]) {
				case ledger.Failed:
					failed = append(failed, entities[i])
				case ledger.InDoubt:
					doubted = append(doubted, entities[i])
				case ledger.Retry:
					open = append(open, entities[i])
				}
				items--
			}
			r.nextItem += len(m.Items)
			n += int64(len(m.Items))
			ms = append(ms, m)
		}
		return nil
	})
	open = append(append(open, failed...), doubted...)
	if err != nil || len(open) == 0 {
		return ms, n, err
	}
	wants, err := openWants(ctx, tx, child, open)
	if err == nil && len(failed) > 0 {
		_, err = tx.Exec(ctx, reviveSQL+` AND c.entity = ANY ($3)`, child.ID, r.id, failed)
	}
	if err == nil && len(doubted) > 0 {
		err = l.rule(ctx, tx, r, child, doubted, wants)
	}
	return byEpoch(ms, wants), n, err
}

// openWants is what the claims of entities ask for. Who carries one on must ask for no
// less: a fact that the claim is to replace would else satisfy the message, and the claim
// would be left without any.
func openWants(ctx context.Context, tx pgx.Tx, child *kind, entities []string) (map[string]ledger.Want, error) {
	rows, err := tx.Query(ctx, openWantsSQL, child.ID, entities)
	if err != nil {
		return nil, err
	}
	wants := make(map[string]ledger.Want, len(entities))
	var w ledger.Want
	_, err = pgx.ForEachRow(rows, []any{&w.Entity, &w.Fingerprint, &w.SourceVersion, &w.Epoch}, func() error { wants[w.Entity] = w; return nil })
	return wants, err
}

const openWantsSQL = `
SELECT c.entity, c.fingerprint, c.source_version, c.epoch FROM unnest($2::text[]) AS w(entity)
CROSS JOIN LATERAL (SELECT c.* FROM oncemore.claim c WHERE c.job_type = $1 AND c.entity = w.entity OFFSET 0) c`

// byEpoch splits messages whose items are wanted under different epochs.
func byEpoch(ms []queue.Message, wants map[string]ledger.Want) []queue.Message {
	var out []queue.Message
	for _, m := range ms {
		split := map[int64]int{} // epoch -> index in out
		for _, it := range m.Items {
			epoch := max(m.Epoch, wants[it.Entity].Epoch)
			i, there := split[epoch]
			if !there {
				i = len(out)
				split[epoch] = i
				part := m
				part.Epoch, part.Items = epoch, nil
				out = append(out, part)
			}
			out[i].Items = append(out[i].Items, it)
		}
	}
	return out
}

// rule carries out the verdict of who asked for what is in doubt: the effect did not
// happen. What is not in doubt any more is left to what the worker decides. A plan also
// picks what has failed after an attempt of unknown effect, where its source wants newer
// than the claim: so the ledger is asked for newer.
func (l *life) rule(ctx context.Context, tx pgx.Tx, r *rerun, child *kind, entities []string, open map[string]ledger.Want) error {
	var wants []ledger.Want
	for _, e := range entities {
		if w, there := open[e]; there {
			w.SourceVersion, w.Fingerprint = w.SourceVersion+1, 0
			wants = append(wants, w)
		}
	}
	standings, err := ledger.LookIn(ctx, tx, &child.Type, wants)
	if err != nil {
		return err
	}
	var opens []*ledger.Open
	for _, st := range standings {
		if st.Reason == ledger.InDoubt || st.Open != nil && st.Open.Trouble == ledger.Doubtful {
			opens = append(opens, st.Open)
		}
	}
	_, err = ledger.ResolveAll(ctx, tx, &child.Type, opens, ledger.Verdict{Evidence: ledger.ByOperator, By: r.by, Why: r.reason})
	return err
}

// inFlight counts the messages of the run that wait or are being worked.
func inFlight(ctx context.Context, tx pgx.Tx, r *rerun, child *kind) (n int, err error) {
	err = tx.QueryRow(ctx, `SELECT count(*) FROM oncemore.message m WHERE m.run = $1 AND m.type IN `+childNamesSQL, r.id, child.ID).Scan(&n)
	return n, err
}

// measure takes what the workers noted of their batches since the last visit.
func (r *rerun) measure(ctx context.Context, tx pgx.Tx) error {
	return tx.QueryRow(ctx, takePaceSQL, r.id).Scan(&r.took.batches, &r.took.items, &r.took.busy, &r.took.slowest)
}

const takePaceSQL = `
/* run: take the pace */
WITH p AS (DELETE FROM oncemore.run_pace WHERE run = $1 RETURNING batches, items, busy, slowest)
SELECT coalesce(sum(batches), 0)::bigint, coalesce(sum(items), 0)::bigint, coalesce(sum(busy), interval '0'), coalesce(max(slowest), interval '0') FROM p`

// tune moves the size of a batch towards one that takes the target time. It grows by a
// fifth at most, since a large transaction hurts others, and shrinks at once.
func (r *rerun) tune(b *pgx.Batch, child *kind) {
	if r.batch == 0 {
		r.batch = child.PackSize
	}
	if child.Erased.DoMany == nil || r.took.batches == 0 || r.took.items < r.took.batches {
		return
	}
	perItem := r.took.busy / time.Duration(r.took.items)
	fits := queue.MaxItems
	if perItem > 0 {
		fits = int(targetBatch / perItem)
	}
	size := min(max(fits, leastBatch), r.batch+r.batch/5+1, queue.MaxItems)
	if r.took.mean() <= targetBatch {
		size = max(size, r.batch) // one that was small, for want of items or of rate, costs more for each of them
	}
	if d := size - r.batch; d < -r.batch/10 || d > 0 {
		if d < 0 || size >= 2*r.batch {
			tell(b, r.id, "batch", fmt.Sprintf("%d entities at once instead of %d: a batch took %s", size, r.batch, r.took.mean().Round(time.Millisecond)))
		}
		r.batch = size
	}
}

// slow tells whether even the least batch takes too long. Now and then one is let through,
// to see.
func (r *rerun) slow(child *kind) bool {
	if child.Erased.DoMany == nil || r.batch > leastBatch || r.idle > tryAfter {
		return false
	}
	return r.took.batches > 0 && r.took.mean() > slowBatch || r.took.batches == 0 && cause(r.waits) == itIsSlow
}

// judgeCanary looks how the first entities fared, once all of them have been tried.
func (l *life) judgeCanary(ctx context.Context, tx pgx.Tx, b *pgx.Batch, r *rerun, child *kind, onTheWay bool) error {
	r.waits, r.wait = fmt.Sprintf("the canary: the first %d are tried", r.canary), pumpEvery
	if onTheWay {
		// What failed and will be tried again keeps a message on its way: that alone is no reason to wait.
		var fresh bool
		if err := tx.QueryRow(ctx, canaryFreshSQL, r.id, child.ID).Scan(&fresh); err != nil || fresh {
			return err
		}
	}
	// Nothing is on its way: what is neither a fact nor open has come to nothing, and so might the rest.
	var failed, nothing int64
	if err := tx.QueryRow(ctx, canarySQL, r.id, child.ID, r.epoch, child.Type.Version, r.canary).Scan(&failed, &nothing); err != nil {
		return err
	}
	// What is done of an older source was not ready either.
	stale, err := l.outdated(ctx, tx, r, child)
	if err != nil {
		return err
	}
	nothing += stale
	verdict := fmt.Sprintf("%d of the first %d failed", failed, r.canary)
	if nothing > 0 {
		verdict += fmt.Sprintf(", %d were not ready or are parked", nothing)
	}
	if float64(failed+nothing) > r.canaryShare*float64(r.canary) {
		r.waits, r.wait = "paused: canary: "+verdict, pausedEvery
		b.Queue(`/* run: stop at the canary */ UPDATE oncemore.run_control SET paused = $2, canary = 0 WHERE run = $1`, r.id, "canary: "+verdict)
		tell(b, r.id, "canary", verdict+", more than may: paused")
		return nil
	}
	r.waits = ""
	b.Queue(`/* run: pass the canary */ UPDATE oncemore.run_control SET canary = 0 WHERE run = $1`, r.id)
	tell(b, r.id, "canary", verdict+": the rest follows")
	return nil
}

const (
	// A message that names an entity which has neither failed nor waits for another attempt. What
	// had failed before the run is listed as that until it is tried: it has no attempts then, and
	// its message was never put off, as it is when it is not ready. (That it waits until the attempt
	// that failed has settled is not counted.)
	canaryFreshSQL = `
SELECT EXISTS (
    SELECT FROM oncemore.message m CROSS JOIN LATERAL unnest(m.entities) AS e(entity)
    WHERE m.run = $1 AND m.type IN ` + childNamesSQL + `
    AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.job_type = $2 AND c.entity = e.entity COLLATE "C"
                    AND c.trouble IS NOT NULL AND NOT (` + ledger.CalledSQL + ` AND m.deferred = 0)))`

	canarySQL = `
SELECT count(*) FILTER (WHERE c.trouble IS NOT NULL AND (l.entity IS NULL OR c.epoch > l.epoch)),
       count(*) FILTER (WHERE c.entity IS NULL AND l.entity IS NULL)
FROM (
    SELECT e.entity FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities) WITH ORDINALITY AS e(entity, n)
    WHERE p.run = $1 ORDER BY p.pack, e.n LIMIT $5) e
LEFT JOIN LATERAL (SELECT l.entity, coalesce(l.epoch, 0) AS epoch FROM oncemore.ledger l
                   WHERE l.job_type = $2 AND l.entity = e.entity COLLATE "C" AND coalesce(l.epoch, 0) >= $3 AND coalesce(l.version, 0) >= $4 OFFSET 0) l ON true
LEFT JOIN LATERAL (SELECT c.entity, c.epoch, c.trouble FROM oncemore.claim c
                   WHERE c.job_type = $2 AND c.entity = e.entity COLLATE "C" OFFSET 0) c ON true`
)

// finishRerun ends the run when nothing of it is on its way or being tried any more.
func (l *life) finishRerun(ctx context.Context, tx pgx.Tx, b *pgx.Batch, r *rerun, child *kind, onTheWay bool) error {
	r.wait = min(max(r.age/4, pumpEvery), 5*time.Second)
	if onTheWay {
		r.wait = min(r.wait, heldEvery)
		return nil
	}
	missing, going, err := l.verify(ctx, tx, &r.run, child)
	if err != nil || going > 0 {
		return err
	}
	stale, err := l.outdated(ctx, tx, r, child)
	if err != nil {
		return err
	}
	r.open += stale
	r.end(planned{}, missing+stale)
	tell(b, r.id, "ended", r.tale())
	return nil
}
