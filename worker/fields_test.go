package worker_test

import (
	"context"
	"errors"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/worker"
)

// The same work, as two programs have it.
type (
	ticket struct {
		N     int    `json:"n"`
		Guest string `json:"guest"`
		Day   day    `json:"day"`
	}
	day struct {
		Month int `json:"month"`
		At    int `json:"at"`
	}
	ticketMoved struct {
		Date dayMoved `json:"day"`
		N    int      `json:"n"`
		Name string   `json:"guest"`
	}
	dayMoved struct {
		At    int `json:"at"`
		Month int `json:"month"`
	}
)

func (ticket) JobType() string       { return "ticket" }
func (t ticket) Entity() string      { return jobs.Key(t.N) }
func (ticketMoved) JobType() string  { return "ticket" }
func (t ticketMoved) Entity() string { return jobs.Key(t.N) }

// The first program has one ticket done, and another is tried again and again. The next one has the
// fields in another order, and that is all: it tries again what was open, and what is done is done,
// also for a producer that writes in the new order.
func TestADeployThatMovesFieldsGoesOnWithWhatIsOpenAndDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	patient := jobs.Policy{Attempts: 100_000, Backoff: quickly} // no attempt is the last one
	before := newSet(t, jobs.Job[ticket]{Effect: jobs.Repeatable, Policy: patient, Do: func(_ context.Context, k ticket) error {
		if k.N == 1 {
			return errors.New("not yet")
		}
		return nil
	}})
	first := begin(t, pool, before, worker.Config{})
	enqueue(t, pgq(pool), ticket{1, "Ann", day{11, 2}}, ticket{2, "Bob", day{11, 3}})
	eventually(t, "one is to be tried again", func() bool {
		return standing(t, pool, "2") == "done r 1" && ask(t, pool, `SELECT count(*) = 1 FROM oncemore.claim WHERE trouble = 'retrying' AND entity = '1'`)
	})
	mustStop(t, first)
	var again tally
	behind := newSet(t, jobs.Job[ticketMoved]{Effect: jobs.Repeatable, Policy: patient, Do: func(_ context.Context, k ticketMoved) error {
		again.add(k.Entity())
		if k != (ticketMoved{dayMoved{2, 11}, 1, "Ann"}) {
			t.Errorf("worked with %+v", k)
		}
		return nil
	}})
	next := begin(t, pool, behind, worker.Config{})
	enqueue(t, pgq(pool), ticketMoved{dayMoved{2, 11}, 1, "Ann"}, ticketMoved{dayMoved{3, 11}, 2, "Bob"})
	eventuallyRow(t, pool, "nothing is on its way", quiet)
	mustStop(t, next)
	if n := count(t, pool, `SELECT count(*) FROM oncemore.parked`); n != 0 {
		t.Errorf("%d items are parked", n)
	}
	if !ask(t, pool, `SELECT (SELECT count(*) = 2 FROM oncemore.ledger) AND NOT EXISTS (SELECT FROM oncemore.claim)`) || again.of("1") != 1 || again.of("2") != 0 {
		t.Errorf("1 is %s, 2 is %s; the next program worked %v", standing(t, pool, "1"), standing(t, pool, "2"), again.n)
	}
}
