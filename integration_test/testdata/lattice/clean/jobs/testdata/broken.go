package jobs

import _ "github.com/oncemore-jobs/oncemore/worker"
