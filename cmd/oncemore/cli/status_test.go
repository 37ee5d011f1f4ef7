package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// The worker of a job never came up, or the database is a fresh one.
func TestStatusCheckOfAProgramKnowsItsJobsThatNoWorkerHasRegistered(t *testing.T) {
	t.Parallel()
	dsn, _ := database(t)
	a := call(t, Options{Set: testSet}, "status", "--check", "--database-url", dsn)
	if a.code != 4 || !strings.Contains(a.err, "letter: 25 missing, and no worker has registered it in this database") || !strings.Contains(a.err, "parcel: 10 missing") {
		t.Errorf("%+v", a)
	}
	if a := call(t, Options{Set: testSet}, "status", "--database-url", dsn); a.code != 0 || !strings.Contains(a.err, "letter: no worker has registered it in this database\n") || !strings.Contains(a.out, "25\n") {
		t.Errorf("%+v", a)
	}
}

func TestStatusTellsThatARunIsStoppedAndWhy(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	do(t, pool, `INSERT INTO oncemore.job_type (name, id) VALUES ('mailing', 1), ('letter', 2)`)
	do(t, pool, `
INSERT INTO oncemore.run (id, parent_type, parent_entity, job_type, epoch, planned_at, items, packs, verified, skipped, ended_at, complete) OVERRIDING SYSTEM VALUE
VALUES (4, 1, 'a', 2, 0, now(), 7, 1, 1, 5, now(), true)`)
	out := call(t, Options{}, "status", "--database-url", dsn).out
	for _, want := range []string{"RUN  OF         STATE", "SKIPPED AS DONE\n", "4    mailing a  complete", "7 of 7"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	do(t, pool, `
INSERT INTO oncemore.run (id, parent_type, parent_entity, job_type, epoch, planned_at, items, packs, verified, skipped, waits, selection, sent) OVERRIDING SYSTEM VALUE
VALUES (5, 1, 'b', 2, 0, now(), 9, 1, 0, 0, 'paused: it hurts (bea)', '{}', 0)`)
	do(t, pool, `INSERT INTO oncemore.run_control (run, paused) VALUES (5, 'it hurts (bea)')`)
	a := call(t, Options{}, "status", "--database-url", dsn)
	for _, want := range []string{"SKIPPED AS DONE  WAITS\n", "5    re-run of letter  paused", "0 of 9", "paused: it hurts (bea)\n"} {
		if !strings.Contains(a.out, want) {
			t.Errorf("no %q in\n%s%s", want, a.out, a.err)
		}
	}
}

func TestMissingTellsOfRowsWithoutAnEntity(t *testing.T) {
	t.Parallel()
	dsn, pool := database(t)
	do(t, pool, `INSERT INTO oncemore.job_type (name, effect, source) VALUES ('page', 'Repeatable', 'SELECT e AS entity FROM unnest(''{a,a,"",NULL}''::text[]) e')`)
	told := "the source of page names 2 rows without an entity: it is NULL, or empty\n"
	a := call(t, Options{}, "missing", "page", "--database-url", dsn)
	if a.code != 0 || a.err != told+"1 of page missing, 1 listed\n" {
		t.Errorf("%+v", a)
	}
	m := decodeJSON[admin.MissingList](t, call(t, Options{}, "missing", "page", "-o", "json", "--database-url", dsn).out)
	if m.Missing.N != 1 || m.Nameless != 2 || len(m.Entities) != 1 {
		t.Errorf("%+v", m)
	}
	if a := call(t, Options{}, "status", "--check", "--database-url", dsn); a.code != 3 || !strings.Contains(a.err, told) {
		t.Errorf("%+v", a)
	}
}

func TestADoctorThatSeesNothingDoesNotSayThatAllIsWell(t *testing.T) {
	t.Parallel()
	skip := slices.DeleteFunc(admin.CheckNames(), func(n string) bool { return n == "leases" || n == "lives" })
	a := call(t, Options{}, "doctor", "--skip", strings.Join(skip, ","), "--database-url", pgtest.EmptyDSN(t))
	if a.code != 1 || !strings.Contains(a.err, "nothing could be looked at: 0 bad, 0 warnings, 0 ok, 2 unseen") || strings.Count(a.out, "unseen") != 2 {
		t.Errorf("%+v", a)
	}
}
