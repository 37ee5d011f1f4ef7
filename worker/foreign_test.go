package worker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A visit has its identity behind a pointer, which a producer in another language may leave out.
type visit struct {
	Place *struct {
		Name string `json:"name"`
	} `json:"place"`
}

func (visit) JobType() string  { return "visit" }
func (v visit) Entity() string { return v.Place.Name }

// The code of the app's arguments panics on what the message brings. Nothing was claimed, so
// nobody would count how many workers died of it.
func TestArgumentsWhoseOwnCodePanicsAreParkedAndTheirNeighboursDone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var worked tally
	set := newSet(t, jobs.Job[visit]{Effect: jobs.Repeatable, Do: func(_ context.Context, v visit) error { worked.add(v.Entity()); return nil }})
	sendMessages(t, pgq(pool), queue.Message{Type: "visit", Items: []queue.Item{
		{Entity: "Bath", Args: json.RawMessage(`{"place":{"name":"Bath"}}`)},
		{Entity: "Wells", Args: json.RawMessage(`{}`)},
		{Entity: "York", Args: json.RawMessage(`{"place":{"name":"York"}}`)},
	}})
	w := begin(t, pool, set, worker.Config{})
	eventuallyRow(t, pool, "it is parked, and no message is left", `
SELECT NOT EXISTS (SELECT FROM oncemore.message)
   AND (SELECT count(*) = 1 FROM oncemore.parked WHERE reason = 'undecodable' AND entity = 'Wells' AND error LIKE '%panic%')`)
	mustStop(t, w)
	if got := fmt.Sprint(worked.n); got != "map[Bath:1 York:1]" {
		t.Errorf("worked: %s", got)
	}
}

// A body fails, and the job's own Backoff panics when it is asked about it.
func TestABackoffThatPanicsIsAsTheDefaultOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var tries tally
	j := jobs.Job[letter]{DoTx: func(_ context.Context, _ pgx.Tx, l letter) error {
		if tries.add(l.Entity()) == 1 {
			return fmt.Errorf("no stamps")
		}
		return nil
	}}
	j.Backoff = func(int) time.Duration { panic("no table for this attempt") }
	sendMessages(t, pgq(pool), pack(t, 1, 1))
	w := begin(t, pool, newSet(t, j), worker.Config{})
	eventually(t, "it is done at the second attempt", func() bool { return standing(t, pool, "1") == "done t 2" })
	mustStop(t, w)
}

// A source in Go is the app's code as much as a body is.
func TestASourceThatPanicsOrEndsItsGoroutineFailsItsVisit(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(){"panic": func() { panic("the feed has a hole") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var asked, worked tally
			campaign := jobs.Job[errand]{FanOut: func(errand) jobs.Source {
				return jobs.Seq(func(_ context.Context, after string) iter.Seq2[letter, error] {
					return func(yield func(letter, error) bool) {
						if asked.add("source") == 1 {
							end()
						}
						if after == "" {
							yield(letter{N: 1}, nil)
						}
					}
				})
			}}
			campaign.Backoff = quickly
			set := newSet(t, campaign, jobs.Job[letter]{Effect: jobs.Repeatable, Do: func(_ context.Context, l letter) error { worked.add(l.Entity()); return nil }})
			enqueue(t, pgq(pool), errand{"all"})
			w := begin(t, pool, set, worker.Config{})
			eventuallyRow(t, pool, "the run is over, and the failure of its visit is told", `
SELECT EXISTS (SELECT FROM oncemore.run WHERE ended_at IS NOT NULL AND complete) AND NOT EXISTS (SELECT FROM oncemore.message)
   AND (SELECT count(*) = 1 FROM oncemore.attempt WHERE entity = 'all' AND outcome = 'retrying')`)
			mustStop(t, w)
			if worked.of("1") != 1 {
				t.Errorf("worked: %v", worked.n)
			}
		})
	}
}
