package admin_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/plan"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// A piece is work of a table; there is one job type of each effect class.
type piece struct {
	Name     string `json:"name"`
	Style    string `json:"style"`
	Revision int64  `json:"source_version"`
}

func (p piece) Entity() string       { return p.Name }
func (p piece) SourceVersion() int64 { return p.Revision }

type (
	redrawn  struct{ piece }
	paid     struct{ piece }
	charged  struct{ piece }
	posted   struct{ piece }
	booked   struct{ piece }
	walked   struct{ piece }
	unlisted struct{ piece }
)

func (redrawn) JobType() string  { return "redrawn" }
func (paid) JobType() string     { return "paid" }
func (charged) JobType() string  { return "charged" }
func (posted) JobType() string   { return "posted" }
func (booked) JobType() string   { return "booked" }
func (walked) JobType() string   { return "walked" }
func (unlisted) JobType() string { return "unlisted" }

var pieceTypes = []string{"redrawn", "paid", "charged", "posted", "booked", "walked", "unlisted"}

const piecesSQL = `SELECT name AS entity, name, style, revision AS source_version FROM piece`

func pieceSet(pool *pgxpool.Pool) (*jobs.Set, error) {
	silent := errors.New("no answer")
	walk := func(ctx context.Context, after string) iter.Seq2[walked, error] {
		return func(yield func(walked, error) bool) {
			rows, err := pool.Query(ctx, `SELECT name, style, revision FROM piece WHERE name > $1 ORDER BY name`, after)
			if err != nil {
				yield(walked{}, err)
				return
			}
			defer rows.Close()
			for rows.Next() {
				var w walked
				if err := rows.Scan(&w.Name, &w.Style, &w.Revision); !yield(w, err) || err != nil {
					return
				}
			}
			if rows.Err() != nil {
				yield(walked{}, rows.Err())
			}
		}
	}
	return jobs.NewSet(
		jobs.Job[redrawn]{Effect: jobs.Repeatable, Policy: jobs.Policy{Version: 2}, Source: jobs.SQL[redrawn](piecesSQL), Do: func(context.Context, redrawn) error { return nil }},
		jobs.Job[paid]{Effect: jobs.Once, Source: jobs.SQL[paid](piecesSQL), Do: func(context.Context, paid) error { return nil }},
		jobs.Job[charged]{Effect: jobs.Keyed(time.Hour), Source: jobs.SQL[charged](piecesSQL + ` ORDER BY style DESC, name DESC`), Do: func(context.Context, charged) error { return nil }},
		jobs.Job[posted]{Effect: jobs.Verifiable(10 * time.Minute), Source: jobs.SQL[posted](piecesSQL), Do: func(context.Context, posted) error { return nil },
			Done: func(context.Context, posted) (bool, error) { return false, silent }},
		jobs.Job[booked]{DoMany: func(context.Context, pgx.Tx, []booked) error { return nil }, Policy: jobs.Policy{Version: 1}, Source: jobs.SQL[booked](piecesSQL)},
		jobs.Job[walked]{Effect: jobs.Repeatable, Source: jobs.Seq(walk), Do: func(context.Context, walked) error { return nil }},
		jobs.Job[unlisted]{Effect: jobs.Repeatable, Do: func(context.Context, unlisted) error { return nil }},
	)
}

// A world is what one property is tried on.
type world struct {
	*testing.T
	pool *pgxpool.Pool
	set  *jobs.Set
	op   *admin.Operator
}

