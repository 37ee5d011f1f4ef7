package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/plan"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// A card is to be written for each number that the table names.
type card struct {
	N int `json:"n"`
}

func (card) JobType() string  { return "card" }
func (c card) Entity() string { return jobs.Key(c.N) }

// An office is a database whose cards are written by workers, as the test says.
type office struct {
	*testing.T
	pool    *pgxpool.Pool
	effect  jobs.Effect
	mu      sync.Mutex
	write   func(ctx context.Context, c card) error
	written map[int]int
}

// newOffice is one with so many cards to write, and no worker yet.
func newOffice(t *testing.T, cards int) *office {
	t.Parallel()
	o := &office{T: t, pool: pgtest.Pool(t), effect: jobs.Repeatable, written: map[int]int{}}
	o.exec(`CREATE TABLE card AS SELECT n FROM generate_series(1, $1::int) n`, cards)
	o.worker(0) // the job type is known
	return o
}

func (o *office) exec(statement string, args ...any) {
	o.Helper()
	if _, err := o.pool.Exec(o.Context(), statement, args...); err != nil {
		o.Fatal(err)
	}
}

func (o *office) worker(version int) *worker.Worker {
	o.Helper()
	set, err := jobs.NewSet(jobs.Job[card]{Effect: o.effect, Source: jobs.SQL[card](`SELECT n::text AS entity, n FROM card`), Policy: jobs.Policy{Version: version},
		Do: func(ctx context.Context, c card) error {
			o.mu.Lock()
			o.written[c.N]++
			write := o.write
			o.mu.Unlock()
			if write == nil {
				return nil
			}
			return write(ctx, c)
		}})
	if err != nil {
		o.Fatal(err)
	}
	w, err := worker.New(o.Context(), o.pool, set, worker.Config{Log: slog.New(slog.DiscardHandler), Throttles: []throttle.Signal{}})
	if err != nil {
		o.Fatal(err)
	}
	return w
}

// opens begins a worker's work, until stop or the end of the test.
func (o *office) opens(version int) (stop func()) {
	o.Helper()
	w := o.worker(version)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			o.Error(err)
		}
	})
	o.Cleanup(stop)
	return stop
}

// says is what becomes of a card from now on.
func (o *office) says(write func(c card) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.write = func(_ context.Context, c card) error { return write(c) }
}

func (o *office) by(actor string) *admin.Operator { return &admin.Operator{Pool: o.pool, Actor: actor} }

func (o *office) rerun(order worker.Order) int64 {
	o.Helper()
	order.Type = "card"
	r, err := o.by("anna").Rerun(o.Context(), order)
	if err != nil {
		o.Fatal(err)
	}
	return r.Run
}

// until looks at a run until it is as wanted. Whenever it is looked at, its parts are the
// whole.
func (o *office) until(id int64, what string, is func(*admin.Run) bool) *admin.Run {
	o.Helper()
	watch := &admin.Watch{Pool: o.pool, Run: id}
	for limit := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		r, _, err := watch.Look(o.Context())
		if err != nil {
			o.Fatal(err)
		}
		if sum := r.Done + r.Open + r.Failed + r.InDoubt + r.Missing + r.NotSent; sum != r.Items || min(r.Done, r.Open, r.Failed, r.InDoubt, r.Missing, r.NotSent) < 0 {
			o.Fatalf("the parts are not the whole: %+v", r)
		}
		if is(r) {
			if s := o.show(id); what != "going" && r.State != admin.Cancelled && (s.Done != r.Done || s.Failed != r.Failed || s.InDoubt != r.InDoubt) && s.State == r.State {
				o.Errorf("watched it is %s, looked at once %s", r.Words(), s.Words())
			}
			return r
		}
		if time.Now().After(limit) {
			o.Fatalf("after 20 s: not yet %s: %+v", what, r)
		}
	}
}

func (o *office) over(id int64) *admin.Run {
	o.Helper()
	return o.until(id, "over", func(r *admin.Run) bool { return r.State.Over() })
}

