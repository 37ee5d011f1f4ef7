# Every target installs what it misses; `make setup` alone does only that.

.DEFAULT_GOAL = help
.PHONY: help setup demo test lint bench

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## install the PostgreSQL server binaries, if there are none
	@.ci/setup

demo: setup ## 1,000 invitations, an outage, a kill -9, and one of each delivered (ARGS='-o json')
	@go run ./cmd/oncemore demo $(ARGS)

test: setup ## all tests, with the race detector, on a real PostgreSQL
	TEST_REQUIRE=1 go test -race -count=1 -timeout 12m ./...

lint: ## gofmt, vet, staticcheck, govulncheck
	@.ci/lint

bench: setup ## measure beside the peer (BENCH=T2 for one, ARGS='-o json')
	@cd integration_test/bench && go run . $(if $(BENCH),-bench $(BENCH)) $(ARGS)
