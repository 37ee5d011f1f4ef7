// Command timeouts shows, side by side, what a job can do when a provider does not answer in
// time: fail up, degrade, retry, or retry behind a circuit breaker.
//
//	go run ./examples/timeouts
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/sony/gobreaker/v2"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
)

const schema = `
CREATE SCHEMA IF NOT EXISTS timeouts;
CREATE TABLE IF NOT EXISTS timeouts.shipping (
    play    text,
    way     text,
    parcel  int,
    cents   int     NOT NULL,
    guessed boolean NOT NULL,
    PRIMARY KEY (play, way, parcel)
)`

const saveSQL = `/* timeouts: save */ INSERT INTO timeouts.shipping (play, way, parcel, cents, guessed) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (play, way, parcel) DO UPDATE SET cents = excluded.cents, guessed = excluded.guessed`

// A parcel is to be given the price of its shipping, which a provider knows. There are four
// ways to ask.
type parcel struct {
	Play string `json:"play"`
	N    int    `json:"n"`
}

func (p parcel) Entity() string { return jobs.Key(p.Play, p.N) }

type (
	FailUp         struct{ parcel }
	Degrade        struct{ parcel }
	Retry          struct{ parcel }
	RetryByBreaker struct{ parcel }
)

func (FailUp) JobType() string         { return "shipping_fail_up" }
func (Degrade) JobType() string        { return "shipping_degrade" }
func (Retry) JobType() string          { return "shipping_retry" }
func (RetryByBreaker) JobType() string { return "shipping_retry_by_breaker" }

// Jobs are those of this program. The price is set, not added to: all of them may be repeated.
func Jobs(db *pgxpool.Pool, ask provider) []jobs.Definition {
	save := func(ctx context.Context, way string, p parcel, cents int, guessed bool) error {
		_, err := db.Exec(ctx, saveSQL, p.Play, way, p.N, cents, guessed)
		return err
	}
	breaker := gobreaker.NewCircuitBreaker[int](gobreaker.Settings{
		MaxRequests: probes, // at once, to see whether the provider is back
		Timeout:     openFor,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 3 },
	})
	return []jobs.Definition{
		// Fail up: no answer is an answer, for somebody above. The parcel is listed as failed,
		// with the error, and nothing happens until somebody asks for it again.
		jobs.Job[FailUp]{Effect: jobs.Repeatable, Do: func(ctx context.Context, a FailUp) error {
			cents, err := ask.price(ctx, a.JobType())
			if err != nil {
				return jobs.Permanent(err)
			}
			return save(ctx, a.JobType(), a.parcel, cents, false)
		}},

		// Degrade: do it in a lesser way, and say so. It is done. The note is in the log, the
		// mark in the application's own table, where whoever reads the price can see it.
		jobs.Job[Degrade]{Effect: jobs.Repeatable, Do: func(ctx context.Context, a Degrade) error {
			cents, err := ask.price(ctx, a.JobType())
			if err != nil {
				cents = flatRate
				jobs.Current(ctx).Note("parcel %d has the flat rate: %v", a.N, err)
			}
			return save(ctx, a.JobType(), a.parcel, cents, err != nil)
		}},

		// Retry: an error is all there is to say. Each attempt counts, and costs the provider a
		// call while it is down.
		jobs.Job[Retry]{Effect: jobs.Repeatable, Do: func(ctx context.Context, a Retry) error {
			cents, err := ask.price(ctx, a.JobType())
			if err != nil {
				return err
			}
			return save(ctx, a.JobType(), a.parcel, cents, false)
		}},

		// Retry by a circuit breaker: while it is open the work is not ready, which is no attempt
		// and costs nobody a call. Each process has its own.
		jobs.Job[RetryByBreaker]{Effect: jobs.Repeatable,
			Ready: func(context.Context, RetryByBreaker) (bool, error) {
				state := breaker.State()
				return state == gobreaker.StateClosed || state == gobreaker.StateHalfOpen && breaker.Counts().Requests < probes, nil
			},
			Do: func(ctx context.Context, a RetryByBreaker) error {
				cents, err := breaker.Execute(func() (int, error) { return ask.price(ctx, a.JobType()) })
				switch {
				case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
					// It opened after we were asked whether we are ready. This attempt counts.
					return jobs.RetryAfter(openFor, jobs.NotApplied(err))
				case err != nil:
					return err
				}
				return save(ctx, a.JobType(), a.parcel, cents, false)
			}},
	}
}

const (
	flatRate = 990
	probes   = 1
	openFor  = time.Second
	patience = 500 * time.Millisecond // for an answer
)

// A provider is asked over HTTP.
type provider struct{ url string }

func (p provider) price(ctx context.Context, way string) (cents int, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/price/"+way, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, fmt.Errorf("ask for the price: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 100))
	if err != nil {
		return 0, fmt.Errorf("ask for the price: %w", err)
	}
	return strconv.Atoi(string(text))
}

func main() {
	stage.Play(func(ctx context.Context) (*proof, error) {
		return tell(ctx, stage.Options{Out: os.Stdout, NoSync: true}, 30)
	})
}
