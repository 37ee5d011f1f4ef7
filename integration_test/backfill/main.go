// Command backfill proves, on a live table, what is said of a backfill: each row is done
// once and none is missing, though its workers are killed with -9, it is paused, somebody
// holds an old snapshot for a minute and the standby falls behind; and while the database
// is in trouble, the backfill waits, and its history says why.
//
//	go run ./integration_test/backfill [-n 1000000] [-seed N]
//
// It starts a private PostgreSQL with a streaming standby. The proof, counted from the
// tables, and the history of the runs go to stdout, the story to stderr. The exit status is
// 0 when the proof holds and 1 when it does not, or when there is none.
//
// The seed decides when what happens. It does not decide how the processes' steps
// interleave, so the same seed makes the same kind of story, not the same.
package main

import (
	"context"
	"flag"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/jobs"
)

// An ordeal says how large the table is, and what goes wrong over it.
type ordeal struct {
	rows    int64
	workers int
	kills   int
	pauses  int
	lags    int           // of the standby; 0: there is none
	held    time.Duration // an old snapshot is; 0: none is
	seed    uint64
	rate    float64 // rows a second at most, so that all of it happens before the end; 0: as fast as the database bears it
	stage   stage.Options
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		stage.Main(func(context.Context) error {
			return stage.Work(os.Args[2], config(), func(*pgxpool.Pool) []jobs.Definition { return definitions() })
		})
		return
	}
	o := ordeal{workers: 3, kills: 4, pauses: 2, lags: 2, held: time.Minute,
		stage: stage.Options{Own: true, Params: []string{"shared_buffers=256MB", "max_wal_size=4GB"}}}
	flag.Int64Var(&o.rows, "n", 1_000_000, "rows of the table when it begins")
	flag.Float64Var(&o.rate, "rate", 10_000, "rows a second at most; 0: as fast as the database bears it, and then all may be over before the snapshot is old")
	stage.Ordeal(&o.seed, o.undergo)
}
