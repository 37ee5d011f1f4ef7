package matrix_test

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/queue"
)

// named is no more than whose result it is.
type named string

func (named) JobType() string  { return "" }
func (n named) Entity() string { return string(n) }

// Bodies return something; some fail once when they have. At the end each fact that a body
// made has a result of its own epoch, and no other is there. One of before has expired.
func withResults(pack func(class string, n int) []queue.Message) (all []scenario) {
	for _, class := range []string{"repeatable", "keyed", "doTx", "doMany"} {
		all = append(all, scenario{shape: "results", class: class, slots: 3, sends: pack(class, 3), things: 3,
			traits: traits{returns: true, fails: failsOnce},
			prepare: `
INSERT INTO oncemore.result (job_type, entity, epoch, value, expires_at) SELECT 9999, n::text, 0, 'null', now() - interval '1 hour' FROM generate_series(1, 5) n`,
			done: `SELECT NOT EXISTS (SELECT FROM oncemore.result WHERE expires_at < now())
AND (SELECT count(*) FROM oncemore.ledger) = (SELECT count(*) FROM oncemore.result)
AND NOT EXISTS (SELECT FROM oncemore.ledger l WHERE NOT EXISTS (SELECT FROM oncemore.result r
    WHERE (r.job_type, r.entity, r.epoch) = (l.job_type, l.entity, coalesce(l.epoch, 0))
    AND r.value::int <= (SELECT count(*) FROM try WHERE try.entity = l.entity)))`})
	}
	return all
}

// Beside some work an app moves a row of its own, by transitions, through the producer's
// proxy: again, until it is told that it worked. It goes round, so that a fact is replaced.
var transitions = scenario{shape: "transitions", class: "once", slots: 1, things: 1,
	prepare: `
CREATE TABLE IF NOT EXISTS lamp (id text PRIMARY KEY, state text, version bigint);
CREATE TABLE IF NOT EXISTS switched (version bigint);
INSERT INTO lamp VALUES ('1', 'off', 1)`,
	sends: []queue.Message{message(kits["once"].thing(1))},
	steps: []step{{`SELECT EXISTS (SELECT FROM oncemore.job_type)`, func(w *world) {
		w.Helper()
		kind := &ledger.Type{Name: "switch", Effect: ledger.InTransaction}
		if err := ledger.New(w.pool).Register(context.Background(), kind); err != nil {
			w.Fatal(err)
		}
		for v := int64(1); v <= 3; v++ {
			t := ledger.Transition{Type: kind, Entity: "1", From: "off", To: "on", Version: v}
			if v%2 == 0 {
				t.From, t.To = t.To, t.From
			}
			w.operate(func(ctx context.Context, tx pgx.Tx) error {
				_, err := t.Apply(ctx, tx, func() (pgconn.CommandTag, error) {
					return tx.Exec(ctx, `/* lamp: switch */ WITH s AS (INSERT INTO switched VALUES ($3)) UPDATE lamp SET state = $2, version = version + 1 WHERE id = '1' AND state = $1 AND version = $3`, t.From, t.To, v)
				}, func() pgx.Row { return tx.QueryRow(ctx, `SELECT state, version FROM lamp WHERE id = '1'`) })
				return err
			})
		}
	}}},
	done: `SELECT (SELECT state || version FROM lamp) = 'on4' AND (SELECT array_agg(version ORDER BY version) FROM switched) = '{1,2,3}'
AND (SELECT array_agg(f.entity || ' ' || f.source_version ORDER BY f.source_version) FROM (SELECT * FROM oncemore.ledger UNION ALL SELECT fingerprint, completed_at, job_type, attempts, evidence, entity, run, epoch, version, source_version FROM oncemore.ledger_history) f
     WHERE f.job_type = (SELECT id FROM oncemore.job_type WHERE name = 'switch')) = '{1/off/on 1,1/on/off 2,1/off/on 3}'`}