func (o *office) show(id int64) (s *admin.RunStory) {
	o.Helper()
	err := admin.Read(o.Context(), o.pool, 10*time.Second, func(tx pgx.Tx) (err error) {
		s, err = admin.ShowRun(o.Context(), tx, id)
		return err
	})
	if err != nil {
		o.Fatal(err)
	}
	return s
}

func (o *office) audited() (all []string) {
	o.Helper()
	entries, err := admin.Audit(o.Context(), o.pool, admin.AuditFilter{})
	if err != nil {
		o.Fatal(err)
	}
	for _, e := range entries {
		all = append([]string{fmt.Sprintf("%s: %s %s %v %s (%s)", e.Actor, e.Action, e.Type, e.Sample, e.Reason, e.Detail)}, all...)
	}
	return all
}

// Whoever says "call it again" in the same minute as somebody else must not make it twice.
func TestTwoOperatorsStartTheSameRerunAtOnceAndThereIsOnePlan(t *testing.T) {
	o := newOffice(t, 3000)
	if _, err := o.by("anna").Brake(t.Context(), "", "not yet"); err != nil {
		t.Fatal(err)
	}
	// The same, said in other words.
	same := []plan.Selection{
		{}, {Reasons: []ledger.Reason{ledger.Retry, ledger.StaleSource, ledger.Missing, ledger.StaleVersion}}, {Reasons: plan.Usual},
	}
	const operators = 12
	results := make([]*admin.Rerun, operators)
	var begin, done sync.WaitGroup
	begin.Add(1)
	for n := range operators {
		done.Go(func() {
			begin.Wait()
			r, err := o.by(fmt.Sprintf("operator %d", n)).Rerun(t.Context(), worker.Order{Type: "card", Selection: same[n%len(same)], Reason: "the outage"})
			if err != nil {
				t.Error(err)
				r = &admin.Rerun{}
			}
			results[n] = r
		})
	}
	begin.Done()
	done.Wait()
	opened := 0
	for _, r := range results {
		if !r.Joined {
			opened++
		}
		if r.Run != results[0].Run || r.Planned || r.Audit == 0 {
			t.Errorf("%+v, and another one got run %d", r, results[0].Run)
		}
	}
	if opened != 1 {
		t.Errorf("%d of them opened a run", opened)
	}
	stop := o.opens(0)
	r := o.until(results[0].Run, "planned", func(r *admin.Run) bool { return r.State == admin.Held })
	if r.Items != 3000 || r.NotSent != 3000 || !strings.Contains(r.Waits, "not yet") {
		t.Errorf("the plan: %+v", r)
	}
	// Now that it is planned a latecomer is told so.
	late, err := o.by("late").Rerun(t.Context(), worker.Order{Type: "card", Reason: "the outage"})
	if err != nil || !late.Joined || !late.Planned || late.Run != r.ID {
		t.Errorf("%+v, %v", late, err)
	}
	if _, err := o.by("anna").Release(t.Context(), "", ""); err != nil {
		t.Fatal(err)
	}
	if r := o.over(r.ID); r.State != admin.Complete || r.Done != 3000 {
		t.Errorf("%+v", r)
	}
	stop()
	for n, times := range o.written {
		if times != 1 {
			t.Errorf("card %d was written %d times", n, times)
		}
	}
	var runs, planned int
	if err := o.pool.QueryRow(t.Context(), `SELECT count(*), sum(items) FROM oncemore.run`).Scan(&runs, &planned); err != nil || runs != 1 || planned != 3000 || len(o.written) != 3000 {
		t.Errorf("%d runs planned %d, %d cards were written, %v", runs, planned, len(o.written), err)
	}
	joined := 0
	for _, line := range o.audited() {
		if strings.Contains(line, "joined the run") {
			joined++
		}
	}
	if joined != operators {
		t.Errorf("the audit names %d who joined: %s", joined, strings.Join(o.audited(), "\n"))
	}
}

