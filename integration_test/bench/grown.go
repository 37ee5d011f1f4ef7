package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A ledger that has grown large is made once for each kind of keys, and copied for each
// measurement. Its facts are dated long ago, which tells them from those that are measured.
const longAgo = `timestamptz '2020-01-01'`

// idOf is the job's number of the n-th, as SQL over a column n: the number itself, or one
// that looks random and is the same every time.
func idOf(k kind) string {
	if k == burnRandom {
		return `(hashint8extended(n, 0) & 9223372036854775807)`
	}
	return `n`
}

const entityOfID = `'job/' || lpad(id::text, 20, '0')`

// database makes the database of one measurement.
func (o *options) database(ctx context.Context, k kind) (name string, drop func() error, err error) {
	template := ""
	if k.grown() {
		if o.templates == nil {
			o.templates = map[kind]string{}
		}
		if k == rerunDone {
			k = burnSequential // the same facts
		}
		if template = o.templates[k]; template == "" {
			if template, err = growLedger(ctx, o, k); err != nil {
				return "", nil, fmt.Errorf("fill a ledger: %w", err)
			}
			o.templates[k] = template
		}
	}
	return freshDatabase(ctx, o, template)
}

// growLedger makes a database with o.facts facts, in the order in which they would have
// come, and returns its name.
func growLedger(ctx context.Context, o *options, k kind) (name string, err error) {
	progress("storing %s facts once, for all measurements of a %s", count(o.facts), k)
	name, drop, err := freshDatabase(ctx, o, "")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, drop())
		}
	}()
	pool, err := connect(ctx, o.baseDSN, name)
	if err != nil {
		return "", err
	}
	defer pool.Close() // a database that is in use cannot be copied
	s, err := newOurs(pool)
	if err != nil {
		return "", err
	}
	if err := s.migrate(ctx); err != nil {
		return "", fmt.Errorf("migrate: %w", err)
	}
	t := ledger.Type{Name: job{}.JobType(), Effect: jobs.Repeatable}
	if err := ledger.New(pool).Register(ctx, &t); err != nil {
		return "", err
	}
	_, err = pool.Exec(ctx, `
INSERT INTO oncemore.ledger (fingerprint, completed_at, job_type, attempts, evidence, entity)
SELECT id, `+longAgo+`, $1, 1, 'r', `+entityOfID+`
FROM (SELECT `+idOf(k)+` AS id FROM generate_series(0, $2::bigint - 1) AS n) AS numbered`, t.ID, o.facts)
	if err != nil {
		return "", fmt.Errorf("store the facts: %w", err)
	}
	if err := vacuum(ctx, pool); err != nil {
		return "", err
	}
	return name, checkpoint(ctx, pool)
}
