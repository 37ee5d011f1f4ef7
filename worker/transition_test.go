package worker_test

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A moveOrder is a transition as a job.
type moveOrder struct {
	ID      string `json:"id"`
	From    string `json:"from"`
	To      string `json:"to"`
	Version int64  `json:"source_version"`
}

func (moveOrder) JobType() string        { return "move_order" }
func (m moveOrder) Entity() string       { return jobs.Key(m.ID, m.From, m.To) }
func (m moveOrder) SourceVersion() int64 { return m.Version }

func (m moveOrder) apply(ctx context.Context, tx pgx.Tx) (bool, error) {
	var kind ledger.Type
	if err := tx.QueryRow(ctx, `SELECT id FROM oncemore.job_type WHERE name = 'move_order'`).Scan(&kind.ID); err != nil {
		return false, err
	}
	t := ledger.Transition{Type: &kind, Entity: m.ID, From: m.From, To: m.To, Version: m.Version}
	return t.Apply(ctx, tx,
		func() (pgconn.CommandTag, error) {
			return tx.Exec(ctx, `/* order: move */ UPDATE orders SET state = $3, version = version + 1 WHERE id = $1 AND state = $2 AND version = $4`, m.ID, m.From, m.To, m.Version)
		},
		func() pgx.Row { return tx.QueryRow(ctx, `SELECT state, version FROM orders WHERE id = $1`, m.ID) })
}
