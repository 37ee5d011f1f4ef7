package pgqueue_test

import _ "github.com/oncemore-jobs/oncemore/integration_test/pgtest"
