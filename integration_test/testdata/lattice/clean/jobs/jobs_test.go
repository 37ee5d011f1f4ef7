package jobs_test

import _ "github.com/oncemore-jobs/oncemore/jobs"
