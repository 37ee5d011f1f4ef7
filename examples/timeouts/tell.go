package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
	"github.com/oncemore-jobs/oncemore/queue/pgqueue"
	"github.com/oncemore-jobs/oncemore/worker"
)

// A service is the provider's side. While it is down it takes calls, and does not answer.
type service struct {
	mu    sync.Mutex
	down  bool
	calls map[string]int64 // by way, while it was down
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down := s.down
	if down {
		s.calls[strings.TrimPrefix(r.URL.Path, "/price/")]++
	}
	s.mu.Unlock()
	if down {
		<-r.Context().Done() // the client has hung up
		return
	}
	fmt.Fprint(w, 450)
}

func (s *service) recover() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
}

// A line is what came of one way, counted from the tables, but for the provider's own count.
type line struct {
	Way      string
	Calls    int64 // while the provider was down
	Spared   int64 // parcels that had not been charged an attempt when it came back
	Attempts int64 // in the end
	Done     int64
	Guessed  int64 // of those, with the flat rate
	Failed   int64
}

// A proof has a line for each way, in the order of Jobs.
type proof struct {
	Parcels int64
	Lines   []*line
	Notes   int // in the log, of parcels with the flat rate
}

// The play's own facts and claims are those of its folder.
const (
	attemptsSQL = `SELECT coalesce(sum(attempts), 0) FROM (SELECT job_type, entity, attempts FROM oncemore.ledger UNION ALL SELECT job_type, entity, attempts FROM oncemore.claim) a` + oursSQL
	openSQL     = `SELECT count(*) FROM oncemore.claim` + oursSQL
	doneSQL     = `SELECT count(*) FROM oncemore.ledger` + oursSQL
	oursSQL     = ` WHERE job_type = (SELECT id FROM oncemore.job_type WHERE name = $1) AND starts_with(entity, $2)`

	triedSQL = `SELECT count(*) = $3 AND min(attempts) >= 2 FROM oncemore.claim` + oursSQL
	quietSQL = `SELECT count(*) = 0 FROM oncemore.message WHERE type LIKE 'shipping\_%'`
)

func tell(ctx context.Context, o stage.Options, parcels int) (_ *proof, err error) {
	s, err := stage.Open(ctx, "timeouts", o)
	defer func() { s.Close(err != nil && ctx.Err() == nil) }()
	if err != nil {
		return nil, err
	}
	if _, err = s.DB.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("make the tables: %w", err)
	}
	there := &service{down: true, calls: map[string]int64{}}
	url, stop, err := stage.Serve(there)
	if err != nil {
		return nil, err
	}
	defer stop()
	var log bytes.Buffer
	stopWorker, err := startWorker(ctx, s, provider{url}, &log)
	if err != nil {
		return nil, err
	}
	defer stopWorker()

	s.Say("The provider takes calls and does not answer. %d parcels are to have a price, in each of four ways.", parcels)
	pr := &proof{Parcels: int64(parcels)}
	for _, a := range []jobs.Args{FailUp{}, Degrade{}, Retry{}, RetryByBreaker{}} {
		pr.Lines = append(pr.Lines, &line{Way: a.JobType()})
	}
	for n := range parcels {
		p := parcel{s.Dir, n + 1}
		err = errors.Join(jobs.Enqueue(ctx, s.Queue, FailUp{p}), jobs.Enqueue(ctx, s.Queue, Degrade{p}),
			jobs.Enqueue(ctx, s.Queue, Retry{p}), jobs.Enqueue(ctx, s.Queue, RetryByBreaker{p}))
		if err != nil {
			return nil, err
		}
	}
	if err = s.Await(ctx, "what is tried again was tried twice", triedSQL, Retry{}.JobType(), jobs.Key(s.Dir), parcels); err != nil {
		return nil, err
	}
	there.recover()
	for _, l := range pr.Lines {
		l.Calls = there.calls[l.Way]
		var touched int64
		if err = s.Count(ctx, []stage.Number{stage.Into(&touched, openSQL, l.Way, jobs.Key(s.Dir)), stage.Into(&l.Done, doneSQL, l.Way, jobs.Key(s.Dir))}, nil); err != nil {
			return nil, err
		}
		l.Spared = int64(parcels) - touched - l.Done
	}
	s.Say("It answers again. Meanwhile retries have called it %d times, and those behind the breaker %d times.", pr.Lines[2].Calls, pr.Lines[3].Calls)
	if err = s.Await(ctx, "nothing waits any more", quietSQL); err != nil {
		return nil, err
	}
	stopWorker()
	pr.Notes = strings.Count(log.String(), "has the flat rate")
	for _, l := range pr.Lines {
		err = s.Count(ctx, []stage.Number{
			stage.Into(&l.Attempts, attemptsSQL, l.Way, jobs.Key(s.Dir)),
			stage.Into(&l.Done, doneSQL, l.Way, jobs.Key(s.Dir)),
			stage.Into(&l.Failed, openSQL+` AND trouble = 'failed'`, l.Way, jobs.Key(s.Dir)),
			stage.Into(&l.Guessed, `SELECT count(*) FROM timeouts.shipping WHERE way = $1 AND play = $2 AND guessed AND cents = 990`, l.Way, s.Dir),
		}, nil)
		if err != nil {
			return nil, err
		}
	}
	return pr, nil
}

