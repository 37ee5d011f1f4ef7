package admin

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// Stranded lists claims whose owner is dead, each since its death. Most are taken over
// within seconds, when their messages come again; what stays has lost its message (a
// retention limit, a dead-letter queue), or nobody works its queue.
//
// A claim whose worker is silent but not declared dead is running, here as everywhere.
func Stranded(ctx context.Context, tx pgx.Tx, set *jobs.Set, f Filter, p Page) (*List[Open], error) {
	return opens(ctx, tx, set, areStranded, f, p)
}