// newWorld has a worker.
func newWorld(t *testing.T) *world {
	t.Helper()
	pool := pgtest.Pool(t)
	set, err := pieceSet(pool)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, pool: pool, set: set, op: &admin.Operator{Pool: pool, Actor: "anna", Set: set}}
	w.exec(`CREATE TABLE piece (name text COLLATE "C" PRIMARY KEY, style text NOT NULL, revision bigint NOT NULL)`)
	w.exec(`SELECT setval('oncemore.epoch', 100), setval('oncemore.fence', 1000)`)
	w.exec(`INSERT INTO oncemore.worker (name, expires, dead_at) VALUES ('living', now() + interval '1 day', NULL), ('dead', now(), now() - interval '2 hours'), ('just died', now(), now() - interval '1 minute')`)
	running, err := worker.New(t.Context(), pool, set, worker.Config{Throttles: []throttle.Signal{}, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- running.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// stops has the worker plan what is asked for, and send nothing of it.
func (w *world) stops() {
	w.Helper()
	if _, err := w.op.Brake(w.T.Context(), "", "only plans are wanted"); err != nil {
		w.T.Fatal(err)
	}
}

func (w *world) exec(statement string, args ...any) {
	w.Helper()
	if _, err := w.pool.Exec(w.T.Context(), statement, args...); err != nil {
		w.T.Fatal(err)
	}
}

// styled is a piece's arguments and their fingerprint in a style.
func (w *world) styled(jobType, name, style string, revision int64) (args string, fingerprint int64) {
	args = fmt.Sprintf(`{"name":%q,"style":%q,"source_version":%d}`, name, style, revision)
	e, _ := w.set.Lookup(jobType)
	in, err := e.Decode(name, []byte(args))
	if err != nil {
		w.T.Fatal(err)
	}
	return args, in.Fingerprint
}

// one of them, each as likely as the others: rapid's own choices prefer what is first and
// small, and worlds are poor then.
func oneOf[T any](r *rapid.T, what string, of ...T) T {
	n := 0
	for _, bit := range rapid.SliceOfN(rapid.Bool(), 6, 6).Draw(r, what) {
		n *= 2
		if bit {
			n++
		}
	}
	return of[n%len(of)]
}

func age(r *rapid.T, of string) time.Duration {
	return oneOf(r, "age of "+of, 3*time.Hour, 90*time.Minute, time.Minute)
}

// fill draws what there is of a job type.
func (w *world) fill(r *rapid.T, jobType string) {
	w.exec(`DELETE FROM oncemore.message WHERE type = ANY ($1)`, pieceTypes)
	w.exec(`TRUNCATE piece, oncemore.ledger, oncemore.attempt`)
	w.exec(`DELETE FROM oncemore.claim c USING oncemore.job_type t WHERE t.id = c.job_type AND t.name = ANY ($1)`, pieceTypes)
	var id int32
	if err := w.pool.QueryRow(w.T.Context(), `SELECT id FROM oncemore.job_type WHERE name = $1`, jobType).Scan(&id); err != nil {
		r.Fatal(err)
	}
	often := func(what string) bool { return oneOf(r, what, true, true, true, false) }
	maybe := func(what string) bool { return oneOf(r, what, true, false) }
	small := func(what string) int64 { return oneOf[int64](r, what, 0, 1, 2) }
	style := func(of string) string { return oneOf(r, "style of "+of, "plain", "plain", "plain", "fancy") }
	for _, name := range someNames(r) {
		revision := small("revision")
		if often("named by the source") {
			w.exec(`INSERT INTO piece VALUES ($1, $2, $3)`, name, style("the source"), revision)
		}
		if maybe("has a fact") {
			_, fp := w.styled(jobType, name, style("the fact"), 0)
			w.exec(`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, completed_at, attempts, evidence, epoch, version, source_version)
VALUES ($1, $2, $3, now() - $4::interval, 1, 'r', nullif($5::bigint, 0), nullif($6::int, 0), nullif($7::bigint, 0))`,
				id, name, fp, age(r, "the fact"), small("epoch of the fact"), small("version of the fact"), small("revision of the fact"))
		}
		if !maybe("has a claim") {
			continue
		}
		revision = small("revision of the claim")
		args, fp := w.styled(jobType, name, style("the claim"), revision)
		state := oneOf(r, "state of the claim", "living", "dead", "just died", "retrying", "failed", "in_doubt")
		w.exec(`INSERT INTO oncemore.claim (job_type, entity, fence, owner, claimed_at, first_claimed_at, not_before, fingerprint, epoch, source_version, run, attempts, trouble, args)
VALUES ($1, $2, nextval('oncemore.fence'), (SELECT min(id) FROM oncemore.worker WHERE name = $3), now() - $4::interval, CASE WHEN $5 THEN now() - $4::interval END,
        CASE $6::int WHEN 0 THEN now() + interval '1 hour' WHEN 1 THEN now() - interval '1 hour' END,
        $7, $8, $9, 0, $10, CASE WHEN $3 IN ('retrying', 'failed', 'in_doubt') THEN $3::text END, $11)`,
			id, name, state, age(r, "the claim"), maybe("it may have had an effect"), small("when its next attempt is"),
			fp, small("epoch of the claim"), revision, small("attempts"), args)
		if class := oneOf(r, "class of its error", "", "timeout", "net.OpError"); class != "" {
			w.exec(`INSERT INTO oncemore.attempt (at, job_type, number, entity, outcome, error_class) VALUES (now() - $1::interval, $2, 1, $3, $4, $5)`,
				age(r, "the attempt"), id, name, state, class)
		}
	}
}

func someNames(r *rapid.T) []string {
	name := rapid.Custom(func(r *rapid.T) string {
		return rapid.SampledFrom([]string{"a/", "b/", ""}).Draw(r, "folder") + fmt.Sprint(rapid.IntRange(0, 9).Draw(r, "number"))
	})
	return rapid.SliceOfNDistinct(name, 12, 25, rapid.ID).Draw(r, "names")
}

// selection draws what is asked for.
func selection(r *rapid.T, now time.Time) (s plan.Selection) {
	if s.Force = oneOf(r, "forced", true, false, false, false); !s.Force {
		for _, reason := range []ledger.Reason{ledger.Missing, ledger.Retry, ledger.StaleVersion, ledger.StaleSource, ledger.Failed, ledger.InDoubt} {
			if oneOf(r, string(reason), true, false, false) {
				s.Reasons = append(s.Reasons, reason)
			}
		}
		s.Class = oneOf(r, "class", "", "", "", "", "", "", "timeout")
	}
	if oneOf(r, "entities are named", true, false, false, false, false) {
		s.Entities = someNames(r)
	}
	s.Prefix = oneOf(r, "prefix", "", "", "", "", "", "", "", "a/", "b/1")
	ago := func(what string) time.Duration {
		return oneOf(r, what, 0, 0, 0, 0, 0, 0, 0, 0, 2*time.Hour, 30*time.Minute)
	}
	if d := ago("since"); d > 0 {
		s.Since = now.Add(-d)
	}
	if d := ago("until"); d > 0 && (s.Since.IsZero() || s.Since.Before(now.Add(-d))) {
		s.Until = now.Add(-d)
	}
	s.Limit = oneOf[int64](r, "limit", 0, 0, 0, 0, 1, 5)
	return s
}

// short makes rapid try so many worlds where time is short, else as many as full says;
// others each time, unless a seed is given.
func short(t *testing.T, checks, full string) {
	t.Helper()
	if os.Getenv("ONCEMORE_FULL") != "" {
		checks = full
	}
	set(t, "rapid.checks", checks)
	if seed := os.Getenv("ONCEMORE_SEED"); seed != "" {
		set(t, "rapid.seed", seed)
	}
}

func set(t *testing.T, name, value string) {
	t.Helper()
	before := flag.Lookup(name).Value.String()
	if err := flag.Set(name, value); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = flag.Set(name, before) })
}

