module github.com/oncemore-jobs/oncemore/integration_test/bench
