package cli

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
)

// A flyer may be printed again.
type flyer struct {
	N int `json:"n"`
}

func (flyer) JobType() string  { return "flyer" }
func (f flyer) Entity() string { return jobs.Key(f.N) }

// flyers are printed by code of a version, which tears the first so many of them.
func flyers(version, torn int) func(context.Context, *pgxpool.Pool) (*jobs.Set, error) {
	return func(context.Context, *pgxpool.Pool) (*jobs.Set, error) {
		return jobs.NewSet(jobs.Job[flyer]{Effect: jobs.Repeatable, Source: jobs.SQL[flyer](letters), Policy: jobs.Policy{Version: version},
			Do: func(_ context.Context, f flyer) error {
				if f.N <= torn {
					return jobs.Permanent(errors.New("torn"))
				}
				return nil
			}})
	}
}

// A program without the jobs does not know that the code is newer than the facts. The workers
// do: what they would do again is never refused, and never promised to be left alone.
func TestWhatNewerCodeMakesStaleIsDoneAgainThoughThePreviewCannotKnow(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	rerun := func(o Options, args ...string) answer {
		t.Helper()
		return call(t, o, append([]string{"rerun", "flyer", "--interval", "100ms", "--database-url", dsn}, args...)...)
	}
	const unknown = "What newer code makes stale is not known here, and the workers will tell"
	stop := workingOn(t, dsn, flyers(0, 0))
	if a := rerun(Options{}, "--yes", "--watch"); a.code != 0 || !strings.Contains(a.err, "is complete: 25 of 25 done") {
		t.Fatalf("%+v", a)
	}
	stop()

	stop = workingOn(t, dsn, flyers(1, 0))
	dry := rerun(Options{}, "--dry-run")
	says(t, "the dry run", dry.err, unknown, "25  done\n", "it would re-run what the workers find of flyer")
	if known := rerun(Options{Set: flyers(1, 0)}, "--dry-run"); strings.Contains(known.err, unknown) || !strings.Contains(known.err, "25  stale version\n") {
		t.Errorf("with the jobs: %+v", known)
	}
	if a := rerun(Options{}, "--stale", "--yes", "--watch"); a.code != 0 || !strings.Contains(a.err, "is complete: 25 of 25 done") {
		t.Errorf("nothing but the version has changed: %+v", a)
	}
	if known := rerun(Options{Set: flyers(1, 0)}, "--yes"); known.code != 0 || !strings.Contains(known.err, "nothing matches; nothing was changed") {
		t.Errorf("with the jobs, when all is done: %+v", known)
	}
	stop()

	row[int](t, dsn, `WITH d AS (DELETE FROM oncemore.ledger WHERE entity IN ('7', '8', '9') RETURNING 1) SELECT count(*)::int FROM d`)
	stop = workingOn(t, dsn, flyers(2, 4))
	a := rerun(Options{}, "--yes", "--watch", "-o", "json")
	if r := decodeJSON[reran](t, a.out); a.code != 3 || r.Preview.Items != 3 || r.Preview.Unknown == "" || r.Watched.Items != 25 || r.Watched.Failed != 4 {
		t.Errorf("3 are missing, and the others stale: %+v", a)
	}
	stop()

	// Where the version has no say, nothing is unknown.
	row[int](t, dsn, `WITH d AS (DELETE FROM oncemore.ledger WHERE entity = '7' RETURNING 1) SELECT count(*)::int FROM d`)
	both := rerun(Options{}, "--missing", "--failed", "--dry-run")
	says(t, "what is missing or failed", both.err, "24  done: left alone", "4  failed\n", "it would re-run 5 entities of flyer")
	if a := rerun(Options{}, "--in-doubt", "--reason", "none", "--yes"); a.code != 0 || strings.Contains(both.err+a.err, unknown) || !strings.Contains(a.err, "nothing matches; nothing was changed") {
		t.Errorf("what is in doubt: %+v", a)
	}
}

// Who only asks is told so as well: "all is done" would be more than is known.
func TestStatusAndMissingSayWhereTheyCannotKnowWhatNewerCodeMakesStale(t *testing.T) {
	t.Parallel()
	dsn := pgtest.DSN(t)
	const unknown = "flyer: what newer code makes stale is not known here: that needs a program that has the jobs (cli.Options.Set)\n"
	asks := func(o Options, told string, code int, want string, args ...string) {
		t.Helper()
		if a := call(t, o, append(args, "--database-url", dsn)...); a.code != code || !strings.Contains(a.err, want) || !strings.Contains(a.err, told) || told == "" && strings.Contains(a.err, "newer code") {
			t.Errorf("%q: %+v", args, a)
		}
	}
	stop := workingOn(t, dsn, flyers(0, 0))
	asks(Options{}, "", 4, "flyer: 25 missing", "status", "--check") // of what was never done nothing is stale
	asks(Options{}, "", 0, "25 of flyer missing", "missing", "flyer")
	if a := call(t, Options{}, "rerun", "flyer", "--interval", "100ms", "--yes", "--watch", "--database-url", dsn); a.code != 0 {
		t.Fatalf("%+v", a)
	}
	stop()
	workingOn(t, dsn, flyers(1, 0))()

	asks(Options{}, unknown, 0, "All is done", "status", "--check")
	asks(Options{}, unknown, 0, "", "status", "--check", "-o", "json")
	asks(Options{}, unknown, 0, "0 of flyer missing", "missing", "flyer")
	asks(Options{Set: flyers(1, 0)}, "", 4, "flyer: 25 missing", "status", "--check")
	asks(Options{Set: flyers(1, 0)}, "", 0, "25 of flyer missing", "missing", "flyer")
}
