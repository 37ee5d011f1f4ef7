package pgqueue

import _ "github.com/oncemore-jobs/oncemore/integration_test/pgtest"
