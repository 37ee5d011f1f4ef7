// Package plan tells which entities a re-run is to work, and why each of them.
//
// A [Selection] says what is asked for. A [Survey] goes over what the job type's source
// names and over what is open of it, lets the server sieve out what is done, and asks
// [ledger.Decide] about the rest: the same function, with the same facts and claims, that
// the worker asks when the work reaches it. A preview is a survey whose findings are
// shown, a plan is one whose findings are sealed.
package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A Selection says which entities of a job type are asked for. The zero Selection is
// everything that a call of all of them would do: what is missing, what is stale, and
// what dead workers left.
type Selection struct {
	// Reasons are those to pick: Missing, StaleVersion, StaleSource and Retry (due, or left
	// by a dead worker: stranded) by default. Failed gives what has failed all its attempts
	// anew. InDoubt is a verdict: whoever picks it says that the effect did not happen.
	Reasons []ledger.Reason `json:"reasons,omitempty"`

	// Force picks what is done as well, under a new epoch: facts are replaced, and kept in
	// the history. What a living worker has, and what is in doubt, is left alone.
	Force bool `json:"force,omitempty"`

	Entities []string  `json:"entities,omitempty"` // only these; empty: all
	Prefix   string    `json:"prefix,omitempty"`   // only those that begin so
	Class    string    `json:"class,omitempty"`    // only what failed with an error of this class
	Since    time.Time `json:"since,omitzero"`     // only what got into its state from then on: was completed (with Force), failed, came into doubt
	Until    time.Time `json:"until,omitzero"`     // and before then
	Limit    int64     `json:"limit,omitempty"`    // the first so many; 0: all
}

// Usual are the reasons of a Selection that names none: all that runs by itself.
var Usual = []ledger.Reason{ledger.Missing, ledger.Retry, ledger.StaleVersion, ledger.StaleSource}

var pickable = append(slices.Clone(Usual), ledger.Failed, ledger.InDoubt)

// Check returns the first thing that is wrong with s, in words for its author.
func (s *Selection) Check() error {
	for _, r := range s.Reasons {
		if !slices.Contains(pickable, r) {
			return fmt.Errorf("nothing can be selected by the reason %q; there are: %s", r, join(pickable))
		}
	}
	switch {
	case s.Limit < 0:
		return errors.New("the limit of a selection must not be negative")
	case s.Force && len(s.Reasons) > 0:
		return errors.New("a forced selection takes whatever its source names: reasons cannot be given with it")
	case s.Force && s.Class != "":
		return errors.New("a forced selection goes over what the source names, which has no class of errors")
	case !s.Since.IsZero() && !s.Until.IsZero() && !s.Since.Before(s.Until):
		return errors.New("a selection's window ends before it begins")
	}
	return nil
}

// reasons that are picked.
func (s *Selection) reasons() []ledger.Reason {
	switch {
	case s.Force:
		return []ledger.Reason{ledger.Forced, ledger.Missing, ledger.Retry, ledger.StaleVersion, ledger.StaleSource}
	case len(s.Reasons) > 0:
		return s.Reasons
	}
	return Usual
}

// Picks tells whether s asks for what has this reason.
func (s *Selection) Picks(r ledger.Reason) bool { return slices.Contains(s.reasons(), r) }

// sourced tells whether the source is to be asked: what is missing has neither an error
// nor a time.
func (s *Selection) sourced() bool {
	if s.Force {
		return true
	}
	return (s.Picks(ledger.Missing) || s.Picks(ledger.StaleVersion) || s.Picks(ledger.StaleSource)) && s.Class == "" && s.Since.IsZero() && s.Until.IsZero()
}

// Key is the same for selections that ask for the same, in whichever order.
func (s Selection) Key() string {
	s.Reasons, s.Entities = slices.Clone(s.reasons()), slices.Clone(s.Entities)
	slices.Sort(s.Reasons)
	slices.Sort(s.Entities)
	s.Reasons, s.Entities = slices.Compact(s.Reasons), slices.Compact(s.Entities)
	s.Since, s.Until = s.Since.UTC(), s.Until.UTC()
	raw, _ := json.Marshal(s)
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:10])
}

// String tells what s asks for.
func (s Selection) String() string {
	words := []string{join(s.reasons())}
	if s.Force {
		words = []string{"everything, forced"}
	}
	if n := len(s.Entities); n > 0 {
		words = append(words, fmt.Sprintf("of %d named", n))
	}
	if s.Prefix != "" {
		words = append(words, "prefix "+s.Prefix)
	}
	if s.Class != "" {
		words = append(words, "class "+s.Class)
	}
	if !s.Since.IsZero() {
		words = append(words, "since "+s.Since.UTC().Format(time.RFC3339))
	}
	if !s.Until.IsZero() {
		words = append(words, "until "+s.Until.UTC().Format(time.RFC3339))
	}
	if s.Limit > 0 {
		words = append(words, fmt.Sprintf("at most %d", s.Limit))
	}
	return strings.Join(words, ", ")
}

func join(rs []ledger.Reason) string {
	words := make([]string, len(rs))
	for i, r := range rs {
		words[i] = strings.ReplaceAll(string(r), "_", " ")
	}
	return strings.Join(words, ", ")
}
