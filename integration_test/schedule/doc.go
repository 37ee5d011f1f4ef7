// Package schedule runs a few actors through the orders in which their steps can happen, and
// prints the order that broke.
//
// # The method
//
// It is stateless model checking: the real code runs against the real database, and what is
// enumerated is not its states but the choices of a scheduler. An actor is a goroutine that
// stops before each of its steps ([Actor.Park]) and goes on when the scheduler says so; one
// moves at a time. An order is the list of those choices, such as "abba". [Explore] plays
// one order to its end, always taking the first actor that can move, and notes at each
// choice which others could have; each of those is the beginning of another order, played
// later on a scene made anew. So every order is played once, nothing is kept but beginnings,
// and any order can be played again.
//
// An actor that waits for a lock of another one is found by asking the database, and the
// scheduler goes on with the others. When all that are left wait for each other, it waits
// for the database to break the deadlock.
//
// Two neighbouring steps that cannot notice each other (two reads, or a read and a change
// that is not committed) need to be played in one order only. What need not be played again
// is remembered as a sleep set: an actor whose next step was tried at a choice sleeps in
// the other branches of that choice, until somebody takes a step that it does not commute
// with ([Kind]).
//
// The tests play programs that are made of the calls to the ledger and the queue that a
// worker makes, at two sizes of step. Coarse: a step is one such call, mostly one
// transaction. Fine: a step is one SQL statement of the unmodified code, or a COMMIT; a
// proxy on the wire holds what the client sends and forwards it statement by statement.
// After every step what is committed is looked at, and after every order the whole: per
// epoch one completion, nothing lost, who lost a fence changed nothing, effects as their
// class allows.
//
// The idea is from VeriSoft (Godefroid, POPL 1997: systematic search without storing states;
// sleep sets are from his thesis), and lives in Loom for Rust, Coyote for .NET and others. What
// those do to memory accesses is done here to what reaches the database.
//
// # Playing an order again
//
// A failing order is printed as a table, with the line that plays it again:
//
//	ONCEMORE_ORDER='fine: claim | claim: aabbab' go test -run TestOrders ./integration_test/schedule
package schedule
