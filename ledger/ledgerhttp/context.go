package ledgerhttp

import (
	"context"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// A call is what a handler can ask of its request's context.
type call struct {
	tx        pgx.Tx // nil: the effect is outside
	effectKey string
	absent    atomic.Bool
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		return &call{}
	}
	return c
}

// Tx returns the transaction of an operation whose effect is in our Postgres, given its
// request's context; nil where there is none. What is written through it, and the jobs that
// are enqueued through it, commit together with the answer when the status is below 400, and
// else not at all. It ends with the handler, which cannot commit it or roll it back. It is READ
// COMMITTED, and has one connection of the pool while the handler runs: a handler that asks the
// same pool for another one can find that all are held by its like.
func Tx(ctx context.Context) pgx.Tx {
	return callOf(ctx).tx
}

// EffectKey returns the key for an outside provider that knows repeats by one, given the
// request's context: the same for every attempt at one request. Empty where the operation is
// in transaction, or the request has no key.
func EffectKey(ctx context.Context) string { return callOf(ctx).effectKey }

// NotApplied says, in a handler with an outside effect, that its effect surely did not
// happen: the next request with the key runs, whatever the effect class. It is of use with an
// answer that is not stored.
func NotApplied(ctx context.Context) { callOf(ctx).absent.Store(true) }
