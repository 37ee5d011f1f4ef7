package admin_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/workertest"
)

// A pay has an effect that may not happen twice.
type pay struct {
	Bill string `json:"bill"`
}

func (pay) JobType() string  { return "pay" }
func (p pay) Entity() string { return p.Bill }

// A draw may be done again.
type draw struct {
	Page  string `json:"page"`
	Style string `json:"style,omitempty"`
}

func (draw) JobType() string  { return "draw" }
func (d draw) Entity() string { return d.Page }

// A yard is a database, with jobs whose outcome the test says by entity: nil is success.
type yard struct {
	*pgxpool.Pool
	t    *testing.T
	set  *jobs.Set
	mu   sync.Mutex
	says map[string]error
	runs map[string]int // how often a body ran
}

func newYard(t *testing.T) *yard {
	t.Parallel()
	y := &yard{Pool: pgtest.Pool(t), t: t, says: map[string]error{}, runs: map[string]int{}}
	set, err := jobs.NewSet(
		jobs.Job[pay]{Do: func(_ context.Context, p pay) error { return y.run(p.Bill) }, Effect: jobs.Once},
		jobs.Job[draw]{Do: func(_ context.Context, d draw) error { return y.run(d.Page) }, Effect: jobs.Repeatable, Policy: jobs.Policy{Priority: 7}},
	)
	if err != nil {
		t.Fatal(err)
	}
	y.set = set
	return y
}

func (y *yard) run(entity string) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.runs[entity]++
	return y.says[entity]
}

func (y *yard) say(err error, entities ...string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, e := range entities {
		y.says[e] = err
	}
}

func (y *yard) ran(entity string) int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.runs[entity]
}

// work lets a worker do what is due.
func (y *yard) work(args ...jobs.Args) {
	y.t.Helper()
	workertest.RunConfig(y.t, y.Pool, y.set, worker.Config{Log: slog.New(slog.DiscardHandler)}, args...)
}

// by is an operator.
func (y *yard) by(actor string) *admin.Operator {
	return &admin.Operator{Pool: y.Pool, Actor: actor, Set: y.set}
}

// doubts has pays of the entities in doubt.
func (y *yard) doubts(entities ...string) {
	y.t.Helper()
	y.say(errors.New("no answer"), entities...)
	var args []jobs.Args
	for _, e := range entities {
		args = append(args, pay{e})
	}
	y.work(args...)
	y.say(nil, entities...)
}

// failures has draws of the entities failed, and what made them fail mended.
func (y *yard) failures(err error, entities ...string) {
	y.t.Helper()
	y.say(jobs.Permanent(err), entities...)
	var args []jobs.Args
	for _, e := range entities {
		args = append(args, draw{Page: e})
	}
	y.work(args...)
	y.say(nil, entities...)
}

func (y *yard) exec(statement string, args ...any) {
	y.t.Helper()
	if _, err := y.Exec(y.t.Context(), statement, args...); err != nil {
		y.t.Fatal(err)
	}
}

func one[T any](y *yard, query string, args ...any) (v T) {
	y.t.Helper()
	if err := y.QueryRow(y.t.Context(), query, args...).Scan(&v); err != nil {
		y.t.Fatal(err)
	}
	return v
}

// where says where an entity is: "done o 1" (evidence, attempts), "failed 1", "missing".
func (y *yard) where(entity string) string {
	y.t.Helper()
	return one[string](y, `
SELECT coalesce((SELECT 'done ' || l.evidence::text || ' ' || l.attempts FROM oncemore.ledger l WHERE l.entity = $1),
                (SELECT coalesce(c.trouble, 'held') || ' ' || c.attempts FROM oncemore.claim c WHERE c.entity = $1), 'missing')`, entity)
}

func (y *yard) messages() int {
	y.t.Helper()
	return one[int](y, `SELECT count(*)::int FROM oncemore.message`)
}

