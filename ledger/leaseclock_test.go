package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// The clocks of a lease, in bubbles: the server is a few lines that know the table of
// workers, speak Postgres's protocol over pipes, and can be slow, silent or away. What the
// statements do is tried elsewhere, on a real server; here hours of trouble pass in no time.

// A leaseServer has one worker, and says when it was asked for what.
type leaseServer struct {
	mu       sync.Mutex
	away     bool          // connections are refused
	delay    time.Duration // before each answer
	dead     bool          // somebody has declared the worker dead
	expires  time.Time
	renewals []time.Time
	declared []time.Time // when it looked for the dead
	conns    []net.Conn
	over     chan struct{} // the test is
}

var errAway = errors.New("nobody is there")

// cut ends all connections.
func (s *leaseServer) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *leaseServer) set(away bool, delay time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away, s.delay = away, delay
}

// asked is when it renewed the lease, and when it was asked for the dead.
func (s *leaseServer) asked() (renewals, declared []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.renewals), slices.Clone(s.declared)
}

func (s *leaseServer) dial(context.Context, string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, errAway
	}
	ours, theirs := net.Pipe()
	s.conns = append(s.conns, ours)
	go s.serve(ours)
	return theirs, nil
}

// serve answers one connection until it ends.
func (s *leaseServer) serve(c net.Conn) {
	defer c.Close()
	b := pgproto3.NewBackend(c, c)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	sql := ""
	for b.Flush() == nil {
		m, err := b.Receive()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *pgproto3.Parse:
			sql = m.Query
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Bind:
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Describe:
			if strings.Contains(sql, "RETURNING") {
				b.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("id"), DataTypeOID: 20, DataTypeSize: 8}}})
			} else {
				b.Send(&pgproto3.NoData{})
			}
		case *pgproto3.Execute:
			s.execute(b, sql)
		case *pgproto3.Sync:
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return
		}
	}
}

// execute does what the statement says, in the middle of the time that it takes.
func (s *leaseServer) execute(b *pgproto3.Backend, sql string) {
	s.mu.Lock()
	delay := s.delay
	s.mu.Unlock()
	s.sleep(delay / 2)
	s.mu.Lock()
	tag, now := "UPDATE 0", time.Now()
	switch {
	case strings.Contains(sql, "INSERT"):
		s.expires = now.Add(lease)
		b.Send(&pgproto3.DataRow{Values: [][]byte{[]byte("1")}})
		tag = "INSERT 0 1"
	case strings.Contains(sql, "lapsed"):
		if s.expires.Sub(now) > lease*3/5 { // else it declares nothing
			s.declared = append(s.declared, now)
		}
	case strings.Contains(sql, "stopped"):
		s.dead = true
	case !s.dead:
		s.expires = now.Add(lease)
		s.renewals = append(s.renewals, now)
		tag = "UPDATE 1"
	}
	s.mu.Unlock()
	s.sleep(delay - delay/2)
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte(tag)})
}

func (s *leaseServer) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.over:
	}
}

const lease = 10 * time.Second

