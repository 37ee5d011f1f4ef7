package admin_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/integration_test/pgproxy"
	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
	"github.com/oncemore-jobs/oncemore/worker/admin"
)

// Who looks at nothing must not be told that nothing is bad.
func TestADatabaseThatGoesAwayWhileItIsLookedAtIsAnError(t *testing.T) {
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
	if checks, err := admin.Diagnose(t.Context(), pool, admin.Limits{}, "settings", "connections", "replication"); err != nil || admin.Worst(checks) != admin.OK {
		t.Fatalf("%+v, %v", checks, err)
	}
	proxy.Close()
	checks, err := admin.Diagnose(t.Context(), pool, admin.Limits{})
	if err == nil || !strings.Contains(err.Error(), "check server") || len(checks) != 0 {
		t.Errorf("%+v, %v", checks, err)
	}
}

func TestNothingSeenIsNotTheSameAsNothingBad(t *testing.T) {
	for _, c := range []struct {
		states []admin.Health
		want   admin.Health
	}{
		{nil, admin.Unseen},
		{[]admin.Health{admin.Unseen, admin.Unseen}, admin.Unseen},
		{[]admin.Health{admin.Unseen, admin.OK, admin.Unseen}, admin.OK},
		{[]admin.Health{admin.OK, admin.Warn, admin.OK, admin.Unseen}, admin.Warn},
		{[]admin.Health{admin.Warn, admin.Bad, admin.OK}, admin.Bad},
	} {
		var checks []admin.Check
		for _, s := range c.states {
			checks = append(checks, admin.Check{State: s})
		}
		if got := admin.Worst(checks); got != c.want {
			t.Errorf("the worst of %v is %s, want %s", c.states, got, c.want)
		}
	}
}

// What cannot be looked at in time is not well, and what was not seen whole says nothing.
func TestACheckThatTakesTooLongIsAWarningAndNothingElse(t *testing.T) {
	s := newScene(t)
	config := s.pool.Config()
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // its errors come with the rows
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	s.ok(err)
	defer pool.Close()
	tx, err := s.pool.Begin(t.Context())
	s.ok(err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE oncemore.worker IN ACCESS EXCLUSIVE MODE`)
	s.ok(err)
	if checks := examine(t, pool, "leases", admin.Limits{}); len(checks) != 1 {
		t.Errorf("%+v", checks)
	} else {
		says(t, checks, admin.Warn, "it took longer than 5s")
	}
	s.ok(tx.Rollback(t.Context()))
	healthy(t, examine(t, pool, "leases", admin.Limits{}))
}
