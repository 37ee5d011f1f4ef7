package ledger

import _ "github.com/oncemore-jobs/oncemore/queue"
