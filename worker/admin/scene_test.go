package admin_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/ledger"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// A scene is a database whose state is made by calls of the ledger, as workers make them.
type scene struct {
	*testing.T
	pool *pgxpool.Pool
	*ledger.Ledger
}

func newScene(t *testing.T) *scene {
	t.Parallel()
	pool := pgtest.Pool(t)
	return &scene{T: t, pool: pool, Ledger: ledger.New(pool)}
}

func (s *scene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *scene) exec(sql string, args ...any) {
	s.Helper()
	_, err := s.pool.Exec(s.Context(), sql, args...)
	s.ok(err)
}

// kind registers a job type, as a worker of it does.
func (s *scene) kind(name string, e ledger.Effect, source ...string) *ledger.Type {
	s.Helper()
	t := &ledger.Type{Name: name, Effect: e, Timeout: time.Minute}
	s.ok(s.Declare(s.Context(), t, append(source, "")[0]))
	return t
}

// worker begins the life of one, for an hour.
func (s *scene) worker(name string) *ledger.Lease {
	s.Helper()
	lease, err := s.Join(s.Context(), name, time.Hour, slog.New(slog.DiscardHandler))
	s.ok(err)
	s.Cleanup(func() { _ = lease.Leave(context.Background()) })
	return lease
}

// dies ends a worker's life. What it holds is stranded.
func (s *scene) dies(w *ledger.Lease) {
	s.Helper()
	s.ok(w.Leave(s.Context()))
}

// claim has w begin to work on entities.
func (s *scene) claim(t *ledger.Type, w *ledger.Lease, entities ...string) []ledger.Claim {
	s.Helper()
	wants := make([]ledger.Want, len(entities))
	for i, e := range entities {
		wants[i] = ledger.Want{Entity: e, Fingerprint: 1}
	}
	return s.claimWants(t, w, wants)
}

func (s *scene) claimWants(t *ledger.Type, w *ledger.Lease, wants []ledger.Want) []ledger.Claim {
	s.Helper()
	standings, err := s.Look(s.Context(), t, wants)
	s.ok(err)
	cs := make([]ledger.Candidate, len(wants))
	for i := range wants {
		cs[i] = ledger.Candidate{Want: wants[i], Standing: standings[i], Args: `{"secret":"` + wants[i].Entity + `"}`}
	}
	claims, err := s.Claim(s.Context(), t, w.ID, cs)
	s.ok(err)
	for i, c := range claims {
		if !c.Won {
			s.Fatalf("the claim on %s was not won", wants[i].Entity)
		}
	}
	return claims
}

// settle records how an attempt on an entity ended; what was refused is disputed.
func (s *scene) settle(t *ledger.Type, w *ledger.Lease, c ledger.Claim, o ledger.Outcome) {
	s.Helper()
	o.Fence, o.Epoch, o.Attempts = c.Fence, c.Epoch, c.Attempts
	o.Fingerprint = 1
	if o.Evidence == 0 {
		o.Evidence = ledger.Reported
	}
	outs := []*ledger.Outcome{&o}
	s.ok(s.RunBatch(s.Context(), func(b *pgx.Batch) { ledger.Settle(b, t, w.ID, outs) }))
	s.ok(s.RecordDisputes(s.Context(), t, w.ID, outs))
}

// fail has w try entities and end in a state with an error of a class.
func (s *scene) fail(t *ledger.Type, w *ledger.Lease, state ledger.State, class, text string, entities ...string) {
	s.Helper()
	claims := s.claim(t, w, entities...)
	for i, e := range entities {
		s.settle(t, w, claims[i], ledger.Outcome{Want: ledger.Want{Entity: e}, State: state, Class: class, Error: text, Delay: time.Hour})
	}
}

// complete has w do entities.
func (s *scene) complete(t *ledger.Type, w *ledger.Lease, entities ...string) {
	s.Helper()
	claims := s.claim(t, w, entities...)
	for i, e := range entities {
		s.settle(t, w, claims[i], ledger.Outcome{Want: ledger.Want{Entity: e}, State: ledger.Completed})
	}
}

// look reads something in one transaction.
func look[T any](s *scene, f func(tx pgx.Tx) (T, error)) (v T) {
	s.Helper()
	s.ok(admin.Read(s.Context(), s.pool, 10*time.Second, func(tx pgx.Tx) (err error) {
		v, err = f(tx)
		return err
	}))
	return v
}

func (s *scene) opens(list func(context.Context, pgx.Tx, admin.Filter, admin.Page) (*admin.List[admin.Open], error), f admin.Filter, p admin.Page) *admin.List[admin.Open] {
	s.Helper()
	return look(s, func(tx pgx.Tx) (*admin.List[admin.Open], error) { return list(s.Context(), tx, f, p) })
}

func failed(ctx context.Context, tx pgx.Tx, f admin.Filter, p admin.Page) (*admin.List[admin.Open], error) {
	return admin.Failed(ctx, tx, nil, f, p)
}

func doubts(ctx context.Context, tx pgx.Tx, f admin.Filter, p admin.Page) (*admin.List[admin.Open], error) {
	return admin.Doubts(ctx, tx, nil, f, p)
}

func stranded(ctx context.Context, tx pgx.Tx, f admin.Filter, p admin.Page) (*admin.List[admin.Open], error) {
	return admin.Stranded(ctx, tx, nil, f, p)
}

func names(rows []admin.Open) (out []string) {
	for _, r := range rows {
		out = append(out, r.Entity)
	}
	return out
}
