package worker_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// probed asks a handler as a kubelet would.
func probed(h http.Handler) (code int, body string) {
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "/", nil))
	return answer.Code, answer.Body.String()
}

func TestADatabaseThatIsAwayMakesAWorkerNotReadyAndNotDead(t *testing.T) {
	t.Parallel()
	proxy, err := pgproxy.Start(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	pool, err := pgxpool.New(t.Context(), proxy.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(context.Context, letter) error { return nil }})
	w := begin(t, pool, set, worker.Config{Lease: 2 * time.Second})
	defer func() { _ = w.stop() }() // it may be just losing its lease
	live, ready := worker.LiveHandler(w.Worker), worker.ReadyHandler(w.Worker)
	isReady := func() bool {
		if code, why := probed(live); code != http.StatusOK {
			t.Errorf("a restart would not bring the database back, and the liveness probe asks for one: %s", why)
		}
		code, _ := probed(ready)
		return code == http.StatusOK
	}
	eventually(t, "it is ready", isReady)

	proxy.Pause()
	proxy.CutAll()
	eventually(t, "it is not ready", func() bool { return !isReady() })
	eventually(t, "it waits for the database", func() bool {
		_, why := probed(ready)
		return !isReady() && strings.Contains(why, "waits for the database")
	})
	if _, why := probed(ready); strings.Contains(why, "127.0.0.1") || strings.Contains(why, "postgres") {
		t.Errorf("the probe tells strangers where the database is: %s", why)
	}

	proxy.Resume()
	eventually(t, "it is ready again, by itself", isReady)
	enqueue(t, pgq(pool), letter{1})
	eventuallyRow(t, pool, "it works", `SELECT count(*) = 1 FROM oncemore.ledger`)
}

func TestOnlyAWorkerWhoseSlotsAreAllStuckIsNotLive(t *testing.T) {
	t.Parallel()
	for slots, wants := range map[int]int{1: http.StatusServiceUnavailable, 2: http.StatusOK} {
		pool := pgtest.Pool(t)
		deaf := make(chan struct{})
		set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { <-deaf; return nil },
			Policy: jobs.Policy{Timeout: 50 * time.Millisecond}})
		w := beginImpatient(t, pool, set, worker.Config{Slots: slots})
		enqueue(t, pgq(pool), letter{1})
		eventually(t, "something is wrong, and named", func() bool {
			err := w.Health()
			return err != nil && strings.Contains(err.Error(), "ignore")
		})
		live := worker.LiveHandler(w.Worker)
		eventually(t, "the probe answers", func() bool { code, _ := probed(live); return code == wants })
		if code, why := probed(worker.ReadyHandler(w.Worker)); code != http.StatusOK {
			t.Errorf("%d slots: not ready: %s", slots, why)
		}
		close(deaf)
		eventually(t, "it has recovered", func() bool { code, _ := probed(live); return code == http.StatusOK && w.Health() == nil })
		mustStop(t, w)
	}
}

func TestProbesAreReadOnlyAndSpeakForAllWorkersOfAProcess(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := newSet(t, jobs.Job[letter]{Effect: jobs.Once, Do: func(context.Context, letter) error { return nil }})
	runs, idle := begin(t, pool, set, worker.Config{}), newWorker(t, pool, set, worker.Config{})
	eventually(t, "one is ready", func() bool { return runs.Ready() == nil })
	if code, why := probed(worker.ReadyHandler(runs.Worker, idle)); code != http.StatusServiceUnavailable || !strings.Contains(why, "not running") {
		t.Errorf("%d %s: one of two has not begun", code, why)
	}
	if code, _ := probed(worker.LiveHandler(runs.Worker, idle)); code != http.StatusOK {
		t.Error("one that has not begun is no reason for a restart")
	}
	answer := httptest.NewRecorder()
	worker.LiveHandler(runs.Worker).ServeHTTP(answer, httptest.NewRequest(http.MethodPost, "/", nil))
	if answer.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", answer.Code)
	}
}

// What Kubernetes does to a pod: SIGTERM, then SIGKILL when terminationGracePeriodSeconds
// are over. The worker processes of these tests have a grace of two seconds.
func TestAPodThatIsTerminatedLosesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body, killAfter string // how long a body takes; "" for SIGTERM alone
		want            string
	}{
		"a body that ends within the grace is done":                               {body: "500ms", want: "done r 1"},
		"a body past the grace has its context ended, and its class decides":      {body: "1h", want: "in_doubt 1"},
		"a body that is killed before the grace is over is found, and listed too": {body: "1h", killAfter: "200ms", want: "in_doubt 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			mustExec(t, pool, inside)
			enqueue(t, pgq(pool), letter{1})
			pod := start(t, "Pod", pool.Config().ConnString(), "BODY="+c.body)
			eventuallyRow(t, pool, "the body runs", `SELECT count(*) = 1 FROM inside`)
			if err := pod.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if c.killAfter != "" {
				d, _ := time.ParseDuration(c.killAfter)
				time.Sleep(d) // the orchestrator's own clock
				pod.kill()
			}
			within(t, "the process has ended", pod.died)
			if c.killAfter == "" && standing(t, pool, "1") != c.want {
				t.Errorf("%s when the process has ended, want %s", standing(t, pool, "1"), c.want)
			}
			// The next pod finds whatever the first one left.
			next := start(t, "Pod", pool.Config().ConnString(), "BODY=1ms")
			eventually(t, "it is "+c.want, func() bool { return standing(t, pool, "1") == c.want })
			eventuallyRow(t, pool, "and no message is left", quiet)
			next.kill()
			if n := count(t, pool, `SELECT count(*) FROM inside`); n != 1 {
				t.Errorf("the effect that must not be repeated was begun %d times", n)
			}
		})
	}
}