// inBubble joins a worker at a server of its own.
func inBubble(t *testing.T, test func(t *testing.T, s *leaseServer, l *ledger.Lease)) {
	synctest.Test(t, func(t *testing.T) {
		s := &leaseServer{over: make(chan struct{})}
		cfg, err := pgxpool.ParseConfig("postgres://nobody@127.0.0.1/nothing?sslmode=disable")
		if err != nil {
			t.Fatal(err)
		}
		cfg.ConnConfig.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
		cfg.ConnConfig.DialFunc = s.dial
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		l, err := ledger.New(pool).Join(t.Context(), "test", lease, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		test(t, s, l)
		s.set(false, 0)
		if err := l.Leave(context.WithoutCancel(t.Context())); err != nil && !errors.Is(err, io.EOF) {
			t.Logf("leaving: %v", err)
		}
		pool.Close()
		close(s.over)
		s.cut()
	})
}

func TestALeaseIsRenewedFiveTimesInItsLengthForHours(t *testing.T) {
	inBubble(t, func(t *testing.T, s *leaseServer, l *ledger.Lease) {
		joined := time.Now()
		time.Sleep(6 * time.Hour)
		renewals, declared := s.asked()
		if n := len(renewals); n < 10799 || n > 10800 || !l.Alive() {
			t.Errorf("%d renewals in six hours, alive: %t", n, l.Alive())
		}
		// Nobody is declared dead by who has not itself renewed for one length.
		if after := declared[0].Sub(joined); after <= lease || after > lease+lease/5 {
			t.Errorf("it looked for the dead after %v", after)
		}
	})
}

// The server falls silent, or away. A worker may act for four fifths of a lease after the
// last renewal that succeeded, to the nanosecond, and not longer.
func TestALeaseEndsFourFifthsAfterItsLastRenewal(t *testing.T) {
	for name, trouble := range map[string]func(s *leaseServer){
		"the server is silent":        func(s *leaseServer) { s.set(false, time.Hour) },
		"the server is away":          func(s *leaseServer) { s.set(true, 0); s.cut() },
		"nothing answers at all":      func(s *leaseServer) { s.set(true, 0) },
		"only connections are silent": func(s *leaseServer) { s.set(false, time.Hour); s.cut() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, s *leaseServer, l *ledger.Lease) {
				time.Sleep(time.Minute + time.Second)
				renewals, _ := s.asked()
				last := renewals[len(renewals)-1]
				trouble(s)
				if name == "nothing answers at all" {
					s.set(true, time.Hour)
				}
				<-l.Context().Done()
				if after := time.Since(last); after != lease*4/5 {
					t.Errorf("it ended %v after the last renewal", after)
				}
				if l.Alive() || !errors.Is(context.Cause(l.Context()), ledger.ErrLeaseLost) {
					t.Errorf("alive: %t, because of %v", l.Alive(), context.Cause(l.Context()))
				}
			})
		})
	}
}

func TestAWorkerThatWasDeclaredDeadLearnsItAtItsNextRenewal(t *testing.T) {
	inBubble(t, func(t *testing.T, s *leaseServer, l *ledger.Lease) {
		time.Sleep(time.Minute + time.Second)
		s.mu.Lock()
		s.dead = true
		s.mu.Unlock()
		at := time.Now()
		<-l.Context().Done()
		if after := time.Since(at); after > lease/5 {
			t.Errorf("it learned that after %v", after)
		}
	})
}

// Hours of trouble at random. Whenever the worker believes that it may act, its row has not
// expired: nobody can have declared it dead. And whenever it looks for the dead, it has
// itself renewed for one length without a gap.
func TestI9WhateverTheServerDoesAWorkerStopsBeforeItsLeaseExpires(t *testing.T) {
	s0 := seed(t)
	lives, looks, most := 0, 0, 30
	for n := range most {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			random := rand.New(rand.NewPCG(s0, uint64(n)))
			inBubble(t, func(t *testing.T, s *leaseServer, l *ledger.Lease) {
				joined := time.Now()
				for time.Since(joined) < 15*time.Minute && l.Context().Err() == nil {
					lasts := time.Duration(random.Int64N(int64(lease / 3)))
					switch n := random.IntN(100); {
					case n < 10:
						s.set(true, 0)
					case n < 20:
						s.cut()
					case n < 45:
						s.set(false, time.Duration(random.Int64N(int64(lease/5))))
					case n < 47:
						s.set(false, time.Duration(random.Int64N(int64(2*lease))))
						lasts *= 4
					default:
						s.set(false, 0)
						lasts *= 8
					}
					for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
						s.mu.Lock()
						left := time.Until(s.expires)
						s.mu.Unlock()
						if left < lease/5 && (l.Alive() || l.Context().Err() == nil) {
							t.Fatalf("after %v it would act, and its lease expires in %v", time.Since(joined), left)
						}
					}
				}
				if l.Context().Err() == nil {
					lives++
				}
				renewals, declared := s.asked()
				looks += len(declared)
				for _, at := range declared {
					gap, before := time.Duration(0), joined
					for _, r := range append(renewals, at) {
						if r.After(at) {
							break
						}
						if r.After(at.Add(-lease)) {
							gap = max(gap, r.Sub(before))
						}
						before = r
					}
					if gap > lease || at.Sub(joined) <= lease {
						t.Errorf("it looked for the dead %v after it had joined, with a gap of %v behind it", at.Sub(joined), gap)
					}
				}
			})
		})
	}
	if t.Logf("%d of %d lived for a quarter of an hour; %d looks for the dead", lives, most, looks); lives == most || looks == 0 {
		t.Error("the trouble is too little, or too much")
	}
}