// What a person is shown before they agree is what the workers then do, each entity for
// the same reason.
func TestPreviewAndExecutionAgreeEntityByEntity(t *testing.T) {
	short(t, "50", "1000")
	w := newWorld(t)
	w.stops()
	seen := map[ledger.Reason]int{}
	rapid.Check(t, func(r *rapid.T) {
		jobType := oneOf(r, "job type", pieceTypes...)
		w.fill(r, jobType)
		var now time.Time
		if err := w.pool.QueryRow(t.Context(), `SELECT now()`).Scan(&now); err != nil {
			r.Fatal(err)
		}
		s := selection(r, now)
		if s.Force && jobType == "unlisted" {
			return // nobody can name what is to be forced
		}
		var previewed []string
		p, err := w.op.Preview(t.Context(), jobType, s, admin.PreviewOptions{Each: func(items []plan.Item) error {
			for _, it := range items {
				previewed = append(previewed, it.Entity+" "+string(it.Reason))
				seen[it.Reason]++
			}
			return nil
		}})
		if err != nil {
			r.Fatal(err)
		}
		if p.Items != int64(len(previewed)) || p.Going != nil {
			r.Fatalf("the preview says %d, and lists %d: %+v", p.Items, len(previewed), p)
		}
		opened, err := w.op.Rerun(t.Context(), worker.Order{Type: jobType, Selection: s, Reason: "a property"})
		if err != nil || opened.Joined {
			r.Fatalf("%+v, %v", opened, err)
		}
		sealed, run := w.plan(r, opened.Run)
		slices.Sort(previewed)
		slices.Sort(sealed)
		if a, b := strings.Join(previewed, "\n"), strings.Join(sealed, "\n"); a != b {
			r.Fatalf("%s, %s\n--- previewed\n%s\n--- planned\n%s", jobType, s, a, b)
		}
		if fmt.Sprint(run.Seen) != fmt.Sprint(p.Tally) {
			r.Fatalf("%s, %s: the preview has seen %+v, the planning %+v", jobType, s, p.Tally, run.Seen)
		}
		w.exec(`UPDATE oncemore.run SET ended_at = now() WHERE ended_at IS NULL`) // its carrier finds that it has ended
	})
	t.Logf("picked were %v", seen)
	for _, reason := range []ledger.Reason{ledger.Missing, ledger.Retry, ledger.StaleVersion, ledger.StaleSource, ledger.Failed, ledger.InDoubt, ledger.Forced} {
		if seen[reason] == 0 && os.Getenv("ONCEMORE_FULL") != "" && os.Getenv("ONCEMORE_SEED") == "" {
			t.Errorf("nothing was picked for being %s: the worlds are too poor", reason)
		}
	}
}

// Where every body succeeds, all that was planned is done, whatever state it was in: no
// claim is left behind that nothing carries on. (A done-check that never answers leaves
// work in doubt, so that job type is left out.)
func TestWhatIsPlannedIsDone(t *testing.T) {
	short(t, "10", "150")
	w := newWorld(t)
	types := slices.DeleteFunc(slices.Clone(pieceTypes), func(name string) bool { return name == "posted" })
	rapid.Check(t, func(r *rapid.T) {
		jobType := oneOf(r, "job type", types...)
		w.fill(r, jobType)
		var now time.Time
		if err := w.pool.QueryRow(t.Context(), `SELECT now()`).Scan(&now); err != nil {
			r.Fatal(err)
		}
		s := selection(r, now)
		if s.Force && jobType == "unlisted" {
			return
		}
		opened, err := w.op.Rerun(t.Context(), worker.Order{Type: jobType, Selection: s, Reason: "a property"})
		if err != nil {
			r.Fatal(err)
		}
		run := w.until(r, opened.Run, "over", func(run *admin.Run) bool { return run.State.Over() })
		// What had failed after an attempt whose effect is not known, the class may have put in doubt.
		if run.Done+run.InDoubt != run.Items || run.InDoubt > run.Seen.Picked[ledger.Failed] || (run.InDoubt == 0) != (run.State == admin.Complete) {
			r.Fatalf("%s, %s: %s; %s; %+v", jobType, s, run.State, run.Words(), run.Seen)
		}
	})
}

