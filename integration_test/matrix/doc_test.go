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
// The same work is played over three carriers ([carrier]): with its messages in Postgres, in
// SQS, and in a FIFO queue of SQS. Of SQS each send, receive, delete, extension and release
// can be struck in the same ways, at all tries that the SDK makes of it; and besides
//
//	refused in part   SQS refuses entries of the batch, and those of what is tried again
//	handed out twice  what the receive brings stays visible to others
//
// A case ends when everything is settled; then the database, and a log of effects that was
// written over other connections, must show what the invariants promise (check_test.go).
// The name of a case says all of it, so that one can be run again:
//
//	go test ./integration_test/matrix -run 'TestMatrix/pack/once/fact:_complete_a_claim_#2/reported_lost'
//	go test ./integration_test/matrix -run 'TestMatrixOverSQS/pack/once/sqs:_delete_#1/killed_after'
//
// By default a sample is run that has every kind of fault in every shape of work; its seed
// is printed, and ONCEMORE_SEED replays it. ONCEMORE_FULL=1, or a -run that names a shape,
// runs everything.
package matrix_test
