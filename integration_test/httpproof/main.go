// Command httpproof proves what is said of requests with an Idempotency-Key: one effect for each
// key, and the same answer for whoever sends it again, though requests come twice and at once,
// connections break at random, and server processes are killed with -9.
//
//	go run ./integration_test/httpproof [-n 50000] [-seed N]
//
// The requests are sent by hashicorp/go-retryablehttp, which knows nothing of us. It starts a
// private PostgreSQL. The proof, counted from the tables, goes to stdout, the story to stderr. The
// exit status is 0 when the proof holds and 1 when it does not, or when there is none.
//
// The seed decides what is sent, and when which server is killed. It does not decide how the
// processes' steps interleave, so the same seed makes the same kind of story, not the same.
package main

import (
	"context"
	"flag"
	"os"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// An ordeal says how much is sent, and what goes wrong over it.
type ordeal struct {
	requests int
	clients  int // requests under way at once
	servers  int // processes
	kills    int
	breaks   float64 // the probability that a connection breaks when something is read from it or written to it
	seed     uint64
	stage    stage.Options
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "worker" { // so the stage calls its processes
		stage.Main(func(ctx context.Context) error { return serve(ctx, os.Args[2], os.Args[3]) })
		return
	}
	o := ordeal{clients: 64, servers: 3, kills: 12, breaks: 0.02, stage: stage.Options{Own: true}}
	flag.IntVar(&o.requests, "n", 50_000, "requests to send, duplicates included")
	flag.IntVar(&o.kills, "kills", o.kills, "servers to kill")
	stage.Ordeal(&o.seed, o.undergo)
}
