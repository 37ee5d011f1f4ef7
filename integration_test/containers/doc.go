// Package containers runs the tests of the queues and of the invariants on servers that are
// not this machine's: the images of PostgreSQL 17 and of ElasticMQ, in containers. It is a
// module of its own, since testcontainers brings fifty others.
//
// `make test-containers` runs it by way of the script `run`, which sees to an engine and the
// images: without a registry it builds stand-ins from packages of Debian and npm. `go test`
// alone works as well where an engine runs. Without one the tests are skipped; TEST_REQUIRE=1
// makes that a failure.
package containers
