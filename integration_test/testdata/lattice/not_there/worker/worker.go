package worker

import _ "github.com/oncemore-jobs/oncemore/queue/rabbitqueue"
