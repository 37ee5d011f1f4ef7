package sqsqueue_test

import (
	"flag"
	"os"
	"sync"
	"testing"
)

// The tests that are parallel wait for time to pass and need no processor, so many of them
// may run at once.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.fuzz").Value.String() == "" {
		_ = flag.Set("test.parallel", "24")
	}
	os.Exit(m.Run())
}

// beside has a test that needs the processor run beside those that wait for time to pass: one
// of them at a time, so that the others are not late.
func beside(t *testing.T) {
	t.Parallel()
	busy.Lock()
	t.Cleanup(busy.Unlock)
}

var busy sync.Mutex
