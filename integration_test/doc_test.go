// Package integration_test holds what no single package can promise alone: the
// invariants on a real PostgreSQL, with processes that are killed, and the rule
// of who may import whom.
//
// It is of tests only. What needs heavy dependencies (peers to compare with,
// containers, a browser) lies in nested modules below this folder, so that no
// user's go.sum carries them.
package integration_test

import (
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }
