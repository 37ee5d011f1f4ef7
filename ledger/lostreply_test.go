package ledger_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// A deafConn loses the answer to the next thing that is sent, and then the connection:
// the server has done it, and nobody is told.
type deafConn struct {
	net.Conn
	armed *atomic.Bool
}

var errDeaf = errors.New("the answer is lost")

func (c deafConn) Read(p []byte) (int, error) {
	if !c.armed.Load() {
		return c.Conn.Read(p)
	}
	var all []byte
	buf := make([]byte, 1<<16)
	// What has no such end, an error's answer for one, is lost as well, and not waited for.
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		n, err := c.Conn.Read(buf)
		all = append(all, buf[:n]...)
		// Ready for the next query, and no longer in a transaction: it is committed.
		if err != nil || bytes.HasSuffix(all, []byte("Z\x00\x00\x00\x05I")) {
			c.armed.Store(false)
			c.Close()
			return 0, errDeaf
		}
	}
}

// deaf is a world whose ledger loses an answer after each call of lose. Everything else
// that a test does goes another way.
func deaf(t *testing.T, effect ledger.Effect) (w, lossy *world, lose func()) {
	w = newWorld(t, effect)
	armed := &atomic.Bool{}
	cfg := w.pool.Config()
	cfg.MaxConns = 1
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return deafConn{c, armed}, err
	}
	cfg.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // its answer is not the one to lose
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	w.ok(err)
	t.Cleanup(pool.Close)
	lossy = worldOn(t, pool, effect)
	return w, lossy, func() { armed.Store(true) }
}

// loseSettle settles so that the answer is lost. The same statements have run on the
// connection before, so that they are prepared, and the next answer is that to the commit.
func (w *world) loseSettle(lose func(), worker int64, like, o *ledger.Outcome) {
	w.Helper()
	w.settle(worker, like)
	lose()
	if err := w.trySettle(w.Context(), worker, o); err == nil {
		w.Fatal("the answer was not lost")
	}
	o.Again = true
}

func TestLostReplyToACompletion(t *testing.T) {
	w, lossy, lose := deaf(t, ledger.Once)
	a := w.worker()
	o := completed(plain(e), w.claim(a, plain(e)))
	lossy.loseSettle(lose, a, completed(plain("other"), w.claim(a, plain("other"))), o)
	rows := w.rows()
	w.done(0)
	lossy.settle(a, o)
	w.want("refused", o.Refused, false)
	w.want("disputed", w.attempts("disputed"), 0)
	w.want("rows changed", w.rows() != rows, false)
}

// A dead worker cannot know whether the fact is its own, or that of who took its claim
// over. It says so.
func TestLostReplyToACompletionOfADeadWorker(t *testing.T) {
	w, lossy, lose := deaf(t, ledger.Once)
	a := w.worker()
	o := completed(plain(e), w.claim(a, plain(e)))
	lossy.loseSettle(lose, a, completed(plain("other"), w.claim(a, plain("other"))), o)
	w.die(a)
	lossy.settle(a, o)
	w.want("refused", o.Refused, true)
	w.want("disputed", w.attempts("disputed"), 1)
	w.done(0)
}

func TestLostReplyToAClaimlessCompletion(t *testing.T) {
	w, lossy, lose := deaf(t, ledger.Repeatable)
	a := w.worker()
	o := completed(plain(e), claimless)
	lossy.loseSettle(lose, a, completed(plain("other"), claimless), o)
	rows := w.rows()
	lossy.settle(a, o)
	w.want("refused", o.Refused, false)
	w.want("rows changed", w.rows() != rows, false)
	w.done(0)
}

func TestLostReplyToAClaim(t *testing.T) {
	w, lossy, lose := deaf(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	seen := w.look(plain(e))
	lossy.claim(a, plain("other"))
	lose()
	if _, err := lossy.Claim(t.Context(), w.kind, a, []ledger.Candidate{{Want: plain(e), Standing: seen}}); err == nil {
		t.Fatal("the answer was not lost")
	}
	w.want("while a lives", w.reason(e), ledger.Ongoing)
	w.die(a)
	w.settle(b, completed(plain(e), w.claim(b, plain(e))))
	w.done(0)
}

func TestLostReplyToAFailure(t *testing.T) {
	w, lossy, lose := deaf(t, ledger.Repeatable)
	a, b := w.worker(), w.worker()
	o := failed(plain(e), w.claim(a, plain(e)), ledger.ToRetry)
	lossy.loseSettle(lose, a, failed(plain("other"), w.claim(a, plain("other")), ledger.ToRetry), o)
	c := w.claim(b, plain(e))
	rows := w.rows()
	lossy.settle(a, o)
	w.want("refused", o.Refused, true)
	w.want("rows changed", w.rows() != rows, false)
	w.settle(b, completed(plain(e), c))
	w.done(0)
}

// Losing answers is what this file rests on.
func TestADeafConnectionLosesTheAnswerAndNotTheCommit(t *testing.T) {
	pool := pgtest.Pool(t)
	w := worldOn(t, pool, ledger.Repeatable)
	w.want("facts before", w.facts(), 0)
	w2, lossy, lose := deaf(t, ledger.Repeatable)
	lossy.loseSettle(lose, w2.worker(), completed(plain("other"), claimless), completed(plain(e), claimless))
	w2.want("facts after", w2.facts(), 2)
}
