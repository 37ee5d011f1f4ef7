# What needs a server installs what it misses; `make setup` alone does only that.

.DEFAULT_GOAL = help
.PHONY: help setup demo examples proof-backfill proof-http proof-sqs test test-full test-containers test-all mutants fuzz soak lint bench

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: ## install what the demo, the examples and the tests miss (as root on Debian)
	@.ci/setup

demo: ## 1,000 invitations, an outage, a kill -9, and one of each delivered (QUEUE=sqs, ARGS='-o json')
	@.ci/setup $(if $(QUEUE),,postgres)
	@go run ./cmd/oncemore demo $(if $(QUEUE),--queue $(QUEUE)) $(ARGS)

examples: setup ## play all examples, and end with a table of what they prove (EXAMPLES='signup counter' for some)
	@go run ./examples/all $(EXAMPLES)

test: setup ## all tests, with the race detector, on a real PostgreSQL
	TEST_REQUIRE=1 go test -race -count=1 -timeout 12m ./...

test-full: setup ## all tests in full: every case of the matrix, the orders and the model (ONCEMORE_SEED=n)
	TEST_REQUIRE=1 ONCEMORE_FULL=1 go test -race -count=1 -timeout 120m $$(go list ./... | grep -v /mutants)

test-containers: setup ## the contract of the queues and the invariants, on PostgreSQL 17 and SQS in containers
	@integration_test/containers/run

test-all: setup ## all tests on PostgreSQL 15 (or what is installed) and 18 (there without standbys), most packages on 17
	@.ci/test-all

mutants: setup ## take the guarantees out one by one: a test must fail for each (MUTANT=word)
	TEST_REQUIRE=1 ONCEMORE_FULL=1 go test -count=1 -v -timeout 60m ./integration_test/mutants

fuzz: ## random input for everything that is decoded (FUZZ=20s for each)
	@for t in jobs:FuzzDecode jobs:FuzzEqualArgumentsHaveOneFingerprint jobs:FuzzTheKeyTellsItsParts \
		queue:FuzzCheckNameTakesExactlyWhatCanBeAKey queue:FuzzCheckTakesExactlyWhatIsWithinTheLimits \
		queue/pgqueue:FuzzDecodeItems queue/pgqueue:FuzzAReceiptIsReadAsItWasWrittenAndNothingElseNamesALock \
		queue/pgqueue:FuzzARowIsTheSameDeliveryInBothFormats queue/pgqueue:FuzzAMessageArrivesAsItWasSent \
		queue/sqsqueue:FuzzABodyIsReadAsItWasWritten queue/sqsqueue:FuzzAnyBodyIsReadAsJSONReadsIt \
		ledger:FuzzSanitizeMakesTextThatPostgresTakes ledger/ledgerhttp:FuzzTheKeyTheScopeAndTheBodyAreNeverA500 \
		ledger/ledgerhttp:FuzzTheStatusPageIsNeverA500 jobs/cron:FuzzASpecIsRefusedOrComesLaterAndLater; do \
		go test ./$${t%%:*} -run '^$$' -fuzz "^$${t##*:}\$$" -fuzztime $(or $(FUZZ),20s) -parallel 2 || exit 1; done

soak: setup ## kill, freeze and cut off workers for a while (SOAK=10m), then count what was lost or doubled
	@go run ./integration_test/soak -for $(or $(SOAK),10m) $(ARGS)

proof-backfill: setup ## a million rows of a live table, through kills, pauses, a held snapshot and a lagging standby: each once (SEED=n)
	@go run ./integration_test/backfill $(if $(SEED),-seed $(SEED)) $(ARGS)

proof-http: setup ## 50,000 requests, most of them again, over connections that break, to servers that are killed: one effect each (SEED=n)
	@go run ./integration_test/httpproof $(if $(SEED),-seed $(SEED)) $(ARGS)

proof-sqs: setup ## 100,000 messages over SQS, some of them doubled, through refusals and two kill -9: one fact each (SEED=n, ARGS='-peer fauxqs')
	@go run ./integration_test/sqsproof $(if $(SEED),-seed $(SEED)) $(ARGS)

lint: ## gofmt, vet, staticcheck, govulncheck
	@.ci/lint

bench: setup ## measure beside the peer (BENCH=T2 for one, ARGS='-o json')
	@cd integration_test/bench && go run . $(if $(BENCH),-bench $(BENCH)) $(ARGS)
