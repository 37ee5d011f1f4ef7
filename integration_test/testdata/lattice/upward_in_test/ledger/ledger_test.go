package ledger_test

import _ "github.com/oncemore-jobs/oncemore/worker"
