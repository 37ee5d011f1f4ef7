package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/admin"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// The outage: the invitations of some events are being sent, by a provider that ignores
// repeats of a key, when the process that sends them is killed.

// An invite is to be sent to an invitee of an event.
type invite struct {
	Event   int `json:"event"`
	Invitee int `json:"invitee"`
}

func (invite) JobType() string  { return "invite" }
func (i invite) Entity() string { return jobs.Key(i.Event, i.Invitee) }

// outageWorkerEnv has a process of the test's program be a worker on a database.
const outageWorkerEnv = "ONCEMORE_TEST_OUTAGE_WORKER"

func outageSet(pool *pgxpool.Pool) (*jobs.Set, error) {
	return jobs.NewSet(jobs.Job[invite]{
		Effect: jobs.Keyed(24 * time.Hour),
		Source: jobs.SQL[invite](`SELECT event || '/' || invitee AS entity, event, invitee FROM invitee`),
		Do: func(ctx context.Context, i invite) error {
			_, err := pool.Exec(ctx, `INSERT INTO mail (key, event, invitee) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING`, jobs.Current(ctx).EffectKey(), i.Event, i.Invitee)
			time.Sleep(2 * time.Millisecond) // as a provider does
			return err
		},
	})
}

func outageWorker(dsn string) {
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(dsn)
	var pool *pgxpool.Pool
	if err == nil {
		config.ConnConfig.RuntimeParams["application_name"] = "outage"
		pool, err = pgxpool.NewWithConfig(ctx, config)
	}
	if err == nil {
		var set *jobs.Set
		if set, err = outageSet(pool); err == nil {
			var w *worker.Worker
			w, err = worker.New(ctx, pool, set, worker.Config{Slots: 4, Lease: 2 * time.Second, Throttles: []throttle.Signal{},
				Queues: map[string]queue.Queue{"": pgqueue.New(pool, "").WithVisibility(2 * time.Second)}, Log: slog.New(slog.DiscardHandler)})
			if err == nil {
				err = w.Run(ctx)
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// An outage is the database of one.
type outage struct {
	*testing.T
	dsn string
}

// newOutage has so many events of 50 invitees each, and a worker type that is known.
func newOutage(t *testing.T, events int) *outage {
	t.Parallel()
	o := &outage{t, pgtest.DSN(t)}
	pool, err := pgxpool.New(t.Context(), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(t.Context(), `
CREATE TABLE invitee (event int, invitee int, PRIMARY KEY (event, invitee));
CREATE TABLE mail (key text PRIMARY KEY, event int, invitee int)`); err != nil {
		t.Fatal(err)
	}
	o.event(1, events)
	set, err := outageSet(pool)
	if err == nil {
		_, err = worker.New(t.Context(), pool, set, worker.Config{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// event adds events.
func (o *outage) event(from, to int) {
	o.Helper()
	ask[int](o, `WITH i AS (INSERT INTO invitee SELECT e, i FROM generate_series($1::int, $2) e, generate_series(1, 50) i RETURNING 1) SELECT count(*)::int FROM i`, from, to)
}

func ask[T any](o *outage, query string, args ...any) T {
	o.Helper()
	return row[T](o.T, o.dsn, query, args...)
}

// starts runs a worker in a process of its own; kill is a kill -9.
func (o *outage) starts() (kill func()) {
	o.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), outageWorkerEnv+"="+o.dsn)
	cmd.Stderr = o.Output()
	if err := cmd.Start(); err != nil {
		o.Fatal(err)
	}
	dead := false
	kill = func() {
		if !dead {
			dead = true
			_ = cmd.Process.Signal(syscall.SIGKILL)
			_ = cmd.Wait()
			// What it had sent, the server may be doing still.
			o.await("the server has seen it die", func() bool {
				return ask[bool](o, `SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'outage')`)
			})
		}
	}
	o.Cleanup(func() {
		if !dead {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return kill
}

func (o *outage) run(args string) answer {
	o.Helper()
	a := call(o.T, Options{}, append(strings.Fields(args), "--database-url", o.dsn)...)
	o.Logf("$ oncemore %s   # %d\n%s%s", args, a.code, a.out, a.err)
	return a
}

const mails = `SELECT count(*)::int FROM mail`

// crashesWhenSent has a worker killed when so many mails are out.
func (o *outage) crashesWhenSent(mailsOut int) {
	o.Helper()
	kill := o.starts()
	o.await(fmt.Sprintf("%d mails", mailsOut), func() bool { return ask[int](o, mails) >= mailsOut })
	kill()
}

func (o *outage) await(what string, is func() bool) {
	o.Helper()
	for limit := time.Now().Add(40 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			o.Fatalf("not within 40 s: %s", what)
		}
	}
}

// everyoneOnce: each invitee has one mail, and is done.
func (o *outage) everyoneOnce() {
	o.Helper()
	if wrong := ask[int](o, `
SELECT count(*)::int FROM invitee i
WHERE (SELECT count(*) FROM mail m WHERE m.event = i.event AND m.invitee = i.invitee) <> 1
OR NOT EXISTS (SELECT FROM oncemore.ledger l WHERE l.entity = i.event || '/' || i.invitee)`); wrong > 0 {
		o.Errorf("%d invitees have not got one mail", wrong)
	}
}

// "The process crashed when half of the mails were sent": nobody asks which half. A new
// worker goes on with the run that is there; calling again does the same.
func TestCrashedWhenHalfWereSent(t *testing.T) {
	o := newOutage(t, 8)
	if a := o.run("rerun invite --yes --reason launch --rate 100"); a.code != 0 {
		t.Fatal("not begun")
	}
	o.crashesWhenSent(200)
	half := ask[int](o, mails)
	if half >= 400 {
		t.Fatalf("all %d were sent before the crash", half)
	}
	if a := o.run("runs show 1"); a.code != 0 || !strings.Contains(a.out, "going") {
		t.Error("the run does not outlive its worker")
	}
	// Whoever calls it again now is told that it goes on, whatever died.
	if a := o.run("rerun invite --yes --reason outage"); a.code != 0 || !strings.Contains(a.err, "run 1 of the same is being worked already") {
		t.Error("a second run was begun")
	}
	o.starts()
	if a := o.run("runs watch 1 --interval 1s"); a.code != 0 || !strings.Contains(a.err, "run 1 is complete: 400 of 400 done") {
		t.Error("the run was not completed")
	}
	o.everyoneOnce()
	if a := o.run("rerun invite --yes --reason outage"); a.code != 0 || !strings.Contains(a.err, "nothing matches") {
		t.Error("called again when all is done, something is done")
	}
	if a := o.run("status --check"); a.code != 0 {
		t.Error("not all is done")
	}
}

// "Inspect what has not been sent": exactly, with nobody working, and in time.
func TestInspectWhatHasNotBeenSent(t *testing.T) {
	o := newOutage(t, 6)
	if a := o.run("rerun invite --yes --rate 300"); a.code != 0 {
		t.Fatal("not begun")
	}
	o.crashesWhenSent(120)
	a := call(t, Options{}, "missing", "invite", "--limit", "1000", "-o", "json", "--database-url", o.dsn)
	m := decodeJSON[admin.MissingList](t, a.out)
	done := ask[int](o, `SELECT count(*)::int FROM oncemore.ledger`)
	open := ask[int](o, `SELECT count(*)::int FROM oncemore.claim c JOIN oncemore.job_type t ON t.id = c.job_type WHERE t.name = 'invite'`)
	if a.code != 0 || m.Missing == nil || int(m.Missing.N) != len(m.Entities) || len(m.Entities)+done+open != 300 || done == 0 || m.Next != "" {
		t.Errorf("%d are missing, %d done, %d open: that is not 300; %+v", len(m.Entities), done, open, a)
	}
	listed := make([]string, len(m.Entities))
	for i, e := range m.Entities {
		if listed[i] = e.Entity; e.Reason != "missing" || i > 0 && e.Entity <= listed[i-1] {
			t.Errorf("%+v, behind %s", e, listed[max(0, i-1)])
		}
	}
	// What is listed was not sent, and what was not sent is listed, but for what the dead worker had in its hands.
	if n := ask[int](o, `SELECT count(*)::int FROM mail WHERE event || '/' || invitee = ANY ($1)`, listed); n > 0 {
		t.Errorf("%d of those listed have a mail", n)
	}
	if n := ask[int](o, `
SELECT count(*)::int FROM invitee i WHERE i.event || '/' || i.invitee <> ALL ($1)
AND NOT EXISTS (SELECT FROM mail m WHERE m.event = i.event AND m.invitee = i.invitee)
AND NOT EXISTS (SELECT FROM oncemore.claim c WHERE c.entity = i.event || '/' || i.invitee)`, listed); n > 0 {
		t.Errorf("%d have no mail, and are not listed", n)
	}
	// Page by page it is the same.
	var paged []string
	for after := ""; ; {
		a := call(t, Options{}, "missing", "invite", "--limit", "37", "--no-count", "--after", after, "-o", "json", "--database-url", o.dsn)
		page := decodeJSON[admin.MissingList](t, a.out)
		if page.Missing != nil || len(page.Entities) > 37 {
			t.Fatalf("%+v", a)
		}
		for _, e := range page.Entities {
			paged = append(paged, e.Entity)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if strings.Join(paged, " ") != strings.Join(listed, " ") {
		t.Errorf("page by page %d are listed, at once %d", len(paged), len(listed))
	}
}

// "Call your function on all events": again and again, without knowing which of them need
// it. What is done is skipped; what is new, or was lost, gets done.
func TestCallYourFunctionOnAllEvents(t *testing.T) {
	o := newOutage(t, 4)
	o.starts()
	call := func(todo int) {
		t.Helper()
		a := o.run("rerun invite --yes --watch --interval 1s --reason nightly")
		if want := fmt.Sprintf("is complete: %[1]d of %[1]d done", todo); a.code != 0 || todo > 0 && !strings.Contains(a.err, want) || todo == 0 && !strings.Contains(a.err, "nothing matches") {
			t.Errorf("of %d to do: %+v", todo, a)
		}
		o.everyoneOnce()
	}
	call(200)
	call(0)
	o.event(5, 6)
	call(100)
	// Somebody restores the ledger from yesterday: the provider still knows the keys.
	ask[int](o, `WITH d AS (DELETE FROM oncemore.ledger WHERE entity LIKE '3/%' RETURNING 1) SELECT count(*)::int FROM d`)
	call(50)
	call(0)
	if n := ask[int](o, mails); n != 300 {
		t.Errorf("%d mails for 300 invitees", n)
	}
}
