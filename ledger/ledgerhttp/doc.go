// Package ledgerhttp makes requests safe to send again: net/http middleware for the
// Idempotency-Key header, on the ledger.
//
// A request is named by its identity: the operation that it asks for (a method and a route
// pattern, registered as a job type), the scope that the app derives from the caller, and
// the key that the caller made up. That it was done is a fact of package ledger, for ever.
// What it was answered is a row beside the fact, written in the same transaction, and may
// expire:
//
//	response(job_type, entity, epoch, status, headers, body, expires_at)
//
// The sentence that always holds: per identity at most one answer is stored, together with
// the fact, and whoever sends the request again gets that answer.
//
// # Two ways to be once
//
// An operation whose effect is in our Postgres writes it through [Tx], and has no
// [Operation].Effect. The fact is inserted first and is the lock; the handler runs; its
// writes, the jobs that it enqueued through the transaction, the fact and the answer commit
// together or not at all. There is no claim, no lease, and no background work to rely on.
//
// An operation with an effect outside declares what a crash may mean, as a job does: an
// [Operation].Effect. Its request is claimed, durably, before the handler runs, by this
// process's lease; its answer is recorded by the claim's fence. The handler hands
// [EffectKey] to a provider that knows repeats by a key.
//
// # What becomes of a request
//
//	                               in transaction                   outside effect
//
//	status below 400               committed with the answer        recorded with the answer
//	4xx but 429                    the writes are rolled back,      recorded with the answer
//	                               the answer alone is stored
//	5xx, 429                       rolled back, nothing is stored:  the effect class says, see below; 429 says
//	                               the next request runs            that nothing was done: the next request runs
//	panic                          rolled back, nothing is stored;  as 5xx; the panic goes on
//	                               the panic goes on to the server
//	client disconnects             the handler goes on to its end, bounded by Timeout; the next request is
//	                               answered with what it wrote
//	the handler runs into Timeout  what it returns counts; its transaction fails, so mostly: rolled back
//	it then returns silently       503, nothing is stored: it was cut off
//	shutdown                       http.Server.Shutdown waits for the handler; Close waits too, then leaves what
//	                               is left to the effect class
//	the process is killed          Postgres rolls back; the next     its lease lapses, it is declared dead; the
//	                               request runs                     effect class says
//	killed after the commit        the next request is answered with what was stored
//	the reply to COMMIT is lost    the fact tells; where it cannot be read: 503, and the next request finds out
//	COMMIT is refused              500, as it would be again; 503 if it may pass by itself, as conflicts do
//	the lease is lost              nothing: there is none           the handler's context ends; what it did is
//	                                                                recorded if its fence still holds, else disputed
//	the answer is too long         500, rolled back                 500, stored: the effect is not to be repeated;
//	                                                                but as 5xx where its status is not stored
//	the answer is streamed         Flush and Hijack are not there: [net/http.ResponseController] returns
//	                               [net/http.ErrNotSupported], and nothing leaves before it is stored
//	the answer has trailers        those that it declares are dropped: an answer is shown again without them
//
// After an attempt with an outside effect whose outcome is unknown the next request with the
// key runs again (ledger.Repeatable; ledger.Keyed inside the horizon), asks [Operation].Check
// (ledger.Verifiable; ledger.Keyed past it) or is told that the outcome is unknown
// (ledger.Once), until an operator resolves it (ledger.Resolve). [NotApplied] says in a
// handler that the effect surely did not happen; then the next request runs.
//
// [Keys.Status] tells who sent a request what became of it.
//
// A [Keys] has a place in front of the handler and behind whatever authenticates: who is
// refused there leaves no trace here.
//
// # Headers
//
// A handler finds the headers that the middleware before this one has set, and adds to them,
// replaces them or removes them, as it would without a guard between. Of its answer those that
// [Operation].Headers names are stored, without the values that were there before: that middleware
// meets the request when it is sent again, too, and says what holds then. Only Content-Type is stored
// whoever set it, for it says what the stored body is. An answer that is shown again puts its
// headers in place of what was set before it; Link, Set-Cookie and Vary, which are lists, it adds to.
package ledgerhttp
