package ledgerhttp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A Config is what all operations of a [Keys] have in common.
type Config struct {
	// Scope returns who calls: the identity that the request was authenticated as, never the
	// credential itself. Two callers may use the same key, and do not see each other's answers.
	// An error refuses the request: with 503 if it wraps [ErrUnavailable], else with 401. It is
	// logged, so it must not hold the credential either. Required; an API without callers returns "".
	Scope func(*http.Request) (string, error)

	// Challenge is the WWW-Authenticate of a 401, which RFC 9110 demands: "Bearer", say. Empty: that
	// of a middleware before this one, or none.
	Challenge string

	// Status is the path, or the whole address, where the app has mounted [Keys.Status].
	Status string

	Docs  string        // the address of the API's documentation of keys, to which problems point; empty: [Docs]
	Name  string        // of this process, in the list of workers; empty: the host's
	Lease time.Duration // of this process, for operations with an outside effect; 0: ledger.DefaultLease
	Log   *slog.Logger  // nil: slog.Default()
}

// Keys guards handlers. It is safe for concurrent use.
type Keys struct {
	pool   *pgxpool.Pool
	ledger *ledger.Ledger
	config Config
	log    *slog.Logger

	stop    context.CancelFunc // of the loop that tidies up
	stopped chan struct{}
	stretch int64 // of the table of answers, that the loop looks at next

	joining chan struct{} // full while somebody takes a lease

	mu      sync.Mutex // owns what follows
	closing bool
	running sync.WaitGroup // requests; added to only while not closing
	lease   *ledger.Lease  // nil: none yet
	hands   map[hand]bool

	operations map[string]*guarded // by their names, the earlier ones too
}

// ErrUnavailable is what an error of [Config].Scope wraps when who calls cannot be found out now:
// the caller may well be known, and is to send the request again.
var ErrUnavailable = errors.New("who calls cannot be found out now")

var errClosing = errors.New("the server is shutting down")

// New returns Keys on the database of pool, whose schema must be current (see package
// migrations). Until [Keys.Close] it looks once a minute for expired answers, in a part of them, and for what
// processes that died left behind, and deletes that.
func New(pool *pgxpool.Pool, c Config) (*Keys, error) {
	if c.Scope == nil {
		return nil, errors.New("ledgerhttp: Config.Scope is missing: a key belongs to a caller, so say whose a request is")
	}
	if c.Name == "" {
		c.Name, _ = os.Hostname() // it only helps whoever reads the list
	}
	c.Docs = cmp.Or(c.Docs, Docs)
	k := &Keys{pool: pool, ledger: ledger.New(pool), config: c, log: c.Log, hands: map[hand]bool{}, operations: map[string]*guarded{}, joining: make(chan struct{}, 1), stopped: make(chan struct{}), stretch: rand.Int64N(1 << 20)}
	if k.log == nil {
		k.log = slog.Default()
	}
	var ctx context.Context
	ctx, k.stop = context.WithCancel(context.Background())
	go k.keepTidy(ctx)
	return k, nil
}

// Guard returns next behind o: requests that were done are answered with what they were
// answered, and do not reach it. It registers the operation, so it needs the database. An
// operation with an outside effect is claimed by this process's lease, which the first such
// Guard takes.
//
// Behind it next gets a request whose body is in memory. If it has a key, its context does not end
// when the client goes away: who sends it again finds what came of it. Without one
// ([Operation].Optional) it does, since nobody would find it.
func (k *Keys) Guard(ctx context.Context, o Operation, next http.Handler) (http.Handler, error) {
	if o.Status == nil && k.config.Status != "" {
		o.Status = k.statusOf(o.Name)
	}
	if err := o.finish(); err != nil {
		return nil, fmt.Errorf("guard %s: %w", o.Name, err)
	}
	g := &guarded{Keys: k, op: o, next: next, kind: ledger.Type{Name: o.Name, Effect: o.Effect, Timeout: o.Timeout, Checked: o.Check != nil, Requests: true}}
	g.keyType = ledger.FirstName(o.Name, o.Aliases)
	if err := k.ledger.Declare(ctx, &g.kind, "", o.Aliases...); err != nil {
		return nil, fmt.Errorf("guard %s: %w", o.Name, err)
	}
	if g.try = g.outside; o.Effect == ledger.InTransaction {
		g.try = g.inTransaction
		// It is not asked for each request whether there is a claim, so there must be none. Programs of
		// before make new ones, so this finds a mistake, and does not make it safe: see Operation.Effect.
		for _, err := range k.ledger.Opens(ctx, &g.kind, ledger.NoTrouble, "", 1) {
			if err == nil {
				err = errors.New("requests are open from when its effect was outside, which nobody would look at: an effect that comes into the transaction makes another operation, with another Name and another route; keep this one at its route")
			}
			return nil, fmt.Errorf("guard %s: %w", o.Name, err)
		}
	} else if _, err := k.living(ctx); err != nil {
		return nil, fmt.Errorf("guard %s: %w", o.Name, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, name := range append([]string{o.Name}, o.Aliases...) {
		k.operations[name] = g
	}
	return g, nil
}

// Close lets go of the database: call it when http.Server.Shutdown has returned. Requests
// that come later are refused with 503. It waits for those that are being worked until ctx
// ends, and then leaves the lease: what is claimed still is left to its effect class.
func (k *Keys) Close(ctx context.Context) error {
	k.mu.Lock()
	k.closing = true
	lease := k.lease
	k.mu.Unlock()
	k.stop()
	<-k.stopped
	quiet := make(chan struct{})
	go func() { k.running.Wait(); close(quiet) }()
	var err error
	select {
	case <-quiet:
	case <-ctx.Done():
		err = fmt.Errorf("close: requests are still being worked: %w", context.Cause(ctx))
	}
	if lease != nil {
		err = errors.Join(err, leave(ctx, lease))
	}
	return err
}

// enter counts a request in, unless we are closing.
func (k *Keys) enter() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing {
		return false
	}
	k.running.Add(1)
	return true
}
