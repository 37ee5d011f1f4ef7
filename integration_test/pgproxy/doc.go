// Package pgproxy stands between a process and PostgreSQL and makes the network, or the
// process, fail at a statement that a test chooses.
//
// The seam for faults is the wire: the code that runs in production has no hooks for tests,
// and no write can be forgotten, since what nobody thought of still passes here. The
// statements of the project that write begin with their name in a comment, such as
// "/* claim: take over */", so a test can say which one it means, and can fail when
// one goes by without a name.
//
//	proxy, err := pgproxy.Start(dsn)      // one for each process that shall fail by itself
//	pool, err := pgxpool.New(ctx, proxy.DSN())
//	proxy.Decide(func(b *pgproxy.Batch) pgproxy.Fault {
//		if b.Has("claim: insert") {
//			return pgproxy.ReportedLost
//		}
//		return pgproxy.Pass
//	})
//
// A client sends statements in batches, each up to a Sync (or one simple Query), and the
// server answers each batch with one ReadyForQuery at its end. The proxy holds a batch
// back until it is whole, asks, and forwards it whole or not at all ([Torn] excepted). So
// between the answers to two batches there are just two places where something can break:
// before the server has it ([Lost], [KillBefore]) and after the server has done it
// ([ReportedLost], [KillAfter]). To the client the two look alike.
//
// Besides faults at statements there are those of a network: [Proxy.CutAll],
// [Proxy.Pause] and [Random].
//
// The proxy speaks plain TCP on 127.0.0.1 and passes authentication through as it is. It
// makes no TLS on either side, so a server that insists on it cannot be tested this way.
package pgproxy
