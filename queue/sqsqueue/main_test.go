package sqsqueue_test

import (
	"flag"
	"os"
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
