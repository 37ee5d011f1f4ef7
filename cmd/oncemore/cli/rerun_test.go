package cli

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/worker"
	"github.com/oncemore-jobs/oncemore/worker/throttle"
)

// working runs a worker with the test's jobs until the test ends.
func working(t *testing.T, dsn string) {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	set, err := testSet(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(t.Context(), pool, set, worker.Config{Name: "berta", Log: slog.New(slog.DiscardHandler), Throttles: []throttle.Signal{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		pool.Close()
	})
}

func TestARerunIsPreviewedAskedForWorkedAndFollowedToItsEnd(t *testing.T) {
	t.Parallel()
	dsn := worked(t)
	dry := call(t, Options{}, "rerun", "letter", "--dry-run", "--database-url", dsn)
	t.Logf("%+v", dry)
	working(t, dsn)
	a := person{"y\n"}.call(t, Options{}, "rerun", "letter", "--reason", "the outage of Friday", "--watch", "--interval", "100ms", "--database-url", dsn)
	t.Logf("%d\n%s\n%s", a.code, a.out, a.err)
	for _, args := range []string{"runs ls", "runs show 2", "runs watch 2", "rerun letter --yes", "rerun letter --failed --yes --watch", "runs show 3", "audit"} {
		a := call(t, Options{}, append(strings.Fields(args), "--database-url", dsn)...)
		t.Logf("$ %s\n%d\n%s\n%s", args, a.code, a.out, a.err)
	}
}
