package matrix_test

import (
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// Five New Years have passed without a worker, and whatever a schedule can write is
// written: of the ticks of one the newest two are started one after the other, so that the
// work has two facts; a re-run is opened; a tick that waits is too old; and a row is bad.
var scheduled = scenario{shape: "schedule", class: "doTx", slots: 2, things: 1, facts: 2, starts: true,
	clocks: []worker.Schedule{
		{Name: "yearly", Spec: "0 0 1 1 *", Args: thing[doTx]{N: 1}, CatchUp: worker.CatchUpAll, CatchUpMost: 2},
		{Name: "again", Spec: "0 0 1 1 *", Rerun: &worker.Order{Type: jobs.Args(thing[doTx]{}).JobType()}},
	},
	prepare: `
INSERT INTO oncemore.schedule (name, spec, job_type, entity, args, rerun, catch_up, overlap, max_age, cursor) VALUES
('yearly', '0 0 1 1 *', 'doTx', '1', '{"n":1}', NULL, 'all', 'queue', '0', date_trunc('year', clock_timestamp()) - interval '4 years 1 day'),
('again', '0 0 1 1 *', 'doTx', NULL, NULL, '{"selection":{}}', 'latest', 'skip', '0', date_trunc('year', clock_timestamp()) - interval '1 day'),
('late', '0 0 1 1 *', 'doTx', '1', '{"n":1}', NULL, 'latest', 'queue', '1 day', clock_timestamp()),
('bad', 'whenever', 'doTx', '1', '{"n":1}', NULL, 'latest', 'skip', '0', clock_timestamp());
INSERT INTO oncemore.schedule_tick (schedule, tick, at, outcome) VALUES ('late', '2001-01-01', '2001-01-01', 'queued')`,
	done: `SELECT (SELECT string_agg(t.outcome, ' ' ORDER BY t.schedule, t.tick) = 'started missed missed missed missed started started' FROM oncemore.schedule_tick t)
AND (SELECT s.error IS NOT NULL FROM oncemore.schedule s WHERE s.name = 'bad')
AND (SELECT count(*) = 2 FROM (SELECT FROM oncemore.ledger UNION ALL SELECT FROM oncemore.ledger_history) f)
AND NOT EXISTS (SELECT FROM oncemore.message) AND NOT EXISTS (SELECT FROM oncemore.run WHERE ended_at IS NULL)`}
