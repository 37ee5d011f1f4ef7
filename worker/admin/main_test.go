package admin_test

import (
	"os"
	"testing"

	"github.com/oncemore-jobs/oncemore/integration_test/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