// until looks at a run until it is as wanted.
func (w *world) until(r rapid.TB, id int64, what string, is func(*admin.Run) bool) *admin.Run {
	watch := &admin.Watch{Pool: w.pool, Run: id}
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		run, _, err := watch.Look(w.T.Context())
		if err != nil {
			r.Fatal(err)
		}
		if is(run) {
			return run
		}
		if time.Now().After(limit) {
			r.Fatalf("not %s within 20 s: %s; %+v", what, run.Words(), run)
		}
	}
}

// plan waits for the plan of a run, and returns its entities with their reasons.
func (w *world) plan(r rapid.TB, id int64) (sealed []string, run *admin.Run) {
	run = w.until(r, id, "planned", func(run *admin.Run) bool { return run.PlannedAt != nil })
	err := w.pool.QueryRow(w.T.Context(), `
SELECT coalesce(array_agg(e.entity || ' ' || p.reasons[e.n]), '{}')
FROM oncemore.run_pack p CROSS JOIN LATERAL unnest(p.entities) WITH ORDINALITY AS e(entity, n) WHERE p.run = $1`, id).Scan(&sealed)
	if err != nil {
		r.Fatal(err)
	}
	return sealed, run
}

// A source in Go of more than one chunk is planned in more than one transaction. What it
// names with other arguments than those of a claim is a conflict all the same.
func TestASourceOfManyChunksIsPlannedAsItIsPreviewed(t *testing.T) {
	w := newWorld(t)
	w.stops()
	w.exec(`INSERT INTO piece SELECT to_char(n, 'FM000000'), 'plain', 0 FROM generate_series(1, 10500) n`)
	for _, name := range []string{"000007", "010499", "unnamed"} {
		args, fp := w.styled("walked", name, "fancy", 0)
		w.exec(`INSERT INTO oncemore.claim (job_type, entity, fence, fingerprint, epoch, source_version, run, attempts, trouble, args)
VALUES ((SELECT id FROM oncemore.job_type WHERE name = 'walked'), $1, 1, $2, 0, 0, 0, 1, 'retrying', $3)`, name, fp, args)
	}
	p, err := w.op.Preview(t.Context(), "walked", plan.Selection{}, admin.PreviewOptions{})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := w.op.Rerun(t.Context(), worker.Order{Type: "walked"})
	if err != nil {
		t.Fatal(err)
	}
	sealed, run := w.plan(t, opened.Run)
	if len(sealed) != 10499 || p.Items != 10499 || p.Seen[ledger.Conflict] != 2 || p.Picked[ledger.Retry] != 1 || fmt.Sprint(run.Seen) != fmt.Sprint(p.Tally) {
		t.Errorf("previewed %+v, planned %d: %+v", p.Tally, len(sealed), run.Seen)
	}
}

// A charge has failed for good, its provider may have had it, and has forgotten the key by
// now. For who asks for newer than that it is in doubt; so a person who says that nothing
// was charged has it done, and not only listed as failed once more.
func TestAVerdictCoversWhatHasFailedAndMayHaveHadItsEffect(t *testing.T) {
	w := newWorld(t)
	w.exec(`INSERT INTO piece VALUES ('a', 'plain', 2)`)
	args, fp := w.styled("charged", "a", "plain", 1)
	w.exec(`INSERT INTO oncemore.claim (job_type, entity, fence, claimed_at, first_claimed_at, fingerprint, epoch, source_version, run, attempts, trouble, args)
VALUES ((SELECT id FROM oncemore.job_type WHERE name = 'charged'), 'a', 1, now() - interval '2 hours', now() - interval '2 hours', $1, 0, 1, 0, 10, 'failed', $2)`, fp, args)
	opened, err := w.op.Rerun(t.Context(), worker.Order{Type: "charged", Selection: plan.Selection{Reasons: []ledger.Reason{ledger.Missing, ledger.InDoubt}}, Reason: "the provider lists no charge"})
	if err != nil {
		t.Fatal(err)
	}
	run := w.until(t, opened.Run, "over", func(run *admin.Run) bool { return run.State.Over() })
	if run.State != admin.Complete || run.Done != 1 {
		t.Fatalf("%s; %s; %+v", run.State, run.Words(), run.Seen)
	}
}