// audits are the rows of the audit, the oldest first.
func (y *yard) audits() []admin.AuditEntry {
	y.t.Helper()
	all, err := admin.Audit(y.t.Context(), y.Pool, admin.AuditFilter{})
	if err != nil {
		y.t.Fatal(err)
	}
	slices.Reverse(all)
	return all
}

// contents is all that an operator could change, as one text.
func (y *yard) contents() string {
	y.t.Helper()
	var all []string
	for _, table := range []string{"ledger", "ledger_history", "claim", "attempt", "message", "parked"} {
		all = append(all, one[string](y, fmt.Sprintf(`SELECT '%[1]s: ' || coalesce(string_agg(x::text, E'\n' ORDER BY x::text), '') FROM oncemore.%[1]s x`, table)))
	}
	return strings.Join(all, "\n")
}

func (y *yard) inDoubt(s admin.Selection) *admin.Shown {
	y.t.Helper()
	return must(y.t)(y.by("anna").InDoubt(y.t.Context(), s))
}

func (y *yard) retryable(s admin.Selection) *admin.Shown {
	y.t.Helper()
	return must(y.t)(y.by("anna").Retryable(y.t.Context(), s))
}

// must takes what may be an error, and is none.
func must(t *testing.T) func(*admin.Shown, error) *admin.Shown { return mustBe[*admin.Shown](t) }

