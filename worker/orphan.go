package worker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// The answer to a claim can be lost: then the claim stands in the table under our id, and
// nobody here has it. No other worker takes it over while we live, so finding it is up to
// us. Two ways lead there: its message comes again, to us by chance; and now and then we
// compare what we hold by the table with what we have in hand. Until one of them does, the
// others put the message off.

// hands are the entities that a life has claimed or is claiming, until what became of them is
// recorded: counted, because a duplicate may ask for what is being worked. Where it could not be
// recorded they stay in hand to the end of the life, which is near: the work was begun, and must
// not pass for a claim whose answer was lost.
type hands struct {
	mu   sync.Mutex
	full map[handKey]int
	lost chan struct{} // has something in it when the answer to a claim was lost
}

func newHands() hands { return hands{full: map[handKey]int{}, lost: make(chan struct{}, 1)} }

type handKey struct {
	kind   *kind
	entity string
}

func (h *hands) take(k *kind, entity string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.full[handKey{k, entity}]++
}

func (h *hands) drop(k *kind, entity string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := handKey{k, entity}
	if h.full[key]--; h.full[key] <= 0 {
		delete(h.full, key)
	}
}

func (h *hands) hold(k *kind, entity string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.full[handKey{k, entity}] > 0
}

// lose has what is held by nobody looked for soon.
func (h *hands) lose() {
	select {
	case h.lost <- struct{}{}:
	default:
	}
}

// orphaned tells whether the claim on it is ours and nobody here has it. It was never
// begun, so it may be given back, or taken over from ourselves; by its fence, for should it
// just have been settled, then the fence has changed.
func (l *life) orphaned(it *item) bool {
	o := it.standing.Open
	return it.standing.Reason == ledger.Ongoing && o.Owner == l.lease.ID && !l.hands.hold(it.kind, it.Entity)
}

var errAnswerLost = errors.New("the answer to its claim was lost")

// returnOrphan writes the ending of an orphan whose message is at hand: it comes again.
func (l *life) returnOrphan(it *item) {
	it.end = ending{keep: true, err: errAnswerLost, outcome: givenBack(it.outcome(""))}
}

// givenBack is the outcome of an orphan: an attempt that never began is not charged, and is
// no evidence of an effect.
func givenBack(o ledger.Outcome) ledger.Outcome {
	o.State, o.Absent = ledger.Returned, true
	o.Attempts--
	return o
}

// adopt gives back the orphans among our claims; their messages bring them again.
func (l *life) adopt(ctx context.Context) error {
	// What was settled between our look at the table and that at the hands has another fence,
	// or no claim, when the table is looked at once more.
	found, err := l.orphans(ctx)
	if err == nil && len(found) > 0 {
		var still map[*kind]map[int64]*ledger.Open
		still, err = l.orphans(ctx)
		for k, claims := range still {
			var outs []*ledger.Outcome
			for fence, o := range claims {
				if found[k][fence] != nil {
					out := givenBack(ledger.Outcome{Want: ledger.Want{Entity: o.Entity}, Fence: fence, Attempts: o.Attempts})
					out.Class, out.Error = errorClass(errAnswerLost), errAnswerLost.Error()
					outs = append(outs, &out)
				}
			}
			if err == nil && len(outs) > 0 {
				err = l.ledger.RunBatch(ctx, func(b *pgx.Batch) { ledger.Settle(b, &k.Type, l.lease.ID, outs) })
			}
		}
	}
	if err != nil {
		l.hands.lose()
	}
	return err
}

// orphans are the claims that the table says we hold, and nobody here has, by their fences.
func (l *life) orphans(ctx context.Context) (map[*kind]map[int64]*ledger.Open, error) {
	kinds := map[int32]*kind{}
	for k := range l.claims {
		kinds[k.ID] = k
	}
	held, err := l.ledger.HeldBy(ctx, l.lease.ID, slices.Collect(maps.Keys(kinds)))
	found := map[*kind]map[int64]*ledger.Open{}
	for id, claims := range held {
		k := kinds[id]
		for _, o := range claims {
			if l.hands.hold(k, o.Entity) {
				continue
			}
			if found[k] == nil {
				found[k] = map[int64]*ledger.Open{}
			}
			found[k][o.Fence] = o
		}
	}
	return found, err
}

// adoptAfter is how long after a lost answer adopt comes: what was cut off is over by then.
const adoptAfter = time.Second
