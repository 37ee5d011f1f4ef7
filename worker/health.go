package worker

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Three questions, because whoever asks does three different things with the answer.
// Live: would a restart help? Ready: does it take work now? Health: is anything wrong?
// A database that is away makes a worker not ready. It says nothing against the process,
// which goes on by itself when the database is back: restarting a whole fleet for it
// would only add a stampede of connections to the outage.

// Live is nil unless nothing but a restart of the process helps: every slot has a body
// that ignores the end of its context, or the worker's own loops stand still.
func (w *Worker) Live() error {
	l := w.current.Load()
	if l == nil {
		return nil // not begun, stopped, or waiting for the database
	}
	if l.clogged.Load() {
		return fmt.Errorf("worker %d: %w", l.lease.ID, errClogged)
	}
	if still := time.Since(time.Unix(0, l.watched.Load())); still > 30*watchEvery && !l.stopping.Load() {
		return fmt.Errorf("worker %d: its loops have stood still for %s", l.lease.ID, still.Round(time.Second))
	}
	return nil
}

// Ready is nil while the worker takes work: it runs, its lease is alive, and it is not
// stopping.
func (w *Worker) Ready() error {
	l := w.current.Load()
	switch {
	case l == nil && w.away.Load():
		return errors.New("the worker waits for the database, or for a lease there")
	case l == nil:
		return errors.New("the worker is not running, or has no lease yet")
	case l.stopping.Load():
		return fmt.Errorf("worker %d: %w", l.lease.ID, ErrStopping)
	case !l.lease.Alive():
		return fmt.Errorf("worker %d: %w", l.lease.ID, ledger.ErrLeaseLost)
	}
	return nil
}

// Health is nil while the worker does what it should: it is live and ready, and no body
// ignores the end of its context.
func (w *Worker) Health() error {
	var deaf error
	if l := w.current.Load(); l != nil {
		if stuck := l.slots.stuck(w.stuckGrace); len(stuck) > 0 {
			deaf = fmt.Errorf("worker %d: %d bodies ignore the end of their context, first %s", l.lease.ID, len(stuck), stuck[0])
		}
	}
	return errors.Join(w.Ready(), w.Live(), deaf)
}

// LiveHandler answers 200 while all the workers are live, else 503, for a liveness probe.
func LiveHandler(ws ...*Worker) http.Handler { return probe((*Worker).Live, ws) }

// ReadyHandler answers 200 while all the workers are ready, else 503, for a readiness
// probe, or for whoever waits for a rollout.
func ReadyHandler(ws ...*Worker) http.Handler { return probe((*Worker).Ready, ws) }

// probe says "ok", or what is wrong in a line for each worker. The reasons name no host,
// user or payload: probes are often open to anyone.
func probe(ask func(*Worker) error, ws []*Worker) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			rw.Header().Set("Allow", "GET, HEAD")
			http.Error(rw, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Header().Set("Cache-Control", "no-store")
		var wrong []error
		for _, w := range ws {
			wrong = append(wrong, ask(w))
		}
		if err := errors.Join(wrong...); err != nil {
			rw.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(rw, err.Error()+"\n")
			return
		}
		_, _ = io.WriteString(rw, "ok\n")
	})
}
