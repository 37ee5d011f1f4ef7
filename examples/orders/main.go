// Command orders takes orders from cart to ordered to paid to shipped, over HTTP, while four
// clients race for each of these transitions: they retry, lose answers, send everything twice,
// and the servers are killed. Each order goes each way once, and is paid once.
//
//	go run ./examples/orders
package main

import (
	"context"
	"os"

	"github.com/oncemore-jobs/oncemore/examples/stage"
	"github.com/oncemore-jobs/oncemore/worker"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "worker" { // of the play: a server that works the jobs as well
		stage.Main(func(context.Context) error {
			return stage.Work(os.Args[2], worker.Config{}, (&server{name: os.Args[2], provider: os.Args[3]}).open)
		})
		return
	}
	stage.Play(func(ctx context.Context) (*proof, error) { return tell(ctx, stage.Options{Out: os.Stdout}, 30) })
}
