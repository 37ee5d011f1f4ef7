package admin_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

func statusOf(t *testing.T, pool *pgxpool.Pool, set *jobs.Set, o admin.StatusOptions) *admin.Status {
	t.Helper()
	s, err := admin.ReadStatus(t.Context(), pool, set, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is missing is sent again in packs of the same run; it is one entity all the same.
func TestTheProgressOfARunIsDerivedFromFactsAndClaims(t *testing.T) {
	t.Parallel()
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
	runs := statusOf(t, pool, nil, admin.StatusOptions{}).Runs
	if len(runs) != 2 {
		t.Fatalf("%+v", runs)
	}
	if r := runs[1]; r.ParentType != "mailing" || r.ParentEntity != "a" || r.Type != "letter" || r.PlannedAt == nil || r.EndedAt != nil || r.State != admin.Going ||
		r.Items != 7 || r.Done != 3 || r.Open != 1 || r.InDoubt != 1 || r.Failed != 1 || r.Missing != 1 || r.NotSent != 0 || r.Skipped != 5 {
		t.Errorf("%+v", r)
	}
	if r := runs[0]; r.ID <= runs[1].ID || r.Done != 0 || r.Missing != 1 {
		t.Errorf("a fact of a lower epoch counts for a forced run: %+v", r)
	}
}

// The facts of stale work stand until it is done again, and who has stopped a run must not
// be told that it goes on.
func TestTheStatusTakesNoStaleWorkForDoneAndTellsWhatARunWaitsFor(t *testing.T) {
	o := newOffice(t, 30)
	stop := o.opens(0)
	if r := o.over(o.rerun(worker.Order{})); r.State != admin.Complete {
		t.Fatalf("%+v", r)
	}
	stop()
	newest := func() admin.Run { return statusOf(t, o.pool, nil, admin.StatusOptions{}).Runs[0] }
	if _, err := o.by("anna").Brake(t.Context(), "", "not yet"); err != nil {
		t.Fatal(err)
	}
	o.says(func(card) error { return jobs.Permanent(errors.New("no ink")) })
	o.opens(1)
	id := o.rerun(worker.Order{Reason: "a new template"})
	o.until(id, "planned", func(r *admin.Run) bool { return r.State == admin.Held })
	if r := newest(); r.ID != id || r.State != admin.Held || !strings.Contains(r.Waits, "not yet") || r.Items != 30 || r.Done != 0 || r.NotSent != 30 {
		t.Errorf("stopped, and nothing of it is done: %s, %+v", r.Words(), r)
	}
	if r, err := o.by("bea").Pause(t.Context(), id, "it hurts"); err != nil || r.Changed != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r := newest(); r.State != admin.Paused {
		t.Errorf("paused: %+v", r)
	}
	if r, err := o.by("bea").Resume(t.Context(), id, ""); err != nil || r.Changed != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if _, err := o.by("anna").Release(t.Context(), "", ""); err != nil {
		t.Fatal(err)
	}
	o.over(id)
	if r := newest(); r.State != admin.Ended || r.Done != 0 || r.Failed != 30 {
		t.Errorf("all of it failed: %s, %+v", r.Words(), r)
	}
}

// The plan of a run may be large, and its tables be locked. The rest is told all the same.
func TestRunsThatTakeTooLongToCountLeaveTheRestOfTheStatus(t *testing.T) {
	o := newOffice(t, 3)
	o.exec(`
INSERT INTO oncemore.run (parent_type, parent_entity, job_type, epoch, planned_at, items, packs, verified, skipped)
SELECT id, 'a', id, 0, now(), 1, 1, 0, 0 FROM oncemore.job_type WHERE name = 'card'`)
	tx, err := o.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE oncemore.run_pack IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := admin.ReadStatus(ctx, o.pool, nil, admin.StatusOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Runs) != 0 || !strings.Contains(s.RunsUnknown, "statement timeout") {
		t.Errorf("the runs: %+v, %q", s.Runs, s.RunsUnknown)
	}
	if len(s.Types) != 1 || s.Types[0].Missing == nil || s.Types[0].Missing.N != 3 {
		t.Errorf("the rest: %+v", s.Types)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := statusOf(t, o.pool, nil, admin.StatusOptions{}); len(s.Runs) != 1 || s.RunsUnknown != "" {
		t.Errorf("afterwards: %+v, %q", s.Runs, s.RunsUnknown)
	}
}
