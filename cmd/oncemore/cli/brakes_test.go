package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// goingRuns adds so many re-runs of letters that go on, and a fan-out to letters. It returns
// the number of the fan-out.
func goingRuns(t *testing.T, dsn string, reruns int) (fanOut string) {
	t.Helper()
	row[int](t, dsn, `WITH r AS (
    INSERT INTO oncemore.run (parent_type, parent_entity, job_type, selection, planned_at)
    SELECT (SELECT id FROM oncemore.job_type WHERE name = 'oncemore.rerun.letter'), n::text, (SELECT id FROM oncemore.job_type WHERE name = 'letter'), '{}', now()
    FROM generate_series(1, $1::int) n RETURNING 1) SELECT count(*)::int FROM r`, reruns)
	return fmt.Sprint(row[int](t, dsn, `
INSERT INTO oncemore.run (parent_type, parent_entity, job_type, planned_at)
SELECT (SELECT id FROM oncemore.job_type WHERE name = 'mailing'), 'going', (SELECT id FROM oncemore.job_type WHERE name = 'letter'), now() RETURNING id::int`))
}

func TestTheRateOfAFanOutIsLeftAloneAndThatIsSaid(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	id := goingRuns(t, dsn, 0)
	a := call(t, Options{}, "runs", "rate", id, "5", "--yes", "--database-url", dsn)
	if a.code != 3 || !strings.Contains(a.err, "is a fan-out") || !strings.Contains(a.err, "limit its job type, or pause it") {
		t.Errorf("%+v", a)
	}
	if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.run_control WHERE run = `+id) + row[int](t, dsn, `SELECT count(*)::int FROM oncemore.audit`); n != 0 {
		t.Errorf("%d rows say otherwise", n)
	}
	if a := call(t, Options{}, "runs", "pause", id, "--yes", "--database-url", dsn); a.code != 0 {
		t.Errorf("paused it can be: %+v", a)
	}
}

func TestTheKillSwitchNamesWhatItStopsAndHowMuchMoreThereIs(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	fanOut := goingRuns(t, dsn, 12)
	asked := person{"n\n"}.call(t, Options{}, "runs", "stop-all", "--reason", "it burns", "--database-url", dsn)
	says(t, "the question", asked.err, "About to stop all re-runs", "Fan-outs go on: 'runs pause' holds one back.", "and 2 more")
	dry := call(t, Options{}, "runs", "stop-all", "--dry-run", "--database-url", dsn)
	says(t, "the dry run", dry.err, "and 2 more")
	listed := decodeJSON[struct{ Sample []admin.Run }](t, call(t, Options{}, "runs", "stop-all", "--dry-run", "-o", "json", "--database-url", dsn).out)
	if len(listed.Sample) != 10 {
		t.Errorf("%d are listed", len(listed.Sample))
	}
	for _, r := range listed.Sample {
		if r.Selection == nil || fmt.Sprint(r.ID) == fanOut {
			t.Errorf("run %d is listed, which goes on: it is a fan-out of %s", r.ID, r.ParentType)
		}
	}
}

// Who has it stopped, and let go on, by an earlier name of the job type, which the completion of
// an old script has, means the job type.
func TestWhatIsStoppedByAnEarlierNameIsReleasedByIt(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	row[int](t, dsn, `WITH o AS (INSERT INTO oncemore.job_type (name, id, effect, seen_at) SELECT 'note', id, effect, seen_at - interval '1 day' FROM oncemore.job_type WHERE name = 'letter' RETURNING 1)
SELECT count(*)::int FROM o`)
	left := func(after string) {
		t.Helper()
		if n := row[int](t, dsn, `SELECT count(*)::int FROM oncemore.brake`); n != 0 {
			t.Errorf("after %s %d brakes are set", after, n)
		}
	}
	if a := call(t, Options{}, "runs", "stop-all", "--type", "note", "--reason", "it burns", "--yes", "--database-url", dsn); a.code != 0 || !strings.Contains(a.out, "letter") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{}, "runs", "release", "--type", "note", "--yes", "--database-url", dsn); a.code != 0 || strings.Contains(a.err, "nothing matches") {
		t.Errorf("%+v", a)
	}
	left("a release by the same name")
	// It was stopped before it was renamed.
	row[int](t, dsn, `WITH o AS (INSERT INTO oncemore.brake (scope, reason, actor) VALUES ('note', 'it burns', 'anna') RETURNING 1) SELECT count(*)::int FROM o`)
	if a := call(t, Options{}, "runs", "release", "--type", "letter", "--yes", "--database-url", dsn); a.code != 0 || strings.Contains(a.err, "nothing matches") {
		t.Errorf("%+v", a)
	}
	left("a release by its name of now")
}
