package ledgerhttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Replayed is the header that marks an answer as that of an earlier request.
const Replayed = "Idempotency-Replayed"

// An answer is what a handler wrote.
type answer struct {
	status   int
	header   http.Header // with what was set before the handler; of a stored one, what was kept
	outer    http.Header // what was set before the handler
	body     []byte
	replayed bool
}

func (a *answer) write(w http.ResponseWriter) {
	h := w.Header()
	if !a.replayed {
		clear(h) // what the handler has left of it is in the answer
	}
	for name, values := range a.header {
		if !a.replayed || !slices.Contains(lists, name) {
			h[name] = values
			continue
		}
		for _, v := range values {
			if !slices.Contains(h[name], v) {
				h[name] = append(h[name], v)
			}
		}
	}
	if a.replayed {
		h.Set(Replayed, "true")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may have gone; it may ask again
}

// lists are the headers that an answer shown again adds to what is there. Others it replaces.
var lists = []string{"Link", "Set-Cookie", "Vary"}

// isKept tells whether a's header is stored with it. What was there before the handler is not: the
// middleware that set it meets the request when it is sent again, too (one that compresses, say, and
// sees us before it does). But the body is of the type that it was said to be of with the first
// answer, by whomever.
func (g *guarded) isKept(a *answer, name, value string) bool {
	return slices.Contains(g.op.Headers, name) && (name == "Content-Type" || !slices.Contains(a.outer[name], value))
}

// queueStore keeps a beside the fact that the same transaction has recorded.
func (g *guarded) queueStore(b *pgx.Batch, w ledger.Want, a *answer) {
	kept := [][]byte{} // not NULL
	for name, values := range a.header {
		for _, v := range values {
			if g.isKept(a, name, v) {
				kept = append(kept, []byte(name), []byte(v))
			}
		}
	}
	body := a.body
	if body == nil {
		body = []byte{}
	}
	b.Queue(storeSQL, g.kind.ID, w.Entity, w.Epoch, a.status, kept, body, g.op.TTL)
}

// Work that is done anew, under a higher epoch, has a new answer; nothing else replaces one.
const storeSQL = `
/* response: store */
INSERT INTO oncemore.response AS r (job_type, entity, epoch, status, headers, body, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + $7::interval)
ON CONFLICT (job_type, entity) DO UPDATE
SET epoch = excluded.epoch, status = excluded.status, headers = excluded.headers, body = excluded.body, expires_at = excluded.expires_at
WHERE r.epoch < excluded.epoch`

// stored returns what is kept of the answer that belongs to f; nil: it has expired, or the
// fact came without one.
func (g *guarded) stored(ctx context.Context, f *ledger.Fact) (*answer, error) {
	a := &answer{header: http.Header{}, replayed: true}
	var kept [][]byte
	err := g.pool.QueryRow(ctx, storedSQL, g.kind.ID, f.Entity, f.Epoch).Scan(&a.status, &kept, &a.body)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the stored response: %w", err)
	}
	for i := 0; i+1 < len(kept); i += 2 {
		name := string(kept[i])
		a.header[name] = append(a.header[name], string(kept[i+1]))
	}
	if _, said := a.header["Content-Type"]; !said {
		a.header["Content-Type"] = nil // nothing is guessed that was not said
	}
	return a, nil
}

const storedSQL = `
SELECT status, headers, body FROM oncemore.response
WHERE job_type = $1 AND entity = $2 AND epoch = $3 AND expires_at > now()`

// An outcome is what one try to bring a request to its end came to: an answer, a problem,
// or neither.
type outcome struct {
	answer  *answer
	problem *problem
	busy    bool // its twin is being worked on; else, with neither: try again, the ledger has changed
}

func (p problem) outcome() outcome { return outcome{problem: &p} }

// standing makes of what the ledger says the outcome for a request that is not to run.
func (g *guarded) standing(ctx context.Context, st *ledger.Standing) (outcome, error) {
	switch st.Reason {
	case ledger.Done:
		a, err := g.stored(ctx, st.Fact)
		if a == nil && err == nil {
			return expired.outcome(), nil
		}
		return outcome{answer: a}, err
	case ledger.Conflict:
		return keyReused.outcome(), nil
	case ledger.InDoubt, ledger.Failed:
		return outcomeUnknown.outcome(), nil
	case ledger.Ongoing, ledger.Waiting:
		return outcome{busy: true}, nil
	}
	return outcome{}, nil
}