func mustBe[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func entitiesOf(s *admin.Shown) (names []string) {
	for _, e := range s.Entries {
		names = append(names, e.Entity)
	}
	return names
}

func leftOf(r *admin.Result) (names []string) {
	for _, l := range r.Left {
		names = append(names, l.What)
	}
	return names
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// acts are all ways to change something, each ready to be done.
func acts(y *yard) map[string]func() (*admin.Result, error) {
	y.t.Helper()
	ctx, op := y.t.Context(), y.by("anna")
	y.doubts("d1", "d2")
	y.failures(errors.New("no ink"), "f1", "f2")
	y.park("u1", "u2", "u3")
	parked := func(entity string) *admin.ShownParked {
		id := one[int64](y, `SELECT id FROM oncemore.parked WHERE entity = $1`, entity)
		return mustBe[*admin.ShownParked](y.t)(op.Parked(ctx, admin.ParkedSelection{IDs: []int64{id}}))
	}
	done, again := y.inDoubt(admin.Selection{Type: "pay", Entities: []string{"d1"}}), y.inDoubt(admin.Selection{Type: "pay", Entities: []string{"d2"}})
	failed := y.retryable(admin.Selection{Type: "draw"})
	resend, drop := parked("u1"), parked("u2")
	batch := mustBe[*admin.Batch](y.t)(op.Prepare(ctx, "draw", []admin.Input{{Args: []byte(`{"page":"new"}`)}}))
	return map[string]func() (*admin.Result, error){
		"resolve as done":        func() (*admin.Result, error) { return op.Resolve(ctx, done, true, "seen") },
		"resolve as not applied": func() (*admin.Result, error) { return op.Resolve(ctx, again, false, "not seen") },
		"retry":                  func() (*admin.Result, error) { return op.Retry(ctx, failed, "ink is here") },
		"resend":                 func() (*admin.Result, error) { return op.Resend(ctx, resend, "") },
		"drop":                   func() (*admin.Result, error) { return op.Drop(ctx, drop, "nonsense") },
		"enqueue":                func() (*admin.Result, error) { return op.Enqueue(ctx, batch, "") },
	}
}

// Whoever asks the audit must get the truth: nothing happened that it does not tell of, and
// nothing that it tells of did not happen.
func TestAnActAndItsAuditRowAreOneTransaction(t *testing.T) {
	t.Run("without the row there is no act", func(t *testing.T) {
		y := newYard(t)
		all := acts(y)
		y.exec(`CREATE FUNCTION no_audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the disk is full'; END $$`)
		y.exec(`CREATE TRIGGER no_audit AFTER INSERT ON oncemore.audit FOR EACH ROW EXECUTE FUNCTION no_audit()`)
		before := y.contents()
		for name, act := range all {
			if r, err := act(); r != nil || err == nil || !strings.Contains(err.Error(), "the disk is full") {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
			if after := y.contents(); after != before {
				t.Fatalf("%s has changed\n%s\nto\n%s", name, before, after)
			}
		}
		y.exec(`DROP TRIGGER no_audit ON oncemore.audit`)
		for name, act := range all {
			before := y.contents()
			if r, err := act(); err != nil || r.Changed == 0 || r.Audit == 0 || len(r.Left) > 0 {
				t.Errorf("%s, with a disk again: %+v, %v", name, r, err)
			}
			if y.contents() == before {
				t.Errorf("%s has changed nothing", name)
			}
		}
		same(t, "audit rows", len(y.audits()), len(all))
	})
	t.Run("without the act there is no row", func(t *testing.T) {
		y := newYard(t)
		all := acts(y)
		delete(all, "resolve as done") // these two send nothing
		delete(all, "drop")
		y.exec(`CREATE FUNCTION no_message() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the disk is full'; END $$`)
		y.exec(`CREATE TRIGGER no_message AFTER INSERT ON oncemore.message FOR EACH ROW EXECUTE FUNCTION no_message()`)
		before := y.contents()
		for name, act := range all {
			if r, err := act(); r != nil || err == nil || !strings.Contains(err.Error(), "the disk is full") {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
			if after := y.contents(); after != before {
				t.Fatalf("%s has changed\n%s\nto\n%s", name, before, after)
			}
		}
		same(t, "audit", y.audits(), "[]")
	})
}

// A laptop may sleep in the middle of an act: schedules and workers wait for what it has locked, and not
// for longer than this. And who waits for it is told.
func TestAnActKeepsNothingLockedWhenItsOperatorIsGone(t *testing.T) {
	y := newYard(t)
	y.put(nightly("report"))
	y.exec(`
CREATE TABLE bound (what text);
CREATE FUNCTION note_bounds() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO bound VALUES (current_setting('idle_in_transaction_session_timeout') || ', ' || current_setting('lock_timeout'));
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT ON oncemore.audit FOR EACH ROW EXECUTE FUNCTION note_bounds()`)
	if _, err := y.by("bert").PauseSchedule(t.Context(), "report", "because"); err != nil {
		t.Fatal(err)
	}
	var bounds string
	if err := y.Pool.QueryRow(t.Context(), `SELECT string_agg(what, '; ') FROM bound`).Scan(&bounds); err != nil {
		t.Fatal(err)
	}
	same(t, "how long it may idle, and wait", bounds, "15s, 30s")
	err := admin.Read(t.Context(), y.Pool, time.Second, func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), `SELECT current_setting('idle_in_transaction_session_timeout')`).Scan(&bounds)
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "how long who reads may idle", bounds, "1min")
}

// The schema before the audit: workers run on it, operators are told what to do.
func TestOnASchemaWithoutTheAuditNothingIsChanged(t *testing.T) {
	y := newYard(t)
	all := acts(y)
	y.exec(`DROP TABLE oncemore.audit`)
	before := y.contents()
	for name, act := range all {
		if r, err := act(); r != nil || err == nil || !strings.Contains(err.Error(), "migrate up") {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if after := y.contents(); after != before {
		t.Errorf("changed\n%s\nto\n%s", before, after)
	}
	y.work(draw{Page: "still"})
	same(t, "a worker on it", y.where("still"), "done r 1")
}

func TestTheAuditTellsWhoDidWhatAndWhy(t *testing.T) {
	y := newYard(t)
	for name, act := range acts(y) {
		if _, err := act(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	got := map[string]admin.AuditEntry{}
	for _, e := range y.audits() {
		if e.Actor != "anna" || e.ID == 0 || time.Since(e.At) > time.Minute {
			t.Errorf("%+v", e)
		}
		got[e.Action+" "+e.Reason] = e
	}
	for key, want := range map[string]string{
		"resolve seen":      "pay 1 [d1] as done: 1 named",
		"resolve not seen":  "pay 1 [d2] as not applied: 1 named",
		"retry ink is here": "draw 2 [f1 f2] all",
		"drop nonsense":     "unheard 1 [" + got["drop nonsense"].Sample[0] + "] 1 by id",
		"resend ":           "unheard 1 [" + got["resend "].Sample[0] + "] 1 by id",
		"enqueue ":          "draw 1 [new] 1 named",
	} {
		e := got[key]
		same(t, key, fmt.Sprintf("%s %d %v %s", e.Type, e.Entities, e.Sample, e.Detail), want)
	}
	if s := got["drop nonsense"].Sample[0]; !strings.HasSuffix(s, " unheard u2") {
		t.Errorf("what was dropped: %q", s)
	}
	some, err := admin.Audit(t.Context(), y.Pool, admin.AuditFilter{Type: "pay", Action: "resolve", Actor: "anna", Window: admin.Window{Within: time.Hour}, Limit: 1})
	if err != nil || len(some) != 1 || some[0].Type != "pay" {
		t.Errorf("%+v, %v", some, err)
	}
	none, err := admin.Audit(t.Context(), y.Pool, admin.AuditFilter{Window: admin.Window{Until: time.Now().Add(-time.Hour)}})
	if err != nil || len(none) != 0 {
		t.Errorf("%+v, %v", none, err)
	}
}

// What was done a hundred thousand times is told in one row, and what was not done in none.
func TestTheAuditNamesTenAndAnActThatChangesNothingLeavesNoRow(t *testing.T) {
	y := newYard(t)
	var names []string
	for n := range 25 {
		names = append(names, fmt.Sprintf("p%02d", n))
	}
	y.failures(errors.New("no ink"), names...)
	shown := y.retryable(admin.Selection{Type: "draw"})
	for round := range 2 {
		r, err := y.by("anna").Retry(t.Context(), shown, "")
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 && (r.Changed != 25 || r.Audit == 0) || round == 1 && (r.Changed != 0 || r.Audit != 0 || len(r.Left) != 25) {
			t.Errorf("round %d: %+v", round, r)
		}
	}
	all := y.audits()
	if len(all) != 1 || all[0].Entities != 25 || !slices.Equal(all[0].Sample, names[:10]) {
		t.Errorf("%+v", all)
	}
}

func TestAnOperatorNeedsANameAndSomeActsAReason(t *testing.T) {
	y := newYard(t)
	y.doubts("d")
	y.park("u")
	shown := y.inDoubt(admin.Selection{Type: "pay"})
	if r, err := y.by("").Resolve(t.Context(), shown, true, "seen"); err == nil {
		t.Errorf("nobody resolved: %+v", r)
	}
	if r, err := y.by("anna").Resolve(t.Context(), shown, true, ""); err == nil {
		t.Errorf("resolved without a reason: %+v", r)
	}
	parked := mustBe[*admin.ShownParked](t)(y.by("anna").Parked(t.Context(), admin.ParkedSelection{}))
	if r, err := y.by("anna").Drop(t.Context(), parked, ""); err == nil {
		t.Errorf("dropped without a reason: %+v", r)
	}
	same(t, "the doubt", y.where("d"), "in_doubt 1")
	same(t, "parked", one[int](y, `SELECT count(*)::int FROM oncemore.parked`), 1)
}

// The app may read another Postgres queue than the default one.
func TestWhatIsSentGoesToTheQueueThatIsNamed(t *testing.T) {
	y := newYard(t)
	y.failures(errors.New("no ink"), "f")
	op := y.by("anna")
	op.Queue = "other"
	if _, err := op.Retry(t.Context(), y.retryable(admin.Selection{Type: "draw"}), ""); err != nil {
		t.Fatal(err)
	}
	ds, err := pgqueue.New(y.Pool, "other").Receive(t.Context(), 10, nil)
	if err != nil || len(ds) != 1 || ds[0].Items[0].Entity != "f" || ds[0].Priority != 7 {
		t.Errorf("%+v, %v", ds, err)
	}
}