// startWorker works in this process, until stop.
func startWorker(ctx context.Context, s *stage.Stage, ask provider, log io.Writer) (stop func(), err error) {
	set, err := jobs.NewSet(Jobs(s.DB, ask)...)
	if err != nil {
		return nil, err
	}
	w, err := worker.New(ctx, s.DB, set, worker.Config{Slots: 8, Grace: time.Second, Log: slog.New(slog.NewTextHandler(log, nil)),
		Queues: map[string]queue.Queue{"": pgqueue.New(s.DB, "")}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = w.Run(ctx) // that it could not stop cleanly is nothing to this play
	}()
	return func() {
		cancel()
		<-ended
	}, nil
}

func (p *proof) Write(w io.Writer) {
	fmt.Fprintf(w, "\n  %d parcels each               calls while down   not charged then   attempts in all   done   flat rate   failed\n", p.Parcels)
	for _, l := range p.Lines {
		fmt.Fprintf(w, "  %-28s %16d %18d %17d %6d %11d %8d\n", l.Way, l.Calls, l.Spared, l.Attempts, l.Done, l.Guessed, l.Failed)
	}
	fmt.Fprintf(w, "\nproof: %d failed, listed; %d done in a lesser way, noted; %d retried for %d attempts; %d behind a breaker for %d\n",
		p.Lines[0].Failed, p.Lines[1].Guessed, p.Lines[2].Done, p.Lines[2].Attempts, p.Lines[3].Done, p.Lines[3].Attempts)
}

func (p *proof) Check() error {
	var c stage.Check
	n, up, lesser, again, breaker := p.Parcels, p.Lines[0], p.Lines[1], p.Lines[2], p.Lines[3]
	// Calls are counted where they arrive: one that took all its time to get there is an attempt and no call.
	c.Is(up.Failed == n && up.Done == 0 && up.Calls > 0 && up.Calls <= n && up.Attempts == n, "fail up: %+v", *up)
	c.Is(lesser.Done == n && lesser.Guessed == n && lesser.Failed == 0 && lesser.Calls <= n && lesser.Attempts == n, "degrade: %+v", *lesser)
	c.Is(p.Notes == int(n), "%d of %d lesser successes were noted", p.Notes, n)
	c.Is(again.Done == n && again.Guessed == 0 && again.Failed == 0 && again.Calls > n && again.Attempts >= again.Calls+n, "retry: %+v", *again)
	c.Is(breaker.Done == n && breaker.Guessed == 0 && breaker.Failed == 0, "by breaker: %+v", *breaker)
	// Calls are those that tripped it, and then one now and then, to see whether it may close.
	c.Is(breaker.Calls > 0 && 2*breaker.Calls < again.Calls, "by breaker %d calls were made, and %d without", breaker.Calls, again.Calls)
	c.Is(breaker.Spared > 0 && breaker.Attempts < again.Attempts, "by breaker %d attempts were charged, and %d parcels none; without, %d attempts", breaker.Attempts, breaker.Spared, again.Attempts)
	return c.Err()
}
