package pgqueue

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// One channel for all queues; the payload is the queue's name.
const (
	channel   = "oncemore_message"
	notifySQL = `/* message: notify */ SELECT pg_notify($1, $2)`
	listenSQL = `LISTEN ` + channel
)

// Listen turns the hints of senders into earlier receives, until ctx ends. It has a
// connection of its own, made by the pool and not counted against it, and replaces it
// when it breaks, with growing pauses. Nothing depends on it but latency, so it has no
// errors to return.
func (q *Queue) Listen(ctx context.Context) {
	for pause := 100 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 30*time.Second) {
		start := time.Now()
		q.listen(ctx)
		if time.Since(start) > time.Minute {
			pause = 100 * time.Millisecond
		}
		timer := time.NewTimer(pause/2 + rand.N(pause/2))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// quiet is how long a connection may say nothing before it is tried.
const quiet = time.Minute

func (q *Queue) listen(ctx context.Context) {
	pooled, err := q.connection(ctx)
	if err != nil {
		return
	}
	conn := pooled.Hijack() // it must not count against the pool, nor return to it while it listens
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(ctx)
	}()
	asking, cancel := context.WithTimeout(ctx, claimTimeout)
	_, err = conn.Exec(asking, listenSQL)
	cancel()
	if err != nil {
		return
	}
	q.Hint() // for all that was sent while nobody listened
	for {
		if err := q.wait(ctx, conn); err != nil {
			return
		}
	}
}

// wait waits for one notification, or tells that the connection is dead: a firewall
// that forgot it says nothing.
func (q *Queue) wait(ctx context.Context, conn *pgx.Conn) error {
	waiting, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	n, err := conn.WaitForNotification(waiting)
	switch {
	case err == nil:
		if n.Payload == q.name {
			q.Hint()
		}
		return nil
	case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return conn.Ping(ctx)
	default:
		return err
	}
}
