package worker_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker"
)

// What is missing is sent again in packs of the same run; it is one entity all the same.
func TestTheProgressOfARunIsDerivedFromFactsAndClaims(t *testing.T) {
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(t.Context(), `
INSERT INTO oncemore.job_type (name, id) VALUES ('mailing', 1), ('letter', 2);
INSERT INTO oncemore.run (parent_type, parent_entity, job_type, epoch, planned_at, items, packs, verified, skipped)
VALUES (1, 'a', 2, 0, now(), 7, 4, 1, 5), (1, 'b', 2, 9, now(), 1, 1, 0, 0);
INSERT INTO oncemore.run_pack (run, pack, entities) VALUES
    (1, 0, '{1,2}'), (1, 1, '{3,4,5}'), (1, 2, '{6,7}'), (1, 3, '{5,7}'), (2, 0, '{1}');
INSERT INTO oncemore.ledger (fingerprint, job_type, attempts, evidence, entity) SELECT 0, 2, 1, 'r', unnest('{1,2,3}'::text[]);
INSERT INTO oncemore.claim (fence, fingerprint, epoch, source_version, run, job_type, attempts, args, entity, trouble)
SELECT 1, 0, 0, 0, 1, 2, 1, '', e, nullif(trouble, '') FROM unnest('{4,5,6}'::text[], '{"",in_doubt,failed}'::text[]) AS u(e, trouble)`); err != nil {
		t.Fatal(err)
	}
	runs, err := worker.Runs(t.Context(), pool, 10)
	if err != nil || len(runs) != 2 {
		t.Fatalf("%+v, %v", runs, err)
	}
	if r := runs[1]; r.ParentType != "mailing" || r.ParentEntity != "a" || r.JobType != "letter" || r.PlannedAt == nil || r.EndedAt != nil ||
		r.Items != 7 || r.Done != 3 || r.Open != 1 || r.InDoubt != 1 || r.Failed != 1 || r.Missing != 1 || r.Skipped != 5 {
		t.Errorf("%+v", r)
	}
	if r := runs[0]; r.ID <= runs[1].ID || r.Done != 0 || r.Missing != 1 {
		t.Errorf("a fact of a lower epoch counts for a forced run: %+v", r)
	}
	if runs, err := worker.Runs(t.Context(), pool, 1); err != nil || len(runs) != 1 || runs[0].ParentEntity != "b" {
		t.Errorf("%+v, %v: want the newest one", runs, err)
	}
}
