package ledgerhttp

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// Ongoing says how a request is answered whose twin is being worked on still.
type Ongoing byte

const (
	Conflict          Ongoing = iota // 409, with Retry-After
	SeeOther                         // 303 to Operation.Status: the client is to GET it
	TemporaryRedirect                // 307 to Operation.Status: the client is to send the same request there
)

// An Operation is what a guarded handler does, and how requests for it are treated. Its
// zero values are sensible, but for Name.
type Operation struct {
	// Name is the method and route pattern, as given to http.ServeMux: "POST /orders". It is
	// the job type's name in the ledger, and part of every key, so it is for ever: a renamed
	// operation lists its earlier names as Aliases, the oldest first, and keeps its facts. Effect
	// keys are made of the first.
	Name    string
	Aliases []string

	// Effect is the class of the handler's effect. Zero: the effect is in our Postgres, written
	// through [Tx]. Else it is outside, and the class says what a crash may mean. What moves from
	// outside into the transaction, or back, is another operation, with another Name and another route,
	// beside this one: while a fleet is being replaced the two would not see each other's requests.
	// (Under a new Name nothing is known of what was done under the old one. So the old route stays
	// guarded by the old one: what is sent again there must not be done again.)
	Effect ledger.Effect

	// Check asks the world whether the effect of a request happened, of which an earlier attempt
	// did not say; the request is that of a retry. If it did, Check writes the answer that the
	// handler would have written. An error means that it cannot tell. Required for
	// ledger.Verifiable, and of use for ledger.Keyed past its horizon.
	Check func(w http.ResponseWriter, r *http.Request) (done bool, err error)

	// Optional lets requests without a key through: the handler runs, and nothing is remembered.
	// [Tx] is there for them too. Else they are refused with 400.
	Optional bool

	// CheckKey refuses keys that do not have the form that the API has published. nil: any key
	// of 1 to 255 visible characters will do.
	CheckKey func(key string) error

	// Store tells whether an answer is final: it is kept, and the request is not worked again.
	// nil: all below 500, but 429. Those below 400 are always stored, and it is not asked about
	// them: what a client was told has happened is not undone. A status of 500 and above that is
	// stored is, for an operation in transaction, committed without what the handler wrote, as
	// 4xx are.
	Store func(status int) bool

	// Headers are those of an answer that are kept with it. nil: [KeptHeaders]. Set-Cookie is
	// not among them: an answer is shown again to whoever has the caller's identity. What was
	// set before the handler is not kept, but for Content-Type, see the package's comment.
	Headers []string

	// Fingerprint is what two requests under one key must agree in, by a rule with a number: a
	// later rule is not compared with what an earlier one made. nil: method, path, query and
	// body, byte by byte.
	Fingerprint *Fingerprint

	Wait       time.Duration // how long a request waits for its twin to end, before Ongoing; 0: not at all
	Ongoing    Ongoing
	Status     func(r *http.Request, key string) string // the URL for SeeOther and TemporaryRedirect; nil: that of Config.Status
	RetryAfter time.Duration                            // what is said with 409 and 503, in whole seconds; 0: 1 s

	Timeout     time.Duration // of the handler; 0: 30 s
	TTL         time.Duration // of stored answers, not of facts; 0: 24 h; negative: 100 years
	MaxRequest  int64         // bytes of a body; 0: 1 MiB
	MaxResponse int           // bytes of a body; 0: 1 MiB
}

// KeptHeaders are the headers of an answer that are stored with it, unless
// [Operation].Headers says otherwise.
var KeptHeaders = []string{"Content-Type", "Content-Encoding", "Content-Language", "Content-Disposition", "Content-Location",
	"Etag", "Last-Modified", "Link", "Location", "Retry-After", "Vary"}

// finish checks o and puts in what was left out.
func (o *Operation) finish() error {
	inTx := o.Effect == ledger.Effect{} || o.Effect == ledger.InTransaction
	switch {
	case o.Name == "":
		return errors.New("it needs a Name, as \"POST /orders\"")
	case !inTx && !o.Effect.Valid():
		return fmt.Errorf("the effect class %s is not valid: its duration is not", o.Effect)
	case o.Effect.NeedsCheck() && o.Check == nil:
		return errors.New("ledger.Verifiable needs a Check that asks the world whether the effect happened")
	case o.Ongoing > TemporaryRedirect:
		return fmt.Errorf("unknown Ongoing %d", o.Ongoing)
	case o.Ongoing != Conflict && o.Status == nil:
		return errors.New("a redirect needs a Status, the URL to go to, or that of Config.Status")
	case o.Wait < 0 || o.RetryAfter < 0 || o.Timeout < 0 || o.MaxRequest < 0 || o.MaxResponse < 0:
		return errors.New("a bound is negative")
	case o.Fingerprint != nil && (o.Fingerprint.Rule < 1 || o.Fingerprint.Rule > 99 || o.Fingerprint.Of == nil):
		return errors.New("a Fingerprint needs a Rule of 1 to 99, and Of")
	}
	if inTx {
		o.Effect = ledger.InTransaction
	}
	if o.CheckKey == nil {
		o.CheckKey = func(string) error { return nil }
	}
	final := o.Store
	if final == nil {
		final = func(status int) bool { return status < 500 && status != http.StatusTooManyRequests }
	}
	o.Store = func(status int) bool { return status < http.StatusBadRequest || final(status) }
	if o.Headers == nil {
		o.Headers = KeptHeaders
	}
	o.Headers = slices.Clone(o.Headers)
	for i, h := range o.Headers {
		o.Headers[i] = http.CanonicalHeaderKey(h)
	}
	if o.Fingerprint == nil {
		o.Fingerprint = &wholeRequest
	}
	o.RetryAfter = cmp.Or(o.RetryAfter, time.Second)
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	o.MaxRequest = cmp.Or(o.MaxRequest, 1<<20)
	o.MaxResponse = cmp.Or(o.MaxResponse, 1<<20)
	o.TTL = cmp.Or(o.TTL, 24*time.Hour)
	if o.TTL < 0 {
		o.TTL = 100 * 365 * 24 * time.Hour
	}
	return nil
}
