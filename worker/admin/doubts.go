package admin

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// Doubts lists what is in doubt: an effect that may or may not have happened, and that its
// class does not allow to be guessed about. set may be nil; with it it is known whether a
// done-check can learn the answer.
func Doubts(ctx context.Context, tx pgx.Tx, set *jobs.Set, f Filter, p Page) (*List[Open], error) {
	return opens(ctx, tx, set, areInDoubt, f, p)
}