func TestARunIsPausedResumedSlowedAndCancelledByHand(t *testing.T) {
	o := newOffice(t, 2000)
	id := o.rerun(worker.Order{Rate: 100, Reason: "the outage"})
	op, ctx := o.by("bea"), t.Context()
	do := func(r *admin.Result, err error) {
		t.Helper()
		if err != nil || r.Changed != 1 || r.Audit == 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	o.opens(0)
	slow := o.until(id, "going", func(r *admin.Run) bool { return r.Done > 0 })
	if slow.NotSent < 1000 || slow.Rate != 100 || slow.ETA != nil && *slow.ETA < 1 {
		t.Errorf("at 100 a second: %+v", slow)
	}
	do(op.Pause(ctx, id, "it hurts"))
	paused := o.until(id, "paused", func(r *admin.Run) bool { return r.Waits != "" && r.Missing+r.Open == 0 })
	if paused.State != admin.Paused || !strings.Contains(paused.Waits, "it hurts (bea)") || paused.ETA != nil {
		t.Errorf("%+v", paused)
	}
	// Paused, it stays where it is; a new rate is for later.
	do(op.SetRate(ctx, id, 50, ""))
	if r := o.until(id, "slower", func(r *admin.Run) bool { return r.Rate == 50 }); r.Done != paused.Done || r.State != admin.Paused {
		t.Errorf("it went from %s to %s", paused.Words(), r.Words())
	}
	do(op.Resume(ctx, id, "it is over"))
	o.until(id, "going", func(r *admin.Run) bool { return r.Done > paused.Done })
	do(op.Cancel(ctx, id, "enough"))
	r := o.over(id)
	if r.State != admin.Cancelled || r.NotSent == 0 || r.Failed != 0 {
		t.Errorf("%+v", r)
	}
	for name, err := range map[string]error{"pause": justErr(op.Pause(ctx, id, "")), "resume": justErr(op.Resume(ctx, id, "")), "cancel": justErr(op.Cancel(ctx, id, "")), "rate": justErr(op.SetRate(ctx, id, 1, ""))} {
		if !errors.Is(err, worker.ErrRunEnded) {
			t.Errorf("%s of one that has ended: %v", name, err)
		}
	}
	if err := justErr(op.Pause(ctx, 77, "")); !errors.Is(err, worker.ErrNoRun) {
		t.Errorf("pause of none: %v", err)
	}
	want := `anna: rerun card [run 1] the outage (missing, retry, stale version, stale source; 100 a second)
bea: pause card [run 1] it hurts ()
bea: rate card [run 1]  (50 a second)
bea: resume card [run 1] it is over ()
bea: cancel card [run 1] enough ()`
	if got := strings.Join(o.audited(), "\n"); got != want {
		t.Errorf("the audit:\n%s\nwant\n%s", got, want)
	}
	var told []string
	for _, e := range o.show(id).History {
		told = append(told, e.Kind)
	}
	if got := strings.Join(told, " "); !strings.HasPrefix(got, "opened planned ") || !strings.HasSuffix(got, "cancelled") || !strings.Contains(got, "paused") || !strings.Contains(got, "rate") || !strings.Contains(got, "resumed") {
		t.Errorf("the history: %s", got)
	}
}

func justErr(_ *admin.Result, err error) error { return err }

// The facts of stale work stand until it is done again: they must not be taken for its
// being done.
func TestStaleWorkThatFailsIsShownAsFailedWithItsReasons(t *testing.T) {
	o := newOffice(t, 40)
	stop := o.opens(0)
	if r := o.over(o.rerun(worker.Order{})); r.State != admin.Complete || r.Done != 40 {
		t.Fatalf("%+v", r)
	}
	stop()
	o.says(func(c card) error {
		if c.N <= 12 {
			return jobs.Permanent(errors.New("no ink"))
		}
		return nil
	})
	o.opens(1)
	id := o.rerun(worker.Order{Reason: "a new template"})
	r := o.over(id)
	if r.State != admin.Ended || r.Items != 40 || r.Done != 28 || r.Failed != 12 {
		t.Errorf("%s, %+v", r.Words(), r)
	}
	s := o.show(id)
	if len(s.Failures) != 10 || s.Failures[0].Entity != "1" || s.Failures[0].State != "failed" || s.Failures[0].Class == "" || !strings.Contains(s.Failures[0].Error, "no ink") {
		t.Errorf("%+v", s.Failures)
	}
	if s.By != "anna" || s.Reason != "a new template" || s.Seen.Picked[ledger.StaleVersion] != 40 || s.How != "missing, retry, stale version, stale source" || s.NotSent != 0 {
		t.Errorf("%+v", s)
	}
	// At its end it was the same.
	var list *admin.List[admin.Run]
	err := admin.Read(t.Context(), o.pool, 10*time.Second, func(tx pgx.Tx) (err error) {
		list, err = admin.ListRuns(t.Context(), tx, admin.RunFilter{Type: "card"}, admin.Page{Limit: 1})
		return err
	})
	if err != nil || len(list.Rows) != 1 || list.Rows[0].Words() != s.Words() || list.Of != (admin.Count{N: 2, Is: admin.Exact}) || list.Next == "" {
		t.Fatalf("%+v, %v", list, err)
	}
	err = admin.Read(t.Context(), o.pool, 10*time.Second, func(tx pgx.Tx) (err error) {
		list, err = admin.ListRuns(t.Context(), tx, admin.RunFilter{}, admin.Page{Limit: 1, After: list.Next})
		return err
	})
	if err != nil || len(list.Rows) != 1 || list.Rows[0].Words() != "40 of 40 done" || list.Next != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// What rests on nothing is not told.
func TestAPreviewEstimatesByWhatWasCompletedLatelyOrByTheRate(t *testing.T) {
	o := newOffice(t, 1000)
	look := func(s plan.Selection, opts admin.PreviewOptions) *admin.Preview {
		t.Helper()
		p, err := o.by("anna").Preview(t.Context(), "card", s, opts)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := look(plan.Selection{}, admin.PreviewOptions{}); p.Estimate != nil || p.Items != 1000 || len(p.First) != 10 || p.Capped {
		t.Errorf("%+v", p)
	}
	if p := look(plan.Selection{}, admin.PreviewOptions{Rate: 50}); p.Estimate == nil || p.Estimate.Seconds != 20 || !strings.Contains(p.Estimate.Rests, "50 a second") {
		t.Errorf("%+v", p.Estimate)
	}
	// 600 within a minute of this hour, and a few long ago.
	o.exec(`INSERT INTO oncemore.ledger (job_type, entity, fingerprint, attempts, evidence, completed_at)
SELECT (SELECT id FROM oncemore.job_type WHERE name = 'card'), n::text, 0, 1, 'r', now() - interval '1 hour' + n * interval '0.1 s' FROM generate_series(1, 600) n`)
	p := look(plan.Selection{}, admin.PreviewOptions{})
	if p.Items != 400 || p.Seen[ledger.Done] != 600 || p.Estimate == nil || p.Estimate.Seconds < 35 || p.Estimate.Seconds > 85 || !strings.Contains(p.Estimate.Rests, "600 were completed") || !strings.Contains(p.Estimate.Rests, "24 hours") {
		t.Errorf("%+v, %+v", p.Tally, p.Estimate)
	}
	if p := look(plan.Selection{}, admin.PreviewOptions{Rate: 1}); p.Estimate.Seconds != 400 {
		t.Errorf("%+v", p.Estimate)
	}
	if p := look(plan.Selection{}, admin.PreviewOptions{Most: 100}); p.Items != 100 || !p.Capped {
		t.Errorf("%+v", p.Tally)
	}
	if p := look(plan.Selection{Limit: 400}, admin.PreviewOptions{}); p.Items != 400 {
		t.Errorf("%+v", p.Tally)
	}
}

// A program that did not check it has stored a rate that JSON cannot have.
func TestARunIsListedWhateverItsRateIs(t *testing.T) {
	o := newOffice(t, 1)
	id := o.rerun(worker.Order{})
	o.exec(`UPDATE oncemore.run_control SET rate = 'Infinity'`)
	if raw, err := json.Marshal(o.show(id)); err != nil {
		t.Errorf("%s, %v", raw, err)
	}
}
