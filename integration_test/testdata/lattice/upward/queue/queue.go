package queue

import _ "github.com/oncemore-jobs/oncemore/jobs"
