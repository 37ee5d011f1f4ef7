// Command sqsproof proves, over SQS, what is said of any queue: each entity has one fact and
// none is lost, though some messages are sent twice, SQS hands some out twice and refuses
// entries of batches by its own fault, and two of three workers are killed with -9; and that
// at the end nothing is left in the queue: nothing visible, in flight, delayed or dead.
//
//	go run ./integration_test/sqsproof [-n 100000] [-peer fake|fauxqs] [-seed N]
//
// It starts a private PostgreSQL and an SQS: the strict fake of this project, served over
// HTTP, or fauxqs, which somebody else wrote, behind a proxy that makes the same faults. The
// proof, counted in the database and by the queue's own attributes, goes to stdout, the story
// to stderr. The exit status is 0 when the proof holds and 1 when it does not, or when there
// is none.
//
// The seed decides what is sent twice, which workers are killed, and when. It does not decide
// how the processes' steps interleave.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/oncemore-jobs/oncemore/examples/stage"
)

// An ordeal says how much is sent, and what goes wrong.
type ordeal struct {
	entities int
	twice    float64 // share of the entities that are sent twice, and of the messages that are handed out twice
	refused  float64 // share of the entries of batches
	workers  int
	kills    int // of workers; at least one survives
	peer     string
	seed     uint64
	stage    stage.Options
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		stage.Main(func(ctx context.Context) error { return work(ctx, os.Args[2]) })
		return
	}
	o := ordeal{twice: 0.1, refused: 0.05, workers: 3, kills: 2, stage: stage.Options{Own: true, Params: []string{"shared_buffers=256MB", "max_wal_size=4GB"}}}
	flag.IntVar(&o.entities, "n", 100_000, "entities, each of which is one message, or two")
	flag.StringVar(&o.peer, "peer", "fake", "the SQS: fake or fauxqs")
	stage.Ordeal(&o.seed, func(ctx context.Context) (*proof, error) {
		switch {
		case o.peer != "fake" && o.peer != "fauxqs":
			return nil, fmt.Errorf("-peer %q: it can be fake or fauxqs", o.peer)
		case o.entities < 1000:
			return nil, fmt.Errorf("-n %d: with less than 1000 it is over before the workers are killed", o.entities)
		}
		return o.undergo(ctx)
	})
}
