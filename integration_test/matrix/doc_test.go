// Package matrix makes every write of the project fail, in every way and in every kind of
// work, and then looks whether the invariants hold.
//
// A scenario is run once undisturbed, with a worker behind a [pgproxy.Proxy] that lists
// what the worker writes. Then, for each write and each fault, it is run anew in a
// database of its own, where that fault befalls that write:
//
//	lost             the connection is cut before the server has the write
//	reported lost    it is cut when the server has done the write, before the worker hears of it
//	slow             the write arrives after a lease and a visibility timeout have passed
//	cut off          from this write on nothing passes for longer than the lease, so that others take over
//	killed before    the worker's process gets kill -9 before the server has the write
//	killed after     it gets it when the server has done the write
//
// A case ends when everything is settled; then the database, and a log of effects that was
// written over other connections, must show what the invariants promise (check_test.go).
// The name of a case says all of it, so that one can be run again:
//
//	go test ./integration_test/matrix -run 'TestMatrix/pack/once/fact:_complete_a_claim_#2/reported_lost'
//
// By default a sample is run that has every kind of fault in every shape of work; its seed
// is printed, and ONCEMORE_SEED replays it. ONCEMORE_FULL=1, or a -run that names a shape,
// runs everything.
package matrix_test
